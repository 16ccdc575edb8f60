"""Tuning of an arm: a log grid of factors over the config's own values, judged by successive halving (Jamieson and Talwalkar 2016).

Rung r trains the factors that survive for `shares[r]` of the run's length, each in a whole run whose schedule is as long as itself, so
that a rate is judged as it will be used. The better half of a rung goes on. Where all of a rung diverge, the best of those below them
that were left behind is tried there. Where the best of a rung is the lowest or highest factor that was tried at all, or no such is left
and all have diverged, the grid grows there by one factor, and the rung is judged again. Where all of a rung fail for a reason that says
nothing of their factors, the rung before it decides.

Everything here is a function of the grid and of what trials have scored: nothing is read, written or trained.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from lm.config import SCHEMA
from lm.config.model_keys import COUNTED
from lm.config.validate import unknown_key
from lm.errors import ConfigError

# The seed of all trials of all arms: none of the comparison's.
SEED = 1000
# Fewest survivors of a rung.
FEWEST = 2
# The ratio of a grid of a single factor.
RATIO = 2.0
# The score of a trial whose numbers stopped being finite.
DIVERGED = math.inf


@dataclasses.dataclass(frozen=True)
class Grid:
    """What tuning tries: rising factors, the share of the run's length of each rung, and how often the grid may grow."""

    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    extensions: int = 2


class Trial(NamedTuple):
    """One run: a factor at a rung."""

    rung: int
    factor: float

    @property
    def name(self) -> str:
        """Of its folder, such as 0-0.5."""
        return f"{self.rung}-{self.factor:g}"


class Found(NamedTuple):
    """What tuning came to: the factors that each rung tried, rising; the best (None where no trial has a score that counts), at which edge
    of the grid it still is ("low", "high" or None), by how many factors the grid has grown, and which rung says so, the last one unless
    nothing of that has a score."""

    rungs: tuple[tuple[float, ...], ...]
    best: float | None
    edge: str | None
    extended: int
    rung: int


def check(grid: Grid) -> Grid:
    """The grid, its factors sorted; ConfigError where it cannot be searched."""
    if not grid.factors or any(not 0 < factor < math.inf for factor in grid.factors) or len(set(grid.factors)) < len(grid.factors):
        raise ConfigError(f"--factors={_listed(grid.factors)}: use different numbers above 0, such as 0.25,0.5,1,2,4")
    if not grid.shares or any(not 0 < share <= 1 for share in grid.shares) or list(grid.shares) != sorted(set(grid.shares)):
        raise ConfigError(f"--shares={_listed(grid.shares)}: use rising shares of a run, above 0 and at most 1, such as 0.25,0.5,1")
    return dataclasses.replace(grid, factors=tuple(sorted(map(rounded, grid.factors))))


def _listed(numbers) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def rounded(number: float) -> float:
    """A number of six digits: what a folder's name and a config's value can say in full."""
    return float(f"{number:.6g}")


def keys_of(config, asked: str | tuple[str, ...]) -> tuple[str, ...]:
    """Keys of a config that are tuned together; () where it has none.

    "rates" are the learning rates that its optimizer reads. EM's is a share of a step that has a closed form, and what is counted has none.
    """
    if config.model.name in COUNTED:
        return ()
    if asked == "rates":
        return {"em": (), "muon": ("optim.learning_rate", "optim.muon_learning_rate")}.get(config.optim.name, ("optim.learning_rate",))
    return tuple(asked)


