"""The fastest layout of a config on a topology: bounds of all of them, plans of the most promising few, and the winner as overrides.

Bounds prove what cannot fit or win. Which of the many layouts of a mesh look promising are guesses (`lm.plan.analytic.Bound`): that no
other of these can be better is proven, that none of those which they stand for is not.
"""

import functools
import math
import pathlib
import shutil
from typing import NamedTuple

from lm import cli
from lm import config as configs
from lm.config.planned import as_text
from lm.data.files import atomic_file, json_digest, write_json
from lm.errors import ConfigError, PlanError, writing
from lm.plan import layouts
from lm.plan.analytic import Bound, Limits, account_of, limits_of
from lm.plan.best_first import Item, Outcome, Tried, best_first, tell
from lm.plan.folders import check_writable, plans_folder
from lm.plan.layouts import Candidate
from lm.plan.topology import Topology
from lm.plan.worker import Workers
from lm.train.planned import EXECUTABLE

COMPILE, SECONDS, WORKERS = 8, 900.0, 2
OVERRIDES = "overrides.txt"
_REASONS = 5


class Looked(NamedTuple):
    """What was looked at: how many layouts, why the config's own cannot be, how many meshes are out for which reason; and of all layouts
    the bytes and name of the leanest (None where there is none), and the seconds that the fastest which may fit takes at least."""

    candidates: int
    own: str
    meshes: dict[str, int]
    leanest: tuple[float, str] | None
    least_seconds: float


def items_of(config, topology: Topology, mine: bool = True, price: float = 1.0, slowest: float = math.inf) -> tuple[list[Item], Looked]:
    """(layouts of a config on a topology as things to plan, what they were chosen from).

    With `mine` the config's own layout comes first and is needed. Of each family there are two: by guesses the fastest of those that may
    fit by their bounds, and of those that are likely to. `price` is of a second of a step, `slowest` the seconds that one may take.
    """
    limits, account = limits_of(topology, config.model.dtype), account_of(config)
    families, out = layouts.enumerate_layouts(config, limits.devices, limits.slices, limits.sides, offload=topology.kind != "cpu")
    (own, why), rows = _own(config, limits.devices) if mine else (None, ""), config.data.global_batch
    family_of = functools.partial(Family, config, topology, limits, price, slowest)
    items, leanest, least = [], [], math.inf
    if own:
        try:
            leanest.append((account.bound(own, limits, rows), own))
        except ConfigError as error:  # of the parameters that its mesh leaves whole, which only their shapes tell
            own, why = None, str(error)
        else:
            least = _least(leanest, limits.memory)
            items.append(family_of(leanest).item(0, needed=True))
    wrong: set[tuple] = set()
    for family in families:
        part = family[0].mesh, family[0].zero
        if part in wrong:
            continue
        try:
            bounds = [(account.bound(candidate, limits, rows), candidate) for candidate in family if candidate != own]
        except ConfigError as error:
            wrong.add(part)
            out[layouts.reason(error)] += 1
            continue
        items += family_of(bounds).promising()
        leanest, least = sorted([*leanest, *bounds], key=lambda each: each[0].memory)[:1], min(least, _least(bounds, limits.memory))
    best = next(((bound.memory, layouts.name_of(candidate)) for bound, candidate in leanest), None)
    return items, Looked(sum(map(len, families)), why, dict(out.most_common()), best, least)


def _least(bounds: list[tuple[Bound, Candidate]], room: float) -> float:
    """Seconds that the fastest of those that may fit takes at least; infinite where none may."""
    return min((bound.seconds for bound, _ in bounds if bound.memory <= room), default=math.inf)


def _own(config, devices: int):
    """(the config's own layout, "") or (None, why it cannot be)."""
    try:
        return layouts.own(config, devices), ""
    except ConfigError as error:
        return None, str(error)


