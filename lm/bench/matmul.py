"""What the machine can do at most: FLOP/s of matrix products by size and type, and bytes/s of its memory."""

import contextlib
from collections.abc import Sequence

from lm.bench.command import Options
from lm.bench.rounds import interleave, spread
from lm.bench.worker import Side

SIZES, TYPES = (512, 1024, 2048, 4096), ("float32", "bfloat16")
SMALL_SIZES = (64, 128)  # of the shapes for tests
PEAK_SIZES, PEAK_TYPE = (1024, 2048), "float32"
# Whose products are measured: the peak is a limit of the machine, whoever reaches it.
WAYS = {"jax": "lm.bench.limits:Products", "torch": "lm.bench.peers.pytorch:Products"}


def sides(stack: contextlib.ExitStack, torch: bool, sizes: Sequence[int], types: Sequence[str]) -> dict[str, Side]:
    """A process that makes products for each way there is, by name; they end with the stack."""
    return {way: stack.enter_context(Side(WAYS[way], {"sizes": sizes, "types": types})) for way in WAYS if way == "jax" or torch}


def peak_sizes(options: Options) -> tuple[int, ...]:
    """Sizes of the PEAK_TYPE products that others are measured against."""
    return SMALL_SIZES if options.tiny else PEAK_SIZES


def run(options: Options) -> dict:
    """See `lm.bench.command`; `peak` is by type, in FLOP/s, `bandwidth` in bytes/s, each the best of all rounds."""
    tiny = options.tiny
    with contextlib.ExitStack() as stack:
        products = sides(stack, options.against == "torch", SMALL_SIZES if tiny else SIZES, TYPES)
        memory = stack.enter_context(Side("lm.bench.limits:Bandwidth", {"size": 2**22} if tiny else {}))
        turns = {way: lambda side=side: side("turn") for way, side in products.items()}
        measured = interleave({**turns, "memory": lambda: memory("turn")}, options.rounds)
    rows = summary({way: measured[way] for way in products})
    peak = {kind: peak_of(rows, kind) for kind in TYPES}
    bandwidth = {name: max(turn[name] for turn in measured["memory"]) for name in ("read", "copy")}
    shown = [{"what": name, "gigabytes_per_s": value / 1e9} for name, value in bandwidth.items()]
    result = {"name": "matmul", "shape": options.shape_name, "rows": rows + shown, "peak": peak, "bandwidth": bandwidth}
    if options.against:
        ours, peer = (max(row["gflops"] for row in rows if row["what"] == f"{way} float32") for way in products)
        result |= {"against": options.against, "measure": "float32 products", "unit": "GFLOP/s", "ours": ours, "peer": peer,
                   "ratio": ours / peer}
    return result


def summary(measured: dict[str, list[list[dict]]]) -> list[dict]:
    """A row for each way, type and size, from `Products.turn` of each round: best and median GFLOP/s."""
    rows = []
    for way, turns in measured.items():
        for case in zip(*turns, strict=True):
            speeds = [turn["flops"] / 1e9 for turn in case]
            rows.append({"what": f"{way} {case[0]['type']}", "size": case[0]["size"], "gflops": max(speeds),
                         "gflops_median": spread(speeds)["median"]})
    return rows


def peak_of(rows: list[dict], kind: str) -> float:
    """The best FLOP/s of a type in `summary`, over ways and sizes."""
    return 1e9 * max(row["gflops"] for row in rows if row["what"].endswith(f" {kind}"))
