"""Sides that take turns (A B A B ...), and the ratio between them: on a noisy machine only what ran side by side compares."""

import statistics
from collections.abc import Callable


def interleave(turns: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """Seconds by side and round; every other round goes backward, so that no side always comes first."""
    seconds = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns) if number % 2 == 0 else reversed(list(turns)):
            seconds[name].append(turns[name]())
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles of some values."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "low": low, "high": high}


def flat(rounds: list[list[float]]) -> list[float]:
    """All values of all rounds."""
    return [value for values in rounds for value in values]


def speed_ratio(ours: list[list[float]], peer: list[list[float]]) -> dict[str, float]:
    """How many times as fast as the peer we are: the ratio of all medians, with the smallest and largest ratio of a round."""
    by_round = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, peer, strict=True)]
    ratio = statistics.median(flat(peer)) / statistics.median(flat(ours))
    return {"ratio": ratio, "ratio_low": min(by_round), "ratio_high": max(by_round)}
