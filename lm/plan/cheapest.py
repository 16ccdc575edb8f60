"""Which topology trains a config on so many tokens at the least cost: the best layouts of each, the most promising few of them compiled."""

import json
import math
import pathlib
from collections.abc import Sequence

from lm import cli
from lm.errors import ConfigError, PlanError
from lm.plan import layouts, topology
from lm.plan.analytic import account_of
from lm.plan.best_first import Item, Outcome, Tried, best_first, tell
from lm.plan.chips import CHIPS
from lm.plan.folders import check_writable, plans_folder
from lm.plan.page import duration
from lm.plan.search import WORKERS, changed, folder_of, items_of, keep
from lm.plan.topology import Topology
from lm.plan.worker import Workers

COMPILE, SECONDS = 8, 1800.0
# What is looked at where nothing is named: usual slices of each kind, and several of the largest.
TOPOLOGIES = ("v5e:4x4", "v5e:8x8", "v5e:8x16", "v5e:16x16", "2xv5e:16x16", "4xv5e:16x16", "v6e:4x4", "v6e:8x8", "v6e:8x16", "v6e:16x16",
              "2xv6e:16x16", "v4:4x4x4", "v4:4x4x8", "v4:4x8x8", "v4:8x8x8", "v5p:4x4x4", "v5p:4x4x8", "v5p:4x8x8", "v5p:8x8x8",
              "2xv5p:8x8x8", "tpu7x:4x4x4", "tpu7x:4x4x8")
PRICES = "list prices on demand in the US, November 2026 (lm/plan/chips.py)"
_FORM = 'write JSON such as {"v5e": 0.54}, USD for an hour of a chip'
# Layouts of a topology that may be compiled.
_OF_EACH = 3
_HOUR, _DAY = 3600, 86_400


def prices_of(file: str | pathlib.Path | None) -> tuple[dict[str, float], str]:
    """(USD for an hour of a chip by kind, where that is from); a file of JSON such as {"v5e": 0.54, "v5p": 1.9} goes before the list."""
    prices = {kind: chip.price_per_hour for kind, chip in CHIPS.items()}
    if file is None:
        return prices, PRICES
    try:
        found = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prices={file} cannot be read ({error}): {_FORM}") from error
    usable = isinstance(found, dict) and all(kind in CHIPS and type(price) in (int, float) and price > 0 for kind, price in found.items())
    if not usable or not found:
        raise ConfigError(f"--prices={file}: {_FORM}; there are {', '.join(CHIPS)}")
    rest = f"; of other chips {PRICES}" if len(found) < len(CHIPS) else ""
    return prices | found, f"{file}{rest}"


def cheapest(config, tokens: float, out: str | pathlib.Path | None = None, *, topologies: Sequence[str] = (),
             prices: str | pathlib.Path | None = None, days: float | None = None, source: str = "",
             overrides: dict[str, str] | None = None, most: int = COMPILE, seconds: float = SECONDS, workers: int = WORKERS, plan=None,
             say=tell) -> dict:
    """The plan that trains on `tokens` at the least cost, with all topologies that were looked at under "cheapest".

    Of each topology, the few layouts that guesses take for the fastest may be compiled; lower bounds are of all its layouts. In the folder
    `out`, by default one of the cache, are the winner's plan, overrides.txt and cheapest.json, as of `lm.plan.search.search`. `days` leaves
    out what takes longer. At most `most` plans are compiled, for at most `seconds`. `plan` stands for `lm.plan.planning.plan` in tests.
    PlanError when nothing fits, or nothing in time, DiskError when the folder cannot be written.
    """
    per_hour, whence = prices_of(prices)
    targets = [topology.parse(name) for name in topologies or TOPOLOGIES]
    if any(target.kind == "cpu" for target in targets):
        raise ConfigError("--topologies: there is no price of cpu")
    names = [target.name for target in targets]
    folder = pathlib.Path(out or folder_of("cheapest", config, names, tokens, per_hour, days))
    check_writable(folder, plans_folder())
    steps = tokens / (account_of(config).traced.tokens_per_row * config.data.global_batch)
    items, looked = [], {}
    for target in targets:
        found, least = _best_of(config, target, per_hour[target.kind], steps, days)
        items += found
        looked[target.name] = least
        dollars = _dollars(target, per_hour[target.kind], steps)
        say(f"{target.name}: " + (least if isinstance(least, str) else f"at least ${dollars * least:,.0f}"))
    running = Workers()
    make = plan or (lambda config, target: running.plan(config, target, source, overrides))
    outcome = best_first(items, lambda item: make(item.config(), item.topology), most=most, seconds=seconds, workers=workers,
                         close=running.close, say=say)
    table = _rows(config, steps, looked, per_hour, outcome)
    best = outcome.best()
    if best is None:
        raise PlanError(_nothing(table, days, outcome))
    winner = (overrides or {}) | changed(config, best.plan)
    found = {"tokens": tokens, "steps": steps, "prices": {kind: per_hour[kind] for kind in sorted({target.kind for target in targets})},
             "prices_from": whence, "within_days": days, "stopped": outcome.stopped, "seconds": round(outcome.seconds, 1),
             "topologies": table, "flags": layouts.as_flags(winner)}
    return keep(best.plan, "cheapest", found, winner, folder)


