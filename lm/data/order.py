"""Which example comes when: pure functions of seed and index, with random access and no state.

An epoch is a keyed permutation of all rows (a Feistel network walked until it lands in range), so row i of epoch e is
known without generating the others. A mixture assigns examples to sources in blocks that hold exact shares.
"""

import dataclasses
import hashlib

import numpy as np

from lm.errors import ConfigError

_ROUNDS = 6
_BLOCK = 4096
_MOST_SOURCES = 64


def keyed(*parts: int) -> np.ndarray:
    """Round keys, uint64, from integers; independent for different integers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of uint64 whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Where a keyed permutation of range(size) sends each of `indices`; int64, as many as given."""
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    values = np.asarray(indices, dtype=np.uint64)
    pending = np.ones(values.shape, bool)
    keys = keyed(size, *key)
    # The network permutes a power of four that is at least `size`; what falls outside is sent round again.
    while pending.any():
        left, right = values[pending] >> shift, values[pending] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right + round_key) & mask)
        values[pending] = (left << shift) | right
        pending = values >= np.uint64(size)
    return values.astype(np.int64)


def shuffled(indices: np.ndarray, size: int, seed: int, stream: int = 0) -> np.ndarray:
    """Row of each example index: example i is row i mod size of epoch i div size, each epoch in an order of its own."""
    indices = np.asarray(indices, dtype=np.int64)
    rows = np.empty_like(indices)
    for epoch in np.unique(indices // size):
        chosen = indices // size == epoch
        rows[chosen] = permute(indices[chosen] % size, size, seed, stream, int(epoch))
    return rows


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of examples over sources of `sizes` rows with shares `weights`, for one seed."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def __post_init__(self):
        if len(self.sizes) > _MOST_SOURCES:
            raise ConfigError(f"data.source has {len(self.sizes)} sources, more than {_MOST_SOURCES}: join some of them in one glob")

    def locate(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, row) of each global example index, both int64."""
        examples = np.asarray(examples, dtype=np.int64)
        sources, ordinals = self._assign(examples)
        rows = np.empty_like(examples)
        for source, size in enumerate(self.sizes):
            chosen = sources == source
            if chosen.any():
                rows[chosen] = shuffled(ordinals[chosen], size, self.seed, source)
        return sources, rows

    def _assign(self, examples):
        """(source, how many examples of that source came before)."""
        if len(self.sizes) == 1:
            return np.zeros_like(examples), examples
        sources, ordinals = np.empty_like(examples), np.empty_like(examples)
        for block in np.unique(examples // _BLOCK):
            chosen = examples // _BLOCK == block
            before, after = self._counts(int(block)), self._counts(int(block) + 1)
            content = np.repeat(np.arange(len(self.sizes)), after - before)
            content = content[permute(np.arange(_BLOCK), _BLOCK, self.seed, -1, int(block))]
            rank = np.zeros(_BLOCK, np.int64)
            for source in range(len(self.sizes)):
                here = content == source
                rank[here] = before[source] + np.arange(here.sum())
            offsets = examples[chosen] % _BLOCK
            sources[chosen], ordinals[chosen] = content[offsets], rank[offsets]
        return sources, ordinals

    def _counts(self, blocks: int) -> np.ndarray:
        """Examples of each source in the first `blocks` blocks: never falling, and within one (the largest: K) of its exact share."""
        weights = np.array(self.weights) / np.sum(self.weights)
        counts = np.floor(weights * (blocks * _BLOCK)).astype(np.int64)
        # The largest source takes what rounding leaves; its share of a block exceeds that, so its count cannot fall.
        largest = int(np.argmax(weights))
        counts[largest] += blocks * _BLOCK - counts.sum()
        return counts