def check_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The keys, which factors can multiply; ConfigError for others."""
    for key in keys:
        if key not in SCHEMA:
            raise unknown_key(key)
        if not isinstance(SCHEMA[key].default, float):
            raise ConfigError(f"--tune={key}: factors multiply decimal numbers, and {key} is none; use rates, none or keys such as "
                              "optim.weight_decay")
    return keys


def values_of(config, keys: tuple[str, ...], factor: float) -> dict[str, float]:
    """What the keys are at a factor: {key: value}. ConfigError where a value is 0, of which there is no factor."""
    values = {key: config[key.split(".")[0]][key.split(".")[1]] for key in keys}
    for key, value in values.items():
        if value <= 0:
            raise ConfigError(f"--tune={key}: the config has {key}={value:g}, which factors cannot change: set it above 0")
    return {key: rounded(value * factor) for key, value in values.items()}


def due_trials(grid: Grid, scores: Mapping[Trial, float | None]) -> list[Trial] | Found:
    """The trials that the first open rung still needs, or what tuning found once there is none.

    `scores` has bits per byte (or another loss) of the trials that are finished, DIVERGED for those that diverged and None for those
    that failed for another reason, which say nothing of their factor.
    """
    factors, tried, extended, rungs = list(grid.factors), set(grid.factors), 0, []
    for rung in range(len(grid.shares)):
        while True:
            missing = [Trial(rung, factor) for factor in factors if Trial(rung, factor) not in scores]
            if missing:
                return missing
            edge = _edge_at(rung, factors, tried, scores)
            below = _left_behind(rungs, factors, scores)
            if below is None and (edge is None or extended == grid.extensions):
                break
            extended += below is None
            factors = sorted([*factors, beyond(sorted(tried), edge) if below is None else below])
            tried |= set(factors)
        rungs.append(tuple(factors))
        ranked = ranking({factor: scores[rung, factor] for factor in factors})
        if not ranked:
            break
        factors = sorted(ranked[: max(FEWEST, math.ceil(len(factors) / 2))])
    return _found(tuple(rungs), tried, extended, scores)


def _edge_at(rung: int, factors, tried, scores) -> str | None:
    """`edge_of` a rung, among the factors `tried` that have said something by then."""
    # A factor whose trials all failed says nothing of what lies there: next to it is still an edge.
    told = [factor for factor in sorted(tried) if any(scores.get(Trial(at, factor)) is not None for at in range(rung + 1))]
    return edge_of(told, {factor: scores[rung, factor] for factor in factors})


def _left_behind(rungs, factors, scores) -> float | None:
    """Where a rung after others has no score and some of it diverged: of the factors below those the best of the rung before it, or of the
    ones before that, which it has not tried; None where there is none."""
    here = [scores[len(rungs), factor] for factor in factors]
    diverged = [factor for factor, score in zip(factors, here, strict=True) if score == DIVERGED]
    if not diverged or any(score not in (DIVERGED, None) for score in here):
        return None
    for at, earlier in reversed(list(enumerate(rungs))):
        for factor in ranking({factor: scores[at, factor] for factor in earlier}):
            if factor < min(diverged) and factor not in factors:
                return factor
    return None


def _found(rungs, tried, extended: int, scores) -> Found:
    """What the last rung found; where it has no score, the last one before it with one of a factor below those that diverged later."""
    last = len(rungs) - 1
    limit = min((factor for factor in rungs[last] if scores[last, factor] == DIVERGED), default=math.inf)
    for rung in range(last, -1, -1):
        of_rung = {factor: scores[rung, factor] for factor in rungs[rung] if rung == last or factor < limit}
        if ranked := ranking(of_rung):
            return Found(rungs, ranked[0], _edge_at(rung, of_rung, tried, scores), extended, rung)
    return Found(rungs, None, None, extended, last)


def ranking(scores: Mapping[float, float | None]) -> list[float]:
    """The factors that have a finite score, best first; of equal ones the lower."""
    return sorted((factor for factor, score in scores.items() if score is not None and math.isfinite(score)),
                  key=lambda factor: (scores[factor], factor))


def edge_of(tried: list[float], scores: Mapping[float, float | None]) -> str | None:
    """At which edge of all factors tried the best of a rung is: "low", "high" or None.

    Where every trial diverged, lower factors are what is left to try.
    """
    ranked = ranking(scores)
    if not ranked:
        return "low" if any(score == DIVERGED for score in scores.values()) else None
    return {tried[-1]: "high", tried[0]: "low"}.get(ranked[0])


def beyond(tried: list[float], edge: str) -> float:
    """The factor that continues the grid beyond an edge, at the ratio of its last two."""
    last, before = (tried[0], tried[1:2]) if edge == "low" else (tried[-1], tried[-2:-1])
    ratio = last / before[0] if before else RATIO if edge == "high" else 1 / RATIO
    return rounded(last * ratio)


def curvature(scores: Mapping[float, float | None]) -> float | None:
    """Of the parabola through a rung's scores over log2 of the factor, by least squares: its second coefficient, in bits per byte for a
    squared doubling. None with fewer than three scores."""
    import numpy as np

    factors = ranking(scores)
    if len(factors) < 3:
        return None
    return float(np.polyfit(np.log2(factors), [scores[factor] for factor in factors], 2)[0])


def rises(best: float, rungs: list[Mapping[float, float | None]]) -> dict[str, float | None]:
    """{"half", "double"}: how much worse half and double the best factor scored than itself, at the last rung that tried both; None where
    none did."""
    return {name: _rise(best, rounded(best * ratio), rungs) for name, ratio in (("half", 0.5), ("double", 2.0))}


def _rise(best, other, rungs) -> float | None:
    for scores in reversed(rungs):
        pair = scores.get(best), scores.get(other)
        if None not in pair and all(map(math.isfinite, pair)):
            return pair[1] - pair[0]
    return None


def counted(grid: Grid) -> list[int]:
    """How many trials each rung has when the grid does not grow and nothing diverges."""
    sizes = [len(grid.factors)]
    for _ in grid.shares[1:]:
        sizes.append(min(sizes[-1], max(FEWEST, math.ceil(sizes[-1] / 2))))
    return sizes
