"""What objectives share that corrupt text: rows of as many tokens of text as they need, drawn and changed by seed and example alone."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm import losses
from lm.data.feed import TrainingData
from lm.data.packing import Rows
from lm.data.store import TokenStore
from lm.objectives.base import Objective

# Targets of a row whose number follows from data.context are filled up to a multiple of this, so that the loss can be cut into chunks.
MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class CorruptedData(TrainingData):
    """Rows of `context` tokens of text, of which an objective makes rows of `width` targets.

    `read(store, rows, examples)` gives the rows [B] of a store that have the indices `examples` [B].
    """

    width: int
    read: Callable[[TokenStore, np.ndarray, np.ndarray], Rows]

    def shape(self, step: int) -> tuple[int, int]:
        """(rows, targets of a row) of the batch of a step."""
        return self.global_batch, self.width

    def _read(self, store: TokenStore, rows: np.ndarray, examples: np.ndarray) -> Rows:
        return self.read(store, rows, examples)


class Corruption(Objective):
    """An objective that reads rows of `raw` tokens of text and makes rows of `width` targets."""

    width: int

    def data(self, prepared, config) -> CorruptedData:
        """Rows of `raw` consecutive tokens of the training stores."""
        return CorruptedData(prepared.split_stores("train"), tuple(prepared.weights), self.raw, config.data.global_batch, config.seed,
                             self.width, self.read)

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """Sums of weighted cross-entropies in nats, the first with z-loss."""
        hidden = model.apply(params, batch, noise)
        chunk = chunk_within(chunk, batch["targets"].shape[1], self.context)
        return losses.loss(hidden, model.unembedding(params), batch["targets"], batch["weights"], z_loss=z_loss, chunk=chunk)


def ranks(values: np.ndarray) -> np.ndarray:
    """int64 [B, T]: how many values [B, T] of the row are smaller, or as small and further left."""
    order = np.argsort(values, axis=1, kind="stable")
    result = np.empty_like(order)
    np.put_along_axis(result, order, np.broadcast_to(np.arange(values.shape[1]), values.shape), axis=1)
    return result


def integers(uniform: np.ndarray, count) -> np.ndarray:
    """int64 in range(count), equally likely, of uniform numbers in [0, 1); `count` broadcasts."""
    return np.minimum(np.floor(uniform * count).astype(np.int64), np.asarray(count) - 1)


def chunk_within(chunk: int, count: int, length: int) -> int:
    """The largest divisor of `count` positions that is at most `chunk`, which divides `length`; 0 stays 0."""
    if count == length or not chunk:
        return chunk
    return max(size for size in range(1, count + 1) if count % size == 0 and size <= max(chunk, MULTIPLE))


def by_chunks(function, chunk: int, *arrays):
    """What `function` makes of arrays [B, M, ...], applied to `chunk` of the M at a time; it gives arrays [B, m] of [B, m, ...]."""
    rows, length = arrays[0].shape[:2]
    chunk = losses.chunk_of(chunk, rows, length)
    parts = [jnp.moveaxis(array.reshape(rows, length // chunk, chunk, *array.shape[2:]), 1, 0) for array in arrays]
    results = jax.lax.map(lambda part: function(*part), parts)
    return jax.tree.map(lambda result: jnp.moveaxis(result, 0, 1).reshape(rows, length), results)
