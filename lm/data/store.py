"""Token stores: the documents of one split as ids back to back, with random access from local files or a URL.

A prepared folder holds manifest.json, tokenizer/ and for each split a folder with
    tokens.bin   uint16 (uint32 for more than 65,536 ids), little endian; every document is its tokens and then eos
    offsets.npy  int64 [documents + 1], where each document starts in tokens.bin, in tokens
    bytes.npy    int64 [documents], length of each document's text in UTF-8 bytes
    ids.txt      one JSON string a line
Of pairs these are the targets; source/ is the token store of their sources: the same splits, documents and order.
"""

import io
import json
import os
from collections.abc import Callable, Iterable

import numpy as np

from lm.data import files
from lm.errors import DataError

SPLITS = ("train", "validation", "test")
FORMAT = 1


def token_dtype(vocab_size: int) -> np.dtype:
    """The type of ids in tokens.bin."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenStore:
    """One split of one source. offsets int64 [n+1] and byte_counts int64 [n] describe its n documents."""

    def __init__(self, fetch: Callable, offsets: np.ndarray, byte_counts: np.ndarray, ids: Callable[[], list[str]]):
        """`fetch(starts, stops)` gives the token arrays of ranges; `ids()` the document ids, called when first needed."""
        self._fetch, self._load_ids, self._ids = fetch, ids, None
        self.offsets, self.byte_counts = offsets, byte_counts
        self.num_documents = len(byte_counts)
        self.num_tokens = int(offsets[-1])

    @staticmethod
    def open(directory) -> "TokenStore":
        """The split in `directory` (say, DIR/train), a local path or a URL that fsspec reads. Raises DataError.

        Local files are mapped into memory. From a URL offsets and byte counts are loaded, tokens are fetched as they are read.
        """
        parent, split = os.path.split(str(directory).rstrip("/"))
        described = read_manifest(parent)["splits"].get(split)
        if described is None:
            raise DataError(f"{parent} has no split {split!r}")
        dtype, count = np.dtype(described["dtype"]), described["tokens"]
        opened = _open_remote if files.is_url(directory) else _open_local
        fetch, offsets, byte_counts = opened(str(directory), dtype, count)
        store = TokenStore(fetch, offsets, byte_counts, lambda: _read_ids(files.join(directory, "ids.txt")))
        if (store.num_tokens, store.num_documents) != (count, described["documents"]):
            raise DataError(f"{directory} does not match its manifest: delete {parent} and prepare it again")
        return store

    @staticmethod
    def from_documents(documents: Iterable, tokenizer) -> "TokenStore":
        """A store in memory of (id, text) documents. Raises DataError when there are none."""
        ids, parts, byte_counts = [], [], []
        for name, text, *_ in documents:
            ids.append(name)
            parts.append(np.append(tokenizer.encode(text), np.int32(tokenizer.eos_id)))
            byte_counts.append(len(text.encode()))
        if not parts:
            raise DataError("there are no documents: give text that is not empty")
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        tokens = np.concatenate(parts).astype(token_dtype(tokenizer.vocab_size))
        return TokenStore(_from_array(tokens), offsets, np.array(byte_counts, np.int64), lambda: ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 tokens [stop - start]. Raises IndexError outside the store."""
        self._check(start, stop)
        return self._fetch([start], [stop])[0].astype(np.int32) if start < stop else np.zeros(0, np.int32)

    def read_many(self, starts, length: int) -> np.ndarray:
        """int32 tokens [n, length] that begin at `starts` [n]. Raises IndexError outside the store."""
        starts = np.asarray(starts, np.int64)
        out = np.empty((len(starts), length), np.int32)
        if len(starts):
            self._check(int(starts.min()), int(starts.max()) + length)
            for row, tokens in zip(out, self._fetch(starts.tolist(), (starts + length).tolist()), strict=True):
                row[:] = tokens
        return out

    def read_documents(self, documents: np.ndarray) -> list[np.ndarray]:
        """int32 tokens of each of `documents`, eos last. Raises IndexError outside the store."""
        documents = np.asarray(documents, np.int64)
        if documents.size and not 0 <= documents.min() <= documents.max() < self.num_documents:
            raise IndexError(f"documents {documents.min()}..{documents.max()} are outside a store of {self.num_documents}")
        return [tokens.astype(np.int32) for tokens in self._fetch(self.offsets[documents].tolist(), self.offsets[documents + 1].tolist())]

    def document_id(self, i: int) -> str:
        """Id of document `i`."""
        if self._ids is None:
            self._ids = self._load_ids()
        return self._ids[i]

    def documents_in(self, start: int, stop: int) -> list[str]:
        """Ids of the documents that have a token in [start, stop)."""
        self._check(start, stop)
        if start == stop:
            return []
        first, last = np.searchsorted(self.offsets, [start, stop - 1], side="right") - 1
        return [self.document_id(i) for i in range(first, last + 1)]

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} are outside a store of {self.num_tokens} tokens")


def read_manifest(directory) -> dict:
    """manifest.json of a prepared folder or URL. Raises DataError when it is no finished store or has another format."""
    location = files.join(directory, "manifest.json")
    try:
        manifest = files.read_json(location)
    except DataError as error:
        raise DataError(f"{directory} is not a prepared token store: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{location}: this version reads stores of format {FORMAT}: prepare it again")
    return manifest


def open_splits(directory) -> dict[str, TokenStore]:
    """All splits of a prepared folder or URL."""
    return {split: TokenStore.open(files.join(directory, split)) for split in read_manifest(directory)["splits"]}


def _from_array(tokens: np.ndarray) -> Callable:
    return lambda starts, stops: [tokens[start:stop] for start, stop in zip(starts, stops, strict=True)]


def _open_local(directory: str, dtype: np.dtype, count: int):
    path = os.path.join(directory, "tokens.bin")
    try:
        if os.path.getsize(path) != count * dtype.itemsize:
            raise DataError(f"{path} has {os.path.getsize(path)} bytes instead of {count * dtype.itemsize}: "
                            f"delete {os.path.dirname(directory)} and prepare it again")
        # An empty file cannot be mapped.
        tokens = np.memmap(path, dtype, "r") if count else np.zeros(0, dtype)
        arrays = [np.load(os.path.join(directory, name), mmap_mode="r") for name in ("offsets.npy", "bytes.npy")]
    except (OSError, ValueError) as error:
        raise DataError(f"{directory} cannot be read ({error}): delete {os.path.dirname(directory)} and prepare it again") from error
    return _from_array(tokens), *arrays


def _open_remote(directory: str, dtype: np.dtype, count: int):
    fs, path = files.filesystem(files.join(directory, "tokens.bin"))
    try:
        size = fs.size(path)
    except FileNotFoundError:
        size = 0
    if size != count * dtype.itemsize:
        raise DataError(f"{directory}/tokens.bin has {size} bytes instead of {count * dtype.itemsize}: copy the store again")

    def fetch(starts, stops):
        ranges = [path] * len(starts), [start * dtype.itemsize for start in starts], [stop * dtype.itemsize for stop in stops]
        return [np.frombuffer(value, dtype) for value in fs.cat_ranges(*ranges, on_error="raise")]

    arrays = [np.load(io.BytesIO(files.read_bytes(files.join(directory, name)))) for name in ("offsets.npy", "bytes.npy")]
    return fetch, *arrays


def _read_ids(location) -> list[str]:
    return [json.loads(line) for line in files.read_bytes(location).decode().splitlines()]
