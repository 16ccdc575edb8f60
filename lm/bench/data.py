"""Data: how fast text becomes a token store, how fast batches come from it, and how long a training step waits for them."""

import contextlib
import os
import statistics
import tempfile
from collections.abc import Sequence

from lm.bench.command import Options
from lm.bench.rounds import count_for, flat, interleave, spread
from lm.bench.worker import Side

PREPARATION, FEEDING = "lm.bench.ours_data:Preparation", "lm.bench.ours_data:Feeding"
# Of the embedded corpus, 12 MB each: with as many, starting the processes that tokenize is a small part of the time.
COPIES = 8
BATCHES, SMALL_BATCHES = 1000, 20  # that a turn of the loader makes
STEPS = 2  # before a turn's length is chosen


def run(options: Options) -> dict:
    """See `lm.bench.command`. `rows`: the preparation of the corpus as it is and `copies` times over, with tokens and megabytes of text a
    second, its speed-up over one process that only encodes, and that process; the loader, with what its batches would cost a step
    if nothing overlapped; and training steps with the share of their time that they wait for data, as `lm.train.loop` counts it."""
    tiny = options.tiny
    copies, batches = (1, SMALL_BATCHES) if tiny else (COPIES, BATCHES)
    texts = {f"prepare x{count}": count for count in dict.fromkeys((1, copies))}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        preparing = stack.enter_context(Side(PREPARATION, {"shape": options.shape, "folder": folder, "tiny": tiny}))
        feeding = stack.enter_context(Side(FEEDING, {"shape": options.shape, "folder": folder}))
        steps = count_for(options.seconds, feeding("steps", count=STEPS)["seconds"] / STEPS)
        turns = {name: lambda count=count: preparing("prepare", copies=count) for name, count in texts.items()}
        turns |= {"encode": lambda: preparing("encode"), "load": lambda: feeding("load", count=batches),
                  "steps": lambda: feeding("steps", count=steps)}
        measured = interleave(turns, options.rounds)
    alone = statistics.median(turn["tokens"] / turn["seconds"] for turn in measured["encode"])
    rows = [_text(name, measured[name], alone) for name in (*texts, "encode")]
    rows += feed_rows(options.shape.tokens, measured["load"], measured["steps"])
    return {"name": "data", "shape": options.shape_name, "rows": rows, "copies": copies, "cores": len(os.sched_getaffinity(0)),
            "tokenizer": preparing.info, "turns": measured}


def _text(name: str, turns: Sequence[dict], alone: float) -> dict:
    """Preparation or encoding of a text: `speedup` is over one process that only encodes, `alone` tokens/s."""
    seconds = spread([turn["seconds"] for turn in turns])
    speed = turns[0]["tokens"] / seconds["median"]
    return {"what": name, "tokens_per_s": speed, "megabytes_per_s": turns[0]["bytes"] / seconds["median"] / 1e6,
            "ms": 1e3 * seconds["median"], "low_ms": 1e3 * seconds["low"], "high_ms": 1e3 * seconds["high"], "speedup": speed / alone}


def feed_rows(tokens: int, load: Sequence[dict], steps: Sequence[dict]) -> list[dict]:
    """The loader alone, by batch of `tokens`, and the steps of training: `share_of_step` is what a batch takes over what a step takes,
    `waited` the share of their time that steps waited."""
    batch = spread([turn["seconds"] / turn["count"] for turn in load])
    step = spread(flat([turn["each"] for turn in steps]))
    waited = sum(turn["waited"] for turn in steps) / sum(turn["seconds"] for turn in steps)
    rows = [{"what": name, "tokens_per_s": tokens / one["median"], "ms": 1e3 * one["median"], "low_ms": 1e3 * one["low"],
             "high_ms": 1e3 * one["high"]} for name, one in (("load", batch), ("train", step))]
    rows[0]["share_of_step"], rows[1]["waited"] = batch["median"] / step["median"], waited
    return rows
