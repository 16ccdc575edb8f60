"""Fitting an n-gram model: counts, smoothing, and tables in back-off form (see `lookup` for them)."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from lm.data.store import TokenStore
from lm.errors import ConfigError, DataError
from lm.models.ngram import lookup
from lm.models.ngram import smoothing as rules
from lm.models.ngram.counts import CHUNK, Trie, count

MOST_ORDERS = 7


@dataclasses.dataclass(frozen=True, eq=False)
class NGram:
    """A fitted model of histories up to `order` - 1 tokens over V ids; `lookup` says what `tables` are."""

    order: int
    vocab_size: int
    tables: dict[str, np.ndarray]

    @property
    def sizes(self) -> dict[int, int]:
        """Number of n-grams of each order."""
        return {n: len(self.tables[f"log_probs_{n}"]) for n in range(1, self.order + 1)}

    @property
    def num_parameters(self) -> int:
        """Probabilities and back-off weights in the tables."""
        return sum(len(table) for name, table in self.tables.items() if name.startswith(("log_probs", "back_offs")))

    def log_probs(self, tokens, targets, segments) -> np.ndarray:
        """Log-probabilities float64 [B, T] of targets [B, T] after tokens [B, T]; see `lookup.log_probs`. DataError for ids outside V."""
        tokens, targets = self._checked(tokens), self._checked(targets)
        return lookup.log_probs(self.tables, self.order, self.vocab_size, tokens, targets, np.asarray(segments))

    def distribution(self, history) -> np.ndarray:
        """Log-probabilities float64 [B, V] of the token after the last order - 1 tokens [B, order - 1], padded with -1 on the left."""
        history = self._checked(history, lowest=-1)
        if history.shape[1] != self.order - 1:
            raise ValueError(f"a model of order {self.order} takes {self.order - 1} tokens of history, not {history.shape[1]}")
        return lookup.distribution(self.tables, self.order, self.vocab_size, history)

    def _checked(self, ids, lowest: int = 0) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.size and not lowest <= ids.min() <= ids.max() < self.vocab_size:
            raise DataError(f"token ids must lie in 0..{self.vocab_size - 1}, found {ids.min()}..{ids.max()}: use the tokenizer of the fit")
        return ids


def fit(stores: Sequence[TokenStore], vocab_size: int, bos_id: int, order: int, smoothing: str = "kneser_ney", *, add_k: float = 1.0,
        prune: Sequence[int] = (), discounts: Sequence | None = None, seen: Sequence | None = None, chunk: int = CHUNK,
        dtype=np.float32) -> NGram:
    """The n-gram model of the documents of some stores.

    `prune` are minimum counts of the highest orders, the highest last: with (2, 3) and order 5 only n-grams of order 4 that occur twice
    and of order 5 that occur three times are kept; they must not fall, and unigrams are always kept. `discounts` (Kneser-Ney) gives
    (D1, D2, D3+) of each order instead of those from counts of counts. For `seen` and `chunk` see `counts.count`. `dtype` is that of the
    logarithms. Raises ConfigError and DataError.
    """
    minimums = _checked(order, smoothing, add_k, prune, discounts)
    trie = count(stores, vocab_size, bos_id, order, seen, chunk)
    kept = rules.kept_ngrams(trie, vocab_size, minimums)
    probs, weights = _smooth(trie, vocab_size, bos_id, smoothing, add_k, discounts, kept)
    return NGram(order, vocab_size, _tables(trie, vocab_size, kept, probs, weights, dtype))


def _checked(order, smoothing, add_k, prune, discounts) -> list[int]:
    """Minimum counts of the orders from 2 on."""
    if not 1 <= order <= MOST_ORDERS:
        raise ConfigError(f"model.order={order} is not allowed: it is from 1 to {MOST_ORDERS}")
    if smoothing not in rules.SMOOTHINGS:
        raise ConfigError(f"model.smoothing={smoothing} is not known: use one of {', '.join(rules.SMOOTHINGS)}")
    if smoothing == "add_k" and not add_k > 0:
        raise ConfigError(f"model.add_k={add_k} is not allowed: it must be above 0, or unseen tokens would have no probability")
    prune = list(prune)
    if len(prune) > order - 1 or prune != sorted(prune) or any(minimum < 1 or minimum % 1 for minimum in prune):
        raise ConfigError(f"model.prune={tuple(prune)} is not allowed: give at most {order - 1} whole minimum counts (order - 1) "
                          "from 1 on that do not fall")
    if discounts is not None and (len(discounts) != order or not all(0 <= d <= r for given in discounts for r, d in enumerate(given, 1))):
        raise ConfigError(f"discounts={discounts} are not allowed: give (D1, D2, D3) with 0 <= Dr <= r for each of {order} orders")
    return [1] * (order - 1 - len(prune)) + prune


def _smooth(trie: Trie, vocab_size, bos_id, smoothing, add_k, discounts, kept):
    """(for each order n, p [M] of its n-grams; for each order below the highest, weights [M] of histories)."""
    anchored = rules.begins_with(trie, bos_id, vocab_size)
    highest = len(trie.levels)
    raw = [trie.unigrams, *(level.counts for level in trie.levels)]
    counts = rules.continuation_counts(trie, anchored) if smoothing == "kneser_ney" else raw
    lower = np.full(vocab_size, 1 / vocab_size)
    probs, weights = [], []
    for n in range(highest + 1):
        if n:
            level = trie.levels[n - 1]
            order = rules.Order(counts[n], level.keys // vocab_size, len(raw[n - 1]), probs[-1][level.suffixes], kept[n])
        else:
            order = rules.Order(counts[0], np.zeros(vocab_size, np.int64), 1, lower, kept[0])
        if smoothing == "kneser_ney":
            given = rules.kneser_ney_discounts(counts[n]) if discounts is None else discounts[n]
            if discounts is None and given is rules.FALLBACK_DISCOUNTS:
                warnings.warn(f"{n + 1}-grams: counts of counts give no discounts; 0.5, 1 and 1.5 are taken, as by KenLM", stacklevel=2)
            prob, weight = rules.kneser_ney(order, given)
        elif smoothing == "katz":
            factors = rules.katz_discounts(counts[n])
            if not len(factors):
                warnings.warn(f"{n + 1}-grams: counts of counts give no Good-Turing discounts, 0.5 is taken from every count", stacklevel=2)
            prob, weight = rules.katz(order, vocab_size, factors)
        else:
            # A history is whole when it has order - 1 tokens, or begins with bos.
            final = np.ones(len(counts[n]), bool) if n == highest else anchored[n] & (n > 0)
            prob, weight = rules.add_k(order, vocab_size, add_k, final)
        probs.append(prob)
        weights.append(weight)
    return probs, weights[1:]


def _tables(trie: Trie, vocab_size, kept, probs, weights, dtype) -> dict:
    tables = {}
    for n, (here, prob) in enumerate(zip(kept, probs, strict=True), 1):
        chosen = np.flatnonzero(here)
        if len(chosen) > np.iinfo(np.int32).max:
            raise DataError(f"there are {len(chosen)} different n-grams of order {n}, too many for a table: raise model.prune")
        tables[f"log_probs_{n}"] = np.minimum(logarithms(prob[chosen]), 0).astype(dtype)
        if n > 1:
            tables[f"tokens_{n}"] = (trie.levels[n - 2].keys[chosen] % vocab_size).astype(np.int32)
        if n < len(kept):
            tables[f"back_offs_{n}"] = logarithms(weights[n - 1][chosen]).astype(dtype)
            above = trie.levels[n - 1].keys[kept[n]] // vocab_size
            tables[f"begins_{n}"] = np.searchsorted(above, np.append(chosen, len(here))).astype(np.int32)
    return tables


def logarithms(values: np.ndarray) -> np.ndarray:
    """Natural logarithms, -inf of 0 (which only discounts of 0 give)."""
    with np.errstate(divide="ignore"):
        return np.log(values)
