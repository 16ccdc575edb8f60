"""Counting: against a dictionary, in chunks of any size, and in memory that does not grow with repeated text."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from lm.errors import DataError
from lm.models.ngram import counts, fit
from tests.models.ngram.ngram_oracle import BOS, corpus, store_of

VOCAB = 9


def as_dictionary(trie):
    """{n-gram: (count, its suffix)} of every level, from the numbers of a trie."""
    names = [(i,) for i in range(VOCAB)]
    result = {name: (c, ()) for name, c in zip(names, trie.unigrams.tolist(), strict=True) if c}
    for level in trie.levels:
        contexts, last = np.divmod(level.keys, VOCAB)
        assert np.all(np.diff(level.keys) > 0)
        grams = [(*names[c], w) for c, w in zip(contexts.tolist(), last.tolist(), strict=True)]
        result |= {gram: (c, names[s]) for gram, c, s in zip(grams, level.counts.tolist(), level.suffixes.tolist(), strict=True)}
        names = grams
    return result


def by_hand(stores, order, seen=None):
    found = Counter()
    for number, documents in enumerate(stores):
        place = 0
        for document in documents:
            text = [BOS, *document]
            for end in range(1, len(text)):
                if seen is None or seen[number] is None or seen[number][place]:
                    found.update(tuple(text[first : end + 1]) for first in range(max(0, end - order + 1), end + 1))
                place += 1
    return dict(found)


@pytest.mark.parametrize("chunk", [1, 2, 5, 17, 10**6])
@pytest.mark.parametrize("order", [1, 2, 3, 7])
def test_counts_in_chunks_are_those_of_a_dictionary(order, chunk):
    stores = [corpus(seed, VOCAB, documents=6, length=12) for seed in (1, 2)]
    found = as_dictionary(counts.count([store_of(documents) for documents in stores], VOCAB, BOS, order, chunk=chunk))
    assert {gram: c for gram, (c, _) in found.items() if c} == by_hand(stores, order)
    assert all(suffix == gram[1:] for gram, (_, suffix) in found.items())


@pytest.mark.parametrize("chunk", [3, 10**6])
def test_seen_chooses_targets_and_never_histories(chunk):
    stores = [corpus(seed, VOCAB, documents=6, length=12) for seed in (1, 2, 3)]
    rng = np.random.default_rng(0)
    seen = [rng.random(sum(map(len, documents))) < 0.3 for documents in stores[:2]] + [None]
    found = as_dictionary(counts.count([store_of(documents) for documents in stores], VOCAB, BOS, 4, seen, chunk))
    assert {gram: c for gram, (c, _) in found.items() if c} == by_hand(stores, 4, seen)
    assert {gram[:-1] for gram in found if len(gram) > 1} <= set(found) | {(i,) for i in range(VOCAB)}


@pytest.mark.parametrize("smoothing", ["kneser_ney", "katz", "add_k"])
def test_a_fit_in_chunks_equals_a_fit_at_once(smoothing):
    stores = [store_of(corpus(seed, VOCAB, length=80)) for seed in range(3)]
    once = fit(stores, VOCAB, BOS, 5, smoothing, prune=(2,))
    parts = fit(stores, VOCAB, BOS, 5, smoothing, prune=(2,), chunk=7)
    assert once.tables.keys() == parts.tables.keys()
    for name, table in once.tables.items():
        np.testing.assert_array_equal(parts.tables[name], table)


def test_numbers_beyond_what_packs_into_64_bits_give_the_same():
    rng = np.random.default_rng(0)
    for bound in (50, 1 << 62):
        keys = rng.integers(0, 50, 300) * (bound // 50)
        distinct, which = counts._numbered(keys, bound)
        np.testing.assert_array_equal(distinct, np.unique(keys))
        np.testing.assert_array_equal(distinct[which], keys)


def test_memory_grows_with_distinct_ngrams_and_not_with_tokens():
    document = np.random.default_rng(0).integers(3, VOCAB, 2_000).tolist()

    def peak(copies):
        store = store_of([document] * copies)
        tracemalloc.start()
        try:
            counts.count([store], VOCAB, BOS, 5, chunk=4_000)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(64) < 1.2 * peak(8)


def test_ids_outside_the_vocabulary_and_empty_text_are_one_line():
    with pytest.raises(DataError, match=r"token ids must lie in 0\.\.4, found 1\.\.8"):
        fit([store_of([[3, 8]])], 5, BOS, 2)
    for seen in (None, [np.zeros(0, bool)]):
        with pytest.raises(DataError, match="no token to count"):
            fit([store_of([])], 5, BOS, 2, seen=seen)
    with pytest.raises(DataError, match="no token to count"):
        fit([store_of([[3, 2]])], 5, BOS, 2, seen=[np.zeros(2, bool)])
