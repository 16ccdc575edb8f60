"""isoFLOP parabolas: minima that are known, intervals that cover them, and ladders that miss them."""

import dataclasses

import numpy as np
import pytest

from lm.compare import isoflop
from lm.compare.points import of_rows
from lm.errors import DataError
from tests.compare.ladders import BESIROGLU, BUDGETS, SIZES, best_size, ladder


def parabolic(budgets=(1e10, 1e11, 1e12), sizes=(0.25, 0.5, 1, 2, 4), noise=0.0, seed=0):
    """Points that are on parabolas exactly: at a budget C the best size is C^0.5, its loss 3 + (C / 1e10)^-0.1."""
    generator = np.random.default_rng(seed)
    return of_rows([{"parameters": flops**0.5 * m, "tokens": flops**0.5 / 6 / m, "flops": flops,
                     "loss": 3 + (flops / 1e10) ** -0.1 + 0.05 * np.log(m) ** 2 + noise * generator.normal()}
                    for flops in budgets for m in sizes])


def test_minima_of_parabolas_are_exact():
    found = isoflop.fit(parabolic())
    for flops, minimum in zip((1e10, 1e11, 1e12), found.minima(), strict=True):
        assert minimum.where == "inside" and minimum.points == 5 and minimum.flops == pytest.approx(flops)
        assert minimum.parameters.value == pytest.approx(flops**0.5) and minimum.tokens.value == pytest.approx(flops**0.5 / 6)
        assert minimum.loss == pytest.approx([3 + (flops / 1e10) ** -0.1] * 3)
    law = found.power_law()
    assert (law["parameters"].value, law["tokens"].value) == pytest.approx((0.5, 0.5))
    flops, losses, draws = found.frontier()
    assert draws.shape == (isoflop.RESAMPLES, 3) and losses[0] == pytest.approx(4)


def test_minima_of_a_law_are_near_its_own():
    found = isoflop.fit(ladder())
    for flops, minimum in zip(BUDGETS, found.minima(), strict=True):
        assert minimum.parameters.value == pytest.approx(best_size(BESIROGLU, flops), rel=0.06)
    assert found.power_law()["parameters"].value == pytest.approx(BESIROGLU[4] / (BESIROGLU[2] + BESIROGLU[4]), abs=0.005)


def test_intervals_cover_size_loss_and_exponent():
    hits, count = np.zeros(3), 200
    for seed in range(count):
        found = isoflop.fit(parabolic(noise=0.01, seed=seed), resamples=400, seed=seed)
        minimum, law = found.minima()[1], found.power_law()
        hits += [each.low <= true <= each.high for each, true in (
            (minimum.parameters, 1e11**0.5), (minimum.loss, 3 + 10**-0.1), (law["parameters"], 0.5))]
    assert ((hits / count >= 0.89) & (hits / count <= 0.99)).all(), hits / count


@pytest.mark.parametrize("sizes, where", [((2, 4, 8), "below the smallest size"), ((0.1, 0.2, 0.4), "above the largest size")])
def test_a_ladder_that_misses_the_minimum_is_told(sizes, where):
    found = isoflop.fit(parabolic(sizes=sizes))
    assert {minimum.where for minimum in found.minima()} == {where}
    assert found.power_law() is None and found.frontier()[2].shape == (0, 0)


def test_losses_that_bend_the_other_way_have_no_minimum():
    made = parabolic()
    found = isoflop.fit(dataclasses.replace(made, loss=8 - made.loss))
    assert {minimum.where for minimum in found.minima()} == {"no minimum"} and found.power_law() is None
    assert all(np.isnan(minimum.parameters.value) and minimum.parameters.low is None for minimum in found.minima())


def test_three_sizes_have_a_minimum_without_an_interval_and_two_have_none():
    (minimum,) = isoflop.fit(parabolic((1e10,), (0.5, 1, 2))).minima()
    assert minimum.parameters.value == pytest.approx(1e5) and minimum.parameters.low is None
    with pytest.raises(DataError, match="no budget has 3 sizes"):
        isoflop.fit(parabolic(sizes=(1, 2)))
    noisy = isoflop.fit(ladder(noise=0.2, sizes=SIZES[1:4])).minima()
    assert any(minimum.parameters.low is None or minimum.where != "inside" for minimum in noisy)


@pytest.mark.filterwarnings("error")
def test_draws_that_are_nearly_straight_lines_leave_exponents_open_without_a_word():
    laws = [isoflop.fit(ladder(noise=0.03, seed=seed, sizes=(0.5, 1, 2, 4))).power_law() for seed in (0, 3)]
    assert all(each == (each.value, None, None) for law in laws for each in law.values())
