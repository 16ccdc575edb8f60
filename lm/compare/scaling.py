"""Points of one or more families to what can be said of them: laws, minima, a held-out prediction, frontiers and a page."""

from collections.abc import Callable

import numpy as np

from lm import cli
from lm.compare import frontier, isoflop, laws, statistics
from lm.compare.points import Points
from lm.compare.statistics import Estimate
from lm.data.files import finite
from lm.errors import ConfigError, DataError

# How far beyond the largest budget the best use of FLOPs is told.
BEYOND = 10.0
# Repeated text is worth nearly as much as new text up to about so many times (Muennighoff et al. 2023).
MOST_EPOCHS = 4


def analyse(points: Points, hold_out: str = "largest", resamples: int = laws.RESAMPLES, seed: int = 0,
            level: float = statistics.LEVEL, loss: float | None = None) -> dict:
    """All that is fitted, as JSON: {"points", "level", "families": {name: {"law", "isoflop", "held_out", "frontier"}}, "comparisons"}.

    What the points of a family do not allow is {"error": why}; the first family is compared with each other one, at `loss` where given.
    So is a `hold_out` or a `loss` that a family has not: runs may have been trained for what else is found. DataError when the points
    allow nothing at all.
    """
    families = {}
    frontiers: dict[str, frontier.Frontier] = {}
    for name in points.families:
        own = points.of(name)
        found = {"points": len(own), "flops": [float(own.flops.min()), float(own.flops.max())],
                 "flops_factor": dict(zip(("median", "least", "most"), own.flops_factor(), strict=True)),
                 "law": _tried(lambda own=own: law_of(laws.fit(own, resamples, seed, level))),
                 "isoflop": _tried(lambda own=own: isoflop_of(isoflop.fit(own, seed=seed, level=level))),
                 "held_out": _tried(lambda own=own: held_out_of(own, hold_out, resamples, seed, level))}
        try:
            frontiers[name] = frontier.fit(own, resamples, seed, level)
            found["frontier"] = frontier_of(frontiers[name])
        except DataError as error:
            found["frontier"] = {"error": str(error)}
        families[name] = found
    if not any("error" not in found[part] for found in families.values() for part in ("law", "isoflop", "frontier")):
        first = next(iter(families.values()))
        raise DataError(f"nothing can be fitted to {len(points)} points. {first['law']['error']}. {first['isoflop']['error']}")
    first, *others = points.families
    pairs = [_compared(frontiers, first, other, loss) for other in others]
    return finite({"points": len(points), "counted": points.counted, "level": level, "families": families, "comparisons": pairs})


def _tried(make: Callable[[], dict]) -> dict:
    """What is made, or {"error"}: why the points do not allow it."""
    try:
        return make()
    except (ConfigError, DataError) as error:
        return {"error": str(error)}


def law_of(law: laws.Law) -> dict:
    """A law as JSON; the best use of FLOPs is told at the largest budget of its points and BEYOND that, where both exponents are known."""
    found = {"constants": _plain(law.constants()), "undetermined": law.undetermined(), "exponents": None, "best_for": [],
             "residual": float(np.sqrt((law.residuals() ** 2).mean())), "objective": law.objective, "resamples": len(law.draws)}
    if {"alpha", "beta"} & set(found["undetermined"]):
        return found
    largest = float(law.points.flops.max())
    best = [{name: value if name == "flops" else value._asdict() for name, value in law.best_for(flops).items()}
            for flops in (largest, BEYOND * largest)]
    return found | {"exponents": _plain(law.exponents()), "best_for": best}


def isoflop_of(found: isoflop.IsoFlop) -> dict:
    """Parabolas and their minima as JSON."""
    rows = [{"flops": each.flops, "points": each.points, "where": each.where, "parameters": each.parameters._asdict(),
             "tokens": each.tokens._asdict(), "loss": each.loss._asdict()} for each in found.minima()]
    law = found.power_law()
    return {"minima": rows, "exponents": None if law is None else _plain(law)}


def held_out_of(points: Points, which: str, resamples: int, seed: int, level: float) -> dict | None:
    """The prediction of what is held out by a law of the rest; None where nothing is to be held out."""
    rest, held = laws.hold_out(points, which)
    if held is None:
        return None
    rows = laws.fit(rest, resamples, seed, level).predicted(held, seed)
    errors = [row["error"] for row in rows]
    return {"runs": rows, "fitted": len(rest), "mean_absolute_error": float(np.abs(errors).mean()), "worst": max(errors, key=abs),
            "inside": sum(bool(row["inside"]) for row in rows)}


def frontier_of(found: frontier.Frontier) -> dict:
    """A frontier as JSON."""
    return {"method": found.method, "points": [{"flops": float(flops), "loss": float(loss)} for flops, loss in
                                               zip(found.flops, found.loss, strict=True)],
            "constants": _plain(found.constants()), "outside": found.outside, "budgets": found.budgets}


