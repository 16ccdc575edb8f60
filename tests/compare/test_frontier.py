"""Frontiers: of known curves, and families whose compute differs by a known factor."""

import numpy as np
import pytest

from lm.compare import frontier
from lm.compare.points import of_rows
from lm.errors import ConfigError, DataError
from tests.compare.ladders import BESIROGLU, joined, ladder, loss_of


def curve(compute=1.0, family="a", flops=None, noise=0.0, seed=0):
    """Runs on L = 2 + 400 C^-0.15, and worse ones beside them."""
    flops, generator = np.geomspace(1e10, 1e14, 9) if flops is None else np.array(flops), np.random.default_rng(seed)
    rows = [{"parameters": c**0.5, "tokens": c**0.5 / 6 * worse, "flops": c * compute, "family": family,
             "loss": (2 + 400 * c**-0.15) * worse**0.5 * np.exp(noise * generator.normal())} for c in flops for worse in (1.0, 1.3)]
    return of_rows(rows)


def test_the_lower_envelope_is_what_nothing_beats():
    generator = np.random.default_rng(0)
    made = of_rows([{"parameters": i + 1, "tokens": 1, "flops": generator.uniform(1, 9), "loss": generator.uniform(1, 9)}
                    for i in range(40)])
    flops, loss = frontier.envelope(made)
    unbeaten = [i for i in range(40) if not any(made.flops[j] <= made.flops[i] and made.loss[j] <= made.loss[i] and i != j
                                                for j in range(40))]
    assert sorted(flops) == flops.tolist() and set(zip(flops, loss, strict=True)) == {(made.flops[i], made.loss[i]) for i in unbeaten}


def test_seeds_are_averaged_before_the_best_is_taken():
    made = of_rows([{"parameters": size, "tokens": 1, "flops": 5, "loss": loss} for size, loss in ((1, 2.0), (1, 4.0), (2, 2.9), (2, 2.7))])
    assert frontier.envelope(made)[1].tolist() == [pytest.approx(2.8)]


def test_a_known_curve_comes_back():
    found = frontier.fit(curve())
    assert found.method == frontier.ENVELOPE and len(found.flops) == 9
    assert [each.value for each in found.constants().values()] == pytest.approx([2, 400, 0.15], rel=1e-3)
    assert found.predict(1e12) == pytest.approx(2 + 400 * 1e12**-0.15, rel=1e-6)
    assert np.exp(found.log_flops_for(found.predict(3e12))) == pytest.approx(3e12, rel=1e-6) and found.log_flops_for(1.9) == np.inf


@pytest.mark.parametrize("made", [ladder, curve])
@pytest.mark.parametrize("compute", [0.83, 1.7])
def test_a_family_that_needs_a_factor_of_the_compute_is_found_to(made, compute):
    first, second = frontier.fit(made(), 50), frontier.fit(made(compute=compute, family="b"), 50)
    found = frontier.compare(first, second)
    assert found.ratio.value == pytest.approx(compute, rel=0.005)
    assert frontier.compare(second, first).ratio.value == pytest.approx(1 / compute, rel=0.005)
    assert all(each.value == pytest.approx(compute, rel=0.02) for _, each in found.ratios)


@pytest.mark.parametrize("count, resamples", [(5, 40), pytest.param(100, 200, marks=pytest.mark.slow)])
def test_intervals_of_the_ratio_cover_it(count, resamples):
    hits = 0
    for seed in range(count):
        first = frontier.fit(ladder(noise=0.003, seed=2 * seed), resamples)
        second = frontier.fit(ladder(noise=0.003, seed=2 * seed + 1, compute=0.83, family="b"), resamples)
        ratio = frontier.compare(first, second).ratio
        hits += ratio.low <= 0.83 <= ratio.high
        assert 0.01 < ratio.high - ratio.low < 0.15
    assert hits / count >= (0.9 if count > 50 else 0.6)


def test_the_same_family_twice_is_not_told_apart_though_both_are_drawn_from_the_same_seed():
    first, second = frontier.fit(ladder(noise=0.003, seed=1), 100), frontier.fit(ladder(noise=0.003, seed=1, family="b"), 100)
    found = frontier.compare(first, second)
    assert found.ratio.value == pytest.approx(1) and found.ratio.low < 0.99 < 1.01 < found.ratio.high
    assert found.text.startswith("b needs 1.00x [0.") and found.text.endswith("; which needs less is open")


def test_a_difference_is_said_in_a_sentence():
    first, second = frontier.fit(ladder(noise=0.0005), 50), frontier.fit(ladder(noise=0.0005, seed=1, compute=0.5, family="lstm"), 50)
    found = frontier.compare(first, second)
    assert found.text.startswith("lstm needs 0.50x [0.") and "] the compute of a for the same loss, from 3." in found.text
    assert "open" not in found.text
    at = frontier.compare(first, second, loss=3.0)
    assert at.ratio.value == pytest.approx(0.5, rel=0.05) and "for a loss of 3" in at.text and at.losses == (3, 3)


def known(family, draws, count=100):
    """The frontier 2 + 400 C^-0.15, of which the first draws, of `count`, are others."""
    solution = np.array([np.log(2), np.log(400), 0.15])
    flops = np.geomspace(1e10, 1e14, 5)
    drawn = np.tile(solution, (count, 1))
    drawn[:len(draws)] = np.reshape(draws, (-1, 3))
    return frontier.Frontier(family, frontier.ENVELOPE, flops, 2 + 400 * flops**-0.15, solution, drawn, 0.95)


