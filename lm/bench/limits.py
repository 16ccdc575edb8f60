"""The machine's limits as sides of a benchmark: matrix products through JAX, and memory read and copied by all cores."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from lm.bench.rounds import best_seconds

# Much larger than the caches of any processor.
BANDWIDTH_BYTES = 2**29


class Products:
    """Square matrix products; see `lm.bench.worker`."""

    def __init__(self, sizes: Sequence[int], types: Sequence[str]):
        self._cases = [(kind, size, jnp.ones((size, size), kind)) for kind in types for size in sizes]
        self._product = jax.jit(jnp.matmul)
        for _, _, x in self._cases:
            self._product(x, x).block_until_ready()

    def turn(self) -> list[dict]:
        """FLOP/s of each type and size."""
        return [{"type": kind, "size": size, "flops": 2 * size**3 / best_seconds(lambda x=x: self._product(x, x).block_until_ready())}
                for kind, size, x in self._cases]


class Bandwidth:
    """Arrays that no cache holds, read and copied by one NumPy thread per core; see `lm.bench.worker`."""

    def __init__(self, size: int = BANDWIDTH_BYTES):
        cores = len(os.sched_getaffinity(0))
        self._size, self._threads = size, ThreadPoolExecutor(cores)
        self._from = np.array_split(np.ones(size // 4, np.float32), cores)
        self._to = np.array_split(np.ones(size // 4, np.float32), cores)

    def turn(self) -> dict[str, float]:
        """Bytes/s of reading, and of copying, which counts what is read and what is written."""
        read = best_seconds(lambda: list(self._threads.map(np.sum, self._from)))
        copy = best_seconds(lambda: list(self._threads.map(np.copyto, self._to, self._from)))
        return {"read": self._size / read, "copy": 2 * self._size / copy}
