"""Plots: what is drawn is what the frame says, axes have units, colours can be told apart, and nothing global is touched."""

import subprocess
import sys

import matplotlib
import numpy as np
import pandas
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lm.compare import plots, results
from lm.errors import ConfigError
from tests.compare.sweeps import make_sweep


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results.gather(make_sweep(tmp_path_factory.mktemp("plots"), references=("ngram",)))


def lines_of(ax):
    """{label: line} of the lines that have a name."""
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


@pytest.mark.parametrize("x", ["tokens", "flops", "seconds"])
@pytest.mark.parametrize("y", ["loss", "bits_per_byte"])
def test_curves_are_means_over_seeds_with_a_band_from_the_lowest_to_the_highest(found, x, y):
    frame = results.curve_frame(found)
    ax = plots.curves(frame, x, y)
    rows = frame[(frame["arm"] == "lstm")].dropna(subset=[y])
    means = rows.groupby("step")[[x, y]].mean()
    line = lines_of(ax)["lstm"]
    np.testing.assert_allclose(line.get_xdata(), means[x])
    np.testing.assert_allclose(line.get_ydata(), means[y])
    band = ax.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((rows[y].min(), rows[y].max()))
    assert ax.get_xlabel() == plots.LABELS[x] and ax.get_ylabel() == plots.LABELS[y]


def test_curves_smooth_over_lines_and_leave_out_what_is_not_there(found):
    frame = results.curve_frame(found)
    line = lines_of(plots.curves(frame[frame["seed"] == 0], "tokens", "loss", smooth=5))["gru"]
    loss = frame[(frame["arm"] == "gru") & (frame["seed"] == 0)]["loss"].to_numpy()
    assert line.get_ydata()[20] == pytest.approx(loss[16:21].mean())
    assert "ngram" not in lines_of(plots.curves(frame, "flops"))  # it has none
    with pytest.raises(ConfigError, match="nothing can be drawn"):
        plots.curves(frame.assign(loss=np.nan))
    with pytest.raises(ConfigError, match="has no column step, tokens; it has"):
        plots.curves(frame.drop(columns=["step", "tokens"]))


def test_runs_cut_short_do_not_bend_the_mean():
    rows = [{"arm": "a", "seed": seed, "step": step, "tokens": step, "loss": 1.0 + seed}
            for seed in (0, 1) for step in range(1, 10 - 4 * seed)]
    line = plots.curves(pandas.DataFrame(rows)).get_lines()[0]
    assert set(line.get_ydata()) == {1.5} and max(line.get_xdata()) == 5


def test_learning_rates_ring_the_best_cross_what_diverged_and_mark_the_edge(found):
    frame = results.profile_frame(found["arms"][0]["tuned"])
    ax = plots.learning_rates(frame, edge="high")
    named = lines_of(ax)
    assert list(named["diverged"].get_xdata()) == [4.0]
    assert list(named["25% of the tokens"].get_xdata()) == [0.25, 0.5, 1, 2]
    ring = ax.get_lines()[-1]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (1.0, pytest.approx(frame[frame["rung"] == 1]["score"].min()))
    (span,) = [patch for patch in ax.patches if patch.get_label() == "at the high edge"]
    assert span.get_x() < 4 < span.get_x() + span.get_width()
    assert ax.get_xlabel() == "times the learning rate of the config" and "failed" not in named
    everything_lost = frame.assign(diverged=True, score=np.nan)
    assert len(lines_of(plots.learning_rates(everything_lost))["diverged"].get_xdata()) == len(frame)


def test_trials_that_failed_have_not_diverged_and_the_ring_is_around_what_was_chosen(found):
    frame = results.profile_frame(found["arms"][0]["tuned"])
    frame.loc[frame["rung"] == 1, "score"] = np.nan
    ax = plots.learning_rates(frame, key="optim.weight_decay", best=0.5)
    named = lines_of(ax)
    assert list(named["diverged"].get_xdata()) == [4.0] and list(named["failed"].get_xdata()) == [0.5, 1.0, 2.0]
    assert named["failed"].get_marker() != named["diverged"].get_marker()
    assert ax.get_lines()[-1].get_xdata()[0] == 0.5 and ax.get_xlabel() == "times optim.weight_decay of the config"


