"""Which row, and which tensor first, is not finite or out of line.

Out of line is a robust deviation above THRESHOLD: logarithms, so that it is about factors, measured from their median in units of
1.4826 x their median absolute deviation (the standard deviation of a normal distribution), of at least FLOOR, for losses LOSS_FLOOR.
With these numbers a gradient norm out of line is at least exp(6 x 0.15) = 2.5 times what is usual, a loss exp(6 x 0.1) = 1.8 times.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from lm.replay.watch import MAX, NONFINITE, PLACE, RMS, Examined, Tensor

THRESHOLD = 6.0
FLOOR, LOSS_FLOOR = 0.15, 0.1
# What a row needs to be named for an activation alone, where neither its gradient nor the step as a whole is out of line.
QUIET_FACTOR = 100.0
FEWEST_STEPS, FEWEST_ROWS = 3, 4
STATISTICS = {"rms": RMS, "max": MAX}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A tensor that is not as it should be. `what` is parameter, activation, activation gradient or parameter gradient.

    statistic: nonfinite (a count), rms or max; `usual` is the median elsewhere; `place` is the token in the row where it is worst.
    """

    what: str
    name: str
    statistic: str
    value: float
    usual: float | None = None
    deviations: float | None = None
    place: int | None = None


@dataclasses.dataclass(frozen=True)
class Suspect:
    """What is wrong with a step: `kind` is "not finite" or "out of line"; no rows means that it is not about single rows.

    `place` is the token of rows[0] where that row is worst in its first tensor that is.
    """

    kind: str
    reason: str
    rows: list[int]
    finding: Finding | None
    place: int | None = None


def deviations(values, usual=None, floor: float = FLOOR) -> np.ndarray:
    """How far above `usual` (default: the values themselves) each value lies; 0 where the median of what is usual is not above 0."""
    values = np.asarray(values, np.float64)
    usual = values if usual is None else np.asarray(usual, np.float64)
    usual = usual[np.isfinite(usual)]
    if not len(usual) or np.median(usual) <= 0:
        return np.zeros_like(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.maximum(usual, 1e-300))
        middle = np.median(logs)
        spread = max(1.4826 * float(np.median(np.abs(logs - middle))), floor)
        return np.nan_to_num((np.log(np.maximum(values, 1e-300)) - middle) / spread, nan=0.0, posinf=1e9, neginf=-1e9)


def in_order(tensors: list[Tensor], examined: Examined) -> Iterator[tuple[str, str, np.ndarray]]:
    """(what, name, statistics) in the order of computation: forward, then backward. Those of parameters are [4], of outputs [B, 4]."""
    for tensor in tensors:
        yield tensor.kind, tensor.name, (examined.weights if tensor.kind == "parameter" else examined.forward)[tensor.name]
    for tensor in reversed(tensors):
        found = (examined.gradients if tensor.kind == "parameter" else examined.backward).get(tensor.name)
        if found is not None:
            yield f"{tensor.kind} gradient", tensor.name, found


def overall(what: str, statistics: np.ndarray) -> np.ndarray:
    """[4] of a tensor over all rows; the place is that of the worst row."""
    if what not in ("activation", "activation gradient"):
        return statistics
    worst = np.argmax(np.where(statistics[:, NONFINITE] > 0, np.inf, statistics[:, MAX]))
    rms = math.sqrt(float(np.mean(np.square(statistics[:, RMS]))))
    return np.array([rms, statistics[:, MAX].max(), statistics[:, NONFINITE].sum(), statistics[worst, PLACE]])


def judge(tensors, whole: Examined, rows: list[Examined], references: list[Examined], history: list[dict]) -> Suspect | None:
    """The suspect of a step from its batch, its rows alone, and steps before it: some examined, more with loss and grad_norm alone."""
    return (_not_finite(tensors, whole, rows) or _rows_out_of_line(tensors, rows)
            or _step_out_of_line(tensors, whole, rows, references, history))


def _not_finite(tensors, whole, rows) -> Suspect | None:
    firsts = {row: (index, finding) for row, examined in enumerate(rows)
              if (found := _first_not_finite(tensors, examined, ("activation", "activation gradient", "parameter gradient")))
              for index, finding in [found]}
    first = _first_not_finite(tensors, whole)
    if not firsts:
        return _whole_not_finite(whole, rows, first and first[1])
    earliest = min(index for index, _ in firsts.values())
    culprits = [row for row, (index, _) in firsts.items() if index == earliest]
    if len(culprits) == len(rows):
        return Suspect("not finite", "every row is, from the same tensor on", [], first[1])
    text = f"{_rows(culprits)} {'are' if len(culprits) > 1 else 'is'}"
    if len(firsts) > len(culprits):
        text += f", and {len(firsts) - len(culprits)} more from a later tensor on"
    _, finding = _first_not_finite(tensors, rows[culprits[0]])
    return Suspect("not finite", text, culprits, finding, firsts[culprits[0]][1].place)


def _whole_not_finite(whole, rows, finding) -> Suspect | None:
    """A step whose rows alone are of finite tensors: a parameter that none of them meets, or sums that overflow."""
    if finding is not None:
        return Suspect("not finite", "no row alone meets what is not finite", [], finding)
    if math.isfinite(whole.loss) and math.isfinite(whole.grad_norm):
        return None
    overflowing = [row for row, examined in enumerate(rows) if not math.isfinite(examined.grad_norm)]
    name, statistics = max(whole.gradients.items(), key=lambda item: item[1][MAX])
    return Suspect("not finite", "every entry is finite, but sums of the loss or of the gradient's squares overflow float32",
                   overflowing if len(overflowing) < len(rows) else [], Finding("parameter gradient", name, "max", statistics[MAX]))


