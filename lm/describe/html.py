"""A description as one HTML file that needs nothing else: bars, tables, and what memory holds while a compiled step runs."""

import itertools

import jinja2

from lm import cli
from lm import config as configs
from lm.describe import page
from lm.describe.template import TEMPLATE
from lm.errors import ConfigError
from lm.hlo.names import phase_and_module

# As many colours as can be told apart; what comes later is grey.
COLOURS = 8
# Of the picture, in its own units.
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 330, 58, 26, 30
_LINES = 5
# Columns that stand right.
_NUMBERS = frozenset(("init", "entries", "on a device", "of all", "FLOPs a token", "in training", "of them", "times", "bytes", *page.KINDS))


def html_of(description: dict) -> str:
    """The page of a description; one with a "plan" (see `lm.describe.planned`) has the picture of its memory. ConfigError for a model
    that is made by counting, of which there is nothing to show."""
    totals, memory = description["totals"], description["memory"]
    if not totals["parameters"]:
        raise ConfigError(f"--html shows parameters, and model.name={totals['model']} is made by counting: leave it out")
    plan, components = description.get("plan"), description["components"]
    colours = {row["component"]: number if number < COLOURS else COLOURS for number, row in enumerate(components)}
    by_component = (
        ("parameters", [(row["component"], row["parameters"]) for row in components], ""),
        ("FLOPs of a token in training", [(row["component"], row["train_flops_per_token"]) for row in components], "FLOPs"),
        ("state of training on a device", [(row["component"], sum(row["bytes"].values())) for row in components], "B"))
    bars = [_bar(name, parts, unit, colours) for name, parts, unit in by_component]
    parts = page.memory_parts(description)
    timed = plan is not None and bool(plan["timeline"])
    return _render(
        title=page.title(description), tiles=_tiles(description), bars=bars, changed=_changed(description), difference=None,
        memory=_bar("as compiled" if plan else "estimated", parts, "B", {name: i for i, (name, _) in enumerate(parts)},
                    page.limit_of(description)) | {"limit": page.limit_text(description)},
        unit=page.unit_of(description), host=f"{cli.human(memory['host'])}B" if memory["host"] else "", exact=plan is not None,
        components=_table(page.component_rows(description), colours), parameters=_table(page.parameter_rows(description)),
        picture=picture(plan["timeline"], plan["hbm_limit"], plan["peak_breakdown"]) if timed else None,
        largest=_largest(plan) if plan else None, collectives=description.get("collectives"), note=description.get("note"))


def html_of_difference(difference: dict, names: tuple[str, str]) -> str:
    """The page of what two configs, called `names`, differ in."""
    rows = [{"what": row["what"], "name": row["name"], names[0]: row["first"], names[1]: row["second"]}
            for row in page.difference_rows(difference)]
    return _render(title=f"{names[0]} and {names[1]}", difference=_table(rows) if rows else "none", bars=[], tiles=[])


def _render(**values) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined)
    return environment.from_string(TEMPLATE).render(values)


def _tiles(description) -> list[tuple[str, str]]:
    totals = description["totals"]
    held = sum(size for _, size in page.memory_parts(description))
    tiles = [("parameters", _count(totals["parameters"])),
             ("FLOPs of a token in training", cli.human(totals["train_flops_per_token"]).strip()),
             ("tokens of a step", f"{totals['tokens_per_step']:,.0f}"),
             (f"memory of a {page.unit_of(description)}", f"{cli.human(held)}B{page.limit_text(description)}")]
    plan = description.get("plan")
    if plan and plan["estimated_step_seconds"]:
        tiles += [("seconds of a step, estimated", f"{plan['estimated_step_seconds']:.3g}"),
                  ("MFU, estimated", f"{plan['estimated_mfu']:.1%}")]
    return tiles


def _count(number: int) -> str:
    """A number of parameters in words."""
    words = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
    return next((f"{number / size:.4g} {word}" for size, word in words if number >= size), f"{number:,}")


