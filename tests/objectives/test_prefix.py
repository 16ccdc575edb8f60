"""Prefix language models: where rows are split, and that no target can be seen."""

import numpy as np
from scipy import stats

from lm.data.tokenizers import ByteTokenizer
from lm.objectives.causal import batch_of
from lm.objectives.prefix import Prefix


def test_each_segment_has_a_prefix_and_targets_behind_it(objective, text_store, rows_of):
    made = objective(Prefix, 64)
    rows = rows_of(made, text_store, np.arange(text_store.num_tokens // 64 + 2))
    batch = made.build(rows, np.arange(len(rows.segments)))
    plain = batch_of(rows, ByteTokenizer.bos_id)
    for key in ("tokens", "targets", "segments", "positions"):
        np.testing.assert_array_equal(batch[key], plain[key])
    several = 0
    for row in range(len(rows.segments)):
        several += rows.segments[row].max() > 1
        for number in range(1, rows.segments[row].max() + 1):
            inside = rows.segments[row] == number
            prefix, weights = batch["prefix"][row][inside], batch["weights"][row][inside]
            split = int(prefix.sum())
            assert split >= 1 and prefix.tolist() == [1] * split + [0] * (len(prefix) - split)
            # The first prediction is made at the last token of the prefix.
            assert weights.tolist() == [0] * (split - 1) + [1] * (len(prefix) - split + 1)
    assert several > 10
    padding = rows.segments == 0
    assert padding.any() and not batch["prefix"][padding].any() and not batch["weights"][padding].any()


def test_no_target_with_a_weight_is_among_what_its_position_sees(objective, text_store, rows_of):
    made = objective(Prefix, 32)
    batch = made.build(rows_of(made, text_store, np.arange(100)), np.arange(100))
    segments, prefix, place = batch["segments"], batch["prefix"], np.arange(32)
    sees = (segments[:, :, None] == segments[:, None, :]) & ((place[None, :, None] >= place) | (prefix[:, None, :] == 1))
    after = np.zeros_like(segments, bool)
    after[:, :-1] = segments[:, 1:] == segments[:, :-1]
    leaks = np.zeros(segments.shape, bool)  # the next token of the segment is the target
    leaks[:, :-1] = sees[:, place[:-1], place[1:]] & after[:, :-1]
    assert leaks.any() and not (batch["weights"] > 0)[leaks].any()
    assert (batch["weights"] > 0)[~leaks & (segments > 0)].all()


def test_splits_are_uniform_and_differ_between_segments_and_examples(objective):
    made = objective(Prefix, 20)
    segments = np.repeat([[1, 2]], 10, axis=1).repeat(6000, axis=0)
    positions = np.tile(np.arange(10), (6000, 2))
    prefix = made.prefixes(segments, positions, np.arange(6000))
    splits = prefix.reshape(6000, 2, 10).sum(axis=2)
    for segment in range(2):
        assert stats.chisquare(np.bincount(splits[:, segment], minlength=11)[1:]).pvalue > 1e-3
    table = np.histogram2d(splits[:, 0], splits[:, 1], bins=10)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    np.testing.assert_array_equal(made.prefixes(segments[[5, 3]], positions[[5, 3]], np.array([5, 3])), prefix[[5, 3]])
    # A row that holds more segments splits its first ones alike.
    more = np.concatenate([segments[:1, :10], [[2, 3, 4, 5, 6] * 2]], axis=1)
    more.sort(axis=1)
    np.testing.assert_array_equal(made.prefixes(more, np.tile(np.arange(10), (1, 2)), np.array([0]))[0, :10], prefix[0, :10])
