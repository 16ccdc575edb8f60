"""The smoothings once more, from their formulas alone: recursion over dictionaries of tuples, a token at a time."""

import math
from collections import Counter, defaultdict

import numpy as np

from lm.data.store import TokenStore

PAD, BOS, EOS = 0, 1, 2


def store_of(documents):
    """A token store in memory of documents of ids, each with its end."""
    lengths = [len(document) for document in documents]
    tokens = np.array([token for document in documents for token in document], np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    fetch = lambda starts, stops: [tokens[start:stop] for start, stop in zip(starts, stops, strict=True)]  # noqa: E731
    return TokenStore(fetch, offsets, np.array(lengths), lambda: [str(i) for i in range(len(lengths))])


def corpus(seed, vocab=7, documents=5, length=30):
    """Documents of random ids from 3 on, some of them likelier after some others, each with EOS."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(documents):
        document = []
        for _ in range(rng.integers(1, length)):
            step = document[-1] + 1 if document and rng.random() < 0.5 else rng.geometric(0.4) + 2
            document.append(int(3 + (step - 3) % (vocab - 3)))
        result.append([*document, EOS])
    return result


class Oracle:
    """p(w | history) of one model by definition; `seen` (one list of flags per document) says which tokens count."""

    def __init__(self, documents, vocab, order, seen=None, minimums=None, bos=BOS):
        self.vocab, self.order, self.bos = vocab, order, bos
        self.raw = [Counter() for _ in range(order + 1)]  # raw[n][n-gram]
        for d, document in enumerate(documents):
            text = [bos, *document]
            for end in range(1, len(text)):
                if seen is None or seen[d][end - 1]:
                    for n in range(1, min(order, end + 1) + 1):
                        self.raw[n][tuple(text[end - n + 1 : end + 1])] += 1
        minimums = minimums or [1] * (order + 1)
        self.kept = [{gram for gram, c in counts.items() if c >= minimums[n]} for n, counts in enumerate(self.raw)]
        for n in range(order, 1, -1):  # what is a history stays
            self.kept[n - 1] |= {gram[:-1] for gram in self.kept[n]}

    def p(self, word, history):
        history = tuple(history)[-(self.order - 1) :] if self.order > 1 else ()
        return self._p(word, history)

    def after(self, counts, n, history):
        return {gram[-1]: c for gram, c in counts[n].items() if gram[:-1] == history and c > 0}


class KneserNey(Oracle):
    def __init__(self, *args, discounts=None, **options):
        super().__init__(*args, **options)
        self.adjusted = [Counter() for _ in range(self.order + 1)]
        for n in range(1, self.order + 1):
            before = defaultdict(set)
            if n < self.order:
                for gram in self.raw[n + 1]:
                    before[gram[1:]].add(gram[0])
            for gram, c in self.raw[n].items():
                whole = n == self.order or (n > 1 and gram[0] == self.bos)
                self.adjusted[n][gram] = c if whole else len(before[gram])
        self.discounts = [None, *discounts] if discounts else [None, *(self.estimate(n) for n in range(1, self.order + 1))]

    def estimate(self, n):
        t = Counter(self.adjusted[n].values())
        if not (t[1] and t[2] and t[3]):
            return 0.5, 1.0, 1.5
        y = t[1] / (t[1] + 2 * t[2])
        found = tuple(r - (r + 1) * y * t[r + 1] / t[r] for r in (1, 2, 3))
        return found if all(0 < d <= r for r, d in zip((1, 2, 3), found, strict=True)) else (0.5, 1.0, 1.5)

    def _p(self, word, history):
        n = len(history) + 1
        shorter = self._p(word, history[1:]) if history else 1 / self.vocab
        counts = self.after(self.adjusted, n, history)
        if not counts:
            return shorter
        kept = {w: c for w, c in counts.items() if (*history, w) in self.kept[n] or n == 1}
        discount = lambda c: self.discounts[n][min(c, 3) - 1]  # noqa: E731
        own = {w: (c - discount(c)) / sum(counts.values()) for w, c in kept.items()}
        return own.get(word, 0.0) + (1 - sum(own.values())) * shorter


class Katz(Oracle):
    def factors(self, n):
        r = Counter(self.raw[n].values())
        for k in (5, 4, 3, 2):
            if all(r[i] for i in range(1, k + 2)):
                cut = (k + 1) * r[k + 1] / r[1]
                found = {i: ((i + 1) * r[i + 1] / r[i] / i - cut) / (1 - cut) if cut != 1 else math.nan for i in range(1, k + 1)}
                if all(0 < d <= 1 for d in found.values()):
                    return found
        return None

    def _p(self, word, history):
        n = len(history) + 1
        lower = lambda w: self._p(w, history[1:]) if history else 1 / self.vocab  # noqa: E731
        counts = self.after(self.raw, n, history)
        kept = {w: c for w, c in counts.items() if (*history, w) in self.kept[n] or n == 1}
        if not kept:
            return lower(word)
        factors, total = self.factors(n), sum(counts.values())
        discount = lambda c: (c - 0.5) / c if factors is None else factors.get(c, 1.0)  # noqa: E731
        if len(kept) == self.vocab:
            discount = lambda c: 1.0  # noqa: E731
        elif sum(kept.values()) == total and all(discount(c) == 1 for c in kept.values()):
            total += 1
        own = {w: discount(c) * c / total for w, c in kept.items()}
        if word in own:
            return own[word]
        return (1 - sum(own.values())) * lower(word) / (1 - sum(lower(w) for w in own))


class AddK(Oracle):
    def __init__(self, *args, k=1.0, **options):
        super().__init__(*args, **options)
        self.k = k

    def _p(self, word, history):
        whole = len(history) == self.order - 1 or history[:1] == (self.bos,)
        counts = self.after(self.raw, len(history) + 1, history) if whole else {}
        kept = {w: c for w, c in counts.items() if (*history, w) in self.kept[len(history) + 1] or not history}
        if not kept:
            return 1 / self.vocab
        total = sum(counts.values()) + self.k * self.vocab
        own = {w: (c + self.k) / total for w, c in kept.items()}
        return own[word] if word in own else (1 - sum(own.values())) / (self.vocab - len(own))


def oracle(smoothing, documents, vocab, order, **options):
    """The oracle of one smoothing."""
    return {"kneser_ney": KneserNey, "katz": Katz, "add_k": AddK}[smoothing](documents, vocab, order, **options)
