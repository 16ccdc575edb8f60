"""Decoding: the same prompts continued greedily by our generator and others' in turns, against what the machine's memory and cores allow.

The cache is the models' own; no document ends, so that every row gets all its tokens.
"""

import contextlib
import os
import statistics
import tempfile
from collections.abc import Sequence

from lm.bench import matmul
from lm.bench.command import Options
from lm.bench.rounds import count_for, flat, interleave, speed_ratio, spread
from lm.bench.shapes import Shape, random_tokens
from lm.bench.worker import Side
from lm.errors import BenchError

OURS = "lm.bench.ours_decode:Decoding"
# The settings of a peer that a user would try; the faster one is the peer.
PEERS = {"transformers": {"transformers": ("lm.bench.peers.hf:Decoding", {"compiled": False}),
                          "transformers compiled": ("lm.bench.peers.hf:Decoding", {"compiled": True})}}
BATCHES, SMALL_BATCHES = (1, 8, 64), (1, 2)
LENGTH = 128  # tokens of a prompt, its start included, and new ones; half of the context where that is less
START = 0  # the first token of every prompt, which no side may choose
# Two implementations round differently, and where two tokens are as likely a row goes another way from there on.
SAME_TOKENS = 0.9


def run(options: Options) -> dict:
    """See `lm.bench.command`; `rows` has a row per side and batch, `seconds` what each side took for one new token and for all of them."""
    tiny, shape, length = options.tiny, options.shape, min(LENGTH, options.shape.context // 2)
    batches = SMALL_BATCHES if tiny else BATCHES
    prompts = {batch: prompts_of(shape, batch, length) for batch in batches}
    with contextlib.ExitStack() as stack:
        sides = _start(stack, options, length)
        same = {batch: check_same({name: side("tokens", prompts=prompts[batch], new=length) for name, side in sides.items()})
                for batch in batches}
        turns = {(name, batch): turn_of(side, prompts[batch], length, options.seconds) for batch in batches for name, side in sides.items()}
        (products,) = matmul.sides(stack, False, matmul.peak_sizes(options), (matmul.PEAK_TYPE,)).values()
        memory = stack.enter_context(Side("lm.bench.limits:Bandwidth", {"size": 2**22} if tiny else {}))
        limits = {"memory": lambda: memory("turn")["read"], "products": lambda: max(found["flops"] for found in products("turn"))}
        measured = interleave(turns | limits, options.rounds)
        needs = sides["ours"].info
    bandwidth, flops = max(measured["memory"]), max(measured["products"])
    rows = [row(name, batch, length, measured[name, batch], limit(needs, batch, bandwidth, flops)) for batch in batches for name in sides]
    seconds = {name: {batch: [{key: [round(second, 6) for second in some] for key, some in turn.items()} for turn in measured[name, batch]]
                      for batch in batches} for name in sides}
    result = {"name": "decode", "shape": options.shape_name, "family": shape.family, "prompt": length, "new": length, "rows": rows,
              "bandwidth": bandwidth, "peak_flops": flops, "needs": needs, "seconds": seconds}
    return result | (compare(options.against, rows, measured) | {"same_tokens": same} if options.against else {})


def _start(stack: contextlib.ExitStack, options: Options, length: int) -> dict[str, Side]:
    """The sides by name: ours, and the settings of the peer with our weights."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    sides = {"ours": stack.enter_context(Side(OURS, {"shape": options.shape, "start": START, "tokens": length + length // 2}))}
    if options.against:
        weights = os.path.join(folder, "weights.npz")
        sides["ours"]("save", file=weights)
        for name, (target, settings) in PEERS[options.against].items():
            caches = {"TORCHINDUCTOR_CACHE_DIR": stack.enter_context(tempfile.TemporaryDirectory())}
            given = {"shape": options.shape, "start": START, "weights": weights, **settings}
            sides[name] = stack.enter_context(Side(target, given, caches))
    return sides


def prompts_of(shape: Shape, batch: int, length: int) -> list[list[int]]:
    """Random prompts of `length` tokens, the first of which is START."""
    rows = random_tokens(shape._replace(batch=batch, context=length - 1))
    rows[:, 0] = START
    return rows.tolist()


def turn_of(side: Side, prompts: list[list[int]], new: int, seconds: float):
    """A turn: {"first": seconds to one new token, "all": to all of them}, each so often that all of it takes about some seconds.

    Both were made before, by `tokens` or here; the first of a turn is not timed, as in `lm.bench.rounds.turn_of`.
    """
    firsts = count_for(seconds / 4, min(side("seconds", prompts=prompts, new=1, count=2)))
    count = count_for(seconds, min(side("seconds", prompts=prompts, new=new, count=1)))
    return lambda: {"first": side("seconds", prompts=prompts, new=1, count=1 + firsts)[1:],
                    "all": side("seconds", prompts=prompts, new=new, count=count)}


def limit(needs: dict, batch: int, bandwidth: float, flops: float) -> dict:
    """The least seconds per new token of every row, and what sets it: reading the weights once and the rows' caches, or the products."""
    times = {"memory": (needs["weights"] + batch * needs["cache"]) / bandwidth, "products": batch * needs["flops"] / flops}
    bound = max(times, key=times.get)
    return {"seconds": times[bound], "bound": bound}


def row(name: str, batch: int, length: int, turns: Sequence[dict], limit: dict) -> dict:
    """What is shown of a side and a batch. `first_token_ms` is from the prompt to its first new token, `token_ms` what each later one
    takes (of all rows at once); `share_of_limit` is the least that the machine allows over it."""
    first, total = statistics.median(flat([turn["first"] for turn in turns])), spread(flat([turn["all"] for turn in turns]))
    token = (total["median"] - first) / (length - 1)
    return {"side": name, "batch": batch, "tokens_per_s": batch * length / total["median"],
            "low_tokens_per_s": batch * length / total["high"], "high_tokens_per_s": batch * length / total["low"],
            "prefill_tokens_per_s": batch * length / first, "first_token_ms": 1e3 * first, "token_ms": 1e3 * token,
            "limit_ms": 1e3 * limit["seconds"], "bound": limit["bound"], "share_of_limit": limit["seconds"] / token}


def compare(against: str, rows: Sequence[dict], measured: dict) -> dict:
    """Our ratios to each setting of the peer for each batch; on top those to its fastest one at the first batch."""
    ratios, best = {}, {}
    for ours in (row for row in rows if row["side"] == "ours"):
        batch = ours["batch"]
        others = [row for row in rows if row["batch"] == batch and row["side"] != "ours"]
        ratios[batch] = {other["side"]: _ratio(ours, other, measured) for other in others}
        best[batch] = max(others, key=lambda other: other["tokens_per_s"])
    first = next(iter(best))
    ours = next(row for row in rows if (row["side"], row["batch"]) == ("ours", first))
    return {"ratios": ratios, "ratio_by_batch": {batch: ratios[batch][other["side"]]["speed"] for batch, other in best.items()},
            "against": against, "setting": best[first]["side"], "measure": f"decoding speed, batch {first}", "unit": "tokens/s",
            "ours": ours["tokens_per_s"], "peer": best[first]["tokens_per_s"], "ratio": ratios[first][best[first]["side"]]["speed"]}


def _ratio(ours: dict, other: dict, measured: dict) -> dict:
    batch = ours["batch"]
    speed = speed_ratio(*([turn["all"] for turn in measured[side, batch]] for side in ("ours", other["side"])))
    return {"speed": speed["ratio"], "speed_low": speed["ratio_low"], "speed_high": speed["ratio_high"],
            "first_token": other["first_token_ms"] / ours["first_token_ms"], "token": other["token_ms"] / ours["token_ms"]}


def check_same(tokens: dict[str, list[list[int]]]) -> float:
    """The least share of new tokens that a side has in common with ours; BenchError unless all sides decode the same model."""
    ours = [token for row in tokens["ours"] for token in row]
    shares = [1.0]
    for name, rows in tokens.items():
        theirs = [token for row in rows for token in row]
        if len(theirs) != len(ours):
            raise BenchError(f"{name} gave {len(theirs)} new tokens and ours {len(ours)}: not the same work")
        shares.append(sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours))
        if shares[-1] < SAME_TOKENS:
            raise BenchError(f"{name} agrees with ours on {shares[-1]:.0%} of the new tokens: not the same model")
    return min(shares)
