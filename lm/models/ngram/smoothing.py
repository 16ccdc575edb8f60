"""From counts to probabilities in back-off form: modified Kneser-Ney, Katz with Good-Turing discounts, and add-k.

An n-gram (h, w) that is kept has a probability p(w | h); any other w after a known history h has weight(h) * p(w | h'), where h' is h
without its first token, and after an unknown history p(w | h'). Below the unigrams lies the uniform distribution over all V ids, those
that are never predicted (bos, padding) among them. Distributions sum to 1 over the V ids after any history.

Pruning follows KenLM: an n-gram that occurs less often than its order asks for is dropped, but counts in its history's total and in the
counts of counts, and its whole count is left to the shorter history.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.models.ngram.counts import Trie

SMOOTHINGS = ("kneser_ney", "katz", "add_k")
KATZ_MOST = 5
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


class Order(NamedTuple):
    """What the n-grams [M] of one order need: counts, the number of their history among the K of the order below (`contexts`),
    the probability of their last token after the shorter history (`lower`), and whether they are kept."""

    counts: np.ndarray
    contexts: np.ndarray
    num_contexts: int
    lower: np.ndarray
    kept: np.ndarray

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums [K] over the n-grams with the same history."""
        return np.bincount(self.contexts, values, minlength=self.num_contexts)


def kneser_ney_discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """(D1, D2, D3+) of Chen and Goodman (1998), equation 17, from counts [M]: what is taken from counts of 1, of 2 and of 3 or more.

    Where the text is too small for them (no count of 1, of 2 or of 3, or a discount outside (0, count]) they are 0.5, 1 and 1.5, as of
    KenLM's --discount_fallback.
    """
    n1, n2, n3, n4 = (int(np.sum(counts == r)) for r in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return discounts if all(0 < d <= r for r, d in enumerate(discounts, 1)) else FALLBACK_DISCOUNTS


def katz_discounts(counts: np.ndarray, most: int = KATZ_MOST) -> np.ndarray:
    """Factors [k + 1] by which counts 0 to k are multiplied (Katz 1987, with Good-Turing estimates); those above k are taken as they are.

    k is the largest number up to `most` for which counts of counts 1 to k + 1 are not 0 and all factors lie in (0, 1]. Where there
    is none the array is empty, and `katz` takes 0.5 from every count instead.
    """
    n = np.bincount(np.minimum(counts, most + 2), minlength=most + 3).astype(np.float64)
    for k in range(most, 1, -1):
        if not np.all(n[1 : k + 2] > 0):
            continue
        r = np.arange(1, k + 1)
        cut = (k + 1) * n[k + 1] / n[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = ((r + 1) * n[2 : k + 2] / (r * n[1 : k + 1]) - cut) / (1 - cut)
        if np.all((factors > 0) & (factors <= 1)):
            return np.concatenate([[1.0], factors])
    return np.zeros(0)


def kneser_ney(order: Order, discounts: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(p [M], weights [K]) of interpolated Kneser-Ney: (c - D(c)) / total + weight * lower, where the weight is what was taken away."""
    taken = np.array([0.0, *discounts])[np.minimum(order.counts, 3)]
    taken = np.where(order.kept, taken, order.counts)
    totals, left = order.sums(order.counts), order.sums(taken)
    known = totals > 0
    weights = np.where(known, left / np.where(known, totals, 1), 1.0)
    own = (order.counts - taken) / np.where(known, totals, 1)[order.contexts]
    return own + weights[order.contexts] * order.lower, weights


def katz(order: Order, vocab_size: int, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(p [M], weights [K]): factor(c) * c / total for n-grams that occurred, the rest in proportion to `lower`.

    A history after which nothing was taken away (all its counts are large) has one added to its total, as in SRILM, so that other tokens
    keep a probability; one after which every id occurred has nothing taken away.
    """
    counts, kept = order.counts, order.kept & (order.counts > 0)
    table = np.append(factors, 1.0)
    discounted = counts * table[np.minimum(counts, len(factors))] if len(factors) else np.maximum(counts - 0.5, 0)
    full = order.sums(kept) == vocab_size
    discounted = np.where(full[order.contexts], counts, discounted)
    left = order.sums(np.where(kept, counts - discounted, counts))
    added = (left == 0) & ~full
    totals = order.sums(counts) + added
    return back_off(order, kept, discounted, left + added, totals)


def add_k(order: Order, vocab_size: int, k: float, final: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(p [M], weights [K]) of (c + k) / (total + k V) for n-grams whose history is a whole one (`final` [M]); others are histories alone.

    Add-k has no shorter histories: after a history that was never seen, or that is cut short, all ids are as likely.
    """
    kept = order.kept & (order.counts > 0) & final
    left = k * (vocab_size - order.sums(kept)) + order.sums(np.where(kept, 0, order.counts))
    return back_off(order, kept, order.counts + k, left, order.sums(order.counts) + k * vocab_size)


def back_off(order: Order, kept: np.ndarray, shares: np.ndarray, left: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(p [M], weights [K]): shares [M] / totals [K] where kept; `left` [K] / totals goes to the other ids in proportion to `lower`."""
    others = 1 - order.sums(np.where(kept, order.lower, 0))
    known = (order.sums(kept) > 0) & (left > 0)
    weights = np.where(known, left / np.where(known, totals * others, 1), 1.0)
    own = shares / np.where(totals > 0, totals, 1)[order.contexts]
    return np.where(kept, own, weights[order.contexts] * order.lower), weights


def begins_with(trie: Trie, token: int, vocab_size: int) -> list[np.ndarray]:
    """For each order, which of its n-grams [M] begin with a token."""
    found = [np.arange(vocab_size) == token]
    for level in trie.levels:
        found.append(found[-1][level.keys // vocab_size])
    return found


def continuation_counts(trie: Trie, anchored: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Counts for Kneser-Ney, for each order [M]: below the highest, how many different tokens stood before an n-gram.

    Before n-grams that begin with bos (`anchored`) nothing stands: they keep their counts, as in KenLM and SRILM.
    """
    raw = [trie.unigrams, *(level.counts for level in trie.levels)]
    result = []
    for n, level in enumerate(trie.levels):
        before = np.bincount(level.suffixes[level.counts > 0], minlength=len(raw[n]))
        result.append(np.where(anchored[n], raw[n], before) if n else before)
    return [*result, raw[-1]]


def kept_ngrams(trie: Trie, vocab_size: int, minimums: Sequence[int]) -> list[np.ndarray]:
    """For each order, which n-grams [M] are kept: all unigrams, those with the order's minimum count, and the histories of kept ones."""
    kept, needed = [], None
    for level, minimum in zip(trie.levels[::-1], list(minimums)[::-1], strict=True):
        here = level.counts >= max(1, minimum)
        if needed is not None:
            here[needed] = True
        needed = level.keys[here] // vocab_size
        kept.append(here)
    return [np.ones(vocab_size, bool), *kept[::-1]]
