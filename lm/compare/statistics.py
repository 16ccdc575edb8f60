"""Means, differences and how sure they are: t intervals, the bootstrap, power, and Holm's correction.

Everything here is a plain function of arrays, deterministic (what draws takes a `seed`), and refuses what is not finite: a run that
diverged has no mean, and leaving it out is for the caller to decide and to say.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from lm.errors import DataError

LEVEL, POWER, RESAMPLES = 0.95, 0.8, 10_000
# More seeds than this is no answer.
MOST_SEEDS = 1_000_000
# Numbers that a bootstrap over documents holds at once.
_BLOCK = 1 << 22


class Interval(NamedTuple):
    """A mean with its interval, and the standard deviation of the n values (n - 1 in the denominator); None where one value tells none."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


class Difference(NamedTuple):
    """The mean of b - a with its interval, the two-sided p value of no difference, and the standard deviation of the n differences; None
    where one pair tells none."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    sd: float | None
    n: int


class Estimate(NamedTuple):
    """A number that was fitted, with its interval; None for a side that the data leave open."""

    value: float
    low: float | None
    high: float | None


class Bootstrap(NamedTuple):
    """A statistic of the data, its interval and standard error over what was drawn; None where there was one value to draw from."""

    mean: float
    low: float | None
    high: float | None
    stderr: float | None
    n: int


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """The mean of values [n] with Student's t interval (Student 1908). DataError when a value is not finite or there is none."""
    values = _finite(values, "values")
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Interval(mean, None, None, None, 1)
    sd = _deviation(values)
    half = sd / math.sqrt(n) * float(scipy.stats.t.ppf((1 + level) / 2, n - 1))
    return Interval(mean, mean - half, mean + half, sd, n)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = LEVEL) -> Difference:
    """The mean of b - a over pairs [n], such as of the same seed, with the interval and p value of the paired t-test (Student 1908).

    Equal differences have an interval without width and p 0, or 1 where they are all 0. DataError when a value is not finite, or the two
    are not of one length.
    """
    differences = _differences(a, b)
    mean, low, high, sd, n = mean_interval(differences, level)
    if n == 1:
        return Difference(mean, None, None, None, None, 1)
    if sd == 0:
        return Difference(mean, low, high, float(mean == 0), sd, n)
    p = 2 * float(scipy.stats.t.sf(abs(mean) / sd * math.sqrt(n), n - 1))
    return Difference(mean, low, high, p, sd, n)


def of_draws(value: float, draws: np.ndarray, level: float = LEVEL) -> Estimate:
    """A fitted value with the percentile interval of its draws [resamples]; without one where there are none, or where more of them are
    NaN (a fit that has no such value) than the interval leaves out."""
    tail = (1 - level) / 2
    if not len(draws) or np.isnan(draws).mean() > tail:
        return Estimate(value, None, None)
    sides = np.quantile(draws[~np.isnan(draws)], [tail, 1 - tail], method="nearest")  # between infinite ones there is no mean
    low, high = (float(side) if math.isfinite(side) else None for side in sides)
    return Estimate(value, low, high)


def bootstrap_documents(nats_a: ArrayLike, nats_b: ArrayLike, sizes: ArrayLike, level: float = LEVEL, resamples: int = RESAMPLES,
                        seed: int = 0) -> Bootstrap:
    """The difference b - a in bits per byte over nats [seeds, documents] and bytes `sizes` [documents]; see `bootstrap_score`.

    What is drawn is drawn for both arms. DataError also where the two are not of one shape.
    """
    return bootstrap_score(_finite(nats_b, "nats of b", 2) - _like(nats_a, nats_b), sizes, level, resamples, seed)