def _compared(frontiers: dict, first: str, other: str, loss: float | None) -> dict:
    """Two frontiers as JSON, or why they cannot be compared."""
    lacking = [name for name in (first, other) if name not in frontiers]
    if lacking:
        return {"a": first, "b": other, "error": f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no frontier"}
    try:
        found = frontier.compare(frontiers[first], frontiers[other], loss)
    except ConfigError as error:
        return {"a": first, "b": other, "error": str(error)}
    return {"a": first, "b": other, "ratio": found.ratio._asdict(), "losses": list(found.losses), "text": found.text,
            "ratios": [{"loss": each} | ratio._asdict() for each, ratio in found.ratios]}


def _plain(estimates: dict[str, Estimate]) -> dict:
    return {name: estimate._asdict() for name, estimate in estimates.items()}


def page(result: dict, measure: str) -> str:
    """What `analyse` found, as a person reads it."""
    parts = []
    for name, found in result["families"].items():
        factor = found["flops_factor"]
        title = f"{name or 'all'}: {found['points']} points of {found['flops'][0]:.3g} to {found['flops'][1]:.3g} FLOPs"
        told = f"{factor['median']:.3g} FLOPs of a parameter and token ({factor['least']:.3g} to {factor['most']:.3g})"
        parts.append(f"{title}\n{told if result['counted'] else '6 FLOPs of a parameter and token are assumed: none are given'}")
        parts += [_law_text(found["law"], measure), _isoflop_text(found["isoflop"], measure), _held_out_text(found["held_out"], measure),
                  _frontier_text(found["frontier"], measure)]
    for pair in result["comparisons"]:
        parts.append(pair.get("text") or f"{pair['a']} and {pair['b']} cannot be compared: {pair['error']}")
    return "\n\n".join(filter(None, parts))


def _law_text(law: dict, measure: str) -> str:
    if "error" in law:
        return f"no law: {law['error']}"
    head = f"L(N, D) = E + A / N^alpha + B / D^beta, {measure}; residuals of {law['residual']:.2%}"
    constants = cli.table([_row("constant", name, each) for name, each in law["constants"].items()])
    lines = [head, constants]
    if law["undetermined"]:
        lines.append(f"the points do not determine {', '.join(law['undetermined'])}: at an end of what the fit may take")
    shares = law["exponents"]
    if shares is None:
        return "\n".join([*lines, "so the law says nothing of the best size for a budget"])
    lines.append(f"best size ~ C^{_told(shares['parameters'])}, best length ~ C^{_told(shares['tokens'])}")
    rows = [{"FLOPs": f"{best['flops']:.3g}", **{title: _told(best[key]) for title, key in (
        ("parameters", "parameters"), ("tokens", "tokens"), ("tokens a parameter", "tokens_per_parameter"), ("loss", "loss"))}}
        for best in law["best_for"]]
    return "\n".join([*lines, cli.table(rows)])


def _isoflop_text(found: dict, measure: str) -> str:
    if "error" in found:
        return f"no isoFLOP parabolas: {found['error']}"
    rows = [{"FLOPs": f"{row['flops']:.3g}", "best parameters": _told(row["parameters"]), "tokens": _told(row["tokens"]),
             measure: _told(row["loss"]), "runs": row["points"], "minimum": row["where"]} for row in found["minima"]]
    shares = found["exponents"]
    law = "fewer than two budgets have their minimum inside the ladder: no power law" if shares is None else \
        f"through the minima inside: best size ~ C^{_told(shares['parameters'])}, best length ~ C^{_told(shares['tokens'])}"
    return "\n".join(["isoFLOP parabolas", cli.table(rows), law])


def _held_out_text(held: dict | None, measure: str) -> str:
    if held is None:
        return ""
    if "error" in held:
        return f"nothing is predicted: {held['error']}"
    rows = [{"held out": f"{row['flops']:.3g} FLOPs", "parameters": f"{row['parameters']:.4g}", "tokens": f"{row['tokens']:.4g}",
             "predicted": _told({"value": row["predicted"], "low": row["low"], "high": row["high"]}), "measured": row["measured"],
             "error": f"{row['error']:+.2%}"} for row in held["runs"]]
    told = (f"the law of the other {held['fitted']} points is off by {held['mean_absolute_error']:.2%} on average, {held['worst']:+.2%} at "
            "worst")
    return "\n".join([f"held out, {measure}", cli.table(rows), f"{told}; {held['inside']} of {len(rows)} are within their interval"])


def _frontier_text(found: dict, measure: str) -> str:
    if "error" in found:
        return f"no frontier: {found['error']}"
    constants = ", ".join(f"{name} {_told(each)}" for name, each in found["constants"].items())
    told = f"frontier L(C) = E + c C^-g, {measure}, through {len(found['points'])} points ({found['method']}): {constants}"
    if not found["outside"]:
        return told
    return f"{told}; too high at {found['outside']} of {found['budgets']} budgets, whose best size is outside those trained"


def _row(title: str, name: str, each: dict) -> dict:
    return {title: name, "value": each["value"], "low": each["low"], "high": each["high"]}


def _told(each: dict) -> str:
    """A number with its interval, to four digits."""
    if each["value"] is None:
        return ""
    if each["low"] is None and each["high"] is None:
        return f"{each['value']:.4g}"
    low, high = ("open" if side is None else f"{side:.4g}" for side in (each["low"], each["high"]))
    return f"{each['value']:.4g} [{low}, {high}]"
