"""Counts of all n-grams of a token store, in memory that grows with the distinct n-grams and not with the tokens.

The store is read in chunks. Each chunk becomes a trie, level by level: an n-gram is the number of its first n - 1 tokens in the level
before, times V, plus its last token, so that one sorted int64 array a level holds n-grams of any length. Numbers follow the sorted
order; two tries are merged by moving them, which keeps both sorted.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.store import TokenStore
from lm.errors import DataError

CHUNK = 1 << 21


class Level(NamedTuple):
    """The M distinct n-grams of one order, sorted; an n-gram's number is its row.

    keys int64 [M]: number of the first n - 1 tokens in the level before * V + last token. counts int64 [M]: how often it ended at a
    target that counts (0: it only stands before such targets). suffixes int64 [M]: number of its last n - 1 tokens in the level before.
    """

    keys: np.ndarray
    counts: np.ndarray
    suffixes: np.ndarray


class Trie(NamedTuple):
    """Counts [V] of tokens as targets, and the levels of order 2, 3, ...; a token is its own number in level 1."""

    unigrams: np.ndarray
    levels: tuple[Level, ...]

    @property
    def size(self) -> int:
        """Distinct n-grams above order 1."""
        return sum(len(level.keys) for level in self.levels)


def count(stores: Sequence[TokenStore], vocab_size: int, bos_id: int, order: int, seen: Sequence | None = None, chunk: int = CHUNK) -> Trie:
    """The counts of orders 1 to `order` over the documents of some stores, read `chunk` tokens at a time.

    Each document begins with one `bos_id`, which is never a target; no n-gram crosses documents. `seen` holds for each store a boolean
    array over its tokens (or None: all): the targets that count; histories are read in any case. Raises DataError for an id outside V.
    """
    waiting: list[Trie] = []
    for trie in _tries(stores, vocab_size, bos_id, order, seen, chunk):
        waiting.append(trie)
        # Like sizes are merged, so that no n-gram is moved more than log(chunks) times.
        while len(waiting) > 1 and waiting[-2].size <= 2 * waiting[-1].size:
            waiting.append(merge(waiting.pop(-2), waiting.pop(), vocab_size))
    while len(waiting) > 1:
        waiting.append(merge(waiting.pop(-2), waiting.pop(), vocab_size))
    if not waiting or not waiting[0].unigrams.any():
        raise DataError("there is no token to count: give text that is not empty")
    return waiting[0]


def _tries(stores, vocab_size, bos_id, order, seen, chunk) -> Iterator[Trie]:
    for number, store in enumerate(stores):
        counted = None if seen is None else seen[number]
        if counted is not None and len(counted) != store.num_tokens:
            raise ValueError(f"seen has {len(counted)} entries for a store of {store.num_tokens} tokens")
        for start in range(0, store.num_tokens, chunk):
            stop = min(start + chunk, store.num_tokens)
            # Nothing that counts is nothing to read.
            if counted is None or counted[start:stop].any():
                yield count_sequence(*_sequence(store, start, stop, bos_id, order, counted), vocab_size, order)


def _sequence(store, start, stop, bos_id, order, counted):
    """(tokens, lengths, targets), each [n]: the store's tokens from order - 1 before `start` on, with bos before each document.

    lengths: how many tokens of the document end here, bos included. targets: it counts.
    """
    first = max(0, start - order + 1)
    tokens = store.read(first, stop).astype(np.int64)
    targets = np.arange(first, stop) >= start
    if counted is not None:
        targets &= np.asarray(counted[first:stop], bool)
    begins = np.asarray(store.offsets[slice(*np.searchsorted(store.offsets, [first, stop]))]) - first
    tokens, targets = np.insert(tokens, begins, bos_id), np.insert(targets, begins, False)
    latest = np.zeros(len(tokens), np.int64)
    bos_places = begins + np.arange(len(begins))
    latest[bos_places] = bos_places
    lengths = np.arange(1, len(tokens) + 1) - np.maximum.accumulate(latest)
    return tokens, lengths, targets


def count_sequence(tokens: np.ndarray, lengths: np.ndarray, targets: np.ndarray, vocab_size: int, order: int) -> Trie:
    """The trie of one piece of text: int64 tokens [n], how many tokens of its document end at each [n], and which of them count [n]."""
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise DataError(f"token ids must lie in 0..{vocab_size - 1}, found {tokens.min()}..{tokens.max()}")
    numbers, contexts, levels = tokens, vocab_size, []
    for n in range(2, order + 1):
        places = np.flatnonzero(lengths >= n)
        keys, which = _numbered(numbers[places - 1] * vocab_size + tokens[places], contexts * vocab_size)
        suffixes = np.empty(len(keys), np.int64)
        suffixes[which] = numbers[places]
        levels.append(Level(keys, np.bincount(which[targets[places]], minlength=len(keys)), suffixes))
        numbers = np.full(len(tokens), -1)
        numbers[places] = which
        contexts = len(keys)
    return Trie(np.bincount(tokens[targets], minlength=vocab_size), tuple(levels))


def _numbered(keys: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct keys [m], sorted, and which of them each key [n] is); keys lie in [0, bound)."""
    shift = len(keys).bit_length()
    if bound.bit_length() + shift < 64:
        # Keys and places in one array sort several times as fast as an argsort.
        packed = keys << shift | np.arange(len(keys))
        packed.sort()
        order, ordered = packed & ((1 << shift) - 1), packed >> shift
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
    fresh = np.ones(len(keys), bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    which = np.empty(len(keys), np.int64)
    which[order] = np.cumsum(fresh) - 1
    return ordered[fresh], which


def merge(a: Trie, b: Trie, vocab_size: int) -> Trie:
    """The trie of what two tries have counted."""
    before_a = before_b = np.arange(vocab_size)
    levels = []
    for level_a, level_b in zip(a.levels, b.levels, strict=True):
        keys_a, keys_b = _moved(level_a.keys, before_a, vocab_size), _moved(level_b.keys, before_b, vocab_size)
        to_a, to_b, total = _places(keys_a, keys_b)
        keys, counts, suffixes = np.empty(total, np.int64), np.zeros(total, np.int64), np.empty(total, np.int64)
        for to, level, moved, before in ((to_a, level_a, keys_a, before_a), (to_b, level_b, keys_b, before_b)):
            keys[to] = moved
            counts[to] += level.counts
            suffixes[to] = before[level.suffixes]
        levels.append(Level(keys, counts, suffixes))
        before_a, before_b = to_a, to_b
    return Trie(a.unigrams + b.unigrams, tuple(levels))


def _moved(keys, numbers, vocab_size):
    """Keys whose contexts have new numbers; they stay sorted, since numbers rise."""
    contexts = keys // vocab_size
    return keys + (numbers[contexts] - contexts) * vocab_size


def _places(a, b):
    """(where each of a, and of b, stands in their sorted union, and its size); both are sorted and have no key twice."""
    place = np.searchsorted(a, b)
    fresh = np.ones(len(b), bool)
    inside = place < len(a)
    fresh[inside] = a[place[inside]] != b[inside]
    # A new key of b with place p stands before a[p].
    before_a = np.cumsum(np.bincount(place[fresh], minlength=len(a) + 1))[: len(a)]
    before_b = np.cumsum(fresh) - fresh
    return np.arange(len(a)) + before_a, place + before_b, len(a) + int(fresh.sum())
