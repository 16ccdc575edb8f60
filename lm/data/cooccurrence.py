"""How often words stand near each other (Pennington et al. 2014, section 3.1), counted in bounded memory, and the triples as training data.

A word and one `d` words behind it, in the same document, count 1 / d for `d` up to the window, in both directions; unknown words are
taken out first, so windows reach over them (as in GloVe's own cooccur.c). Counts are sums of whole numbers, lcm(1..window) / d, so
that they do not depend on the order in which they are added: any size of chunk gives the same file.
"""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np

from lm.data import files
from lm.data.order import shuffled
from lm.data.store import TokenStore
from lm.errors import ConfigError, DataError

TRIPLE = np.dtype([("row", "<i4"), ("column", "<i4"), ("count", "<f4")])
_CELL = np.dtype([("key", "<i8"), ("total", "<i8")])  # of a pair of words without direction
LARGEST_WINDOW = 22  # up to which sums of lcm(1..window) / d over 10^10 places fit 63 bits
CHUNK = 1 << 20  # words that are counted in one piece
MERGED = 1 << 20  # cells of each piece that are in memory while pieces are joined


def counted(stores: list[TokenStore], vocab_size: int, first_word: int, window: int, folder: pathlib.Path, chunk: int = CHUNK,
            block: int = MERGED) -> np.ndarray:
    """The triples (row, column, count) of all pairs of words that stand within `window` of each other, mapped from folder/triples.bin.

    `chunk` words at a time are counted into a file of their own, and `block` cells of each such file are joined at a time; neither changes
    the result. Ids below `first_word` are no words. Raises DataError when there is no pair, ConfigError for a window that is too large.
    """
    if window > LARGEST_WINDOW:
        raise ConfigError(f"objective.window={window} is more than {LARGEST_WINDOW}, beyond which exact counts overflow: lower it")
    pieces = folder / "pieces"
    with files.disk_errors(folder):
        shutil.rmtree(pieces, ignore_errors=True)
        pieces.mkdir(parents=True)
    for number, (words, documents) in enumerate(_chunks(stores, first_word, window, chunk)):
        with files.atomic_file(pieces / f"{number:06}.bin") as file:
            file.write(_cells(words, documents, vocab_size, window).tobytes())
    with files.atomic_file(folder / "triples.bin") as file:
        for cells in _joined(sorted(pieces.iterdir()), block):
            file.write(_triples(cells, vocab_size, window).tobytes())
    shutil.rmtree(pieces)
    if not (folder / "triples.bin").stat().st_size:
        raise DataError("no two words of the training text stand near each other: give more text, or lower data.min_count")
    return np.memmap(folder / "triples.bin", TRIPLE, "r")


