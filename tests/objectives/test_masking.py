"""What is hidden and what is seen instead, against the definition and binomial bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lm.data.noise import uniforms
from lm.objectives import masking


def draws(rows, width, stream=0):
    return uniforms(0, stream, np.arange(rows), width)


@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([0.01, 0.15, 0.5, 0.9]))
def test_exactly_the_share_is_chosen_of_what_may_be(width, seed, rate):
    rng = np.random.default_rng(seed)
    eligible = rng.random((6, width)) < rng.random((6, 1))
    chosen = masking.choose(eligible, rate, rng.random((6, width)))
    assert not (chosen & ~eligible).any()
    for row in range(6):
        real = int(eligible[row].sum())
        assert chosen[row].sum() == min(real, max(1, round(rate * real)))
        assert chosen[row].sum() <= masking.most(width, rate)


def test_every_position_is_chosen_as_often():
    rows, width = 4000, 40
    counts = masking.choose(np.ones((rows, width), bool), 0.15, draws(rows, width)).sum(axis=0)
    assert counts.sum() == rows * 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_hidden_tokens_are_masks_random_or_themselves_in_the_shares_asked():
    rows, width = 500, 64
    tokens = np.full((rows, width), 7)
    chosen = masking.choose(np.ones_like(tokens, bool), 0.5, draws(rows, width))
    others = np.array([3, 7, 20, 21])
    seen = masking.replace(tokens, chosen, 99, (0.8, 0.1), others, draws(rows, width, 1), draws(rows, width, 2))
    np.testing.assert_array_equal(seen[~chosen], 7)
    total = int(chosen.sum())
    random = [int((seen[chosen] == other).sum()) for other in (3, 20, 21)]
    for count, share in ((int((seen[chosen] == 99).sum()), 0.8), (int((seen[chosen] == 7).sum()), 0.125), *((n, 0.025) for n in random)):
        assert stats.binomtest(count, total, share).pvalue > 1e-3
    assert set(np.unique(seen)) == {3, 7, 20, 21, 99}


@given(st.integers(1, 60), st.integers(0, 2**32), st.sampled_from([0.05, 0.15, 0.4]))
def test_words_are_hidden_whole(width, seed, rate):
    rng = np.random.default_rng(seed)
    starts, eligible = rng.random((4, width)) < 0.4, rng.random((4, width)) < 0.95
    chosen = masking.choose_words(eligible, starts, rate, rng.random((4, width)))
    assert not (chosen & ~eligible).any()
    for row in range(4):
        words, current = [], []
        for place in range(width):
            if current and (starts[row, place] or not eligible[row, place]):
                words.append(current)
                current = []
            if eligible[row, place]:
                current.append(place)
        words += [current] if current else []
        hidden = [chosen[row, word] for word in words]
        assert all(part.all() or not part.any() for part in hidden)
        left = masking.counts(eligible, rate)[row] - chosen[row].sum()
        assert left >= 0
        # Nothing that still has room is left out.
        assert all(len(word) > left for word, part in zip(words, hidden, strict=True) if not part.any())


def test_words_come_in_random_order():
    starts = np.zeros((3000, 12), bool)
    starts[:, ::2] = True
    counts = masking.choose_words(np.ones_like(starts), starts, 0.15, draws(3000, 12)).sum(axis=0)
    assert counts.sum() == 3000 * 2
    assert stats.chisquare(counts[::2]).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_without_anything_to_choose_nothing_is(rate):
    none = np.zeros((2, 5), bool)
    assert not masking.choose(none, rate, draws(2, 5)).any()
    assert not masking.choose_words(none, none, rate, draws(2, 5)).any()
