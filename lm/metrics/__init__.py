"""Measuring a run: norms, FLOPs and MFU, where the time went, and the writers that keep it."""

from lm.metrics.flops import peak_flops
from lm.metrics.norms import global_norm
from lm.metrics.timing import Clock
from lm.metrics.writers import Writers

__all__ = ["Clock", "Writers", "global_norm", "peak_flops"]
