"""Means and ratios over items, each with its standard error in closed form."""

import math

import numpy as np


def mean(values) -> tuple[float, float | None]:
    """(mean, standard error of it) of values [n]; of zeros and ones that is the binomial one, with n - 1. None for one value."""
    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


def ratio(values, sizes) -> tuple[float, float | None]:
    """(sum of values / sum of sizes, its standard error over items), of arrays [n] (Cochran 1977, chapter 6). None for one item."""
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    found, count = float(values.sum() / sizes.sum()), len(values)
    residuals = values - found * sizes
    return found, float(np.sqrt(np.sum(residuals**2) * count / (count - 1)) / sizes.sum()) if count > 1 else None


def perplexity(nats: tuple[float, float | None]) -> tuple[float, float | None]:
    """(exp of a mean of nats, its standard error by the delta method)."""
    value = math.exp(min(nats[0], 700.0))
    return value, None if nats[1] is None else value * nats[1]


def named(**found: tuple[float, float | None]) -> dict:
    """{name: value, name_stderr: error} of each."""
    return {key: value for name, pair in found.items() for key, value in zip((name, f"{name}_stderr"), pair, strict=True)}
