"""What a run cost, from its metrics.jsonl: tokens, FLOPs and seconds, whether it is over, was killed or goes on."""

import itertools
import math
import statistics

import jax

from lm.models import CountedModel
from lm.run import Run

# Of the parts of a run's time: what a process does once, before its first step. No two processes take as long for all of them.
_ONCE = ("prepare", "compile", "peak")


def parameters_of(run: Run, lines: list[dict]) -> int | None:
    """Numbers that a run has learned, or, counted, that its last line names (None without one)."""
    if isinstance(run.model, CountedModel):
        return lines[-1]["parameters"] if lines else None
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.abstract_parameters()))


def stepping_seconds(lines: list[dict]) -> float:
    """Seconds in steps of the train lines of a run, over all processes that went on with it; for counted models, in counting."""
    return seconds_by_line(lines)[-1]


def seconds_by_line(lines: list[dict]) -> list[float]:
    """`stepping_seconds` up to each of the train lines."""
    if "time" not in lines[-1]:
        return [line["seconds"] for line in lines]
    seconds, before = [], 0.0
    for _, process in itertools.groupby(lines, lambda line: tuple(line["time"].get(name) for name in _ONCE)):
        seconds += [before + line["time"]["step"] for line in process]
        before = seconds[-1]
    return seconds


def speed(lines: list[dict]) -> dict:
    """{"tokens_per_second", "mfu"}: medians of the train lines after the first, which warms up."""
    warm = lines[1:] or lines
    return {name: statistics.median(line[name] for line in warm) for name in ("tokens_per_second", "mfu")}


def costs(run: Run, lines: list[dict]) -> dict | None:
    """What the train lines of a run's metrics say that it cost; None where there are none.

    {"parameters", "tokens", "flops" of training by the objective's account (0 for counted models), "seconds" in steps, "wall_seconds",
    "tokens_per_second" and "mfu" (see `speed`), "together": how many seeds shared the device's time (1: the run had it alone)}.
    """
    if not lines:
        return None
    return {"parameters": parameters_of(run, lines), "tokens": lines[-1]["tokens"],
            "flops": run.objective.train_flops(run.model) * lines[-1]["tokens"], "seconds": stepping_seconds(lines),
            "wall_seconds": lines[-1]["seconds"], **speed(lines), "together": lines[-1].get("together", 1)}
