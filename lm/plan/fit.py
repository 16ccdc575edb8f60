"""The largest batch, context or model of a config that fits a topology under the layout that it has.

A bound (`lm.plan.analytic`) says what cannot fit; below it, compiled plans decide, each where those before it point.
"""

import math
import pathlib
import time
from collections.abc import Callable, Iterator

from lm import cli
from lm.config.model_keys import DEEP, ENCODER_DECODER, ENCODERS, TRANSFORMERS
from lm.config.planned import as_text
from lm.errors import ConfigError, PlanError
from lm.parallel import Layout, mesh_sizes
from lm.parallel.layout import row_multiple
from lm.parallel.sharding import RULES
from lm.plan import layouts
from lm.plan.analytic import Bound, limits_of, lower_bound
from lm.plan.best_first import tell
from lm.plan.folders import check_writable, plans_folder
from lm.plan.search import folder_of, keep
from lm.plan.topology import Topology
from lm.plan.worker import Workers

KINDS = ("batch", "context", "model")
COMPILE, SECONDS = 8, 900.0
# Contexts are multiples of this, below it powers of two.
STRETCH, SHORTEST = 1024, 16
# Feed-forward widths, and widths that heads do not make up, are rounded to multiples of this.
UNIT = 128
# The answer is near enough where the next size is this share larger.
NEAR = 0.02
_MOST = 2**24
_TRIES = 64


class Sizes:
    """The sizes of a config, by number from 1: what they are called and which keys they set."""

    def __init__(self, config, topology: Topology, values: Callable[[int], dict], name: str):
        """`values` gives the config's keys {"a.b": value} at a size."""
        self._config, self.topology, self._values, self.name = config, topology, values, name
        self._bounds: dict[int, Bound | None] = {}
        self._why: ConfigError | None = None  # the last size that cannot be, cannot

    def values(self, number: int) -> dict:
        """The keys at a size, of which the first is the one that is asked for."""
        return self._values(number)

    def config(self, number: int):
        """The config at a size; ConfigError where there is none."""
        return layouts.with_values(self._config, self._values(number))

    def bound(self, number: int) -> Bound | None:
        """Its bound; None where the config cannot have this size."""
        if number not in self._bounds:
            try:
                self._bounds[number] = lower_bound(self.config(number), self.topology)
            except ConfigError as error:
                self._bounds[number], self._why = None, error
        return self._bounds[number]

    def check(self):
        """ConfigError, of the last of them, where the config can have none of the first _TRIES sizes: its size is not what is wrong."""
        if not any(self.bound(number) for number in range(1, _TRIES + 1)):
            raise self._why

    def span(self, below: int, holds: Callable[[Bound], bool]) -> tuple[int, int]:
        """(a number whose bound holds, or 0, the next larger one under `below` that was looked at and does not); bounds grow with it."""
        low, high = 0, 1
        while high < below and self._holds(high, holds):
            low, high = high, high * 2
        high = min(high, below)
        while high - low > max(1, NEAR * low):
            middle = (low + high) // 2
            low, high = (middle, high) if self._holds(middle, holds) else (low, middle)
        return low, high

    def _holds(self, number, holds) -> bool:
        """At the size, or the next smaller one that there is."""
        there = self.valid(number, 0)
        return there == 0 or holds(self.bound(there))

    def valid(self, number: int, above: int) -> int:
        """The largest size from `number` down that there is, at most _TRIES smaller; `above` where there is none above it."""
        return next((n for n in range(number, max(above, number - _TRIES), -1) if self.bound(n)), above)


def sizes_of(config, topology: Topology, kind: str) -> Sizes:
    """The batches, contexts or models of a config. ConfigError where it cannot be on the topology at all, or has no such sizes."""
    if kind not in KINDS:
        raise ConfigError(f"--fit={kind}: use {', '.join(KINDS)}")
    devices = limits_of(topology, config.model.dtype).devices
    mesh = mesh_sizes(config.mesh, devices)
    if kind == "batch":
        unit = row_multiple(mesh, Layout.of(config.layout, mesh)) * config.train.accumulate
        return Sizes(config, topology, lambda number: {"data.global_batch": number * unit}, f"rows of a step, by {unit:,}")
    if kind == "context":
        return _contexts(config, topology)
    return _models(config, topology, mesh)


