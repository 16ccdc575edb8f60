"""Which examples of which length share a batch: a plan by buckets of lengths, a pure function of seed and step.

An epoch is, for each bucket, as many batches as hold its examples, the last one padded. A keyed permutation orders the batches of an
epoch, and another one the examples of each bucket: any step can be made alone, and every example comes once an epoch.
"""

import dataclasses
import functools

import numpy as np

from lm.data.order import permute
from lm.errors import ConfigError

SHORTEST = 16  # of the buckets that no config names, in tokens
_BATCHES, _EXAMPLES = 1_000, 1_001  # purposes of the permutations, beyond the numbers of a mixture's sources


def bucket_lengths(buckets: tuple[float, ...], context: int) -> tuple[int, ...]:
    """The lengths that rows are padded to, rising: `buckets` and `context`, by default context, context / 2, ... down to 16.

    Halves waste no slot where rows of one batch are to hold a constant number of tokens. Raises ConfigError.
    """
    if not buckets:
        halves = [context]
        while halves[-1] // 2 >= SHORTEST:
            halves.append(halves[-1] // 2)
        return tuple(reversed(halves))
    if list(buckets) != sorted(set(buckets)) or any(not 1 <= length <= context or length % 1 for length in buckets):
        raise ConfigError(f"data.buckets={tuple(buckets)}: give rising whole numbers from 1 to data.context={context}")
    return tuple(sorted({*map(int, buckets), context}))


def assign(sizes: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Index of the shortest of `lengths` that holds each of `sizes` [n]; len(lengths) where none does."""
    return np.searchsorted(np.asarray(lengths), sizes, side="left")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Batches of examples of like length. `sizes` [n] are the examples' lengths in tokens; longer ones than the last bucket are left out.

    A batch of length l has global_batch * (longest // l) rows: about as many tokens whatever its length, and as many rows as every
    mesh and accumulation that can cut `global_batch` can cut too.
    """

    sizes: np.ndarray
    lengths: tuple[int, ...]
    global_batch: int
    seed: int

    @functools.cached_property
    def members(self) -> list[np.ndarray]:
        """For each bucket the examples in it, rising."""
        bucket = assign(self.sizes, self.lengths)
        return [np.flatnonzero(bucket == i) for i in range(len(self.lengths))]

    @property
    def left_out(self) -> int:
        """How many examples are too long."""
        return len(self.sizes) - sum(map(len, self.members))

    def rows_of(self, bucket: int) -> int:
        """Rows of a batch of a bucket."""
        return self.global_batch * (self.lengths[-1] // self.lengths[bucket])

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """For each bucket, how many batches of an epoch belong to it or to one before it."""
        return np.cumsum([-(-len(found) // self.rows_of(bucket)) for bucket, found in enumerate(self.members)])

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return int(self._ends[-1])

    def _batches(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bucket, number of the batch in it) of each of `steps` of one epoch."""
        epoch = int(steps[0] // self.steps_per_epoch)
        numbers = permute(steps % self.steps_per_epoch, self.steps_per_epoch, self.seed, _BATCHES, epoch)
        buckets = np.searchsorted(self._ends, numbers, side="right")
        return buckets, numbers - np.concatenate([[0], self._ends])[buckets]

    def bucket(self, step: int) -> int:
        """The bucket of a step."""
        return int(self._batches(np.array([step]))[0][0])

    def first_steps(self) -> dict[int, int]:
        """{bucket: its first step}, for the buckets that hold examples."""
        buckets, _ = self._batches(np.arange(self.steps_per_epoch))
        return {int(bucket): int(np.argmax(buckets == bucket)) for bucket in np.unique(buckets)}

    def examples(self, step: int) -> np.ndarray:
        """The examples [rows] of a step, -1 for a row of padding."""
        (bucket,), (number,) = self._batches(np.array([step]))
        members, rows = self.members[bucket], self.rows_of(bucket)
        places = number * rows + np.arange(rows)
        real = places[places < len(members)]
        order = permute(real, len(members), self.seed, _EXAMPLES + int(bucket), step // self.steps_per_epoch)
        return np.concatenate([members[order], np.full(rows - len(real), -1)])
