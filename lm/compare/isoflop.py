"""The best size at each budget, where a parabola in the logarithm of the size is lowest, and the power law through these minima.

Hoffmann et al. 2022 (approach 2). Intervals are of draws of all parabolas at once: their coefficients vary as Student's t says of least
squares (a generalized pivotal quantity, Weerahandi 1993), with the noise of the losses taken to be the same at all budgets, since one
budget's few points would tell too little of it.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from lm.compare import statistics
from lm.compare.points import Points
from lm.compare.statistics import Estimate, of_draws
from lm.errors import DataError

RESAMPLES = 2000
_LEAST_SIZES = 3
# Where the minimum of a parabola is.
INSIDE, SMALLER, LARGER, NONE = "inside", "below the smallest size", "above the largest size", "no minimum"


class Minimum(NamedTuple):
    """The lowest point of a budget's parabola: `where` says whether it is among the sizes that were trained."""

    flops: float
    parameters: Estimate
    tokens: Estimate
    loss: Estimate
    where: str
    points: int


@dataclasses.dataclass(frozen=True)
class Parabola:
    """The loss of a budget's points as c0 + c1 x + c2 x^2, x the logarithm of the parameters less `centre`; `logs` are those [points]."""

    flops: float
    points: Points
    logs: np.ndarray
    centre: float
    coefficients: np.ndarray
    spread: np.ndarray  # [3, 3], of which the product with unit noise is the noise of the coefficients
    squares: float  # of the residuals, summed

    def lowest(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, loss) at the minimum of coefficients [..., 3]; NaN where a parabola opens downwards."""
        c0, c1, c2 = np.moveaxis(coefficients, -1, 0)
        x = -c1 / np.where(c2 > 0, 2 * c2, np.nan)
        return x, c0 + c1 * x / 2

    def predict(self, parameters) -> np.ndarray:
        """Losses of sizes at this budget."""
        return np.polynomial.polynomial.polyval(np.log(parameters) - self.centre, self.coefficients)

    def tokens_at(self, x: np.ndarray) -> np.ndarray:
        """The length that the budget allows at a size: FLOPs of a token rise with it nearly as a power, which is fitted."""
        with np.errstate(over="ignore"):  # of a draw that is nearly a straight line
            return np.exp(np.polyval(np.polyfit(self.logs, np.log(self.points.tokens), 1), x))


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """Parabolas, the smallest budget first, and `draws` [resamples, budgets, 3] of their coefficients, none without points to spare."""

    parabolas: list[Parabola]
    draws: np.ndarray
    level: float

    def minima(self) -> list[Minimum]:
        """The lowest point of each."""
        return [self._minimum(number) for number in range(len(self.parabolas))]

    def inside(self) -> list[int]:
        """Numbers of the parabolas whose minimum is among the sizes that were trained."""
        return [number for number, minimum in enumerate(self.minima()) if minimum.where == INSIDE]

    def power_law(self) -> dict[str, Estimate] | None:
        """{"parameters", "tokens"}: exponents of FLOPs in the best size and length, by least squares through the minima inside the ladder;
        None where fewer than two are."""
        chosen = self.inside()
        if len(chosen) < 2:
            return None
        flops = np.log([self.parabolas[number].flops for number in chosen])
        slope = (flops - flops.mean()) / ((flops - flops.mean()) ** 2).sum()
        best = [self._sizes(number) for number in chosen]
        values = {"parameters": [np.log(size) for size, _, _ in best], "tokens": [np.log(length) for _, length, _ in best]}
        drawn = [self._sizes(number, self.draws[:, number]) for number in chosen]
        with np.errstate(divide="ignore", invalid="ignore"):  # of draws that are nearly straight lines
            draws = {"parameters": [np.log(size) for size, _, _ in drawn], "tokens": [np.log(length) for _, length, _ in drawn]}
            return {name: of_draws(float(slope @ values[name]), slope @ np.array(draws[name]), self.level) for name in values}

    def frontier(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(FLOPs [minima], losses [minima], draws of these losses [resamples, minima]) of the minima inside the ladder."""
        chosen = self.inside()
        losses = [self._sizes(number)[2] for number in chosen]
        draws = [self._sizes(number, self.draws[:, number])[2] for number in chosen]
        shape = (len(chosen), len(self.draws))
        return np.array([self.parabolas[i].flops for i in chosen]), np.array(losses), np.reshape(draws, shape).T

    def _sizes(self, number: int, coefficients: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(parameters, tokens, loss) at the minimum of a parabola, or of draws of its coefficients."""
        parabola = self.parabolas[number]
        x, loss = parabola.lowest(parabola.coefficients if coefficients is None else coefficients)
        with np.errstate(over="ignore"):
            return np.exp(x + parabola.centre), parabola.tokens_at(x), loss

    def _minimum(self, number: int) -> Minimum:
        parabola = self.parabolas[number]
        values, draws = self._sizes(number), self._sizes(number, self.draws[:, number])
        size, length, loss = (of_draws(float(value), drawn, self.level) for value, drawn in zip(values, draws, strict=True))
        return Minimum(parabola.flops, size, length, loss, _where(parabola, size.value), len(parabola.points))


def fit(points: Points, resamples: int = RESAMPLES, seed: int = 0, level: float = statistics.LEVEL) -> IsoFlop:
    """Parabolas of one family's points at each budget that has three sizes; DataError where none has."""
    parabolas = [_parabola(flops, points.take(chosen)) for flops, chosen in points.budgets()
                 if len(np.unique(points.parameters[chosen])) >= _LEAST_SIZES]
    if not parabolas:
        raise DataError(f"no budget has {_LEAST_SIZES} sizes, which a parabola needs: train more sizes at FLOPs that are within 10 % of "
                        "each other")
    return IsoFlop(parabolas, _draws(parabolas, resamples, seed), level)


def _parabola(flops: float, points: Points) -> Parabola:
    logs = np.log(points.parameters)
    centre = float(logs.mean())
    design = np.stack([np.ones(len(logs)), logs - centre, (logs - centre) ** 2], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, points.loss, rcond=None)
    if np.ptp(points.loss) <= 8 * np.finfo(float).eps * points.loss.max():
        coefficients = np.array([points.loss.mean(), 0.0, 0.0])  # else rounding bends what is straight
    residuals = points.loss - design @ coefficients
    spread = np.linalg.inv(np.linalg.qr(design, mode="r"))
    return Parabola(flops, points, logs - centre, centre, coefficients, spread, float(residuals @ residuals))


def _draws(parabolas: list[Parabola], resamples: int, seed: int) -> np.ndarray:
    """Coefficients [resamples, budgets, 3] as they might have been; no draws where no point is left to tell the noise."""
    spare = sum(len(parabola.points) - 3 for parabola in parabolas)
    if not spare:
        return np.empty((0, len(parabolas), 3))
    generator = np.random.default_rng(seed)
    deviation = np.sqrt(sum(parabola.squares for parabola in parabolas) / generator.chisquare(spare, resamples))
    noise = generator.standard_normal((len(parabolas), resamples, 3)) * deviation[:, None]
    drawn = [parabola.coefficients + unit @ parabola.spread.T for parabola, unit in zip(parabolas, noise, strict=True)]
    return np.stack(drawn, axis=1)


def _where(parabola: Parabola, size: float) -> str:
    if math.isnan(size):
        return NONE
    if size < parabola.points.parameters.min():
        return SMALLER
    return LARGER if size > parabola.points.parameters.max() else INSIDE
