"""The figures of a report as SVG that stands inside the page: its colours are the page's, light or dark, its letters the reader's."""

import html
import io
import re

from lm.compare import plots, results
from lm.compare.report.tables import MOST_PAIRS

# How many lines of a run a training loss is averaged over: a share of them.
_SMOOTH = 20
# Evaluations that make a curve.
_FEWEST = 3
# Keys that are a learning rate.
_RATES = {"optim.learning_rate", "optim.muon_learning_rate"}


def figures(found: dict) -> dict[str, list[dict]]:
    """Figures by section, {"differences", "curves", "costs", "rates", "breakdown": [{"title", "svg"}]}; sections without one are empty."""
    style = plots.styles([arm["name"] for arm in found["arms"]])
    drawn = {"differences": _differences(found, style), "curves": _curves(found, style), "costs": _costs(found, style),
             "rates": _rates(found), "breakdown": _breakdown(found, style)}
    number = 0
    for section in drawn.values():
        for i, (title, ax) in enumerate(section):
            number += 1
            section[i] = {"title": title, "svg": svg(ax.figure, title, f"f{number}-")}
    return drawn


def svg(figure, title: str, prefix: str) -> str:
    """A figure as an SVG element without size, colours of `lm.compare.plots` as variables of the page; its ids begin with `prefix`."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue().decode()
    text = text[text.index("<svg"):]
    text = re.sub(r"<style type=\"text/css\">.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text).group()
    text = f'<svg {box} role="img" aria-label="{html.escape(title, quote=True)}">' + text[text.index(">") + 1:]
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r'xlink:href="#', f'href="#{prefix}', text)
    colours = {colour: f"var(--c{number})" for number, colour in enumerate(plots.COLOURS)}
    for colour, variable in (colours | {plots.INK: "var(--soft)", plots.RULE: "var(--soft)"}).items():
        text = text.replace(colour, variable)
    return text


def _differences(found, style):
    shown = found["pairs"] if len(found["pairs"]) <= MOST_PAIRS else found["differences"]
    rows = [row for row in shown if row["mean"] is not None]
    return [("differences in bits per byte, with intervals", plots.forest(rows, style=style))] if rows else []


def _curves(found, style):
    kept = {(arm["name"], score["seed"]) for arm in found["arms"] for score in results.usable(arm["scores"])}
    curves = [curve for curve in found["curves"] if (curve["arm"], curve["seed"]) in kept]  # one that diverged is in no mean
    frame, drawn = results.curve_frame({"curves": curves}), []
    for y in ("bits_per_byte", "loss"):
        counted = frame.dropna(subset=[y]).groupby(["arm", "seed"]).size()
        if counted.empty or counted.max() < (_FEWEST if y == "bits_per_byte" else 2):
            continue
        smooth = max(1, int(counted.max()) // _SMOOTH) if y == "loss" else 1
        for x in ("tokens", "flops", "seconds"):
            if (frame.dropna(subset=[y])[x] > 0).any():
                drawn.append((f"{_plain(y)} against {_plain(x)}", plots.curves(frame, x, y, None, style, smooth)))
    return drawn


def _costs(found, style):
    import pandas

    rows = [{"arm": arm["name"]} | {name: arm["summary"][name]["mean"] for name in ("seconds", "milliseconds_per_token", "memory_bytes")}
            | {"bits_per_byte": score["mean"], "low": score["low"], "high": score["high"]}
            for arm in found["arms"] if (score := arm["summary"]["bits_per_byte"])["mean"] is not None]
    frame, drawn = pandas.DataFrame(rows), []
    for x in ("seconds", "milliseconds_per_token", "memory_bytes"):
        if len(frame) and frame[x].notna().sum() > 1:
            numbers = frame.astype({name: float for name in frame if name != "arm"})
            drawn.append((f"bits per byte against {_plain(x)}", plots.frontier(numbers, x, style=style)))
    return drawn


def _rates(found):
    drawn = []
    for arm in found["arms"]:
        tuned = arm["tuned"]
        if tuned and tuned["rungs"]:
            keys = " and ".join(tuned["keys"])
            ax = plots.learning_rates(results.profile_frame(tuned), edge=tuned["edge"], best=(tuned["best"] or {}).get("factor"),
                                      key=keys if set(tuned["keys"]) - _RATES else "the learning rate")
            ax.set_title(arm["name"], color=plots.INK, fontsize=plots.LETTERS)
            drawn.append((f"{arm['name']}: trials of {keys}", ax))
    return drawn


def _breakdown(found, style):
    drawn = []
    for kind, draw, title in (("position", plots.position, "loss by place in the row"),
                              ("frequency", plots.frequency, "loss by how frequent the token is in training"),
                              ("recall", plots.recall, "loss by whether the token was in the row before"),
                              ("copy", plots.copy, "loss of a run of text and of the same again")):
        frame = results.breakdown_frame(found, kind)
        if len(frame):
            drawn.append((title, draw(frame, style=style)))
    return drawn


def _plain(column) -> str:
    """What a column is, without its unit."""
    return plots.LABELS[column].partition(" (")[0]
