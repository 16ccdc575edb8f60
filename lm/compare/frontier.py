"""The loss that a family reaches with so much compute, and how much less compute another needs for the same loss.

A family's frontier is L(C) = E + c C^-g (Kaplan et al. 2020, with Henighan et al. 2020's irreducible loss), through the minima of its
isoFLOP parabolas where at least three budgets have one inside the ladder, else through the lower envelope of its points, by least squares
of log residuals. Two frontiers are compared only at losses that both reach. Where the best size of a budget lies outside the ladder its
best run is worse than the family can do: of such budgets alone no frontier is made, and an envelope with some says so.
"""

import dataclasses

import numpy as np

from lm.compare import isoflop, statistics
from lm.compare.points import Points
from lm.compare.power_sums import PowerSum
from lm.compare.statistics import Estimate, of_draws
from lm.errors import ConfigError, DataError

RESAMPLES = 400
MINIMA, ENVELOPE = "minima of parabolas", "lower envelope"
_LEAST = 3
# Losses at which two frontiers are compared.
_LOSSES = 21


@dataclasses.dataclass(frozen=True)
class Frontier:
    """A frontier: the `flops` and `loss` [points] that it goes through, `solution` [log E, log c, g], and draws of it [resamples, 3], NaN
    where a resample has no frontier; of an envelope how many `budgets` have a parabola and of these one with its minimum `outside`."""

    family: str
    method: str
    flops: np.ndarray
    loss: np.ndarray
    solution: np.ndarray
    draws: np.ndarray
    level: float
    outside: int = 0
    budgets: int = 0

    def predict(self, flops) -> np.ndarray:
        """The loss that so many FLOPs reach."""
        return np.exp(self.solution[0]) + np.exp(self.solution[1] - self.solution[2] * np.log(flops))

    def log_flops_for(self, loss, solution: np.ndarray | None = None) -> np.ndarray:
        """The logarithm of the FLOPs that reach a loss [...], infinite where none do and finite where they are too many for a float; of
        solutions [resamples, 3] where given, [resamples, ...]."""
        e, c, g = self.solution if solution is None else solution.T[..., None]
        with np.errstate(divide="ignore"):
            return (c - np.log(np.maximum(np.asarray(loss) - np.exp(e), 0))) / g

    def constants(self) -> dict[str, Estimate]:
        """E, c and g, with intervals."""
        return {"E": self._estimate(np.exp(self.solution[0]), np.exp(self.draws[:, 0])),
                "c": self._estimate(np.exp(self.solution[1]), np.exp(self.draws[:, 1])),
                "g": self._estimate(self.solution[2], self.draws[:, 2])}

    def reach(self) -> tuple[float, float]:
        """(lowest, highest) loss between its first and last point."""
        first, last = self.predict(self.flops.min()), self.predict(self.flops.max())
        return float(last), float(first)

    def _estimate(self, value, draws) -> Estimate:
        return of_draws(float(value), draws, self.level)


@dataclasses.dataclass(frozen=True)
class Advantage:
    """How much of the compute of `a` the family `b` needs for the same loss: the geometric mean over `losses`, and the ratio at each."""

    a: str
    b: str
    ratio: Estimate
    losses: tuple[float, float]
    ratios: list[tuple[float, Estimate]]
    text: str


def fit(points: Points, resamples: int = RESAMPLES, seed: int = 0, level: float = statistics.LEVEL) -> Frontier:
    """The frontier of one family's points. DataError where fewer than three points are on it, or no budget that has a parabola has its
    best size among those trained.

    Draws are those of the parabolas; of an envelope, of seeds where each size and length has several, else of points, which is rough: a
    lowest point that is not drawn is missed.
    """
    family = points.families[0]
    if len(points.families) > 1:
        raise DataError(f"a frontier is of one family, and the points are of {', '.join(points.families)}: fit each of them alone")
    parabolas = _parabolas(points, resamples, seed, level)
    minima = parabolas.minima() if parabolas else []
    inside = sum(minimum.where == isoflop.INSIDE for minimum in minima)
    if minima and not inside:
        where = " or ".join(dict.fromkeys(minimum.where for minimum in minima))
        raise DataError(f"no budget of {family or 'the points'} has its best size among those trained ({where}): what sizes at the edge "
                        "reach is not what the family does; train more sizes there")
    if inside >= _LEAST:
        method, (flops, loss, drawn) = MINIMA, parabolas.frontier()
        samples = [(flops, losses) for losses in drawn]
    else:
        method, (flops, loss), samples = ENVELOPE, envelope(points), _envelopes(points, resamples, seed)
    if len(flops) < _LEAST:
        raise DataError(f"the frontier of {family or 'the points'} has {len(flops)} points, and a curve needs {_LEAST}: train at more "
                        "budgets")
    solution = PowerSum(flops[:, None], loss, np.inf).fit()
    draws = [_refit(some, losses, solution) for some, losses in samples]
    outside = len(minima) - inside if method == ENVELOPE else 0
    return Frontier(family, method, flops, loss, solution, np.reshape(draws, (len(draws), 3)), level, outside, len(minima))