def test_an_end_that_draws_never_reach_is_open():
    above = [[np.log(20), np.log(400), 0.15]] * 5  # no compute reaches a loss below 20
    more = frontier.compare(known("a", []), known("b", above))
    assert more.ratio.value == pytest.approx(1) and more.ratio.low == pytest.approx(1) and more.ratio.high is None
    assert "b needs 1.00x [1.00, open] the compute" in more.text and "leave the upper end of the interval open" in more.text
    less = frontier.compare(known("a", above), known("b", []))
    assert less.ratio.low is None and less.ratio.high == pytest.approx(1) and "[open, 1.00]" in less.text
    assert less.text.endswith("; which needs less is open")
    assert frontier.compare(known("a", above * 20), known("b", above * 20)).ratio[1:] == (None, None), "unknown is not equal"


def test_draws_without_a_frontier_open_the_interval():
    lost = [[np.nan] * 3] * 10
    assert frontier.compare(known("a", []), known("b", lost)).ratio[1:] == (None, None)
    assert frontier.compare(known("a", []), known("b", lost[:1])).ratio.low == pytest.approx(1)
    assert known("a", lost).constants()["g"] == (0.15, None, None)


def test_envelopes_of_too_few_points_are_draws_too():
    found = frontier.fit(curve(flops=(1e10, 1e11, 1e12), noise=0.01), 60)
    assert found.method == frontier.ENVELOPE and len(found.draws) == 60 and np.isnan(found.draws[:, 0]).mean() > 0.05


def test_parabolas_that_open_downwards_are_draws_too():
    found = frontier.fit(ladder(noise=0.05, seed=3, sizes=(0.5, 1, 2, 4)), 60)
    assert found.method == frontier.MINIMA and len(found.draws) == 60 and np.isnan(found.draws[:, 0]).mean() > 0.05
    assert found.constants()["g"][1:] == (None, None)


def test_several_seeds_are_drawn_within_sizes():
    """Envelopes of seeds keep every size, and so vary much less than those of points."""
    budgets = np.geomspace(1e18, 1e20, 8)
    several, single = (frontier.fit(ladder(noise=0.002, seeds=n, sizes=(1, 3), budgets=budgets), 60) for n in (3, 1))
    assert several.method == single.method == frontier.ENVELOPE
    widths = [np.ptp(np.quantile(np.exp(fit.log_flops_for(3.0, fit.draws)), [0.1, 0.9])) for fit in (several, single)]
    assert widths[0] < widths[1]


def test_what_cannot_be_compared_is_refused():
    low, high = frontier.fit(curve(), 0), frontier.fit(curve(flops=np.geomspace(1e20, 1e22, 5), family="b"), 0)
    with pytest.raises(ConfigError, match="none in common"):
        frontier.compare(low, high)
    with pytest.raises(ConfigError, match="is not reached by both"):
        frontier.compare(low, low, loss=1.0)
    with pytest.raises(DataError, match="a curve needs 3"):
        frontier.fit(curve(flops=(1e10, 1e11)))
    with pytest.raises(DataError, match="one family"):
        frontier.fit(joined(curve(), curve(family="b")))
    assert frontier.compare(low, low).ratio == (1, None, None) and "leave the interval open" in frontier.compare(low, low).text


def test_a_law_and_its_frontier_agree():
    """The parabola's minimum is a little above the law's: it bends unlike the law."""
    found = frontier.fit(ladder(), 0)
    assert found.method == frontier.MINIMA
    _, a, alpha, b, beta = BESIROGLU
    size = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (1e19 / 6) ** (beta / (alpha + beta))
    assert found.predict(1e19) == pytest.approx(loss_of(BESIROGLU, size, 1e19 / 6 / size), rel=0.005)


def test_a_family_whose_best_sizes_were_not_trained_has_no_frontier():
    """Of the same law: through the edge of its ladder it would seem to need much more compute."""
    with pytest.raises(DataError, match=r"no budget of b has its best size among those trained \(above the largest size\): "):
        frontier.fit(ladder(family="b", sizes=(0.05, 0.1, 0.2)), 20)
    flat = of_rows([row | {"loss": 3.0} for row in ladder().rows()])
    with pytest.raises(DataError, match="no minimum"):
        frontier.fit(flat, 20)


def test_an_envelope_with_budgets_whose_best_size_was_not_trained_says_which_way_it_errs():
    whole = frontier.fit(ladder(noise=0.001), 50)
    mixed = joined(ladder(family="b", budgets=(1e18, 3e18)), ladder(family="b", budgets=(1e19, 3e19, 1e20), sizes=(0.05, 0.1, 0.2)))
    partial = frontier.fit(mixed, 50)
    assert (whole.outside, partial.method, partial.outside, partial.budgets) == (0, frontier.ENVELOPE, 3, 5)
    lacking = "; 3 of the 5 budgets of b have their best size outside those trained: with it the ratio would be "
    assert frontier.compare(whole, partial).text.endswith(f"{lacking}less")
    assert frontier.compare(partial, whole).text.endswith(f"{lacking}more")
    assert frontier.compare(whole, partial).ratio.value > 1.05, "both are of one law"
    assert "best size" not in frontier.compare(whole, whole).text
