"""How the time of our train step grows with context, batch and layers."""

import contextlib
import functools
import math
import sys
from collections.abc import Sequence

from lm.bench.command import Options
from lm.bench.rounds import at_once, flat, interleave, spread, turn_of
from lm.bench.shapes import Shape
from lm.bench.train import OURS
from lm.bench.worker import Side
from lm.cli import table

DOUBLINGS = 4
TURN_SHARE = 0.1  # of the seconds that a turn is asked to take: there are many of them


def measure(options: Options) -> dict:
    """For each axis its values, the median milliseconds of a step at each, and the exponent: 1 is linear."""
    doublings = 1 if options.tiny else DOUBLINGS
    base = Shape(options.shape.family, 2, 64 if doublings == 1 else 256, 64, 2, 1024)
    result = {}
    for axis in ("context", "batch", "layers"):
        first = 1 if axis == "layers" else getattr(base, axis)
        values = [first * 2**i for i in range(doublings + 1)]
        times = _times([base._replace(**{axis: value}) for value in values], options)
        result[axis] = {"values": values, "step_ms": [1e3 * seconds for seconds in times], "exponent": exponent(values, times)}
    rows = [{"axis": axis, "value": value, "step_ms": step} for axis, found in result.items()
            for value, step in zip(found["values"], found["step_ms"], strict=True)]
    print(table(rows), file=sys.stderr)
    return result


def _times(shapes: Sequence[Shape], options: Options) -> list[float]:
    """Median seconds of a step of each shape, in turns."""
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(Side(OURS, {"shape": shape})) for shape in shapes]
        at_once([functools.partial(side, "first") for side in sides])
        turns = {shape: turn_of(side, TURN_SHARE * options.seconds) for shape, side in zip(shapes, sides, strict=True)}
        measured = interleave(turns, options.rounds)
    return [spread(flat(measured[shape]))["median"] for shape in shapes]


def exponent(values: Sequence[float], times: Sequence[float]) -> float:
    """p of times ~ values ** p, fitted by least squares to their logarithms."""
    x, y = ([math.log(value) for value in some] for some in (values, times))
    center, middle = sum(x) / len(x), sum(y) / len(y)
    return sum((a - center) * (b - middle) for a, b in zip(x, y, strict=True)) / sum((a - center) ** 2 for a in x)
