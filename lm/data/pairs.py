"""Pairs of a source and a target: their stores, and batches in which pairs of like length lie side by side.

A pair is in the bucket of the longer of its sides, each with its eos, and both sides are padded to that bucket's length.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lm.data.buckets import Plan, assign
from lm.data.sources import Document
from lm.data.store import TokenStore
from lm.errors import DataError


class PairStore(NamedTuple):
    """Sources and targets with the same documents in the same order."""

    source: TokenStore
    target: TokenStore

    @staticmethod
    def from_documents(documents: Iterable[Document], source_tokenizer, tokenizer) -> "PairStore":
        """A store in memory of documents with sources. Raises DataError when there are none, or one without a source."""
        documents = list(documents)
        if any(document.source is None for document in documents):
            raise DataError("these are texts, and pairs are needed: give lines of SOURCE, a tab and TARGET, or set data.source_field")
        sources = [(document.id, document.source) for document in documents]
        return PairStore(TokenStore.from_documents(sources, source_tokenizer), TokenStore.from_documents(documents, tokenizer))

    @property
    def num_pairs(self) -> int:
        """How many there are."""
        return self.target.num_documents

    def sizes(self) -> np.ndarray:
        """int64 [n]: tokens of the longer side of each pair, eos included."""
        return np.maximum(np.diff(self.source.offsets), np.diff(self.target.offsets))


class PairRows(NamedTuple):
    """B pairs, a row each, padded on the right with 0; a row whose pair is -1 is padding alone.

    source [B, S] and target [B, T]: tokens and then eos. source_lengths and target_lengths [B]: how many those are. pairs [B]: index
    of the pair, counted through the stores.
    """

    source: np.ndarray
    source_lengths: np.ndarray
    target: np.ndarray
    target_lengths: np.ndarray
    pairs: np.ndarray


def _located(stores: list[PairStore], pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(store, document in it) of `pairs`, which are counted through the stores."""
    ends = np.cumsum([store.num_pairs for store in stores])
    owners = np.searchsorted(ends, pairs, side="right")
    return owners, pairs - np.concatenate([[0], ends])[owners]


def read_pairs(stores: list[PairStore], pairs: np.ndarray, length: int) -> PairRows:
    """The rows of `pairs` [B], whose sides have at most `length` tokens, the length of the rows."""
    rows = PairRows(np.zeros((len(pairs), length), np.int32), np.zeros(len(pairs), np.int32),
                    np.zeros((len(pairs), length), np.int32), np.zeros(len(pairs), np.int32), np.asarray(pairs, np.int64))
    owners, documents = _located(stores, rows.pairs)
    for owner, store in enumerate(stores):
        places = np.flatnonzero((owners == owner) & (rows.pairs >= 0))
        for side, out, lengths in ((store.source, rows.source, rows.source_lengths), (store.target, rows.target, rows.target_lengths)):
            for place, tokens in zip(places, side.read_documents(documents[places]), strict=True):
                out[place, :len(tokens)] = tokens
                lengths[place] = len(tokens)
    return rows


@dataclasses.dataclass(frozen=True)
class PairData:
    """The training pairs of a run, in batches by length (see lm/data/buckets.py); `lengths` rise to the longest, the run's context.

    Pairs of several stores are taken together, each once an epoch; `left_out` of them are longer than the context.
    """

    stores: list[PairStore]
    lengths: tuple[int, ...]
    global_batch: int
    seed: int

    def __post_init__(self):
        if not self.plan.steps_per_epoch:
            raise DataError(f"all {len(self.plan.sizes)} training pairs are longer than data.context={self.context} tokens: raise it")

    @property
    def context(self) -> int:
        """Tokens of the longest rows."""
        return self.lengths[-1]

    @functools.cached_property
    def plan(self) -> Plan:
        """Which pairs are the batch of a step."""
        return Plan(np.concatenate([store.sizes() for store in self.stores]), self.lengths, self.global_batch, self.seed)

    @property
    def left_out(self) -> int:
        """How many pairs are not trained on, because a side is longer than the context."""
        return self.plan.left_out

    @functools.cached_property
    def tokens_per_step(self) -> float:
        """Targets of a batch, eos included and padding not, on average."""
        kept = self.plan.sizes <= self.context
        targets = np.concatenate([np.diff(store.target.offsets) for store in self.stores])
        return float(targets[kept].sum()) / self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every pair is seen once."""
        return self.plan.steps_per_epoch

    def _shape(self, bucket: int) -> tuple[int, int]:
        return self.plan.rows_of(bucket), self.lengths[bucket]

    def shape(self, step: int) -> tuple[int, int]:
        """(rows, tokens of a row) of the batch of a step."""
        return self._shape(self.plan.bucket(step))

    def shapes(self) -> dict[tuple[int, int], int]:
        """A step for each shape that batches have."""
        return {self._shape(bucket): step for bucket, step in self.plan.first_steps().items()}

    def batch(self, step: int, build: Callable[[PairRows, np.ndarray], dict], part: slice | np.ndarray = slice(None)) -> dict:
        """The batch of a step (counted from 0), or some of its rows, as `build` makes it from rows and the indices of their examples."""
        pairs = self.plan.examples(step)[part]
        examples = np.maximum(pairs, 0) + step // self.steps_per_epoch * len(self.plan.sizes)
        return build(read_pairs(self.stores, pairs, self.shape(step)[1]), examples)

    def located(self, step: int) -> list[tuple[int, int]]:
        """(store, document in it) of each row of the batch of a step but those of padding, which are the last."""
        pairs = self.plan.examples(step)
        owners, documents = _located(self.stores, pairs[pairs >= 0])
        return list(zip(owners.tolist(), documents.tolist(), strict=True))

    def documents(self, step: int) -> list[str]:
        """Ids of the pairs in the batch of a step, in the order of the rows."""
        return [self.stores[owner].target.document_id(document) for owner, document in self.located(step)]


def evaluation_rows(store: PairStore, rows: int, lengths: tuple[int, ...], stop: int | None = None) -> Iterator[PairRows]:
    """Of the first `stop` pairs (default: all) those that fit the longest of `lengths`, each once, the shortest first: batches of `rows`
    pairs, padded with rows of none.

    `PairRows.pairs` says which pair each row is. Batches have as many shapes as there are lengths.
    """
    sizes = store.sizes()[:stop]
    bucket = assign(sizes, lengths)
    for i, length in enumerate(lengths):
        members = np.flatnonzero(bucket == i)
        members = members[np.argsort(sizes[members], kind="stable")]
        for start in range(0, len(members), rows):
            pairs = members[start:start + rows]
            yield read_pairs([store], np.concatenate([pairs, np.full(rows - len(pairs), -1)]), length)


def too_long(store: PairStore, lengths: tuple[int, ...], stop: int | None = None) -> int:
    """How many pairs `evaluation_rows` leaves out."""
    return int(np.count_nonzero(store.sizes()[:stop] > lengths[-1]))
