"""A document a row: what a row holds, that each document comes once an epoch, and that any part of any batch can be made alone."""

import numpy as np
import pytest

from lm.data.sentences import SentenceData, evaluation_rows, fitting, read_sentences
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.errors import DataError

TEXTS = ["a", "", "bcd", "efghij", "kl", "mnopqrstuv"]
TOKENIZER = ByteTokenizer()


def store_of(texts=TEXTS, name="d"):
    return TokenStore.from_documents([(f"{name}{i}", text) for i, text in enumerate(texts)], TOKENIZER)


def build(rows, examples):
    return {"tokens": rows.tokens, "documents": rows.documents, "examples": np.asarray(examples)[:, None]}


def test_a_row_is_a_document_with_its_eos_then_padding():
    rows = read_sentences(store_of(), np.array([3, 1, -1, 5]), 7)
    e = TOKENIZER.eos_id
    assert rows.tokens[:, 1:].tolist() == [[*b"efghij", e], [e] + [0] * 6, [0] * 7, list(b"mnopqrs")]  # the last one is cut off
    assert rows.scored.sum(axis=1).tolist() == [7, 1, 0, 7]
    assert rows.starts.sum(axis=1).tolist() == [1, 1, 0, 1] and not rows.starts[:, 1:].any()
    np.testing.assert_array_equal(rows.segments, rows.scored)
    np.testing.assert_array_equal(rows.positions, np.where(rows.scored, np.arange(7), 0))
    np.testing.assert_array_equal(rows.documents, np.where(rows.scored, [[3], [1], [-1], [5]], -1))


def test_an_epoch_has_every_document_once_in_an_order_of_its_own():
    data = SentenceData([store_of()], (1.0,), 4, 3, seed=0)
    assert data.steps_per_epoch == 2.0 and data.shape(0) == (3, 4)
    epochs = [np.concatenate([data.batch(2 * epoch + half, build)["documents"][:, 0] for half in (0, 1)]) for epoch in range(4)]
    assert all(sorted(epoch.tolist()) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1


def test_parts_of_a_batch_are_the_batch_and_know_their_examples():
    data = SentenceData([store_of(), store_of(["x", "yz"], "other")], (3.0, 1.0), 5, 8, seed=1)
    whole = data.batch(2, build)
    np.testing.assert_array_equal(whole["examples"][:, 0], np.arange(16, 24))
    for part in (slice(2, 5), np.array([1, 6, 7])):
        for name, value in data.batch(2, build, part).items():
            np.testing.assert_array_equal(value, whole[name][part])
    sources, documents = data.order.locate(np.arange(16, 24))
    names = [("d", "other")[source] + str(document) for source, document in zip(sources, documents, strict=True)]
    assert data.documents(2) == list(dict.fromkeys(names))


def test_evaluation_has_every_document_that_fits_once():
    store = store_of()
    found = fitting(store, 7)
    assert found.tolist() == [0, 1, 2, 3, 4] and fitting(store, 4, 3).tolist() == [0, 1, 2]
    batches = list(evaluation_rows(store, found, 2, 7))
    assert [rows.tokens.shape for rows in batches] == [(2, 8)] * 3
    assert np.concatenate([rows.documents[:, 0] for rows in batches]).tolist() == [0, 1, 2, 3, 4, -1]


def test_no_document_at_all_is_an_error():
    empty = TokenStore(None, np.zeros(1, np.int64), np.zeros(0, np.int64), list)
    with pytest.raises(DataError, match="no documents"):
        SentenceData([empty], (1.0,), 4, 2, seed=0)
