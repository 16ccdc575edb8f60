"""Random numbers that belong to an example: pure functions of seed, purpose and the example's global index."""

import numpy as np

from lm.data.order import keyed, mix


def uniforms(seed: int, stream: int, examples: np.ndarray, n: int) -> np.ndarray:
    """float64 [B, n] in [0, 1): column j of example i depends on (seed, stream, i, j) alone; `stream` keeps purposes apart.

    Two rounds of the finaliser of splitmix64 over a counter (Steele et al. 2014), keyed by seed and stream.
    """
    first, second = keyed(seed, stream)[:2]
    rows = mix(np.asarray(examples).astype(np.uint64) + first)
    columns = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = mix(mix(rows[:, None] + columns) ^ second)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
