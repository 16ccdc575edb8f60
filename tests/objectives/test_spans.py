"""Spans of noise: their number and lengths against the definition, every mask equally likely, and nothing lost."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lm.data.noise import uniforms
from lm.objectives import spans

SENTINEL, SENTINELS, EOS = 1000, 100, 999


def masks(length, density, mean, width=None, seed=0):
    """(mask [B, R], tokens of noise [B], spans [B]) of rows with `length` [B] tokens."""
    length = np.asarray(length)
    noise, count = spans.counts(length, density, mean)
    first, second = (uniforms(seed, stream, np.arange(len(length)), width or int(length.max())) for stream in (0, 1))
    return spans.noise_mask(length, noise, count, first, second), noise, count


def runs(row):
    """[(value, length)] of the runs of a row."""
    return [(value, len(list(part))) for value, part in itertools.groupby(row.tolist())]


@pytest.mark.parametrize(("inputs", "density", "mean", "raw", "targets"), [
    (512, 0.15, 3.0, 568, 114),  # T5's own numbers
    (8, 0.15, 3.0, 7, 3), (512, 0.5, 3.0, 767, 513), (64, 0.15, 8.0, 73, 13), (2, 0.5, 3.0, None, None)])
def test_lengths(inputs, density, mean, raw, targets):
    if raw is None:
        with pytest.raises(ValueError, match="2 tokens"):
            spans.lengths(inputs, density, mean)
    else:
        assert spans.lengths(inputs, density, mean) == (raw, targets)
        assert spans.sizes(raw, density, mean)[0] <= inputs < spans.sizes(raw + 1, density, mean)[0]


@given(st.lists(st.integers(0, 80), min_size=1, max_size=6), st.floats(0.05, 0.9), st.sampled_from([1.0, 3.0, 8.0, 64.0]),
       st.integers(0, 1000))
def test_numbers_of_tokens_and_spans(lengths, density, mean, seed):
    mask, noise, count = masks(lengths, density, mean, width=80, seed=seed)
    for row, length in enumerate(lengths):
        assert not mask[row, length:].any()
        if length < 2:
            assert not mask[row].any()
            continue
        expected = min(max(round(length * density), 1), length - 1)
        number = min(max(round(expected / mean), 1), expected, length - expected)
        assert (mask[row].sum(), noise[row], count[row]) == (expected, expected, number)
        found = runs(mask[row, :length])
        # By turns, from kept tokens to noise: as many of either.
        assert [value for value, _ in found] == [False, True] * number


def test_every_mask_is_equally_likely():
    # 8 tokens, 4 of noise in 2 spans: 3 ways to cut either 4 tokens in two.
    mask, _, _ = masks([8] * 9000, 0.5, 2.0)
    counts = np.unique(mask @ (1 << np.arange(8)), return_counts=True)[1]
    assert len(counts) == 9 and stats.chisquare(counts).pvalue > 1e-3


def test_suffixes_have_the_share_asked_on_average():
    length = np.full(5000, 40)
    found = spans.suffixes(length, 0.25, uniforms(0, 0, np.arange(5000), 1)[:, 0])
    assert found.min() == 1 and found.max() == 20
    assert stats.chisquare(np.bincount(found)[1:]).pvalue > 1e-3
    assert spans.suffixes(np.array([0, 1, 2, 3]), 0.9, np.full(4, 0.999)).tolist() == [0, 0, 1, 2]


def test_an_example_by_hand():
    tokens = np.array([[11, 12, 13, 14, 15, 16]])
    mask = np.array([[False, True, True, False, True, False]])
    mask[0, 5] = False
    inputs, input_length, targets, target_length = spans.split(tokens, np.array([6]), mask, SENTINEL, EOS)
    assert inputs[0, : input_length[0]].tolist() == [11, 1000, 14, 1001, 16, EOS]
    assert targets[0, : target_length[0]].tolist() == [1000, 12, 13, 1001, 15, EOS]
    inputs, input_length, *_ = spans.split(tokens, np.array([6]), mask, SENTINEL, EOS, first=np.array([7]))
    assert inputs[0, : input_length[0]].tolist() == [7, 11, 1000, 14, 1001, 16, EOS]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.floats(0.05, 0.9), st.sampled_from([1.0, 3.0, 8.0]), st.integers(0, 1000),
       st.booleans())
def test_inputs_and_targets_invert(lengths, density, mean, seed, first):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 900, (len(lengths), 60))
    tokens[rng.random(tokens.shape) < 0.1] = EOS  # documents that end inside
    mask, noise, count = masks(lengths, density, mean, width=60, seed=seed)
    before = np.full(len(lengths), 998) if first else None
    inputs, input_length, targets, target_length = spans.split(tokens, np.array(lengths), mask, SENTINEL, EOS, before)
    for row, length in enumerate(lengths):
        source, target = inputs[row, first : input_length[row]], targets[row, : target_length[row]]
        assert not inputs[row, input_length[row] :].any() and not targets[row, target_length[row] :].any()
        if length < 2:
            assert not input_length[row] and not target_length[row]
            continue
        assert spans.invert(source, target, SENTINEL, SENTINELS).tolist() == tokens[row, :length].tolist()
        assert (len(source), len(target)) == (length - noise[row] + count[row] + 1, noise[row] + count[row] + 1)
        sentinels = [token for token in source.tolist() if token >= SENTINEL]
        assert sentinels == [token for token in target.tolist() if token >= SENTINEL] == list(range(SENTINEL, SENTINEL + count[row]))