class Family:
    """Layouts with their bounds that differ in how much memory they save and time they cost, from the fastest to the leanest."""

    def __init__(self, config, topology: Topology, limits: Limits, price: float, slowest: float, bounds: list[tuple[Bound, Candidate]]):
        """What is neither faster nor leaner than another is left out, by the guesses `Bound.serial` and `Bound.likely`: the bounds of most
        are alike, and prove of few that they cannot win."""
        self._config, self._topology, self._limits, self._price, self._slowest = config, topology, limits, price, slowest
        self._bounds: list[tuple[Bound, Candidate]] = []
        for each in sorted(bounds, key=lambda each: (each[0].serial, each[0].likely)):
            if not self._bounds or each[0].likely < self._bounds[-1][0].likely:
                self._bounds.append(each)

    def promising(self) -> list[Item]:
        """The fastest that may fit, and the fastest that is likely to; where nothing may, the leanest."""
        room = self._limits.memory
        may = next((i for i, (bound, _) in enumerate(self._bounds) if bound.memory <= room), None)
        likely = next((i for i, (bound, _) in enumerate(self._bounds) if bound.likely <= room), None)
        if may is None:
            return [self.item(len(self._bounds) - 1)] if self._bounds else []
        return [self.item(number) for number in dict.fromkeys((may, likely)) if number is not None]

    def item(self, number: int, needed: bool = False) -> Item:
        """A layout as something to plan; the next leaner one follows it where it turns out not to fit."""
        bound, candidate = self._bounds[number]
        mesh, kept = (self._topology.kind, candidate.mesh), (self._topology.kind, candidate.remat, candidate.save, candidate.send)
        return Item(layouts.name_of(candidate), lambda: layouts.applied(self._config, candidate), self._topology, bound,
                    self._limits.memory, self._price, self._slowest, ((mesh, kept), mesh, kept), needed,
                    lambda: self.item(number + 1) if number + 1 < len(self._bounds) else None)


def search(config, topology: Topology, out: str | pathlib.Path | None = None, *, source: str = "", overrides: dict[str, str] | None = None,
           most: int = COMPILE, seconds: float = SECONDS, workers: int = WORKERS, plan=None, say=tell) -> dict:
    """The plan of the fastest layout that was found, with what was found on the way under "search".

    It ends where the bounds of all that looked promising (`items_of`) are above the best plan. Compiles `most` layouts beside the config's
    own, for at most `seconds`. In the folder `out`, by default one of the cache, are the winner's plan, overrides.txt (flags of
    scripts/train.py: `overrides`, which the config has from its command line, and the winner's) and search.json. What is compiled already
    is taken from the cache: an interrupted search goes on where it was. `plan` stands for `lm.plan.planning.plan` in tests. PlanError when
    no layout that was compiled fits, DiskError when the folder cannot be written.
    """
    folder = pathlib.Path(out or folder_of("search", config, topology.name))
    check_writable(folder, plans_folder())
    given, running = overrides or {}, Workers()
    items, looked = items_of(config, topology)
    say(f"{looked.candidates:,} layouts for {topology.name} have bounds; up to {most} are compiled")
    make = plan or (lambda config: running.plan(config, topology, source, given))
    outcome = best_first(items, lambda item: make(item.config()), most=most, seconds=seconds, workers=workers, close=running.close, say=say)
    best = outcome.best()
    if best is None:
        raise PlanError(nothing_fits(looked, limits_of(topology, config.model.dtype).memory, outcome))
    winner = given | changed(config, best.plan)
    found = {"candidates": looked.candidates, "stopped": outcome.stopped, "seconds": round(outcome.seconds, 1),
             "own": _own_row(outcome, looked.own), "reasons": looked.meshes, "compiled": rows(config, outcome.tried),
             "pareto": pareto(rows(config, outcome.tried)), "flags": layouts.as_flags(winner)}
    return keep(best.plan, "search", found, winner, folder)


def changed(config, plan: dict) -> dict[str, str]:
    """{"a.b": text}: the overrides that turn a config into a plan's."""
    before, after = configs.flatten(config), configs.flatten(configs.from_json(plan["config"]))
    keys = {*layouts.KEYS, *(key for key in before if key.startswith("mesh."))} & before.keys()
    return {key: as_text(after[key]) for key in sorted(keys) if after[key] != before[key]}


def nothing_fits(looked: Looked, limit: float, outcome: Outcome) -> str:
    """Why a search ends without a winner."""
    errors = [each for each in outcome.tried if not each.plan]
    if errors and len(errors) == len(outcome.tried):
        return f"no layout could be compiled; {errors[0].item.name}: {errors[0].error}"
    if looked.leanest is None:
        return "there is no layout of this config for this topology: change data.global_batch, or take another topology"
    least, name = looked.leanest
    if not outcome.tried and least <= limit:
        return f"{outcome.stopped}, and nothing was compiled: give more --budget_seconds"
    needs = f"the leanest ({name}) needs at least {least / 2**30:.2f} of {limit / 2**30:.2f} GiB"
    if least <= limit:
        return f"none of the {len(outcome.tried)} compiled layouts fits, though {needs}: compile more of them (--compile)"
    return f"no layout of this config fits: {needs}; take more chips, or a smaller model, batch or context"


