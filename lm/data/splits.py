"""Which split a document belongs to, and which documents a tokenizer learns from: pure functions of the text.

A document's split does not depend on where it stands, and equal texts always share one, so none can leak.
"""

import hashlib
import heapq
from collections.abc import Iterable
from typing import NamedTuple


class Fractions(NamedTuple):
    """Shares of documents that are held out; the rest is for training."""

    validation: float
    test: float


def _uniform(text: bytes, person: bytes, key: bytes = b"") -> float:
    """A number in [0, 1) drawn by hashing `text`."""
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8, person=person, key=key).digest(), "big") >> 11) / 2**53


def split_of(text: bytes, fractions: Fractions) -> str:
    """'train', 'validation' or 'test' for a text in UTF-8."""
    u = _uniform(text, b"lm-split")
    if u < fractions.validation:
        return "validation"
    return "test" if u < fractions.validation + fractions.test else "train"


def sample(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """Texts of `size` bytes in all (or all texts), drawn without regard to order; the last is cut to fit.

    Holds about `size` bytes plus one text. The result is in an order that depends on neither seed nor input order, so that
    when everything fits all seeds give the same.
    """
    heap: list[tuple[float, bytes]] = []  # the last drawn comes first
    total = 0
    key = seed.to_bytes(8, "little")
    for text in texts:
        value = text.encode()
        u = _uniform(value, b"lm-sample", key)
        value = _cut(value, size)
        heapq.heappush(heap, (-u, value))
        total += len(value)
        while total - len(heap[0][1]) >= size:
            total -= len(heapq.heappop(heap)[1])
    if total > size:
        u, value = heapq.heappop(heap)
        heap.append((u, _cut(value, len(value) - (total - size))))
    return [value.decode() for _, value in sorted(heap, key=lambda item: (_uniform(item[1], b"lm-sample"), item[1]))]


def _cut(value: bytes, size: int) -> bytes:
    """At most `size` bytes of UTF-8, cut between characters."""
    while 0 < size < len(value) and value[size] & 0xC0 == 0x80:
        size -= 1
    return value[:size]