def bootstrap_score(nats: ArrayLike, sizes: ArrayLike, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
    """Bits per byte of nats [seeds, documents] over bytes `sizes` [documents], with a percentile interval.

    Seeds and documents are drawn at once, each with replacement (the pigeonhole bootstrap, Owen 2007: a little too wide rather than too
    narrow); so the interval is about other seeds and other texts. Over seeds alone nothing here draws: of fewer than about ten such an
    interval is too narrow, of three less than half as wide as it should be, and Student's t is what to believe. With one seed this one is
    about texts alone, and with one document about seeds alone; with one of each there is none. `n` is the number of documents. DataError
    for other shapes, values that are not finite, and texts without bytes.
    """
    nats, sizes = _finite(nats, "nats", 2), _finite(sizes, "bytes")
    seeds, documents = nats.shape
    if sizes.shape != (documents,) or sizes.sum() <= 0 or sizes.min() < 0:
        raise DataError(f"{documents} documents have nats, and {len(sizes)} have bytes ({sizes.sum():g} in all): give the bytes of each")
    mean = float(nats.sum() / seeds / sizes.sum() / math.log(2))
    if nats.size == 1:
        return Bootstrap(mean, None, None, None, 1)
    drawn = _drawn(nats, sizes, resamples, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Bootstrap(mean, float(low), float(high), float(drawn.std(ddof=1)), documents)


def _drawn(nats: np.ndarray, sizes: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Bits per byte [resamples, less those without bytes] of seeds and documents that are drawn."""
    (seeds, documents), found = nats.shape, []
    block = max(1, _BLOCK // documents)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), count) / seeds
        of_documents = generator.multinomial(documents, np.full(documents, 1 / documents), count)
        drawn_bytes = of_documents @ sizes
        drawn_nats = ((of_seeds @ nats) * of_documents).sum(1)[drawn_bytes > 0]  # a text may be empty
        found.append(drawn_nats / drawn_bytes[drawn_bytes > 0] / math.log(2))
    return np.concatenate(found)


def power_of(n: int, difference: float, sd: float, level: float = LEVEL) -> float:
    """How likely a two-sided paired t-test on n >= 2 pairs finds a difference whose pairs have the standard deviation `sd` > 0 (Cohen 1988;
    the noncentral t distribution)."""
    critical = scipy.stats.t.ppf((1 + level) / 2, n - 1)
    shift = abs(difference) / sd * math.sqrt(n)
    # Below -critical is above critical of the distribution shifted the other way, of which SciPy gives no NaN.
    return float(scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.sf(critical, n - 1, -shift))


def seeds_needed(difference: float, sd: float | None, power: float = POWER, level: float = LEVEL) -> int | None:
    """The fewest pairs, at least 2, on which a two-sided paired t-test finds a difference with this power.

    None where no number does (no difference), where `sd` is not known (one pair), and above a million.
    """
    if sd is None or not (math.isfinite(difference) and math.isfinite(sd)) or difference == 0:
        return None
    if sd == 0 or power_of(2, difference, sd, level) >= power:
        return 2
    low, high = 2, 4
    while power_of(high, difference, sd, level) < power:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, difference, sd, level) >= power else (middle, high)
    return high if high <= MOST_SEEDS else None


def holm(p_values: ArrayLike) -> np.ndarray:
    """P values [n] of several comparisons, adjusted so that those under a level are together wrong no more often than that (Holm 1979)."""
    values = _finite(p_values, "p values")
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(adjusted, 1)
    return result


def _deviation(values: np.ndarray) -> float:
    """The standard deviation; 0 for what differs by rounding alone."""
    scale = float(np.abs(values).max())
    return float(values.std(ddof=1)) if np.ptp(values) > 8 * np.finfo(float).eps * scale else 0.0


def _differences(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    return _finite(b, "values of b") - _like(a, b)


def _like(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Finite values of the shape of others."""
    if np.shape(a) != np.shape(b):
        raise DataError(f"pairs are to be compared, and a has the shape {np.shape(a)}, b {np.shape(b)}: leave out what one of them lacks")
    return _finite(a, "values of a", np.ndim(a))


def _finite(values: ArrayLike, name: str, rank: int = 1) -> np.ndarray:
    array = np.asarray(values, dtype=float)  # None becomes NaN
    if array.ndim != rank or not array.size:
        raise DataError(f"{name} have the shape {array.shape}: {rank} axes with at least one entry are expected")
    if not np.isfinite(array).all():
        raise DataError(f"{np.sum(~np.isfinite(array))} of {array.size} {name} are not finite: leave out runs that diverged, and say so")
    return array
