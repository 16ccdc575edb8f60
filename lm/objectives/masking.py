"""Which positions a masked language model predicts and what it sees there, as functions of arrays of uniform random numbers.

Rows are [B, T]; `eligible` are the positions that may be chosen: tokens of text. A row's `choice` numbers decide which are.
"""

import numpy as np

from lm.objectives.corrupting import integers, ranks


def counts(eligible: np.ndarray, rate: float) -> np.ndarray:
    """int64 [B]: round(rate * eligible positions), at least 1 where there is one (halves to the even number)."""
    real = eligible.sum(axis=1)
    return np.minimum(real, np.maximum(1, np.rint(rate * real).astype(np.int64)))


def most(length: int, rate: float) -> int:
    """The most positions that are chosen of a row of `length`."""
    return int(counts(np.ones((1, length), bool), rate)[0])


def choose(eligible: np.ndarray, rate: float, choice: np.ndarray) -> np.ndarray:
    """bool [B, T]: exactly `counts` positions of each row, every set of them equally likely; `choice` [B, T] is uniform."""
    return eligible & (ranks(np.where(eligible, choice, 2.0)) < counts(eligible, rate)[:, None])


def choose_words(eligible: np.ndarray, starts: np.ndarray, rate: float, choice: np.ndarray) -> np.ndarray:
    """bool [B, T]: whole words in random order, but those that would lead to more than `counts` positions.

    `starts` [B, T] are the first positions of words; the row's border and a position that is not eligible end one. A row gets fewer
    positions than `counts` where no word left is short enough, and none where all words are longer.
    """
    borders = starts | ~eligible
    borders[:, :1] = True
    borders[:, 1:] |= ~eligible[:, :-1]
    chosen = np.zeros(eligible.shape, bool)
    for row, left in enumerate(counts(eligible, rate).tolist()):
        firsts = np.flatnonzero(borders[row])
        lengths = np.diff(firsts, append=eligible.shape[1])
        words = np.flatnonzero(eligible[row, firsts])
        order = words[np.argsort(choice[row, firsts[words]], kind="stable")]
        for first, length in zip(firsts[order].tolist(), lengths[order].tolist(), strict=True):
            if length <= left:
                chosen[row, first : first + length] = True
                left -= length
                if not left:
                    break
    return chosen


def replace(tokens: np.ndarray, chosen: np.ndarray, mask: int, shares: tuple[float, float], others: np.ndarray, kind: np.ndarray,
            other: np.ndarray) -> np.ndarray:
    """tokens [B, T] where a chosen one is `mask` with the first of `shares`, a random one of `others` with the second, and else itself.

    `kind` and `other` [B, T] are uniform.
    """
    masked = kind < shares[0]
    random = ~masked & (kind < shares[0] + shares[1])
    seen = np.where(masked, mask, np.where(random, others[integers(other, len(others))], tokens))
    return np.where(chosen, seen, tokens)
