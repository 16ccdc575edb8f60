"""Training: our step and others' in turns, with the machine's matrix products taking turns too."""

import contextlib
import math
import statistics
import tempfile

from lm.bench import matmul
from lm.bench.command import Options
from lm.bench.rounds import WARM_STEPS, flat, interleave, speed_ratio, spread, turn_of
from lm.bench.shapes import Shape
from lm.bench.worker import Side
from lm.errors import BenchError

OURS = "lm.bench.ours:Training"
# The settings of a peer that a user would try; the faster one is the peer.
PEERS = {
    "torch": {"torch eager": ("lm.bench.peers.pytorch:Training", {"compiled": False}),
              "torch compiled": ("lm.bench.peers.pytorch:Training", {"compiled": True})},
    "transformers": {"transformers eager": ("lm.bench.peers.hf:Training", {"compiled": False}),
                     "transformers compiled": ("lm.bench.peers.hf:Training", {"compiled": True})},
    "flax": {"flax": ("lm.bench.peers.flax:Training", {})},
}
# First losses may differ by their random initial weights: they start near log V, and frequent words weigh much.
SAME_LOSS = 0.03


def run(options: Options) -> dict:
    """See `lm.bench.command`; `rows` has a row per side, `ratios` an entry per setting of the peer, `step_seconds` all steps by round."""
    with contextlib.ExitStack() as stack:
        folders = {name: stack.enter_context(tempfile.TemporaryDirectory()) for name in _targets(options.against)}
        sides = {name: stack.enter_context(start(name, options, folders[name])) for name in folders}
        firsts = {name: side("first") for name, side in sides.items()}
        check_same({name: side.info for name, side in sides.items()}, firsts)
        products = matmul.sides(stack, options.against in ("torch", "transformers"), matmul.peak_sizes(options),
                                (matmul.PEAK_TYPE,))
        turns = {name: turn_of(side, options.seconds) for name, side in sides.items()}
        limits = {f"{way} {matmul.PEAK_TYPE}": lambda side=side: side("turn") for way, side in products.items()}
        measured = interleave(turns | limits, options.rounds)
        memory = {name: least_memory(name, side, options, folders[name]) for name, side in sides.items()}
        flops = sides["ours"].info["flops"]
    seconds = {name: measured[name] for name in sides}
    peaks = [max(product["flops"] for limit in limits for product in measured[limit][number]) for number in range(options.rounds)]
    rows = [row(name, options.shape, seconds[name], flops, peaks, firsts[name], memory[name]) for name in sides]
    steps = {name: [[round(second, 6) for second in turn] for turn in turns] for name, turns in seconds.items()}
    result = {"name": "train", "shape": options.shape_name, "family": options.shape.family, "rows": rows, "peak_flops": max(peaks),
              "peak_flops_by_round": peaks, "flops_per_step": flops, "step_seconds": steps}
    return result | (compare(options.against, rows, seconds) if options.against else {})


def _targets(against: str | None) -> dict[str, tuple[str, dict]]:
    """What to run, by the name of the side: ours, and the settings of the peer."""
    return {"ours": (OURS, {}), **(PEERS[against] if against else {})}


def start(name: str, options: Options, folder: str, environment: dict[str, str] | None = None) -> Side:
    """A side, which keeps what PyTorch compiles in a folder of its own."""
    target, settings = _targets(options.against)[name]
    return Side(target, {"shape": options.shape, **settings}, {"TORCHINDUCTOR_CACHE_DIR": folder, **(environment or {})})


def least_memory(name: str, side: Side, options: Options, folder: str) -> int:
    """Peak bytes: ours as it was measured, a peer's with the default allocator too, which is slower but may need less."""
    measured = side("memory")
    if name == "ours":
        return measured
    with start(name, options, folder, {"GLIBC_TUNABLES": ""}) as again:
        again("first")
        again("steps", count=WARM_STEPS)
        return min(measured, again("memory"))


def row(name: str, shape: Shape, seconds: list[list[float]], flops: float, peaks: list[float], first: dict, memory: int) -> dict:
    """What is shown of a side. `mfu` is of the median step against the best product of the whole run, `mfu_of_round` the median over
    rounds of the round's median step against the round's best product: on a machine that others slow down they differ."""
    step = spread(flat(seconds))
    by_round = [flops / statistics.median(some) / peak for some, peak in zip(seconds, peaks, strict=True)]
    return {"side": name, "tokens_per_s": shape.tokens / step["median"], "step_ms": 1e3 * step["median"], "low_ms": 1e3 * step["low"],
            "high_ms": 1e3 * step["high"], "mfu": flops / step["median"] / max(peaks), "mfu_of_round": statistics.median(by_round),
            "first_step_s": first["seconds"], "peak_memory_gb": memory / 1e9, "parameters": first["parameters"], "loss": first["loss"]}


def compare(against: str, rows: list[dict], seconds: dict[str, list[list[float]]]) -> dict:
    """Our ratios to each setting of the peer, all of them above 1 when ours is better, and on top the speed against the fastest."""
    ours, *others = rows
    ratios = {}
    for other in others:
        speed = speed_ratio(seconds["ours"], seconds[other["side"]])
        ratios[other["side"]] = {"speed": speed["ratio"], "speed_low": speed["ratio_low"], "speed_high": speed["ratio_high"],
                                 "first_step": other["first_step_s"] / ours["first_step_s"],
                                 "memory": other["peak_memory_gb"] / ours["peak_memory_gb"]}
    best = max(others, key=lambda other: other["tokens_per_s"])
    return {"ratios": ratios, "against": against, "setting": best["side"], "measure": "training speed", "unit": "tokens/s",
            "ours": ours["tokens_per_s"], "peer": best["tokens_per_s"], "ratio": ratios[best["side"]]["speed"]}


def check_same(infos: dict[str, dict], firsts: dict[str, dict]):
    """BenchError unless all sides train the same model: as many parameters, but for what a side says is more, and first losses alike."""
    for name, first in firsts.items():
        parameters = first["parameters"] - infos[name].get("extra_parameters", 0)
        if parameters != firsts["ours"]["parameters"]:
            raise BenchError(f"{name} has {parameters:,} parameters and ours {firsts['ours']['parameters']:,}: not the same model")
        if not math.isclose(first["loss"], firsts["ours"]["loss"], rel_tol=SAME_LOSS):
            raise BenchError(f"the first loss of {name} is {first['loss']:.4f} and ours {firsts['ours']['loss']:.4f}: not the same model")