def test_breakdowns_are_means_over_seeds(found):
    ax = plots.position(results.breakdown_frame(found, "position"), context=64)
    np.testing.assert_allclose(lines_of(ax)["transformer"].get_ydata(), [4.4 + 0.6 / 2**i for i in range(8)])
    np.testing.assert_allclose(lines_of(ax)["transformer"].get_xdata()[:2], [1, 6**0.5])
    ax = plots.frequency(results.breakdown_frame(found, "frequency"))
    np.testing.assert_allclose(lines_of(ax)["gru"].get_ydata(), 1 + 0.5 * np.arange(1, 11) - 0.1)
    ax = plots.recall(results.breakdown_frame(found, "recall"))
    np.testing.assert_allclose(lines_of(ax)["lstm"].get_ydata(), [5.9, 3.9, 1.9])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["new", "seen token", "seen bigram"]
    ax = plots.copy(results.breakdown_frame(found, "copy"))
    np.testing.assert_allclose(lines_of(ax)["lstm"].get_ydata(), [4.4, 3.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["first", "second"] and ax.get_ylabel() == "nats per token"


def test_the_forest_has_a_row_for_each_difference_with_both_intervals(found):
    ax = plots.forest(found["pairs"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["lstm less transformer", "gru less transformer", "gru less lstm"]
    drawn = [sorted(line.get_xdata()) for line in ax.get_lines()]
    for row in found["pairs"]:
        assert [row["low"], row["high"]] in drawn and [row["bootstrap"]["low"], row["bootstrap"]["high"]] in drawn
    assert ax.get_ylabel() == "each two arms"
    with pytest.raises(ConfigError, match="no difference to draw"):
        plots.forest([{"a": "x", "b": "y", "mean": None}])


def test_the_frontier_joins_what_no_other_point_beats_in_both():
    frame = pandas.DataFrame({"arm": list("abcde"), "flops": [1.0, 2, 3, 3.5, 4], "bits_per_byte": [2.0, 1.5, 1.7, 1.6, 1.2]})
    ax = plots.frontier(frame)
    assert list(ax.get_lines()[-1].get_xdata()) == [1, 2, 4]


def test_points_of_a_ladder_have_a_colour_for_each_budget_and_its_fit():
    frame = pandas.DataFrame({"parameters": [1e6, 2e6, 1e6], "loss": [3.0, 2.9, 2.7], "flops": [1e12, 1e12, 1e13]})
    ax = plots.points(frame, lines={1e12: ([1e6, 2e6], [3.0, 2.9])})
    assert set(lines_of(ax)) == {"1e12 FLOPs", "1e13 FLOPs"} and len(ax.get_lines()) == 3
    assert ax.get_xlabel() == "parameters"


def test_an_attention_map_shows_white_space_and_has_a_bar():
    ax = plots.attention(np.eye(3), ["a", " b", "\n"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "\u2423b", "\u23ce"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("token that is read", "token that reads")
    assert len(ax.figure.axes) == 2 and ax.images[0].get_clim() == (0, 1)


def test_axes_that_are_given_are_those_that_come_back(found):
    ax = Figure().subplots()
    assert plots.forest(found["pairs"], ax) is ax and plots.axes(ax) is ax
    assert plots.axes().figure.patch.get_alpha() == 0  # transparent, on light and dark


def luminance(colour):
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    """Contrast ratio of WCAG 2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_ink_can_be_read_on_white_and_on_black():
    for page in ("#ffffff", "#14171a"):
        assert contrast(plots.INK, page) > 3.8
        assert all(contrast(colour, page) > 1.9 for colour in plots.COLOURS)


# Of linear RGB, for full dichromacy (Machado, Oliveira and Fernandes 2009).
VISION = {"all": np.eye(3),
          "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
          "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
          "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]}


@pytest.mark.parametrize("vision", VISION)
def test_the_first_four_colours_differ_for_all_kinds_of_colour_vision(vision):
    def lab(colour):
        linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(
            np.array(VISION[vision]) @ linear, 0, 1) / [0.9505, 1, 1.089]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    first = [lab(colour) for colour in plots.COLOURS[:4]]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(first) for b in first[:i]) > 15


def test_names_beyond_the_colours_differ_in_dashes():
    looks = plots.styles([f"arm {i}" for i in range(12)])
    assert len({(look["color"], str(look["linestyle"])) for look in looks.values()}) == 12


def test_nothing_global_is_set_and_pyplot_is_not_imported(found):
    before = dict(matplotlib.rcParams)
    plots.forest(found["pairs"])
    assert dict(matplotlib.rcParams) == before
    probe = "import sys, lm.compare.plots; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip() == "False"