def folder_of(name: str, config, *rest) -> pathlib.Path:
    """The folder of the cache for the winner of a way to look for one."""
    return plans_folder() / f"{name}-{json_digest([configs.to_json(config), *rest])[:24]}"


def keep(plan: dict, name: str, found: dict, winner: dict[str, str], folder: pathlib.Path) -> dict:
    """The plan that won, with `winner` as its overrides and what was found under `name`, made in a folder: what the plan's own folder
    has, overrides.txt (found["flags"], for a shell) and NAME.json (`found`)."""
    folder = folder.absolute()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / OVERRIDES) as file:
            file.write((found["flags"] + "\n").encode())
        write_json(folder / f"{name}.json", found)
        return _take(plan, plan | {"overrides": winner, name: found}, folder)


def _take(plan: dict, result: dict, folder: pathlib.Path) -> dict:
    """Copies the folder of a plan; the result, which takes the place of its plan.json, with where it is now."""
    (folder / "plan.json").unlink(missing_ok=True)
    (folder / EXECUTABLE).unlink(missing_ok=True)  # of another plan
    for path in pathlib.Path(plan["folder"]).iterdir():
        if path.name != "plan.json":
            shutil.copy2(path, folder / path.name)
    result = {name: value for name, value in result.items() if name != "folder"}
    result["executable"] = str(folder / EXECUTABLE) if plan["executable"] else None
    write_json(folder / "plan.json", result)  # last: a folder with it is whole
    return result | {"folder": str(folder)}


def rows(config, tried: list[Tried]) -> list[dict]:
    """What was compiled, the cheapest first, misfits and failures last."""
    def row(each: Tried):
        bound, plan = each.item.bound, each.plan or {}
        return {"layout": each.item.name, "own": each.item.needed, "fits": plan.get("fits", False),
                "bytes": plan.get("hbm_bytes_per_chip"), "bound_bytes": round(bound.memory * each.item.topology.devices_per_chip),
                "seconds": plan.get("estimated_step_seconds"), "bound_seconds": bound.seconds, "mfu": plan.get("estimated_mfu"),
                "error": each.error, "overrides": changed(config, plan) if plan else {}}

    return [row(each) for each in sorted(tried, key=lambda each: each.cost)]


def pareto(compiled: list[dict]) -> list[dict]:
    """Of what fits, that which nothing else beats in both memory and time; the fastest first."""
    front, least = [], float("inf")
    for row in sorted((row for row in compiled if row["fits"]), key=lambda row: (row["seconds"], row["bytes"])):
        if row["bytes"] < least:
            front, least = [*front, row], row["bytes"]
    return front


def _own_row(outcome: Outcome, why: str) -> dict:
    """What became of the config's own layout."""
    mine = next((each for each in outcome.tried if each.item.needed), None)
    if mine is None:
        return {"fits": False, "seconds": None, "error": why or "it was not finished"}
    return {"fits": mine.cost < float("inf"), "seconds": (mine.plan or {}).get("estimated_step_seconds"), "error": mine.error}


def page(result: dict) -> str:
    """A search as a page that a person reads; the winner's own page is `lm.plan.page.page`."""
    found = result["search"]
    front = {row["layout"] for row in found["pareto"]}
    table = [{"layout": row["layout"] + (" (as the config says)" if row["own"] else ""),
              "s a step": row["seconds"] if row["fits"] else None, "at least": row["bound_seconds"],
              "MFU %": 100 * row["mfu"] if row["fits"] else None,
              "GiB": row["bytes"] / 2**30 if row["bytes"] else None, "at least ": row["bound_bytes"] / 2**30,
              "": row["error"][:80] or ("does not fit" if not row["fits"] else "front" if row["layout"] in front else "")}
             for row in found["compiled"]]
    lines = [f"{found['candidates']:,} layouts have bounds, {len(found['compiled'])} compiled in {found['seconds']:.0f} s: "
             f"{found['stopped']}", cli.table(table)]
    lines += [_against_own(result, found["own"])]
    if found["reasons"]:
        reasons = list(found["reasons"].items())[:_REASONS]
        lines.append("meshes left out\n" + "\n".join(f"  {count:>5}  {reason}" for reason, count in reasons))
    return "\n\n".join([*lines, f"train it\n  {found['flags'] or '(as the config says)'}"])


def _against_own(result, own) -> str:
    """How the winner compares with the layout that was there."""
    if own["seconds"] and own["fits"]:
        return f"the config's own layout takes {own['seconds'] / result['estimated_step_seconds']:.3g} times as long as the winner"
    return f"the config's own layout: {own['error'] or 'does not fit'}"


