"""Statistics: against SciPy's tests, closed forms, brute force, and by how often intervals cover what they should."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lm.compare import statistics as stats
from lm.errors import DataError

A, B = [1.52, 1.55, 1.49, 1.53, 1.56], [1.50, 1.51, 1.48, 1.52, 1.51]


def binomial_bounds(rate, count):
    """Rates that a simulation of so many may show, once in 10,000 less or more."""
    low, high = scipy.stats.binom.ppf([1e-4, 1 - 1e-4], count, rate)
    return low / count, high / count


def test_intervals_of_a_mean_are_scipys():
    found = stats.mean_interval(A, 0.9)
    expected = scipy.stats.ttest_1samp(A, 0).confidence_interval(0.9)
    np.testing.assert_allclose(found[1:3], expected)
    assert found.mean == pytest.approx(np.mean(A)) and found.sd == pytest.approx(np.std(A, ddof=1)) and found.n == 5


@pytest.mark.parametrize("b", [B, A[::-1], [value + 0.3 for value in B]])
def test_a_paired_difference_is_scipys(b):
    found, expected = stats.paired_difference(A, b), scipy.stats.ttest_rel(b, A)
    assert found.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(found[1:3], expected.confidence_interval(0.95))
    assert found.mean == pytest.approx(np.mean(b) - np.mean(A))
    other = stats.paired_difference(b, A)
    assert (other.mean, other.low, other.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_one_seed_has_no_interval_and_equal_ones_have_one_without_width():
    assert stats.mean_interval([1.5]) == (1.5, None, None, None, 1)
    assert stats.paired_difference([1.5], [1.25]) == (-0.25, None, None, None, None, 1)
    assert stats.bootstrap_documents([[3.0]], [[4.0]], [2]) == (pytest.approx(1 / 2 / math.log(2)), None, None, None, 1)
    assert stats.mean_interval([0.1, 0.1, 0.1])[1:4] == pytest.approx((0.1, 0.1, 0)) and stats.mean_interval([0.1] * 3).sd == 0
    assert stats.paired_difference([1.0, 2.0], [1.5, 2.5]) == (0.5, 0.5, 0.5, 0, 0, 2)
    assert stats.paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1


@pytest.mark.parametrize("function", [stats.mean_interval, stats.holm, lambda values: stats.paired_difference(values, values),
                                      lambda values: stats.bootstrap_documents([values], [values], [1] * len(values))])
@pytest.mark.parametrize("values", [[1.0, math.nan], [1.0, None], [math.inf, 1.0], []])
def test_what_diverged_or_is_missing_is_refused(function, values):
    with pytest.raises(DataError, match=r"diverged|at least one"):
        function(values)


def test_pairs_of_unlike_lengths_and_texts_without_bytes_are_refused():
    with pytest.raises(DataError, match="leave out what one of them lacks"):
        stats.paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="give the bytes of each"):
        stats.bootstrap_documents(np.ones((2, 3)), np.ones((2, 3)), [5, 5])
    with pytest.raises(DataError, match="give the bytes of each"):
        stats.bootstrap_documents(np.ones((2, 3)), np.ones((2, 3)), [0, 0, 0])


def test_t_intervals_cover_what_they_should():
    generator, count = np.random.default_rng(1), 3000
    hits = sum(low <= 2.0 <= high for low, high in (stats.mean_interval(generator.normal(2, 3, 3))[1:3] for _ in range(count)))
    low, high = binomial_bounds(0.95, count)
    assert low <= hits / count <= high


def every_draw(nats, sizes):
    """The difference of every way to draw seeds and documents, all equally likely."""
    seeds, documents = nats.shape
    for of_seeds in itertools.product(range(seeds), repeat=seeds):
        for of_documents in itertools.product(range(documents), repeat=documents):
            yield nats[np.ix_(of_seeds, of_documents)].sum() / seeds / sizes[list(of_documents)].sum() / math.log(2)


@pytest.mark.parametrize("seeds", [1, 3])
def test_drawing_seeds_and_documents_is_what_brute_force_says(seeds):
    generator = np.random.default_rng(3)
    a, sizes = generator.gamma(5, 10, (seeds, 4)), np.array([10.0, 100.0, 30.0, 5.0])
    b = a + generator.normal(1, 4, a.shape)
    found = stats.bootstrap_documents(a, b, sizes, resamples=100_000)
    draws = np.fromiter(every_draw(b - a, sizes), float)
    assert found.mean == pytest.approx((b - a).mean(0).sum() / sizes.sum() / math.log(2))
    assert found.stderr == pytest.approx(draws.std(), rel=0.02)
    np.testing.assert_allclose(found[1:3], np.quantile(draws, [0.025, 0.975]), atol=0.06 * np.ptp(draws))
    own, draws = stats.bootstrap_score(a, sizes, resamples=100_000), np.fromiter(every_draw(a, sizes), float)
    assert own.mean == pytest.approx(a.mean(0).sum() / sizes.sum() / math.log(2)) and own.stderr == pytest.approx(draws.std(), rel=0.02)
    np.testing.assert_allclose(own[1:3], np.quantile(draws, [0.025, 0.975]), atol=0.06 * np.ptp(draws))
    assert own == stats.bootstrap_score(a, sizes, resamples=100_000) != stats.bootstrap_score(a, sizes, resamples=100_000, seed=1)


def test_documents_are_drawn_in_blocks_that_change_nothing_but_the_draws(monkeypatch):
    generator = np.random.default_rng(4)
    a, b, sizes = generator.gamma(5, 10, (3, 50)), generator.gamma(5, 10, (3, 50)), generator.integers(10, 100, 50)
    whole = stats.bootstrap_documents(a, b, sizes)
    monkeypatch.setattr(stats, "_BLOCK", 50 * 999)
    parts = stats.bootstrap_documents(a, b, sizes)
    assert parts.mean == whole.mean and parts.stderr == pytest.approx(whole.stderr, rel=0.05) and parts.n == 50


def test_an_interval_over_seeds_and_documents_covers_effects_of_both():
    generator, count, hits = np.random.default_rng(5), 300, 0
    sizes = np.full(40, 100.0)
    for number in range(count):
        effects = generator.normal(0, 3, (8, 1)) + generator.normal(0, 5, (1, 40)) + generator.normal(0, 2, (8, 40))
        found = stats.bootstrap_documents(np.zeros((8, 40)), 10 + effects, sizes, resamples=500, seed=number)
        hits += found.low <= 0.1 / math.log(2) <= found.high
    assert hits / count >= 0.9
    one_way = stats.bootstrap_documents(np.zeros((1, 40)), 10 + effects.mean(0, keepdims=True), sizes, resamples=500)
    assert one_way.stderr < found.stderr


@pytest.mark.parametrize("n, difference, sd", [(3, 0.02, 0.01), (5, -0.01, 0.008), (10, 0.5, 1.0)])
def test_power_is_what_simulation_says(n, difference, sd):
    generator, count = np.random.default_rng(6), 20_000
    p = scipy.stats.ttest_1samp(generator.normal(difference, sd, (count, n)), 0, axis=1).pvalue
    low, high = binomial_bounds(stats.power_of(n, difference, sd), count)
    assert low <= np.mean(p < 0.05) <= high


@given(effect=st.floats(0.02, 50), power=st.floats(0.2, 0.99), sign=st.sampled_from((-1, 1)))
def test_the_seeds_needed_are_the_fewest(effect, power, sign):
    n = stats.seeds_needed(sign * effect, 1.0, power)
    assert n >= 2 and stats.power_of(n, effect, 1.0) >= power
    assert n == 2 or stats.power_of(n - 1, effect, 1.0) < power


def test_seeds_needed_of_what_is_known():
    assert stats.seeds_needed(0.5, 1.0) == 34  # Cohen 1988's d = 0.5 of pairs, two-sided at 0.05
    assert stats.seeds_needed(0.01, 0) == 2
    assert stats.seeds_needed(0, 1) is None and stats.seeds_needed(0.01, None) is None and stats.seeds_needed(math.nan, 1) is None
    assert stats.seeds_needed(1e-7, 1) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holms_correction_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis is rejected where every intersection with others is: its adjusted p value is the largest of theirs."""
    n = len(p_values)
    for i, found in enumerate(stats.holm(p_values)):
        sets = (chosen for size in range(1, n + 1) for chosen in itertools.combinations(range(n), size) if i in chosen)
        assert found == pytest.approx(max(min(1, len(chosen) * min(p_values[j] for j in chosen)) for chosen in sets))
