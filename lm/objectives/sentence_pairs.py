"""Pairs of texts for next-sentence prediction (Devlin et al. 2019): the halves of a row, or its first half and text from elsewhere.

A row of n tokens has n - n // 2 in A and the rest in B. Half of the rows, drawn by seed and example, get as many tokens from a
place of the same store that has none of the row's own documents; where there is no such place, from any place but the true one.
"""

import numpy as np

from lm.data.noise import uniforms
from lm.data.packing import Rows
from lm.data.store import TokenStore
from lm.objectives.corrupting import integers

_NEXT, _PLACE = 210, 211


def halves(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """int64 ([B], [B]): tokens in A and in B."""
    real = (rows.segments > 0).sum(axis=1)
    return real - real // 2, real // 2


def labels(rows: Rows, seed: int, examples: np.ndarray) -> np.ndarray:
    """int64 [B]: 0 where B follows A, 1 where it comes from elsewhere, -1 where there is no B."""
    elsewhere = uniforms(seed, _NEXT, examples, 1)[:, 0] < 0.5
    return np.where(halves(rows)[1] > 0, elsewhere.astype(np.int64), -1)


def with_other_halves(rows: Rows, store: TokenStore, starts: np.ndarray, seed: int, examples: np.ndarray) -> Rows:
    """Rows [B] that begin at tokens `starts` [B] of their store, with other second halves where `labels` are 1.

    Their tokens and documents change; segments, positions and starts stay, which pairs have no use for.
    """
    uniform = uniforms(seed, _PLACE, examples, 1)[:, 0]
    tokens, documents = rows.tokens.copy(), rows.documents.copy()
    first, second = halves(rows)
    for b in np.flatnonzero(labels(rows, seed, examples) == 1):
        a, n = int(first[b]), int(second[b])
        own = documents[b, : a + n]
        place = _elsewhere(store, int(store.offsets[own[0]]), int(store.offsets[own[-1] + 1]), int(starts[b]) + a, n, uniform[b])
        tokens[b, 1 + a : 1 + a + n] = store.read(place, place + n)
        documents[b, a : a + n] = np.searchsorted(store.offsets, np.arange(place, place + n), side="right") - 1
    return rows._replace(tokens=tokens, documents=documents)


def _elsewhere(store: TokenStore, begin: int, end: int, follows: int, n: int, uniform: float) -> int:
    """A start of n tokens outside [begin, end), all equally likely; if there is none, any start but `follows`."""
    before, after = max(0, begin - n + 1), max(0, store.num_tokens - n - end + 1)
    if before + after:
        place = int(integers(uniform, before + after))
        return place if place < before else end + place - before
    place = int(integers(uniform, store.num_tokens - n))
    return place + (place >= follows)


def lay_out(rows: Rows, cls: int, sep: int):
    """(tokens, segments, positions, types, source) [B, R + 3] of <cls> A <sep> B <sep>; see `lm.objectives.masked.Laid`."""
    a, b = (size[:, None] for size in halves(rows))
    place = np.arange(rows.segments.shape[1] + 3)[None]
    inside = ((place > 0) & (place <= a)) | ((place > a + 1) & (place <= a + b + 1))
    source = np.where(inside, np.where(place <= a, place - 1, place - 2), -1)
    real = (place <= a + b + 2) & (a > 0)
    special = np.where(place == 0, cls, np.where(real, sep, 0))
    tokens = np.where(inside, np.take_along_axis(rows.tokens[:, 1:], np.maximum(source, 0), axis=1), special)
    return tokens, real.astype(np.int32), np.where(real, place, 0), (real & (place > a + 1)).astype(np.int32), source
