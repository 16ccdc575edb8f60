"""What a plan asks of a launcher, read from its plan.json; a launcher that asks for something else is told so before anything is made.

    python scripts/launch/planned.py DIR tpu [TYPE] [SLICES]            prints the accelerator type and the number of slices
    python scripts/launch/planned.py DIR slurm NODES TASKS GPUS         prints nothing

An empty TYPE or SLICES is the plan's. Exits with 2, and one line, where the plan is for something else, or does not fit.
Only the standard library: it runs on a laptop, under whatever Python there is.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import sys
from typing import NamedTuple

# Accelerator types of Cloud TPU by kind: their first part, and what their number counts of a chip (Google Cloud, "TPU v4" to "TPU v6e").
# tpu7x is to be had from GKE alone ("TPU7x").
TYPES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
# Values of cloud.google.com/gke-tpu-accelerator by kind (Google Cloud, "Plan TPUs in GKE").
GKE = {"v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice", "tpu7x": "tpu7x"}


class Refused(Exception):
    """A plan that is not for this launcher's call."""


class Plan(NamedTuple):
    """`slices` slices of chips of a kind, wired as `shape`."""

    folder: pathlib.Path
    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int

    @property
    def chips(self) -> int:
        """Of a slice."""
        return math.prod(self.shape)

    @property
    def sides(self) -> str:
        """Of a slice, as in 4x4."""
        return "x".join(map(str, self.shape))


def read(folder: str) -> Plan:
    """The plan in a folder. Refused when there is none, or it does not fit."""
    try:
        values = json.loads((pathlib.Path(folder) / "plan.json").read_text(encoding="utf-8"))
        slices, kind, shape = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)", values["topology"]).groups()
        fits = values["fits"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"--plan={folder} is not the folder of a plan ({type(error).__name__}: {error}): make one with scripts/plan.py "
                        f"--out={folder}") from error
    if not fits:
        raise Refused(f"the plan {folder} does not fit {values['topology']}: see its page.txt for what to change, and plan again")
    return Plan(pathlib.Path(folder), values["topology"], kind, tuple(map(int, shape.split("x"))), int(slices or 1))


def cloud_tpu(plan: Plan, asked_type: str = "", asked_slices: str = "") -> tuple[str, int]:
    """(accelerator type, slices) of a queued resource; what is asked for must be what was planned."""
    if plan.kind not in TYPES:
        other = "scripts/launch/gke.py launches it" if plan.kind in GKE else "it is for no TPU"
        raise Refused(f"the plan {plan.folder} is for {plan.name}, which Cloud TPU does not have: {other}")
    first, counted = TYPES[plan.kind]
    name = f"{first}-{counted * plan.chips}"
    if (asked_type or name) != name or (asked_slices or str(plan.slices)) != str(plan.slices):
        raise Refused(f"the plan {plan.folder} is for {plan.name}, that is --type={name} --slices={plan.slices}, and asked for are "
                        f"--type={asked_type or name} --slices={asked_slices or plan.slices}: leave both out, or plan for what you want")
    if not asked_type and sorted(plan.shape) != list(compact(plan.chips, len(plan.shape))):
        usual = "x".join(map(str, compact(plan.chips, len(plan.shape))))
        raise Refused(f"the plan {plan.folder} is for {plan.name}, but a {name} is usually wired as {usual}: plan for "
                        f"{plan.kind}:{usual}, or give --type={name} and see to it that it is a {plan.sides} (the run checks it)")
    return name, plan.slices


def compact(chips: int, sides: int) -> tuple[int, ...]:
    """The shape, sides rising, as which a slice of so many chips is wired unless something else is asked for.

    Larger slices of three sides are made of whole cubes of 4x4x4 (Jouppi et al. 2023, section 2).
    """
    if sides == 3 and chips % 64 == 0:
        return tuple(4 * side for side in cubic(chips // 64, sides))
    return cubic(chips, sides)


def cubic(chips: int, sides: int) -> tuple[int, ...]:
    """The sides, rising, that are most alike and whose product is `chips`."""
    if sides == 1:
        return (chips,)
    shapes = [(side, *cubic(chips // side, sides - 1)) for side in range(1, chips + 1) if chips % side == 0]
    return min((tuple(sorted(shape)) for shape in shapes), key=sum)


def gke(plan: Plan, tpu: str | None, topology: str | None, slices: int | None) -> tuple[str, str, int]:
    """(value of gke-tpu-accelerator, topology, slices) of a JobSet; what is asked for must be what was planned."""
    if plan.kind not in GKE:
        raise Refused(f"the plan {plan.folder} is for {plan.name}, which is no TPU of GKE")
    planned = (GKE[plan.kind], plan.sides, plan.slices)
    asked = tuple(given or own for given, own in zip((tpu, topology, slices), planned, strict=True))
    if asked != planned:
        text, other = (" ".join(f"--{name}={value}" for name, value in zip(("tpu", "topology", "slices"), values, strict=True))
                       for values in (planned, asked))
        raise Refused(f"the plan {plan.folder} is for {plan.name}, that is {text}, and asked for are {other}: leave them out, or plan "
                        "for what you want")
    return planned


def slurm(plan: Plan, nodes: int, tasks: int, gpus: int):
    """Checks a job of `nodes` nodes with `tasks` processes and `gpus` GPUs each."""
    if plan.kind != "cpu" or gpus:
        where = f"GPUs, {gpus} a node" if gpus else "nodes"
        raise Refused(f"the plan {plan.folder} is for {plan.name}, and asked for are {nodes} x {tasks} processes on {where}: launch it "
                        "without --plan" + (", or with scripts/launch/tpu.sh or gke.py" if plan.kind in GKE else ""))
    if plan.chips % (nodes * tasks):
        raise Refused(f"the plan {plan.folder} is for {plan.name}, whose devices {nodes} x {tasks} processes cannot share evenly: change "
                        "--nodes, or plan for what you want")


def main(arguments: list[str]) -> int:
    """Exit code."""
    if len(arguments) < 2 or arguments[1] not in ("tpu", "slurm"):
        print(__doc__)
        return 2
    folder, launcher, *asked = arguments
    try:
        if launcher == "tpu":
            print(*cloud_tpu(read(folder), *asked))
        else:
            slurm(read(folder), *map(int, asked))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
