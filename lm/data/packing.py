"""Rows of T tokens cut from a token store, with the documents that they hold kept apart.

A row covers T consecutive tokens of the store, which are its targets; the model sees the token before each of them, or
`bos` before a document's first. A document that crosses a row's border starts a new segment there.
"""

from typing import NamedTuple

import numpy as np

from lm.data.store import TokenStore


class Rows(NamedTuple):
    """B rows of T targets.

    tokens [B, T+1]: the token before the row, then its T targets. starts [B, T]: the target is its document's first token.
    segments [B, T]: number of the document within the row, from 1; 0 is padding. positions [B, T]: from 0 in each segment.
    scored [B, T]: the target counts. documents [B, T]: index of the document in the store, -1 for padding.
    """

    tokens: np.ndarray
    starts: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    scored: np.ndarray
    documents: np.ndarray


def count_rows(num_tokens: int, length: int) -> int:
    """Rows that cover every token, the last one padded."""
    return -(-num_tokens // length)


def read_rows(store: TokenStore, starts: np.ndarray, length: int, score_from=None, stop: int | None = None) -> Rows:
    """Rows of `length` targets beginning at token `starts` [B]; a start beyond the store gives padding alone.

    Targets before `score_from` [B] are context only; those from `stop` on (default: the end of the store) are padding.
    """
    stop = store.num_tokens if stop is None else stop
    starts = np.asarray(starts, np.int64)
    tokens = _read_around(store, starts, length)
    places = starts[:, None] + np.arange(length)
    real = places < stop
    documents = np.searchsorted(store.offsets, places, side="right") - 1
    documents = np.where(real, documents, -1)
    begins = store.offsets[np.maximum(documents, 0)]
    first = np.maximum(documents[:, :1], 0)
    scored = real if score_from is None else real & (places >= np.asarray(score_from)[:, None])
    return Rows(
        tokens=np.where(np.concatenate([np.ones((len(starts), 1), bool), real], axis=1), tokens, 0),
        starts=real & (places == begins),
        segments=np.where(real, documents - first + 1, 0).astype(np.int32),
        positions=np.where(real, places - np.maximum(begins, starts[:, None]), 0).astype(np.int32),
        scored=scored,
        documents=documents,
    )


def _read_around(store, starts, length):
    """Tokens starts-1 to starts+length, [B, T+1]; what lies outside the store repeats its nearest token."""
    width = min(length + 1, store.num_tokens)
    base = np.clip(starts - 1, 0, store.num_tokens - width)
    tokens = store.read_many(base, width)
    places = (starts - 1 - base)[:, None] + np.arange(length + 1)
    return np.take_along_axis(tokens, np.clip(places, 0, width - 1), axis=1)