def _first_not_finite(tensors, examined, kinds=None) -> tuple[int, Finding] | None:
    for index, (what, name, statistics) in enumerate(in_order(tensors, examined)):
        values = overall(what, statistics)
        if values[NONFINITE] and (kinds is None or what in kinds):
            return index, Finding(what, name, "nonfinite", values[NONFINITE], place=_place(what, values))
    return None


def _rows_out_of_line(tensors, rows) -> Suspect | None:
    if len(rows) < FEWEST_ROWS:
        return None
    values = {"gradient norm": np.array([row.grad_norm for row in rows]), "loss": np.array([row.loss for row in rows])}
    far = {"gradient norm": deviations(values["gradient norm"]), "loss": deviations(values["loss"], floor=LOSS_FLOOR)}
    farthest = np.maximum(far["gradient norm"], far["loss"])
    culprits = [int(row) for row in np.argsort(-farthest) if farthest[row] > THRESHOLD]
    if not culprits:
        return None
    first = culprits[0]
    name = "gradient norm" if far["gradient norm"][first] > THRESHOLD else "loss"
    finding = next((found for _, row, found in _row_findings(tensors, rows) if row == first), None)
    reason = (f"the {name} of row {first} alone is {values[name][first]:.4g}, {far[name][first]:.1f} deviations above the median "
              f"{np.median(values[name]):.4g} of the rows")
    return Suspect("out of line", reason, culprits, finding, finding and finding.place)


def _row_findings(tensors, rows, factor: float = 1.0) -> Iterator[tuple[int, int, Finding]]:
    """(place in the order, row, finding) wherever a row's tensor is out of line with, and `factor` times, that of the others."""
    for index, parts in enumerate(zip(*(in_order(tensors, row) for row in rows), strict=True)):
        what, name, _ = parts[0]
        if what == "parameter":
            continue
        values = np.stack([overall(what, statistics) for _, _, statistics in parts])
        for statistic, column in STATISTICS.items():
            far, usual = deviations(values[:, column]), float(np.median(values[:, column]))
            for row in np.argsort(-far):
                if far[row] > THRESHOLD and values[row, column] > factor * usual:
                    yield index, int(row), Finding(what, name, statistic, values[row, column], usual, far[row], _place(what, values[row]))


def _step_out_of_line(tensors, whole, rows, references, history) -> Suspect | None:
    """A step that is worse than those before it: by one row's doing, or everywhere from some tensor on."""
    reason = _compared(whole, history)
    by_row = next(_row_findings(tensors, rows, 1.0 if reason else QUIET_FACTOR), None) if len(rows) >= FEWEST_ROWS else None
    if not reason:
        if by_row is None:
            return None
        _, row, finding = by_row
        reason = f"the gradients are in line, but row {row} is more than {QUIET_FACTOR:.0f} times the others in a tensor"
        return Suspect("out of line", reason, [row], finding, finding.place)
    by_step = next(_step_findings(tensors, whole, references), None)
    if by_row and (by_step is None or by_row[0] <= by_step[0]):
        _, row, finding = by_row
        return Suspect("out of line", f"{reason}; row {row} is the first to differ from the others", [row], finding, finding.place)
    if by_step:
        return Suspect("out of line", f"{reason}; no row differs from the others before all rows do", [], by_step[1])
    reason += "; no row differs from the others" + ("" if references else ", and no step before it was made again to compare tensors with")
    return Suspect("out of line", reason, [], None)


def _compared(whole: Examined, history: list[dict]) -> str:
    """What is out of line in a step as a whole, beside the steps before it; "" when nothing is, or there are too few."""
    if len(history) < FEWEST_STEPS:
        return ""
    for name, value in (("loss", whole.loss), ("gradient norm", whole.grad_norm)):
        usual = [line["grad_norm" if name == "gradient norm" else "loss"] for line in history]
        far = float(deviations([value], usual, LOSS_FLOOR if name == "loss" else FLOOR)[0])
        if far > THRESHOLD:
            return (f"the {name} of the step is {value:.4g}, {far:.1f} deviations above the median {np.median(usual):.4g} "
                    f"of {len(usual)} steps before")
    return ""


def _step_findings(tensors, whole, references) -> Iterator[tuple[int, Finding]]:
    """(place in the order, finding) wherever a tensor is out of line with the steps before."""
    if not references:
        return
    for index, parts in enumerate(zip(in_order(tensors, whole), *(in_order(tensors, other) for other in references), strict=True)):
        what, name, _ = parts[0]
        own, *others = [overall(what, statistics) for _, _, statistics in parts]
        for statistic, column in STATISTICS.items():
            usual = [other[column] for other in others]
            far = float(deviations([own[column]], usual)[0])
            if far > THRESHOLD:
                yield index, Finding(what, name, statistic, own[column], float(np.median(usual)), far)


def _place(what: str, values: np.ndarray) -> int | None:
    return int(values[PLACE]) if what in ("activation", "activation gradient") else None


def _rows(rows: list[int]) -> str:
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:10]))}" + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
