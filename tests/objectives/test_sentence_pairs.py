"""Pairs of texts: halves of a row, half of them with a second half from other documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lm.data.packing import count_rows, read_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.objectives import sentence_pairs
from lm.objectives.masked import Masked

CLS, SEP = 260, 261


def pairs_of(store, length, examples, seed=0):
    """(rows as they stand in the store, the same as pairs, labels)."""
    starts = np.asarray(examples) % count_rows(store.num_tokens, length) * length
    rows = read_rows(store, starts, length)
    return rows, sentence_pairs.with_other_halves(rows, store, starts, seed, examples), sentence_pairs.labels(rows, seed, examples)


def test_half_of_the_rows_get_text_of_other_documents(text_store):
    rows, pairs, labels = pairs_of(text_store, 61, np.arange(1000))
    a, b = sentence_pairs.halves(rows)
    assert stats.binomtest(int((labels == 1).sum()), 1000, 0.5).pvalue > 1e-3
    for i in range(1000):
        np.testing.assert_array_equal(pairs.tokens[i, : a[i] + 1], rows.tokens[i, : a[i] + 1])
        if labels[i] == 0:
            np.testing.assert_array_equal(pairs.tokens[i], rows.tokens[i])
        else:
            own, others = set(rows.documents[i, : a[i] + b[i]].tolist()), set(pairs.documents[i, a[i] : a[i] + b[i]].tolist())
            assert not own & others
            text = text_store.read(0, text_store.num_tokens).tobytes()
            assert pairs.tokens[i, a[i] + 1 : a[i] + b[i] + 1].tobytes() in text


def test_other_halves_come_from_everywhere(text_store):
    _, pairs, labels = pairs_of(text_store, 61, np.arange(4000))
    found = pairs.documents[labels == 1][:, 40]
    assert len(np.unique(found)) > 100  # of 120


@pytest.mark.parametrize("texts", [["abcdefghij"], ["abcdefgh", ""], ["a" * 8, "b" * 8]])
def test_small_stores(texts):
    store = TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], ByteTokenizer())
    rows, pairs, labels = pairs_of(store, store.num_tokens if len(texts) == 1 else 9, np.arange(40))
    a, b = sentence_pairs.halves(rows)
    for i in np.flatnonzero(labels == 1):
        second = pairs.tokens[i, 1 + a[i] : 1 + a[i] + b[i]]
        if len(texts) == 1:  # there is no other document: any place but the one that follows
            assert second.tolist() != rows.tokens[i, 1 + a[i] : 1 + a[i] + b[i]].tolist()
        elif len(texts[-1]) == 8:
            assert not set(rows.tokens[i, 1 : 1 + a[i]].tolist()) & set(second.tolist()) - {ByteTokenizer.eos_id}


@pytest.mark.parametrize(("begin", "end", "n"), [(0, 7, 3), (4, 9, 3), (15, 20, 6), (2, 19, 4), (0, 20, 8), (5, 6, 1)])
def test_every_place_outside_is_drawn_and_no_other(begin, end, n):
    store = TokenStore.from_documents([("a", "a" * 19)], ByteTokenizer())  # 20 tokens
    outside = [place for place in range(20 - n + 1) if place + n <= begin or place >= end]
    expected = outside or [place for place in range(20 - n + 1) if place != 9]
    found = [sentence_pairs._elsewhere(store, begin, end, 9, n, (i + 0.5) / len(expected)) for i in range(len(expected))]
    assert sorted(found) == expected


@given(st.integers(4, 40), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_layout_is_the_definition(length, seed, examples):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("ab"), rng.integers(0, 20))) for _ in range(6)] + ["x" * length]
    store = TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], ByteTokenizer())
    _, rows, _ = pairs_of(store, length, np.array(examples))
    tokens, segments, positions, types, source = sentence_pairs.lay_out(rows, CLS, SEP)
    for i in range(len(examples)):
        text = rows.tokens[i, 1:][rows.segments[i] > 0].tolist()
        a = (len(text) + 1) // 2
        row = [CLS, *text[:a], SEP, *text[a:], SEP]
        assert tokens[i].tolist() == row + [0] * (length + 3 - len(row))
        assert segments[i].tolist() == [1] * len(row) + [0] * (length + 3 - len(row))
        assert positions[i].tolist() == [*range(len(row))] + [0] * (length + 3 - len(row))
        assert types[i].tolist() == [0] * (a + 2) + [1] * (len(text) - a + 1) + [0] * (length + 3 - len(row))
        assert [text[s] for s in source[i][source[i] >= 0]] == text
        assert ((source[i] < 0) == np.isin(tokens[i], [CLS, SEP]) | (segments[i] == 0)).all()


def test_a_row_does_not_depend_on_its_batch(objective, text_store):
    masked = objective(Masked, sentences="next")
    whole = masked.build(masked.read(text_store, np.arange(9), np.arange(9)), np.arange(9))
    part = np.array([7, 2])
    some = masked.build(masked.read(text_store, part, part), part)
    for key, value in some.items():
        np.testing.assert_array_equal(value, whole[key][part])
    assert set(whole["next"][:, 0].tolist()) == {0, 1}


def test_rows_without_a_second_half_have_no_label(objective):
    store = TokenStore.from_documents([("a", "a" * 61)], ByteTokenizer())  # 62 tokens: a row of 61 and one of 1
    masked = objective(Masked, sentences="next")
    batch = masked.build(masked.read(store, np.array([1, 2]), np.array([1, 2])), np.array([1, 2]))
    assert (batch["next"] == -1).all() and batch["weights"].sum() == 0
    assert batch["tokens"][0, :3].tolist() == [masked.cls, ByteTokenizer.eos_id, masked.sep]
    assert batch["segments"].sum(axis=1).tolist() == [4, 0]