def _bar(name, parts, unit, colours, limit=None) -> dict:
    """A bar of parts [(name, amount)]; it is as long as their sum, or as the limit where that is more."""
    total = sum(amount for _, amount in parts)
    whole = max(total, limit or 0) or 1
    segments = [{"name": part, "text": f"{cli.human(amount)}{unit}".strip(), "percent": 100 * amount / whole, "colour": colours[part],
                 "share": page.share(amount, total)} for part, amount in parts if amount]
    return {"name": name, "total": f"{cli.human(total)}{unit}".strip(), "segments": segments,
            "limit_percent": 100 * (limit or 0) / whole}


def _table(rows: list[dict], colours: dict[str, int] | None = None) -> dict:
    """Columns, whether each is of numbers, and cells; rows have the colour of the component that they begin with."""
    columns = list(rows[0])
    lines = [[_cell(row[column]) for column in columns] for row in rows]
    marks = [None if colours is None else colours.get(line[0]) for line in lines]
    return {"columns": [(column, column in _NUMBERS) for column in columns], "rows": list(zip(marks, lines, strict=True))}


def _cell(value) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _largest(plan) -> dict | None:
    rows = [{"what": row["shape"], "times": row["count"], "bytes": f"{cli.human(row['bytes'])}B", "part of": row["part"],
             "in": " ".join(phase_and_module(row["op_name"])).strip(), "line": row["source"] or row["op_name"]}
            for row in plan["largest_buffers"]]
    return _table(rows) if rows else None


def _changed(description) -> list[tuple[str, str]]:
    """Keys of the config that are not what they are by default."""
    ours, default = configs.flatten(configs.from_json(description["config"])), configs.flatten(configs.default())
    return [(name, str(value)) for name, value in ours.items() if value != default[name]]


def picture(timeline: list[list[float]], limit: float, breakdown: dict[str, int]) -> dict:
    """The shapes of an SVG of `timeline`, [[share of the program, most bytes until the next], ...]: paths, lines and their labels."""
    most = max(*(held for _, held in timeline), 1)
    shown = limit if limit < 4 * most else None  # a limit far above would leave nothing to see
    top = 1.04 * max(most, shown or 0)
    across, down = WIDTH - LEFT - 6, HEIGHT - TOP - BOTTOM

    def x(share):
        return round(LEFT + across * share, 1)

    def y(held):
        return round(TOP + down * (1 - held / top), 1)

    ends = [share for share, _ in timeline[1:]] + [1.0]
    state = breakdown["params"] + breakdown["optimizer"]

    def outline(most):
        return "".join(f"L{x(start)},{y(min(held, most))}L{x(end)},{y(min(held, most))}"
                       for (start, held), end in zip(timeline, ends, strict=True))

    peak = max(range(len(timeline)), key=lambda i: timeline[i][1])
    step = _round(top / _LINES)
    ticks = list(itertools.takewhile(lambda held: held <= top, (step * i for i in itertools.count())))
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - 6, "bottom": TOP + down,
        "line": "M" + outline(most)[1:], "areas": [f"M{x(0)},{y(0)}{outline(part)}L{x(1)},{y(0)}Z" for part in (most, state)],
        "state_text": f"parameters and optimizer, up to {cli.human(state)}B",
        "limit": None if shown is None else y(shown), "limit_text": f"{cli.human(limit)}B there are",
        "ticks": [(y(held), f"{cli.human(held)}B") for held in ticks], "shares": [(x(i / 4), f"{25 * i} %") for i in range(5)],
        "peak": (x((timeline[peak][0] + ends[peak]) / 2), y(most), f"{cli.human(most)}B"),
        "anchor": "start" if timeline[peak][0] < 0.1 else "end" if timeline[peak][0] > 0.9 else "middle",
    }


def _round(step: float) -> float:
    """The next number of 1, 2, 5, 10, ... that is no less."""
    scale = 10.0 ** (len(f"{int(step)}") - 1)
    return next(scale * number for number in (1, 2, 5, 10) if scale * number >= step)
