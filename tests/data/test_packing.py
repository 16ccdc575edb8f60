"""Rows cut from a token store equal a token-by-token reading in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.packing import count_rows, read_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer

EOS = ByteTokenizer.eos_id
texts = st.lists(st.text("abc", max_size=12), min_size=1, max_size=8)


def store_of(documents):
    """A store of byte tokens; an empty text is a document of eos alone."""
    return TokenStore.from_documents([(f"d{i}", text) for i, text in enumerate(documents)], ByteTokenizer())


def plain_row(documents, start, length, score_from, stop):
    """(targets, starts, segments, positions, scored, documents, tokens before), each a list of `length`, by walking over documents."""
    stream = [(d, place, token) for d, text in enumerate(documents) for place, token in enumerate([*text.encode(), EOS])]
    row, segment, before = [], 0, None
    for place in range(start, start + length):
        if place >= min(stop, len(stream)):
            row.append((0, False, 0, 0, False, -1, None))
            continue
        document, within, token = stream[place]
        if before != document:
            segment, position, before = segment + 1, 0, document
        previous = stream[place - 1][2] if within else None  # before a document's first token there is nothing to see
        row.append((token, within == 0, segment, position, place >= score_from, document, previous))
        position += 1
    return [list(column) for column in zip(*row, strict=True)]


def check(documents, starts, length, score_from=None, stop=None):
    """Compares read_rows with plain_row."""
    store = store_of(documents)
    rows = read_rows(store, np.array(starts), length, None if score_from is None else np.array(score_from), stop)
    for b, start in enumerate(starts):
        wanted = plain_row(documents, start, length, 0 if score_from is None else score_from[b], store.num_tokens if stop is None else stop)
        targets, begins, segments, positions, scored, owners, before = wanted
        assert rows.tokens[b, 1:].tolist() == targets
        assert rows.starts[b].tolist() == begins
        assert rows.segments[b].tolist() == segments
        assert rows.positions[b].tolist() == positions
        assert rows.scored[b].tolist() == scored
        assert rows.documents[b].tolist() == owners
        assert [got for got, known in zip(rows.tokens[b, :-1].tolist(), before, strict=True) if known is not None] == [
            known for known in before if known is not None]


@given(texts, st.integers(1, 40), st.lists(st.integers(0, 120), min_size=1, max_size=4))
def test_rows_equal_a_plain_reading(documents, length, starts):
    check(documents, starts, length)


@given(texts, st.integers(1, 40), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=4), st.integers(0, 80))
def test_rows_with_context_and_an_early_end_equal_a_plain_reading(documents, length, places, stop):
    check(documents, [start for start, _ in places], length, [start + more for start, more in places],
          min(stop, sum(len(text) + 1 for text in documents)))


@pytest.mark.parametrize("documents", [[""], ["", "", ""], ["a"], ["abc" * 30], ["", "abc" * 30, "", "a"]])
@pytest.mark.parametrize("length", [1, 2, 7, 200])
def test_rows_at_the_edges(documents, length):
    count = count_rows(store_of(documents).num_tokens, length)
    check(documents, [row * length for row in range(count + 1)], length)


@given(texts, st.integers(1, 40))
def test_all_rows_together_score_every_token_once_and_in_order(documents, length):
    store = store_of(documents)
    count = count_rows(store.num_tokens, length)
    rows = read_rows(store, np.arange(count) * length, length)
    assert rows.tokens[:, 1:][rows.scored].tolist() == store.read(0, store.num_tokens).tolist()
    assert rows.starts.sum() == len(documents)
    assert count == -(-store.num_tokens // length) and rows.scored[-1].any()