def _contexts(config, topology) -> Sizes:
    """Powers of two and then multiples of 1,024 that the mesh can cut; rows of a step stay as many as they are."""
    def works(context):
        try:
            lengths = layouts.with_values(config, {"data.context": context})
            layouts.own(lengths, limits_of(topology, config.model.dtype).devices)
        except ConfigError:
            return False
        return True

    unit = next((unit for unit in range(STRETCH, STRETCH * _TRIES + 1, STRETCH) if works(unit)), 0)
    if not unit:
        own = layouts.with_values(config, {"data.context": STRETCH})
        layouts.own(own, limits_of(topology, config.model.dtype).devices)  # says why
        raise ConfigError(f"--fit=context: no multiple of {STRETCH} up to {STRETCH * _TRIES:,} is a context that this mesh can cut")
    short = [2**power for power in range(SHORTEST.bit_length() - 1, STRETCH.bit_length() - 1) if works(2**power)]
    return Sizes(config, topology,
                 lambda number: {"data.context": short[number - 1] if number <= len(short) else (number - len(short)) * unit},
                 f"tokens of a row, by {unit:,}")


def _models(config, topology, mesh) -> Sizes:
    """Width, feed-forward width and layers grow alike; heads keep their width and as many share their keys (without heads: width).

    Widths that the mesh cuts into whole parts stay so: a matrix of another width would lie whole on every chip, and a size that
    does not fit for that reason says nothing of larger ones.
    """
    model = config.model
    if model.name not in DEEP:
        raise ConfigError(f"--fit=model scales a stack of layers, which model.name={model.name} has not: use --fit=batch")
    block, parts = mesh["stage"] * config.layout.repeats, math.prod(mesh[axis] for axis in RULES["width"])

    def cuts(width: int) -> int:
        return parts if width % parts == 0 else 1

    def scaled(share: float, width: int) -> dict:
        found = {"model.width": width, "model.layers": max(1, round(model.layers * share / block)) * block}
        for leaf in ("ff_width", "embedding_width"):
            if getattr(model, leaf):
                unit = math.lcm(UNIT, cuts(model[leaf]))
                found[f"model.{leaf}"] = max(1, round(model[leaf] * share / unit)) * unit
        if model.encoder_layers:
            found["model.encoder_layers"] = max(1, round(model.encoder_layers * share))
        return found

    if model.name not in TRANSFORMERS + ENCODERS + ENCODER_DECODER:
        unit = math.lcm(UNIT * mesh["tensor"], cuts(model.width))
        return Sizes(config, topology, lambda number: scaled(number * unit / model.width, number * unit), f"width, by {unit:,}")
    group = model.heads // (model.kv_heads or model.heads)
    unit, head_width = group * mesh["tensor"], model.head_width or model.width // model.heads
    exact, whole = head_width * model.heads == model.width, cuts(model.width)
    width_unit = math.lcm(UNIT, whole)
    if exact:
        unit = math.lcm(unit, whole // math.gcd(whole, head_width))

    def values(number):
        heads = number * unit
        share = heads / model.heads
        width = heads * head_width if exact else max(1, round(model.width * share / width_unit)) * width_unit
        keys = {"model.kv_heads": heads // group} if model.kv_heads else {}
        return scaled(share, width) | {"model.heads": heads, "model.head_width": 0 if exact else head_width} | keys

    return Sizes(config, topology, values, f"width and layers alike, by {unit} heads of {head_width}")


def fit(config, topology: Topology, kind: str, out: str | pathlib.Path | None = None, *, source: str = "",
        overrides: dict[str, str] | None = None, most: int = COMPILE, seconds: float = SECONDS, plan=None, say=tell) -> dict:
    """The plan of the largest batch, context or model (`kind`) that fits, with how it was found under "fit".

    At most `most` plans are compiled, for about `seconds`; a size whose plan fails is taken for one that does not fit. In the folder `out`,
    by default one of the cache, are the plan, overrides.txt and fit.json, as of `lm.plan.search.search`. `plan` stands for
    `lm.plan.planning.plan` in tests. PlanError when nothing fits, ConfigError when the config can have none of the first sizes,
    DiskError when the folder cannot be written.
    """
    folder = pathlib.Path(out or folder_of("fit", config, topology.name, kind))
    check_writable(folder, plans_folder())
    sizes, running, start = sizes_of(config, topology, kind), Workers(), time.monotonic()
    limit = limits_of(topology, config.model.dtype).memory
    sizes.check()
    top = sizes.valid(sizes.span(_MOST, lambda bound: bound.memory <= limit)[1] - 1, 0)
    make = plan or (lambda config: running.plan(config, topology, source, overrides))
    tried: dict[int, dict] = {}
    try:
        while True:
            for number in guesses(sizes, _largest(tried), top, limit, tried):
                if len(tried) >= most or (tried and time.monotonic() - start > seconds) or _hopeless(tried):
                    ended = False
                    break
                tried[number] = _tried(make, sizes.config(number))
                say(f"compiled {len(tried)}: {_text(sizes, number)} {_line(tried[number])}")
            else:
                ended = True
            if not ended or (higher := _beyond(sizes, top, limit, tried)) <= top:
                break
            top = higher
    finally:
        running.close()
    best = _largest(tried)
    if not best:
        raise PlanError(f"--fit={kind}: {_nothing(sizes, tried, top)}")
    winner = (overrides or {}) | {key: as_text(value) for key, value in sizes.values(best).items()}
    found = _answer(sizes, kind, best, top, tried, ended) | {"flags": layouts.as_flags(winner)}
    return keep({name: value for name, value in tried[best].items() if name != "error"}, "fit", found, winner, folder)


def _beyond(sizes: Sizes, top: int, limit: float, tried: dict[int, dict]) -> int:
    """The largest size worth a look where all that were compiled fit, and one of them holds less than its bound, which then rules nothing
    out: by the bound in the proportion of that plan. Else `top`."""
    if not tried or not all(found["fits"] for found in tried.values()):
        return top
    share = min(found["hbm_bytes_per_chip"] / sizes.topology.devices_per_chip / sizes.bound(number).memory
                for number, found in tried.items())
    return sizes.valid(sizes.span(_MOST, lambda bound: bound.memory * share <= limit)[1] - 1, 0) if share < 1 else top


def _largest(tried: dict[int, dict]) -> int:
    """The largest size that is known to fit, 0 where none is."""
    return max((number for number, found in tried.items() if found["fits"]), default=0)


def _tried(make: Callable, config) -> dict:
    """A plan, or what stands for one that failed."""
    try:
        return make(config) | {"error": ""}
    except PlanError as error:
        return {"fits": False, "error": str(error)} | dict.fromkeys(
            ("hbm_bytes_per_chip", "hbm_limit", "estimated_step_seconds", "estimated_mfu"))


def _hopeless(tried: dict[int, dict]) -> bool:
    """Whether all plans fail, whatever their size."""
    return len(tried) > 2 and all(found["error"] for found in tried.values())


def _line(found: dict) -> str:
    """What became of a plan."""
    return found["error"] or f"{'fits' if found['fits'] else 'does not fit'}, {found['hbm_bytes_per_chip'] / 2**30:.2f} GiB"


def guesses(sizes: Sizes, low: int, top: int, limit: float, tried: dict[int, dict]) -> Iterator[int]:
    """Which size to compile next, until it is known well enough which is the largest that fits, above `low`, which does; `tried` is filled
    meanwhile.

    A guess is where the bound and its error so far meet the limit; where guesses do not halve what is unknown, or a plan has failed, the
    middle is taken.
    """
    high, ratio, wide, failed = top + 1, 1.0, math.inf, False
    while high - low > max(1, NEAR * low):
        unknown = high - low
        middle, wide = failed or unknown > wide / 2, unknown if tried else math.inf
        guess = (low + high) // 2 if middle else sizes.span(high, lambda bound, ratio=ratio: bound.likely * ratio <= limit)[0]
        number = sizes.valid(min(max(guess, low + 1), high - 1), low)
        if number == low:
            low = min(max(guess, low + 1), high - 1)  # there are none up to here
            continue
        yield number
        found = tried[number]
        failed = bool(found["error"])
        if not failed:
            ratio = found["hbm_bytes_per_chip"] / found["hbm_limit"] * limit / sizes.bound(number).likely
        low, high = (number, high) if found["fits"] else (low, number)


def _nothing(sizes: Sizes, tried: dict[int, dict], top: int) -> str:
    """Why no size is known to fit, and what to do."""
    fix = "take more chips, model.remat=full or a mesh that cuts more"
    if not top:
        return f"not even the smallest fits, by its bound: {fix}"
    smallest = min(tried)
    if tried[smallest]["error"]:
        return f"the smallest of {len(tried)}, {_text(sizes, smallest)}, could not be compiled: {tried[smallest]['error']}"
    if sizes.valid(smallest - 1, 0):
        return f"the smallest of {len(tried)} compiled, {_text(sizes, smallest)}, does not fit: compile more (--compile), or {fix}"
    return f"not even the smallest, {_text(sizes, smallest)}, fits: {fix}"


def _text(sizes: Sizes, number: int) -> str:
    return ", ".join(f"{key}={value}" for key, value in sizes.values(number).items() if value)


def _answer(sizes: Sizes, kind, best, top, tried, ended: bool) -> dict:
    """How the size was found; `ended` when guesses had no more to ask."""
    misfit = min((number for number, found in tried.items() if not found["fits"]), default=None)
    failed = misfit is not None and bool(tried[misfit]["error"])
    decided = "compilations used up" if not ended else "a failure" if failed else "bound" if misfit is None else "compiled"
    key, value = next(iter(sizes.values(best).items()))
    rows = [{"size": _text(sizes, number), "fits": found["fits"], "bytes": found["hbm_bytes_per_chip"], "limit": found["hbm_limit"],
             "bound_bytes": round(sizes.bound(number).memory * sizes.topology.devices_per_chip),
             "seconds": found["estimated_step_seconds"], "mfu": found["estimated_mfu"], "error": found["error"]}
            for number, found in sorted(tried.items())]
    return {"kind": kind, "sizes": sizes.name, "key": key, "value": value, "decided_by": decided,
            "least_that_does_not_fit": sizes.values(misfit)[key] if misfit else None, "bound_allows": sizes.values(top)[key],
            "compiled": rows}


def page(result: dict) -> str:
    """What fits, as a page that a person reads."""
    found = result["fit"]
    table = [{"size": row["size"], "": row["error"][:80] or ("fits" if row["fits"] else "does not fit"),
              "GiB": row["bytes"] and row["bytes"] / 2**30, "of": row["limit"] and row["limit"] / 2**30,
              "at least": row["bound_bytes"] / 2**30, "s a step": row["seconds"],
              "MFU %": 100 * row["mfu"] if row["mfu"] else None} for row in found["compiled"]]
    beyond = found["least_that_does_not_fit"]
    decided = {"compiled": f"{beyond:,} was compiled and does not fit" if beyond else "",
               "a failure": f"{beyond:,} could not be compiled" if beyond else "",
               "bound": "none that is much larger can fit, by its bound",
               "compilations used up": f"larger ones up to {beyond or found['bound_allows']:,} were not ruled out"}[found["decided_by"]]
    return "\n\n".join([f"largest that fits {result['topology']}: {found['key']}={found['value']:,} ({found['sizes']}); {decided}",
                        cli.table(table), f"train it\n  {found['flags']}"])
