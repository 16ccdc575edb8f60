"""How memory and time grow: the peak of training against context and vocabulary, and the time of a step (`lm.bench.growth`)."""

import functools
import math
from collections.abc import Sequence

from lm.bench import growth, train
from lm.bench.command import Options
from lm.bench.rounds import at_once
from lm.bench.shapes import Shape
from lm.bench.worker import Side

LOSS_CHUNK = 16
DOUBLINGS = 4
# The models are small, so that what grows is seen; an axis starts where its shape is, after a first point of next to no size.
CONTEXT, VOCABULARY, NEXT_TO_NONE = (2, 64, 512, 1, 512), (1, 64, 1024, 1, 2048), 64
# Parameters, their gradient and AdamW's two moments: what a word of the vocabulary costs at least.
FLOATS_PER_PARAMETER = 4
OURS = {"ours": {}, "ours, chunked loss": {"train.loss_chunk": LOSS_CHUNK}}
# What two runs of the same program differ by, in bytes; growth below it is none.
NOISE = 32e6


def run(options: Options) -> dict:
    """See `lm.bench.command`. The shape gives the family alone. A point is a process of its own; the first of an axis is what the others
    are counted from. `fits` has for each axis and side, of the peak of the process and of our compiled step, the slope in bytes per
    token (of a row) or word, and the exponent of the last doubling: 1 is linear, 2 is quadratic, 0 is flat; `least_slope` is what
    cannot be saved."""
    family, doublings = options.shape.family, 1 if options.tiny else DOUBLINGS
    sizes = {"context": Shape(family, *CONTEXT), "vocab_size": Shape(family, *VOCABULARY)}
    rows, fits = [], {}
    for axis, first in sizes.items():
        values = [NEXT_TO_NONE, *(getattr(first, axis) * 2**i for i in range(doublings + 1))]
        fits[axis] = {}
        for side, (target, settings) in _sides(axis, options.against).items():
            points = at_once([functools.partial(_point, target, settings, first._replace(**{axis: value})) for value in values])
            rows += [{"axis": axis, "value": value, "side": side, **point} for value, point in zip(values, points, strict=True)]
            fits[axis][side] = {name.removesuffix("_gb"): fit(values, [1e9 * point[name] for point in points]) for name in points[0]}
    result = {"name": "memory", "shape": options.shape_name, "family": family, "rows": rows, "fits": fits,
              "least_slope": {"vocab_size": 4 * FLOATS_PER_PARAMETER * sizes["vocab_size"].width}, "growth": growth.measure(options)}
    if options.plot:
        from lm.bench.plot import draw

        draw(result, options.plot)
    return result | (compare(options.against, rows) if options.against else {})


def _sides(axis: str, against: str | None) -> dict[str, tuple[str, dict]]:
    """Ours, with the chunked loss too where the vocabulary grows, and the peer uncompiled, which is quick to start."""
    sides = {name: (train.OURS, {"overrides": overrides}) for name, overrides in OURS.items() if axis == "vocab_size" or not overrides}
    return sides | (dict([next(iter(train.PEERS[against].items()))]) if against else {})


def _point(target: str, settings: dict, shape: Shape) -> dict:
    """Peak memory of a process that trains for a few steps, and what our compiled step asks for."""
    with Side(target, {"shape": shape, **settings}) as side:
        side("first")
        side("steps", count=2)
        program = {"program_gb": side("program_memory") / 1e9} if target == train.OURS else {}
        return {"peak_gb": side("memory") / 1e9, **program}


def fit(values: Sequence[float], peaks: Sequence[float]) -> dict[str, float]:
    """Slope by least squares, and the exponent of the last doubling, of bytes at sizes; those of the first size are the process's own."""
    n, center = len(values), sum(values) / len(values)
    middle = sum(peaks) / n
    slope = sum((x - center) * (y - middle) for x, y in zip(values, peaks, strict=True)) / sum((x - center) ** 2 for x in values)
    before, last = peaks[-2] - peaks[0], peaks[-1] - peaks[0]
    exponent = math.log2(last / max(before, NOISE / 2)) if last > NOISE else 0.0
    return {"slope": slope, "exponent": exponent}


def compare(against: str, rows: Sequence[dict]) -> dict:
    """Peak memory at the largest size of each axis, the best of our ways; the ratio is above 1 where ours needs less."""
    ratios = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        largest = max(row["value"] for row in rows if row["axis"] == axis)
        here = [row for row in rows if (row["axis"], row["value"]) == (axis, largest)]
        ours = min(row["peak_gb"] for row in here if row["side"] in OURS)
        peer = next(row["peak_gb"] for row in here if row["side"] not in OURS)
        ratios[axis] = {"value": largest, "ours": ours, "peer": peer, "ratio": peer / ours}
    first = next(iter(ratios))
    return {"ratios": ratios, "against": against, "measure": f"peak memory at {first} {ratios[first]['value']}", "unit": "GB",
            **{key: ratios[first][key] for key in ("ours", "peer", "ratio")}}
