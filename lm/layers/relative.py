"""T5's relative positions (Raffel et al. 2020): a number per head and bucket of distances, which attention adds to its logits."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def bucket_starts(buckets: int, distance: int) -> tuple[int, ...]:
    """The least distance of each of `buckets` buckets in one direction: half of them hold one distance each, the others grow by a
    constant factor up to `distance`, beyond which all distances share the last.

    In whole numbers: d reaches bucket e + j of e + n where (d / e)^n >= (distance / e)^j, and rounding decides nothing.
    """
    exact = buckets // 2
    wide = buckets - exact
    starts = list(range(exact))
    for j in range(wide):
        d = max(exact, math.floor(exact * (distance / exact) ** (j / wide)) - 1)
        while d**wide * exact**j < distance**j * exact**wide:
            d += 1
        starts.append(d)
    return tuple(starts)


def bucket(relative_position, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128):
    """Bucket of relative positions, key minus query, whole numbers of any shape.

    Bidirectional, half of the buckets are for keys before the query or at it, the others for those after it; otherwise all
    are for keys before it, and one after it counts as at it.
    """
    xp = np if isinstance(relative_position, np.ndarray) else jnp
    side = num_buckets // 2 if bidirectional else num_buckets
    starts = xp.asarray(bucket_starts(side, max_distance))
    distance = abs(relative_position) if bidirectional else xp.maximum(-relative_position, 0)
    found = xp.searchsorted(starts, distance, side="right") - 1
    return found + side * (relative_position > 0) if bidirectional else found


class RelativeBias(nn.Module):
    """What a stack of layers adds to the logits of its self-attention: one table [buckets, H], shared by its layers."""

    heads: int
    bidirectional: bool
    buckets: int
    distance: int

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "heads"))
        self.embedding = self.param("embedding", init, (self.buckets, self.heads), jnp.float32)

    def square(self, length: int) -> jax.Array:
        """[H, T, T] in float32 for the queries and keys of whole rows of T tokens."""
        distances = np.arange(1 - length, length + 1)  # one more than there are
        return toeplitz(self.embedding[bucket(distances, self.bidirectional, self.buckets, self.distance)].T, length)

    def at(self, queries, keys) -> jax.Array:
        """[..., H, n, S] in float32, of queries at positions [..., n] and keys at positions [S]."""
        found = bucket(keys - queries[..., None], self.bidirectional, self.buckets, self.distance)
        return jnp.moveaxis(self.embedding[found], -1, -3)


def toeplitz(values, length: int):
    """[H, T, T] whose entry (t, s) is values[:, s - t + T - 1], of values [H, 2 T], the last of which is not used.

    Rows of one array, each read one entry later: the gradient is a sum over rows, where that of a lookup would go entry by entry.
    """
    heads = values.shape[0]
    rows = jnp.broadcast_to(values[:, None], (heads, length, 2 * length)).reshape(heads, -1)
    return rows[:, length - 1 : length - 1 + length * (2 * length - 1)].reshape(heads, length, 2 * length - 1)[:, :, :length]
