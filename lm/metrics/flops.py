"""What a step costs and what the machine could do: model FLOPs from the architecture, peak FLOP/s by device or measured.

Model FLOPs count matrix products only: two per multiply-add forward, twice that backward. Causal attention counts the keys
that are seen. Recomputation (remat) is not counted: MFU is useful work over peak (Chowdhery et al. 2022).
"""

import functools
import re
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 peak of one device in FLOP/s, by a part of jax's device_kind. Sources: vendors' data sheets.
KNOWN_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # one of the two devices of a chip
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "V100": 125e12,
}

_LARGEST_PRODUCT = 16384


def peak_flops(device: jax.Device | None = None) -> tuple[float, str]:
    """(FLOP/s of one device, "known" or "measured"). Simulated CPU devices share the machine, and so its measured peak."""
    device = device or jax.local_devices()[0]
    for kind, peak in KNOWN_PEAKS.items():
        if re.search(rf"{kind}(?!\d)", device.device_kind):  # an L40 is no L4
            return peak, "known"
    on_host = jax.local_device_count() if device.platform == "cpu" else 1
    return measured_peak(device) / on_host, "measured"


@functools.cache
def measured_peak(device: jax.Device, size: int = 1024, seconds: float = 5e-3, repeats: int = 6) -> float:
    """FLOP/s of a float32 matrix product on an otherwise idle device, the best of a few.

    Its size doubles from [size, size] on until a product takes `seconds`: a run waits for this at its start, and a small product
    leaves a fast device idle.
    """
    best = _product_seconds(device, size, repeats)
    while best < seconds and size < _LARGEST_PRODUCT:
        size *= 2
        best = _product_seconds(device, size, repeats)
    return 2 * size**3 / best


def _product_seconds(device, size, repeats) -> float:
    """Least seconds of a product [size, size] x [size, size]."""
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(lambda a: a @ a).lower(x).compile()
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best
