"""Co-occurrence counts equal those of two loops, whatever is counted in one piece; each triple is seen once an epoch."""

import collections
from fractions import Fraction

import numpy as np
import pytest

from lm.data.cooccurrence import TRIPLE, Cooccurrences, counted
from lm.data.store import TokenStore
from lm.data.words import train_words
from lm.errors import ConfigError, DataError

WINDOW = 4


@pytest.fixture(scope="module")
def texts():
    """Two lists of documents of 0 to 60 words."""
    rng = np.random.default_rng(0)
    return [[" ".join(f"w{int(i)}" for i in rng.zipf(1.5, rng.integers(0, 60)) % 30) for _ in range(12)] for _ in range(2)]


@pytest.fixture(scope="module")
def stores(texts):
    """(tokenizer, a store for each list)."""
    tokenizer = train_words([text for part in texts for text in part], 20, 2)
    return tokenizer, [TokenStore.from_documents([(str(i), text) for i, text in enumerate(part)], tokenizer) for part in texts]


def brute_force(tokenizer, texts):
    """{(word, other): count}: for each word all words behind it, up to the window, in Fractions."""
    cells = collections.Counter()
    for text in [text for part in texts for text in part]:
        words = [i for i in tokenizer.encode(text).tolist() if i >= 4]
        for i, word in enumerate(words):
            for distance in range(1, WINDOW + 1):
                if i + distance < len(words):
                    cells[word, words[i + distance]] += Fraction(1, distance)
                    cells[words[i + distance], word] += Fraction(1, distance)
    return cells


@pytest.mark.parametrize(("chunk", "block"), [(10**6, 10**6), (13, 1), (7, 3), (64, 20)])
def test_counts_equal_brute_force_whatever_the_pieces(tmp_path, texts, stores, chunk, block):
    tokenizer, parts = stores
    triples = counted(parts, tokenizer.vocab_size, 4, WINDOW, tmp_path / "counts", chunk, block)
    expected = brute_force(tokenizer, texts)
    assert any(row == column for row, column in expected), "the text has no word beside itself"
    assert triples.dtype == TRIPLE and len(triples) == len(expected)
    for row, column, count in triples.tolist():
        assert count == np.float32(float(expected[row, column])), (row, column)
    assert [path.name for path in (tmp_path / "counts").iterdir()] == ["triples.bin"]


def test_pieces_do_not_change_the_counts_or_lose_any(tmp_path, stores):
    tokenizer, parts = stores
    sizes = ((11, 2), (1000, 1000))
    files = [counted(parts, tokenizer.vocab_size, 4, WINDOW, tmp_path / str(chunk), chunk, block) for chunk, block in sizes]
    np.testing.assert_array_equal(*[np.sort(np.array(triples), order=["row", "column"]) for triples in files])


def test_text_without_pairs_and_windows_beyond_exact_counts_are_errors(tmp_path, stores):
    tokenizer = stores[0]
    alone = TokenStore.from_documents([("a", "w1"), ("b", "w1")], tokenizer)
    with pytest.raises(DataError, match="no two words"):
        counted([alone], tokenizer.vocab_size, 4, WINDOW, tmp_path)
    with pytest.raises(ConfigError, match=r"objective\.window=23"):
        counted([alone], tokenizer.vocab_size, 4, 23, tmp_path)


@pytest.fixture(scope="module")
def data():
    """1,000 triples in rows of 8, 16 rows a step."""
    triples = np.zeros(1000, TRIPLE)
    triples["row"], triples["count"] = np.arange(1000), 1
    return Cooccurrences(triples, 8, 16, seed=3)


def rows_of(data, step, part=slice(None)):
    """Rows of the matrix in a batch, and the examples it was made for."""
    return data.batch(step, lambda triples, examples: {"rows": triples["row"], "examples": examples}, part)


def test_every_triple_comes_once_an_epoch_in_an_order_of_its_own(data):
    assert data.steps_per_epoch == 1000 / 128 and data.shapes() == {(16, 8): 0}
    seen = np.concatenate([rows_of(data, step)["rows"].ravel() for step in range(16)])
    first, second = seen[:1000], seen[1000:2000]
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).mean() > 0.9 and (first != np.arange(1000)).mean() > 0.9
    assert data.documents(0) == ["(co-occurrence counts of all documents)"]


def test_a_part_of_a_batch_is_that_part(data):
    whole, part = rows_of(data, 5), rows_of(data, 5, np.array([1, 4, 9]))
    np.testing.assert_array_equal(part["rows"], whole["rows"][[1, 4, 9]])
    np.testing.assert_array_equal(part["examples"], 80 + np.array([1, 4, 9]))