def _refit(flops: np.ndarray, losses: np.ndarray, solution: np.ndarray) -> np.ndarray:
    """The solution of a resample; NaN, which opens intervals where it is frequent, of one without a minimum or with too few points."""
    if len(flops) < _LEAST or not (np.isfinite(losses).all() and (losses > 0).all()):
        return np.full(3, np.nan)
    return PowerSum(flops[:, None], losses, np.inf).refit(solution)


def envelope(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """(FLOPs, losses) of the runs that no run with as little compute beats, seeds of a size and length averaged; FLOPs rise."""
    cells = points.cells()
    count = np.bincount(cells)
    flops, loss = np.bincount(cells, points.flops) / count, np.bincount(cells, points.loss) / count
    order = np.lexsort((loss, flops))
    lowest = np.minimum.accumulate(loss[order])
    first = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    return flops[order][first], loss[order][first]


def compare(a: Frontier, b: Frontier, loss: float | None = None) -> Advantage:
    """How much compute `b` needs of that of `a`, at a loss, or on average over the losses that both reach. ConfigError where they reach
    none in common, or not this one."""
    low, high = max(a.reach()[0], b.reach()[0]), min(a.reach()[1], b.reach()[1])
    if low >= high:
        raise ConfigError(f"{a.family} reaches losses from {a.reach()[1]:.4g} to {a.reach()[0]:.4g}, {b.family} from {b.reach()[1]:.4g} to "
                          f"{b.reach()[0]:.4g}: none in common; train at budgets that lead to the same losses")
    if loss is not None and not low <= loss <= high:
        raise ConfigError(f"a loss of {loss:g} is not reached by both: from {low:.4g} to {high:.4g} are")
    losses = np.linspace(low, high, _LOSSES) if loss is None else np.array([loss])
    logs = b.log_flops_for(losses) - a.log_flops_for(losses)
    count = min(len(a.draws), len(b.draws))
    shuffled = np.random.default_rng(0).permutation(b.draws)[:count]  # both may be of the same random numbers
    with np.errstate(invalid="ignore"):  # of a loss that neither draw reaches nothing is known: NaN
        drawn = b.log_flops_for(losses, shuffled) - a.log_flops_for(losses, a.draws[:count])
        ratio = _ratio(logs.mean(), drawn.mean(1), a.level)
    ratios = [(float(each), _ratio(logs[i], drawn[:, i], a.level)) for i, each in enumerate(losses)]
    text = _sentence(a, b, ratio, losses) + _outside(a, "more") + _outside(b, "less")
    return Advantage(a.family, b.family, ratio, (float(losses[0]), float(losses[-1])), ratios, text)


def _ratio(log: float, draws: np.ndarray, level: float) -> Estimate:
    """A ratio from its logarithm and draws of that; open on a side where it is infinite, or 0, for a float."""
    found = of_draws(float(log), draws, level)
    with np.errstate(over="ignore", under="ignore"):
        sides = [None if side is None else float(np.exp(side)) for side in (found.low, found.high)]
    return Estimate(float(np.exp(log)), *(side if side and np.isfinite(side) else None for side in sides))


def _sentence(a: Frontier, b: Frontier, ratio: Estimate, losses: np.ndarray) -> str:
    where = f"a loss of {losses[0]:.4g}" if len(losses) == 1 else f"the same loss, from {losses[-1]:.4g} down to {losses[0]:.4g}"
    if ratio.low is None and ratio.high is None:
        return f"{b.family} needs {_times(ratio.value)}x the compute of {a.family} for {where} (the points leave the interval open)"
    told = f"{b.family} needs {_times(ratio.value)}x [{_times(ratio.low)}, {_times(ratio.high)}] the compute of {a.family} for {where}"
    if None in (ratio.low, ratio.high):
        told += f" (the points leave the {'lower' if ratio.low is None else 'upper'} end of the interval open)"
    return told if (ratio.low or 0) > 1 or (ratio.high or np.inf) < 1 else f"{told}; which needs less is open"


def _outside(frontier: Frontier, ratio: str) -> str:
    """That sizes were missing at some budgets, and that the ratio would be `more` or `less` with them."""
    if not frontier.outside:
        return ""
    return (f"; {frontier.outside} of the {frontier.budgets} budgets of {frontier.family} have their best size outside those trained: with "
            f"it the ratio would be {ratio}")


def _times(ratio: float | None) -> str:
    """A ratio, to two decimals where they tell something."""
    return "open" if ratio is None else f"{ratio:.2f}" if 0.1 <= ratio < 1000 else f"{ratio:.3g}"


def _parabolas(points: Points, resamples: int, seed: int, level: float) -> isoflop.IsoFlop | None:
    """The parabolas of the points; None where no budget has the sizes for one."""
    try:
        return isoflop.fit(points, resamples, seed, level)
    except DataError:
        return None


def _envelopes(points: Points, resamples: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Envelopes of resampled points."""
    generator, cells = np.random.default_rng(seed), points.cells()
    members = [np.flatnonzero(cells == number) for number in range(cells.max() + 1)]
    found = []
    for _ in range(resamples):
        if min(map(len, members)) > 1:
            chosen = np.concatenate([generator.choice(some, len(some)) for some in members])
        else:
            chosen = generator.integers(0, len(points), len(points))
        found.append(envelope(points.take(chosen)))
    return found
