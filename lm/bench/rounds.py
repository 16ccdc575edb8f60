"""Sides that take turns (A B A B ...), and the ratio between them: on a noisy machine only what ran side by side compares."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

# Before a turn's length is chosen.
WARM_STEPS = 2
# What is shorter than this, in seconds, is repeated when its least time is wanted.
LEAST_SECONDS = 0.15


def interleave(turns: dict[str, Callable[[], object]], rounds: int) -> dict[str, list]:
    """What each side's turns gave, such as the seconds of some steps; every other round goes backward, so that none always comes first."""
    results = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns) if number % 2 == 0 else reversed(list(turns)):
            results[name].append(turns[name]())
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of some values."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "low": low, "high": high}


def flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    """All values of all rounds."""
    return [value for values in rounds for value in values]


def speed_ratio(ours: Sequence[Sequence[float]], peer: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many times as fast as the peer we are, from seconds: the ratio of all medians, with the smallest and largest of a round."""
    by_round = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, peer, strict=True)]
    ratio = statistics.median(flat(peer)) / statistics.median(flat(ours))
    return {"ratio": ratio, "ratio_low": min(by_round), "ratio_high": max(by_round)}


def at_once(calls: Sequence[Callable[[], object]]) -> list:
    """The results of calls, as many at a time as there are cores: for what is not timed."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(lambda call: call(), calls))


def count_for(seconds: float, one: float) -> int:
    """How many of what takes `one` second each make a turn of about `seconds`, at least one."""
    return max(1, round(seconds / one))


def turn_of(side: Callable, seconds: float) -> Callable[[], list[float]]:
    """A turn: the seconds of the `steps` of a side (`lm.bench.worker`) that take about some seconds.

    One more comes first, untimed: a program in a virtual machine pays after a pause for memory that it had given back meanwhile. On the
    machine that this was written on, first steps took up to twice as long, of JAX after PyTorch far more often than the other way round.
    """
    count = count_for(seconds, min(side("steps", count=WARM_STEPS)))
    return lambda: side("steps", count=1 + count)[1:]


def seconds_of(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of some calls."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def best_seconds(call: Callable[[], object]) -> float:
    """Least seconds of a call, repeated for LEAST_SECONDS, at least twice."""
    seconds, start = [], time.perf_counter()
    while len(seconds) < 2 or time.perf_counter() - start < LEAST_SECONDS:
        seconds += seconds_of(call, 1)
    return min(seconds)