def _dollars(target: Topology, price: float, steps: float) -> float:
    """Of a second of each step."""
    return target.chips * price / _HOUR * steps


def _best_of(config, target: Topology, price: float, steps: float, days: float | None) -> tuple[list[Item], float | str]:
    """(the layouts of a topology that look fastest by guesses, the seconds that a step of any layout takes at least) or ([], why there
    are none); `price` is USD for an hour of a chip."""
    slowest = math.inf if days is None else days * _DAY / steps
    items, looked = items_of(config, target, mine=False, price=_dollars(target, price, steps), slowest=slowest)
    if not items:
        return [], next(iter(looked.meshes), "it has no layout")
    possible = [item for item in items if item.possible]
    if possible:
        return sorted(possible, key=lambda item: (item.bound.likely > item.limit, item.bound.serial))[:_OF_EACH], looked.least_seconds
    least, limit = looked.leanest[0], items[0].limit
    if least > limit:
        return [], f"does not fit: at least {least / 2**30:.1f} of {limit / 2**30:.1f} GiB"
    if looked.least_seconds > slowest:
        return [], f"takes at least {looked.least_seconds * steps / _DAY:,.3g} days"
    return [], "takes too long, as far as the layouts that look fastest tell"


def _rows(config, steps: float, looked: dict[str, float | str], per_hour: dict[str, float], outcome: Outcome) -> list[dict]:
    """A row for each topology, the cheapest compiled first, then those with bounds alone, then those that are out."""
    table = []
    for name, least in looked.items():
        target = topology.parse(name)
        row = {"topology": name, "chips": target.chips, "by": "", "days": None, "chip_hours": None, "dollars": None,
               "mfu": None, "layout": "", "overrides": {}, "why": least if isinstance(least, str) else ""}
        if not isinstance(least, str):
            mine = [each for each in outcome.tried if each.item.topology.name == name]
            row |= _compiled(config, steps, row["chips"], mine) or {
                "by": "bound", "why": "; ".join(sorted({_failure(each) for each in mine})),
                **_costs(least, steps, row["chips"], _dollars(target, per_hour[target.kind], steps) * least)}
        table.append(row)
    return sorted(table, key=lambda row: (("compiled", "bound", "").index(row["by"]), bool(row["why"]), row["dollars"] or 0))


def _compiled(config, steps: float, chips: int, tried: list[Tried]) -> dict:
    """Of a topology's row: its cheapest plan; {} when none will do."""
    best = min((each for each in tried if each.cost < math.inf), key=lambda each: each.cost, default=None)
    if best is None:
        return {}
    return {"by": "compiled", "mfu": best.plan["estimated_mfu"], "layout": best.item.name, "overrides": changed(config, best.plan),
            **_costs(best.plan["estimated_step_seconds"], steps, chips, best.cost)}


def _failure(tried: Tried) -> str:
    return tried.error or ("takes too long" if tried.plan["fits"] else "does not fit")


def _costs(step: float, steps: float, chips: int, dollars: float) -> dict:
    return {"days": step * steps / _DAY, "chip_hours": step * steps * chips / _HOUR, "dollars": dollars}


def _nothing(table: list[dict], days: float | None, outcome: Outcome) -> str:
    if not outcome.tried and any(row["by"] for row in table):
        return f"--cheapest: {outcome.stopped}, and nothing was compiled: give more --budget_seconds"
    why = "; ".join(f"{row['topology']}: {row['why']}" for row in table if row["why"])
    within = f" within {days:g} days" if days is not None else ""
    fix = "allow more --days" if days is not None and not any(row["by"] == "compiled" for row in table) else "compile more"
    return f"--cheapest: nothing compiled fits{within} ({why}): {fix}, or name other slices"


def _money(dollars: float) -> str:
    return f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:,.3g}"


def page(result: dict) -> str:
    """What topologies cost, as a page that a person reads."""
    found = result["cheapest"]
    table = [{"topology": row["topology"], "chips": row["chips"], "days": row["days"], "chip-hours": row["chip_hours"],
              "USD": row["dollars"], "MFU %": 100 * row["mfu"] if row["mfu"] else None,
              "by": {"bound": "at least"}.get(row["by"], row["by"]),
              "layout": row["layout"] if row["by"] == "compiled" else "", "": row["why"][:70]} for row in found["topologies"]]
    dollars = ", ".join(f"{kind} {price:g}" for kind, price in found["prices"].items())
    best = next(row for row in found["topologies"] if row["topology"] == result["topology"])
    return "\n\n".join([
        f"{found['tokens']:.4g} tokens are {found['steps']:,.0f} steps; cheapest of what was compiled: {best['topology']}, "
        f"{_money(best['dollars'])}, {duration(best['days'])}",
        cli.table(table),
        f"prices, USD for an hour of a chip: {dollars}; from {found['prices_from']}\n"
        f"stopped: {found['stopped']}; rows without a layout are lower bounds, no estimates; "
        f"of each topology at most {_OF_EACH} layouts, which look fastest, and leaner ones in their place are compiled",
        f"train it\n  {found['flags'] or '(as the config says)'}"])
