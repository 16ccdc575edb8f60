"""Batches of pairs against brute force: every pair once an epoch, the same whoever makes which part, in the bucket that it needs."""

import numpy as np
import pytest

from lm.data.buckets import bucket_lengths
from lm.data.pairs import PairData, PairStore, evaluation_rows, read_pairs, too_long
from lm.data.sources import Document
from lm.data.tokenizers import ByteTokenizer
from lm.errors import DataError

TOKENIZER = ByteTokenizer()
EOS = TOKENIZER.eos_id
LENGTHS = (4, 8, 16)


def pairs_of(*texts, name=""):
    """A store of pairs of texts."""
    documents = [Document(f"{name}:{i}", target, source) for i, (source, target) in enumerate(texts)]
    return PairStore.from_documents(documents, TOKENIZER, TOKENIZER)


def store_of(letter, count, longest=15):
    """(store, its pairs as token lists): `count` pairs of sides of 0 to `longest` characters, most of them unlike all others."""
    rng = np.random.default_rng(ord(letter))
    texts = [[f"{letter}{i}"[:size] + "." * max(0, size - 3) for size in rng.integers(0, longest + 1, 2)] for i in range(count)]
    return pairs_of(*texts, name=letter), [tuple([*text.encode(), EOS] for text in pair) for pair in texts]


def unpadded(rows):
    """{index: (source tokens, target tokens)} of the rows that hold a pair; padding is checked."""
    found = {}
    for pair, source, n, target, m in zip(rows.pairs.tolist(), rows.source, rows.source_lengths, rows.target, rows.target_lengths,
                                          strict=True):
        assert not source[n:].any() and not target[m:].any() and (pair >= 0 or n == m == 0)
        if pair >= 0:
            assert pair not in found
            found[pair] = source[:n].tolist(), target[:m].tolist()
    return found


@pytest.fixture(params=[("a",), ("a", "b")], ids=["one store", "two stores"])
def data(request):
    """(pairs of at most 16 tokens in batches of 32 tokens or so, the pairs as token lists)."""
    made = [store_of(letter, 40 + 9 * i) for i, letter in enumerate(request.param)]
    return PairData([store for store, _ in made], LENGTHS, 2, seed=3), [pair for _, pairs in made for pair in pairs]


def keep(rows, examples):
    """A `build` that gives back what it was given."""
    return {"rows": rows, "examples": examples}


def test_an_epoch_holds_every_pair_once_in_its_bucket(data):
    data, pairs = data
    for epoch in range(2):
        found, examples = {}, []
        for step in range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch):
            made = data.batch(step, keep)
            rows, length = data.shape(step)
            assert made["rows"].source.shape == made["rows"].target.shape == (rows, length) and rows * length == 32
            here = unpadded(made["rows"])
            assert not here.keys() & found.keys()
            found |= here
            for pair in here:
                assert length == min(size for size in LENGTHS if size >= max(map(len, pairs[pair])))
            examples += made["examples"][made["rows"].pairs >= 0].tolist()
        assert [found[i] for i in range(len(pairs))] == pairs
        # What an example draws at random is its own, and another in each epoch.
        assert sorted(examples) == list(range(epoch * len(pairs), (epoch + 1) * len(pairs)))


def test_a_batch_depends_on_its_step_alone_and_parts_are_its_rows(data):
    data, _ = data
    again = PairData(data.stores, data.lengths, data.global_batch, data.seed)
    for step in (9, 3, 0, 31):
        whole = again.batch(step, keep)
        count = data.shape(step)[0]
        for part in (slice(None), slice(1, 2), np.arange(0, count, 2), np.array([count - 1])):
            made = data.batch(step, keep, part)
            for got, expected in zip((*made["rows"], made["examples"]), (*whole["rows"], whole["examples"]), strict=True):
                np.testing.assert_array_equal(got, expected[part])


def test_shapes_are_all_that_an_epoch_has(data):
    data, _ = data
    assert set(data.shapes()) == {data.shape(step) for step in range(data.steps_per_epoch)} == {(8, 4), (4, 8), (2, 16)}
    assert all(data.shape(step) == shape for shape, step in data.shapes().items())
    assert data.context == 16


def test_documents_are_the_ids_of_the_rows(data):
    data, _ = data
    ids = [f"{letter}:{i}" for letter, store in zip("ab", data.stores, strict=False) for i in range(store.num_pairs)]
    for step in range(data.steps_per_epoch):
        pairs = data.batch(step, keep)["rows"].pairs
        assert data.documents(step) == [ids[pair] for pair in pairs if pair >= 0]


def test_pairs_longer_than_the_context_are_counted_and_never_all_of_them():
    store, pairs = store_of("a", 60, longest=30)
    data = PairData([store], LENGTHS, 2, seed=0)
    long = [i for i, pair in enumerate(pairs) if max(map(len, pair)) > 16]
    seen = {pair for step in range(data.steps_per_epoch) for pair in unpadded(data.batch(step, keep)["rows"])}
    assert data.left_out == len(long) > 5 and seen == set(range(60)) - set(long)
    with pytest.raises(DataError, match=r"all 3 training pairs are longer than data.context=2 tokens: raise it"):
        PairData([pairs_of(("xy", ""), ("", "xyz"), ("ab", "cd"))], (1, 2), 2, 0)


def test_texts_are_no_pairs():
    with pytest.raises(DataError, match="these are texts, and pairs are needed"):
        PairStore.from_documents([Document("0", "a", "b"), Document("1", "a")], TOKENIZER, TOKENIZER)


def test_one_long_side_is_enough_to_need_the_longer_bucket():
    store = pairs_of(("x" * 7, ""), ("", "y" * 8))
    assert store.sizes().tolist() == [8, 9]
    rows = read_pairs([store], np.array([1, -1, 0]), 9)
    assert unpadded(rows) == {0: ([*b"x" * 7, EOS], [EOS]), 1: ([EOS], [*b"y" * 8, EOS])}
    assert (rows.source.dtype, rows.target.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_evaluation_takes_every_pair_once_from_short_to_long(rows):
    store, pairs = store_of("c", 57, longest=20)
    found, order, shapes = {}, [], set()
    for batch in evaluation_rows(store, rows, LENGTHS):
        shapes.add(batch.target.shape)
        here = unpadded(batch)
        found |= here
        order += [pair for pair in batch.pairs.tolist() if pair >= 0]
    fits = {i: pair for i, pair in enumerate(pairs) if max(map(len, pair)) <= 16}
    assert found == fits and len(order) == len(fits) and too_long(store, LENGTHS) == 57 - len(fits) > 0
    sizes = [max(map(len, pairs[pair])) for pair in order]
    assert sizes == sorted(sizes) and shapes == {(rows, length) for length in LENGTHS}


def test_the_default_buckets_of_a_context_waste_no_slot():
    store, _ = store_of("a", 50, longest=90)
    data = PairData([store], bucket_lengths((), 100), 4, seed=0)
    assert {rows * length for rows, length in data.shapes()} == {400}