def _chunks(stores, first_word, window, chunk) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(words, their documents) of pieces of the stores; each begins with the last `window` words of the one before, numbered -1.

    A word is the second of its pairs in one chunk alone: those that are carried over have no pairs among themselves.
    """
    for store in stores:
        carried, carried_documents = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for start in range(0, store.num_tokens, chunk):
            stop = min(start + chunk, store.num_tokens)
            tokens = store.read(start, stop).astype(np.int64)
            documents = np.searchsorted(store.offsets, np.arange(start, stop), side="right") - 1
            known = tokens >= first_word
            words = np.concatenate([carried, tokens[known]])
            documents = np.concatenate([carried_documents, documents[known]])
            new = np.arange(len(words)) >= len(carried)
            yield np.stack([words, new]), documents
            carried, carried_documents = words[-window:], documents[-window:]


def _cells(words_and_new, documents, vocab_size, window) -> np.ndarray:
    """Sorted cells of one chunk."""
    words, new = words_and_new
    whole = math.lcm(*range(1, window + 1))
    keys, totals = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for distance in range(1, min(window, len(words) - 1) + 1):
        near = (documents[distance:] == documents[:-distance]) & (new[distance:] > 0)
        first, second = words[:-distance][near], words[distance:][near]
        found, times = np.unique(np.minimum(first, second) * vocab_size + np.maximum(first, second), return_counts=True)
        keys.append(found)
        totals.append(times * (whole // distance))
    return _summed(np.concatenate(keys), np.concatenate(totals))


def _summed(keys, totals) -> np.ndarray:
    """Cells with one total for each key, sorted by it."""
    order = np.argsort(keys, kind="stable")
    keys, totals = keys[order], totals[order]
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]]))
    cells = np.empty(len(first), _CELL)
    cells["key"], cells["total"] = keys[first], np.add.reduceat(totals, first) if len(first) else 0
    return cells


def _joined(paths: list[pathlib.Path], block: int) -> Iterator[np.ndarray]:
    """The sum of sorted files of cells, a stretch of keys at a time; at most `block` cells of all files together are read for one."""
    runs = [np.memmap(path, _CELL, "r") for path in paths if path.stat().st_size]
    block = max(1, block // max(1, len(runs)))
    places = [0] * len(runs)
    while any(place < len(run) for place, run in zip(places, runs, strict=True)):
        parts = [run[place : place + block] for place, run in zip(places, runs, strict=True)]
        # Up to here no file can have more than what has been read of it.
        unread = [part[-1]["key"] for part, place, run in zip(parts, places, runs, strict=True) if place + block < len(run)]
        ready = [len(part) if not unread else int(np.searchsorted(part["key"], min(unread), side="right")) for part in parts]
        parts = [part[:count] for part, count in zip(parts, ready, strict=True)]
        places = [place + count for place, count in zip(places, ready, strict=True)]
        yield _summed(*(np.concatenate([part[name] for part in parts]) for name in ("key", "total")))


def _triples(cells, vocab_size, window) -> np.ndarray:
    """Both directions of each cell; a word with itself is one cell that counts twice."""
    low, high = cells["key"] // vocab_size, cells["key"] % vocab_size
    counts = cells["total"] / math.lcm(*range(1, window + 1))
    twice = low != high
    triples = np.empty(len(cells) + int(twice.sum()), TRIPLE)
    triples["row"] = np.concatenate([low, high[twice]])
    triples["column"] = np.concatenate([high, low[twice]])
    triples["count"] = np.concatenate([np.where(twice, counts, 2 * counts), counts[twice]])
    return triples


@files.preparing()
def cooccurrences(prepared, root: pathlib.Path, window: int) -> np.ndarray:
    """The triples of the training stores of prepared data whose tokenizer is of words, kept in the cache below `root`."""
    key = files.json_digest([prepared.fingerprint, window])
    folder = root / "cooccurrences" / key
    with files.lock(root, f"cooccurrences-{key[:16]}"):
        if (folder / "done").exists():
            return np.memmap(folder / "triples.bin", TRIPLE, "r")
        tokenizer = prepared.tokenizer
        triples = counted(prepared.split_stores("train"), tokenizer.vocab_size, tokenizer.first_word, window, folder)
        with files.atomic_file(folder / "done") as file:
            file.write(b"")
        return triples


@dataclasses.dataclass(frozen=True)
class Cooccurrences:
    """Triples as the training data of a run, in the interface of lm.data.feed.TrainingData: rows of `context` triples.

    An example is a row; triple t of the order in which they are seen (a keyed permutation in each epoch) is in example t div context.
    """

    left_out: ClassVar[int] = 0  # of the triples, none
    triples: np.ndarray
    context: int
    global_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> float:
        """Steps until each triple was seen once."""
        return len(self.triples) / (self.global_batch * self.context)

    def shape(self, step: int) -> tuple[int, int]:
        """(rows, triples of a row) of the batch of a step."""
        return self.global_batch, self.context

    def shapes(self) -> dict[tuple[int, int], int]:
        """A step for each shape that batches have."""
        return {self.shape(0): 0}

    def batch(self, step: int, build: Callable[[np.ndarray, np.ndarray], dict], part: slice | np.ndarray = slice(None)) -> dict:
        """The batch of a step, or some of its rows, as `build` makes it from triples [B, T] and the indices of the examples [B]."""
        examples = (np.arange(self.global_batch) + step * self.global_batch)[part]
        order = shuffled((examples[:, None] * self.context + np.arange(self.context)).ravel(), len(self.triples), self.seed)
        return build(self.triples[order].reshape(len(examples), self.context), examples)

    def documents(self, step: int) -> list[str]:
        """What stands where other data names documents: a count has no document."""
        return ["(co-occurrence counts of all documents)"]
