"""Plots of runs and comparisons: functions that take frames or results, draw on matplotlib axes, given or new, and return them.

A new figure is `axes.figure`: `axes.figure.savefig("curves.png")` keeps it, and a notebook shows it as it is. Colours are those of Okabe
and Ito (2008), which all kinds of colour vision tell apart, each with a marker and dashes of its own; the background is transparent and
the ink a grey that can be read on white and on black. Nothing global is set and pyplot is not used.
"""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from lm.compare import verdict
from lm.compare.breakdown import SEEN
from lm.errors import ConfigError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
INK, RULE = "#7a828a", "#9aa1a8"
# Inches of a new figure; points of its letters.
SIZE, LETTERS = (4.4, 3.1), 8.5
LABELS = {"tokens": "tokens seen", "flops": "training FLOPs", "seconds": "seconds in steps", "step": "step", "parameters": "parameters",
          "loss": "training loss (nats per target)", "bits_per_byte": "bits per byte", "nats_per_token": "nats per token",
          "milliseconds_per_token": "decoding (ms a token)", "tokens_per_second": "training tokens per second", "memory_bytes":
          "training memory (bytes)"}


def styles(names) -> dict[str, dict]:
    """How each of some names is drawn, {name: {"color", "marker", "linestyle"}}: always the same for the same names in the same order."""
    return {name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                   "linestyle": DASHES[(i + i // len(COLOURS)) % len(DASHES)]} for i, name in enumerate(names)}


def axes(ax=None, size: tuple[float, float] = SIZE):
    """The axes, or those of a new figure of `size` inches, in the style of this module."""
    if ax is None:
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        ax = figure.subplots()
    ax.patch.set_alpha(0)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    ax.tick_params(which="both", colors=INK, labelcolor=INK, labelsize=LETTERS - 0.5, length=3, width=0.7)
    ax.grid(True, color=RULE, alpha=0.3, linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def curves(frame, x: str = "tokens", y: str = "loss", ax=None, style: dict | None = None, smooth: int = 1):
    """A line for each arm of `y` against `x`, the mean over its seeds, with a band from the lowest to the highest seed.

    `frame` has the columns arm, seed, step, x and y, a row a line of metrics.jsonl (`lm.compare.results.curve_frame`, or metrics of
    `load_run` with arm and seed added). `smooth` is over how many lines each is averaged. ConfigError where no line has both.
    """
    _columns(frame, ("arm", "seed", "step", x, y))
    style = style or styles(dict.fromkeys(frame["arm"]))
    ax = axes(ax)
    shown = frame.dropna(subset=[x, y])
    shown = shown[shown[x] > 0]
    if shown.empty:
        raise ConfigError(f"no line has both {x} and {y}: nothing can be drawn of them")
    for arm, rows in shown.groupby("arm", sort=False):
        wide = rows.pivot_table(index="step", columns="seed", values=y).rolling(smooth, min_periods=1).mean()
        places = rows.groupby("step")[x].mean()
        wide = wide.dropna() if len(wide.dropna()) > 1 else wide
        places = places.loc[wide.index]
        few = {"marker": style[arm]["marker"], "markersize": 3.5} if len(places) <= 12 else {}
        ax.plot(places, wide.mean(axis=1), color=style[arm]["color"], linestyle=style[arm]["linestyle"], linewidth=1.4, label=arm, **few)
        if wide.shape[1] > 1:
            ax.fill_between(places, wide.min(axis=1), wide.max(axis=1), color=style[arm]["color"], alpha=0.18, linewidth=0)
    most, least = shown[x].max(), shown[x].min()
    _across(ax, x, log=most > 20 * least)
    return finish(ax, LABELS.get(x, x), LABELS.get(y, y))


def learning_rates(frame, ax=None, edge: str | None = None, key: str = "the learning rate", best: float | None = None):
    """Scores of trials against the factor on what the config has of a `key`, a line a rung; the `best` factor, by default that of the last
    rung with a score, is ringed. At the top what diverged is a cross and what failed otherwise a plus, and an optimum at an `edge` ("low",
    "high") of the grid is marked.

    `frame` has the columns rung, share, factor, score, diverged (`lm.compare.results.profile_frame`).
    """
    _columns(frame, ("rung", "share", "factor", "score", "diverged"))
    ax = axes(ax)
    diverged = frame["diverged"].astype(bool)
    failed = ~diverged & frame["score"].isna()
    good = frame[~diverged & ~failed]
    top = good["score"].max() if len(good) else 1.0
    for number, (_, rows) in enumerate(good.groupby("rung")):
        rows = rows.sort_values("factor")
        ax.plot(rows["factor"], rows["score"], color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=4,
                linewidth=1.3, label=f"{rows['share'].iloc[0]:.0%} of the tokens")
    for lost, marker, label in ((diverged, "x", "diverged"), (failed, "+", "failed")):
        if lost.any():
            ax.plot(frame[lost]["factor"], [top] * int(lost.sum()), linestyle="", marker=marker, color=INK, label=label)
    if len(good):
        _ring(ax, good, best)
        if edge:
            ax.axvspan(*_edge(frame["factor"], edge), color=COLOURS[1], alpha=0.18, linewidth=0, label=f"at the {edge} edge")
    ax.set_xscale("log", base=2)
    factors = sorted(set(frame["factor"]))
    ax.set_xticks(factors, [f"{factor:g}" for factor in factors])
    ax.xaxis.set_minor_locator(NullLocator())
    return finish(ax, f"times {key} of the config", "bits per byte")


def _ring(ax, good, best: float | None):
    """A ring around a factor's last score, or around the best score of the last rung."""
    of_best = good if best is None else good[good["factor"] == best]
    last = of_best[of_best["rung"] == of_best["rung"].max()]
    row = last.loc[last["score"].idxmin()]
    ax.plot([row["factor"]], [row["score"]], marker="o", markersize=11, markerfacecolor="none", markeredgecolor=INK, linestyle="")


def position(frame, ax=None, style: dict | None = None, context: int | None = None):
    """Loss by place in the row, a line an arm, mean over seeds; `frame` has the columns arm, from, to, nats_per_token. Places are counted
    from 1, buckets drawn at their geometric middle; a line at `context` is the longest row that training had."""
    _columns(frame, ("arm", "from", "to", "nats_per_token"))
    ax = axes(ax)
    frame = frame.assign(place=(frame["from"] * frame["to"]) ** 0.5)
    _lines(ax, frame, "place", style)
    if context:
        ax.axvline(context, color=INK, linewidth=0.8, linestyle=":")
    _across(ax, "place", log=True)
    return finish(ax, "place in the row (tokens)", LABELS["nats_per_token"])


def frequency(frame, ax=None, style: dict | None = None):
    """Loss by how frequent the target is in training, a line an arm, mean over seeds.

    `frame` has the columns arm, decile, nats_per_token.
    """
    _columns(frame, ("arm", "decile", "nats_per_token"))
    ax = axes(ax)
    _lines(ax, frame, "decile", style)
    ax.set_xticks(sorted(set(frame["decile"])))
    return finish(ax, "decile of the training text, by how frequent the token is", LABELS["nats_per_token"])


def recall(frame, ax=None, style: dict | None = None):
    """Loss by what the row had of the target before (SEEN of `lm.compare.breakdown`), a line an arm, mean over seeds.

    `frame` has the columns arm, target, nats_per_token.
    """
    _columns(frame, ("arm", "target", "nats_per_token"))
    names = [name for name in SEEN if name in set(frame["target"])]
    return _named(axes(ax), frame, names, style, "target, by what the row had of it before")


def copy(frame, ax=None, style: dict | None = None):
    """What a run of text costs and what it costs said again, a line an arm, mean over seeds.

    `frame` has the columns arm, first, second.
    """
    _columns(frame, ("arm", "first", "second"))
    frame = frame.melt(["arm"], ["first", "second"], "target", "nats_per_token")
    return _named(axes(ax), frame, ["first", "second"], style, "half of a row that says a run of text twice")


def forest(differences: list[dict], ax=None, style: dict | None = None):
    """Differences in bits per byte with their intervals, a row each, the thin bar the bootstrap over seeds and documents; left of 0 the
    second of the two is better. Rows without a mean are left out; ConfigError where none has one."""
    rows = [row for row in differences if row["mean"] is not None]
    if not rows:
        raise ConfigError("no two arms have a seed in common yet: there is no difference to draw")
    ax = axes(ax, (SIZE[0], 0.9 + 0.42 * len(rows)))
    style = style or styles(dict.fromkeys(name for row in rows for name in (row["a"], row["b"])))
    for place, row in enumerate(rows):
        look = style[row["b"]]
        wide = row.get("bootstrap")
        if wide and wide["low"] is not None:
            ax.plot([wide["low"], wide["high"]], [place + 0.2] * 2, color=look["color"], linewidth=1.1)
        if row["low"] is not None:
            ax.plot([row["low"], row["high"]], [place, place], color=look["color"], linewidth=3.5, solid_capstyle="butt", alpha=0.75)
        ax.plot([row["mean"]], [place], color=look["color"], marker=look["marker"], markersize=6, linestyle="")
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), [f"{row['b']} less {row['a']}" for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(False, axis="y")
    return finish(ax, "difference in bits per byte", "each two arms")


def frontier(frame, x: str = "flops", y: str = "bits_per_byte", ax=None, style: dict | None = None):
    """Scores against what they cost, a point an arm with its interval; `frame` has the columns arm, x, y and may have low and high.

    What no other point beats in both is joined by a dotted line.
    """
    _columns(frame, ("arm", x, y))
    ax = axes(ax)
    frame = frame.dropna(subset=[x, y])
    style = style or styles(dict.fromkeys(frame["arm"]))
    for row in frame.to_dict("records"):
        look = style[row["arm"]]
        if row.get("low") is not None and not math.isnan(row["low"]):
            ax.plot([row[x]] * 2, [row["low"], row["high"]], color=look["color"], linewidth=1.4)
        ax.plot([row[x]], [row[y]], color=look["color"], marker=look["marker"], markersize=7, linestyle="", label=row["arm"])
    best = frame.sort_values([x, y])
    best = best[best[y] < best[y].cummin().shift(fill_value=math.inf)]
    ax.plot(best[x], best[y], color=INK, linewidth=0.9, linestyle=":")
    positive = frame[x][frame[x] > 0]
    _across(ax, x, log=len(positive) == len(frame) and len(frame) > 0 and positive.max() > 5 * positive.min())
    return finish(ax, LABELS.get(x, x), LABELS.get(y, y))


def points(frame, x: str = "parameters", y: str = "loss", by: str = "flops", ax=None, lines: dict | None = None):
    """Runs of a scaling ladder as points, a colour for each value of `by`, such as a budget or a family, against a logarithmic `x`.

    `lines` are fits to draw beside them: {value of `by`: (xs, ys)}. `frame` has the columns x, y, by.
    """
    _columns(frame, (x, y, by))
    ax = axes(ax)
    style = styles(sorted(set(frame[by])))
    for number, look in style.items():
        rows = frame[frame[by] == number]
        label = verdict.flops(number) + " FLOPs" if by == "flops" else str(number)
        ax.plot(rows[x], rows[y], color=look["color"], marker=look["marker"], markersize=4.5, linestyle="", label=label)
        if lines and number in lines:
            ax.plot(*lines[number], color=look["color"], linewidth=1.2)
    _across(ax, x, log=True)
    return finish(ax, LABELS.get(x, x), "loss (nats per token)" if y == "loss" else LABELS.get(y, y))


def heat(values, rows=None, columns=None, label: str = "", ax=None, limits: tuple[float, float] | None = None):
    """A matrix [rows, columns] as colours with their bar, whose unit is `label`; names of rows and columns where they are given."""
    size = (max(3.2, 0.9 + 0.17 * len(values[0])), max(2.6, 0.7 + 0.17 * len(values)))
    ax = axes(ax, size)
    low, high = limits or (None, None)
    image = ax.imshow(values, cmap="viridis", aspect="auto", vmin=low, vmax=high, interpolation="nearest")
    ax.grid(False)
    if columns is not None:
        ax.set_xticks(range(len(columns)), columns, rotation=90)
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=LETTERS - 0.5, length=3)
    bar.set_label(label, color=INK, fontsize=LETTERS)
    return ax


def attention(weights, queries: list[str], keys: list[str] | None = None, ax=None):
    """An attention map: weights [queries, keys] of one head, rows that read, columns that are read; pieces of text as labels."""
    ax = heat(weights, [_piece(text) for text in queries], [_piece(text) for text in keys or queries], "attention weight", ax, (0, 1))
    return finish(ax, "token that is read", "token that reads")


def finish(ax, across: str, up: str):
    """Labels in the style of this module, and a legend where several lines have a name."""
    ax.set_xlabel(across, color=INK, fontsize=LETTERS)
    ax.set_ylabel(up, color=INK, fontsize=LETTERS)
    handles, names = ax.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    if len(once) > 1:
        ax.legend(once.values(), once.keys(), frameon=False, fontsize=LETTERS - 0.5, labelcolor=INK, handlelength=2.4)
    return ax


def _named(ax, frame, names, style, across: str):
    """Losses of targets that have names, across in the order of these."""
    _lines(ax, frame.assign(place=frame["target"].map(names.index)), "place", style)
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.3, len(names) - 0.7)
    return finish(ax, across, LABELS["nats_per_token"])


def _lines(ax, frame, x, style):
    style = style or styles(dict.fromkeys(frame["arm"]))
    for arm, rows in frame.groupby("arm", sort=False):
        mean = rows.groupby(x)["nats_per_token"].mean()
        ax.plot(mean.index, mean, label=arm, linewidth=1.4, markersize=4, **style[arm])


def _across(ax, x, log: bool):
    """Ticks of the axis across that are words, not powers in small letters."""
    ax.set_xscale("log" if log else "linear")
    if log:
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0, 3.0) if high < 1000 * low else (1.0,)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.ticklabel_format(style="plain", axis="x")
        ax.locator_params(axis="x", nbins=5)
    form = verdict.flops if x == "flops" else _short
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value) if value > 0 else "0"))


def _short(number: float) -> str:
    return f"{number / 1000:g}k" if 10_000 <= number < 1e6 else verdict.amount(number)


def _edge(factors, edge) -> tuple[float, float]:
    """The span of half a doubling around an end of the grid."""
    end = min(factors) if edge == "low" else max(factors)
    return end / 2**0.25, end * 2**0.25


def _piece(text: str) -> str:
    """A piece of text whose white space can be seen."""
    return text.replace("\n", "\u23ce").replace(" ", "\u2423") or "\u2205"


def _columns(frame, names):
    lacking = [name for name in names if name not in frame.columns]
    if lacking:
        raise ConfigError(f"the frame has no column {', '.join(lacking)}; it has {', '.join(map(str, frame.columns))}")
