"""Rows that hold one document each, such as a sentence: its tokens and eos, then padding."""

from collections.abc import Iterator

import numpy as np

from lm.data.feed import TrainingData
from lm.data.order import Order
from lm.data.packing import Rows
from lm.data.store import TokenStore
from lm.errors import DataError


def read_sentences(store: TokenStore, documents: np.ndarray, length: int) -> Rows:
    """A row of `length` targets for each of `documents` [B], -1 for a row of padding alone; what is longer is cut off, eos with it.

    The token before a row is 0: a document's first token has none before it but `bos`.
    """
    documents = np.asarray(documents, np.int64)
    tokens, sizes = np.zeros((len(documents), length + 1), np.int32), np.zeros(len(documents), np.int64)
    places = np.flatnonzero(documents >= 0)
    for place, found in zip(places, store.read_documents(documents[places]), strict=True):
        sizes[place] = len(found)
        tokens[place, 1 : 1 + len(found)] = found[:length]
    times = np.arange(length)
    real = times < sizes[:, None]
    return Rows(
        tokens=tokens,
        starts=real & (times == 0),
        segments=real.astype(np.int32),
        positions=np.where(real, times, 0).astype(np.int32),
        scored=real,
        documents=np.where(real, documents[:, None], -1),
    )


class SentenceData(TrainingData):
    """Rows of one document of at most `context` tokens, `global_batch` a step; every document once an epoch."""

    def __post_init__(self):
        for store in self.stores:
            if not store.num_documents:
                raise DataError("there are no documents to train on: give text that is not empty")

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a batch, padding apart, on average."""
        sizes = np.concatenate([np.minimum(np.diff(store.offsets), self.context) for store in self.stores])
        return float(sizes.mean()) * self.global_batch

    @property
    def left_out(self) -> int:
        """How many documents are longer than a row, which has their beginning alone."""
        return int(sum(np.count_nonzero(np.diff(store.offsets) > self.context) for store in self.stores))

    @property
    def order(self) -> Order:
        """Which document is which example."""
        return Order(tuple(store.num_documents for store in self.stores), self.weights, self.seed)

    def _read(self, store: TokenStore, rows: np.ndarray, examples: np.ndarray) -> Rows:
        return read_sentences(store, rows, self.context)

    def documents(self, step: int) -> list[str]:
        """Ids of the documents in the batch of a step, in the order of the rows, each once."""
        located = zip(*self.order.locate(np.arange(self.global_batch) + step * self.global_batch), strict=True)
        return list(dict.fromkeys(self.stores[source].document_id(int(document)) for source, document in located))


def fitting(store: TokenStore, length: int, stop: int | None = None) -> np.ndarray:
    """int64: those of the first `stop` documents (default: all) whose tokens, eos included, fit into rows of `length`."""
    return np.flatnonzero(np.diff(store.offsets[: None if stop is None else stop + 1]) <= length)


def evaluation_rows(store: TokenStore, documents: np.ndarray, rows: int, length: int) -> Iterator[Rows]:
    """All of `documents` [n], each once, in batches of `rows`; the last batch is filled with rows of padding."""
    for start in range(0, len(documents), rows):
        chosen = documents[start : start + rows]
        yield read_sentences(store, np.concatenate([chosen, np.full(rows - len(chosen), -1)]), length)
