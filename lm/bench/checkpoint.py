"""Checkpoints: how long a save holds the training up, when it is on disk, and how long it takes to go on from it."""

import contextlib
import statistics
from collections.abc import Sequence

from lm.bench.command import Options
from lm.bench.rounds import count_for, flat, interleave, spread
from lm.bench.worker import Side

SIDES = {"ours": "lm.bench.saving:Saving"}
PEERS = {"torch": {"torch": "lm.bench.peers.saving:Saving"}}
# Of a step: most that a save may hold the loop up for.
TARGET_SHARE = 0.05


def run(options: Options) -> dict:
    """See `lm.bench.command`; a row per side. `held` is how long the save keeps its caller, `slowed` how much longer than others the
    steps take that run until it is on disk and sealed, both also as shares of a step. `turns` has all of it in seconds, by round; the
    first save of a process, which costs more, is apart in `first`. The ratio is of held and slowed together."""
    with contextlib.ExitStack() as stack:
        targets = SIDES | (PEERS[options.against] if options.against else {})
        sides = {name: stack.enter_context(Side(target, {"shape": options.shape})) for name, target in targets.items()}
        counts = {name: count_for(options.seconds, side.info["step"]) for name, side in sides.items()}
        first = {name: side("turn", count=1) for name, side in sides.items()}
        turns = interleave({name: lambda name=name, side=side: side("turn", count=counts[name]) | {"restore": side("restore")}
                            for name, side in sides.items()}, options.rounds)
    rows = [row(name, turns[name]) for name in sides]
    result = {"name": "checkpoint", "shape": options.shape_name, "family": options.shape.family, "rows": rows,
              "target_held_share": TARGET_SHARE, "first": {name: rounded(turn) for name, turn in first.items()},
              "turns": {name: [rounded(turn) for turn in some] for name, some in turns.items()}}
    return result | (compare(options.against, rows) if options.against else {})


def row(name: str, turns: Sequence[dict]) -> dict:
    """What is shown of a side: medians over its turns, with the quartiles of what a save holds up."""
    step = statistics.median(flat([turn["quiet"] for turn in turns]))
    held, slowing = spread([turn["held"] for turn in turns]), spread([slowed(turn) for turn in turns])
    medians = {key: statistics.median(turn[key] for turn in turns) for key in ("durable", "restore", "bytes")}
    return {"side": name, "step_ms": 1e3 * step, "held_ms": 1e3 * held["median"], "held_low_ms": 1e3 * held["low"],
            "held_high_ms": 1e3 * held["high"], "held_share": held["median"] / step, "slowed_ms": 1e3 * slowing["median"],
            "slowed_low_ms": 1e3 * slowing["low"], "slowed_high_ms": 1e3 * slowing["high"], "slowed_share": slowing["median"] / step,
            "steps_during": statistics.median(len(turn["during"]) for turn in turns), "durable_s": medians["durable"],
            "restore_s": medians["restore"], "megabytes": medians["bytes"] / 1e6}


def rounded(turn: dict) -> dict:
    """A turn with its seconds to the microsecond."""
    return {name: [round(each, 6) for each in value] if isinstance(value, list) else round(value, 6) for name, value in turn.items()}


def slowed(turn: dict) -> float:
    """Seconds by which the steps during a save took longer than as many of the quiet ones before it."""
    return sum(turn["during"]) - len(turn["during"]) * statistics.median(turn["quiet"])


def compare(against: str, rows: Sequence[dict]) -> dict:
    """What a save costs the training in all, with the ratios of its parts, above 1 where ours is better."""
    ours, peer = rows
    costs = [row["held_ms"] + row["slowed_ms"] for row in rows]
    ratios = {"held": peer["held_ms"] / ours["held_ms"], "durable": peer["durable_s"] / ours["durable_s"],
              "restore": peer["restore_s"] / ours["restore_s"], "bytes": peer["megabytes"] / ours["megabytes"]}
    return {"ratios": ratios, "against": against, "measure": "a save, held and slowed", "unit": "ms", "ours": costs[0], "peer": costs[1],
            "ratio": costs[1] / costs[0]}
