"""The training data of a run: batches and their documents as pure functions of the step, and a feed that keeps devices busy."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax
import numpy as np

from lm.data.order import Order
from lm.data.packing import Rows, count_rows, read_rows
from lm.data.store import TokenStore
from lm.errors import DataError


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Rows of `context` tokens from some stores, `global_batch` a step."""

    stores: list[TokenStore]
    weights: tuple[float, ...]
    context: int
    global_batch: int
    seed: int

    def __post_init__(self):
        for store in self.stores:
            if store.num_tokens < self.context:
                raise DataError(f"the training text has {store.num_tokens} tokens, fewer than the {self.context} of one row: use more "
                                "text or a smaller data.context")

    left_out: ClassVar[int] = 0  # rows are cut, so that no text is too long for them

    @property
    def order(self) -> Order:
        """Which row is which example."""
        return Order(tuple(count_rows(store.num_tokens, self.context) for store in self.stores), self.weights, self.seed)

    @property
    def steps_per_epoch(self) -> float:
        """Steps until as many rows were seen as there are; with a mixture, over all sources together."""
        return sum(self.order.sizes) / self.global_batch

    def shape(self, step: int) -> tuple[int, int]:
        """(rows, tokens of a row) of the batch of a step."""
        return self.global_batch, self.context

    def shapes(self) -> dict[tuple[int, int], int]:
        """A step for each shape that batches have."""
        return {self.shape(0): 0}

    def rows(self, step: int, part: slice | np.ndarray = slice(None)) -> list[tuple[np.ndarray, Rows, np.ndarray]]:
        """(places in the batch, rows, indices of the examples) for each source in a part of the batch of a step (counted from 0)."""
        examples = (np.arange(self.global_batch) + step * self.global_batch)[part]
        sources, rows = self.order.locate(examples)
        pieces = []
        for source in np.unique(sources):
            places = np.flatnonzero(sources == source)
            pieces.append((places, self._read(self.stores[source], rows[places], examples[places]), examples[places]))
        return pieces

    def _read(self, store: TokenStore, rows: np.ndarray, examples: np.ndarray) -> Rows:
        """Some rows [B] of a store, which are the examples of these indices."""
        return read_rows(store, rows * self.context, self.context)

    def batch(self, step: int, build: Callable[[Rows, np.ndarray], dict], part: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """The batch of a step, or some of its rows, as `build` makes it from rows and the indices of their examples."""
        pieces = [(places, build(rows, examples)) for places, rows, examples in self.rows(step, part)]
        count = sum(len(places) for places, _ in pieces)
        batch = {}
        for key, like in pieces[0][1].items():
            batch[key] = np.empty((count, *like.shape[1:]), like.dtype)
            for places, piece in pieces:
                batch[key][places] = piece[key]
        return batch

    def documents(self, step: int) -> list[str]:
        """Ids of the documents in the batch of a step, in the order of the rows, each once."""
        names = []
        for source, row in zip(*self.order.locate(np.arange(self.global_batch) + step * self.global_batch), strict=True):
            store, start = self.stores[source], int(row) * self.context
            names += store.documents_in(start, min(start + self.context, store.num_tokens))
        return list(dict.fromkeys(names))


def local_rows(sharding, shape: tuple[int, int]) -> np.ndarray:
    """The rows of a batch [B, T] of which this process's devices hold a part, rising."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(shape[0])[rows] for rows, *_ in indices]))


class Feed:
    """Batches of steps first..last-1 on the devices, made by a thread a few steps ahead. Iterate once; `close` when done early.

    `make(step, rows)` makes some rows of the batch of a step, whose `shape(step)` is (rows, tokens of a row); each process makes those
    alone of which its devices hold a part.
    """

    def __init__(self, make: Callable[[int, np.ndarray], dict], first: int, last: int, sharding, shape: Callable, depth: int):
        self.waited = 0.0
        self._steps = range(first, last)
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._make, self._sharding, self._shape = make, sharding, shape
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)
        self._thread.start()

    def _put(self, step: int) -> dict[str, jax.Array]:
        count, _ = shape = self._shape(step)
        rows = local_rows(self._sharding, shape)

        def whole(local):
            def part(index):
                return local[np.searchsorted(rows, np.arange(count)[index[0]])][(slice(None), *index[1:])]

            return jax.make_array_from_callback((count, *local.shape[1:]), self._sharding, part)

        return {key: whole(value) for key, value in self._make(step, rows).items()}

    def _fill(self):
        for step in self._steps:
            try:
                item = self._put(step)
            except Exception as error:  # noqa: BLE001 - raised again by the consumer; in a thread it would hang the run
                item = error
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or isinstance(item, Exception):
                return

    def __iter__(self) -> Iterator[tuple[int, dict]]:
        for step in self._steps:
            start = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - start
            if isinstance(item, Exception):
                raise item
            yield step, item

    def close(self):
        """Stops the thread."""
        self._closed.set()
        self._thread.join(timeout=10)
