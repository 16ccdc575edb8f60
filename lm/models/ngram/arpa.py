r"""ARPA files, the format of SRILM and KenLM: log10 probabilities and back-off weights of every n-gram as text.

Words are separated by white space there, so pieces are written with white space, control characters and percent signs as %XX, the bytes
of their UTF-8. Lines are read and written one by one; a path that ends in .gz is compressed.
"""

import contextlib
import gzip
import itertools
import math
import pathlib
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.files import atomic_file
from lm.errors import ConfigError, DataError
from lm.models.ngram.model import NGram

_LOG10 = math.log(10)
_NEVER = -99.0  # how ARPA files write the logarithm of 0
_ROWS = 1 << 14
_UNSAFE = re.compile(r"[%\s\x00-\x20\x7f-\xa0\ud800-\udfff]")
_COUNT = re.compile(r"ngram (\d+)=(\d+)")


def escape(piece: str) -> str:
    """A piece as one word of an ARPA file; lone surrogates stand for bytes that are not UTF-8."""
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape")), piece)


def unescape(word: str) -> str:
    """The piece of a word that `escape` made."""
    value = re.sub(rb"%([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), word.encode())
    return value.decode("utf-8", "surrogateescape")


def pieces_of(tokenizer) -> list[str]:
    """A different name for each of a tokenizer's ids: its text, <pad>, <s> and </s>, and <ID> for what has no text of its own."""
    special = {tokenizer.pad_id: "<pad>", tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    names, taken = [], set(special.values())
    for i in range(tokenizer.vocab_size):
        name = special.get(i) or tokenizer.decode_bytes([i]).decode("utf-8", "surrogateescape")
        # A byte and a piece may stand for the same text.
        names.append(name if i in special or (name and name not in taken) else f"<{i}>")
        taken.add(names[-1])
    return names


def write_arpa(ngram: NGram, path, pieces: Sequence[str]) -> None:
    """Writes a model; pieces [V] are the ids' names. ConfigError when two of them are the same or one is empty, DataError for a full disk.

    A vocabulary without <unk> gets one that is never predicted, since readers ask for it.
    """
    words = [escape(piece) for piece in pieces]
    if len(set(words)) != ngram.vocab_size or len(words) != ngram.vocab_size or not all(words):
        raise ConfigError(f"an ARPA file needs {ngram.vocab_size} different names that are not empty: got {len(set(words) - {''})}")
    extra = [] if "<unk>" in words else [f"{_NEVER:g}\t<unk>"]
    names = np.array(words, object)
    with atomic_file(path) as file, _compressed(file, path) as out:
        out.write(b"\\data\\\n")
        for n, size in ngram.sizes.items():
            out.write(f"ngram {n}={size + len(extra) * (n == 1)}\n".encode())
        for n in range(1, ngram.order + 1):
            out.write(f"\n\\{n}-grams:\n".encode())
            for lines in itertools.chain([extra] if n == 1 and extra else [], _lines(ngram, n, names)):
                out.write(("\n".join(lines) + "\n").encode())
        out.write(b"\n\\end\\\n")


@contextlib.contextmanager
def _compressed(file, path):
    if str(path).endswith(".gz"):
        # Without a time the same model gives the same file.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as out:
            yield out
    else:
        yield file


def _lines(ngram: NGram, n: int, names: np.ndarray) -> Iterator[list[str]]:
    tables = ngram.tables
    back_offs = tables.get(f"back_offs_{n}") if n < ngram.order else None
    for first in range(0, ngram.sizes[n], _ROWS):
        rows = np.arange(first, min(first + _ROWS, ngram.sizes[n]))
        texts = [" ".join(words) for words in names[_spelled(tables, n, rows)].tolist()]
        probs = _decimal(tables[f"log_probs_{n}"][rows])
        if back_offs is None:
            yield [f"{prob:.9g}\t{text}" for prob, text in zip(probs, texts, strict=True)]
        else:
            weights = _decimal(back_offs[rows])
            yield [f"{prob:.9g}\t{text}\t{weight:.9g}" for prob, text, weight in zip(probs, texts, weights, strict=True)]


def _decimal(logs: np.ndarray) -> list[float]:
    """Natural logarithms as those to base 10; nine digits of them, in float64, give back every float32."""
    return np.maximum(logs.astype(np.float64) / _LOG10, _NEVER).tolist()


def _spelled(tables: dict, n: int, rows: np.ndarray) -> np.ndarray:
    """Token ids [R, n] of n-grams [R]."""
    columns = []
    for k in range(n, 1, -1):
        columns.append(tables[f"tokens_{k}"][rows])
        rows = np.searchsorted(tables[f"begins_{k - 1}"], rows, side="right") - 1
    return np.stack([*columns, rows][::-1], axis=1)


def read_arpa(path, pieces: Sequence[str], dtype=np.float32) -> NGram:
    """The model in a file whose words are the escaped pieces [V].

    KenLM and others list only what they have seen: pieces without a 1-gram get the probability of <unk>, where it has one, and a <s> of
    probability 1, which is how they write that it is never predicted, has none.

    Raises DataError, with the line, for a file that is damaged or has other words.
    """
    numbers = {escape(piece): i for i, piece in enumerate(pieces)}
    reader = _Reader(path, numbers, len(pieces))
    try:
        with (gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb")) as file:
            reader.lines = enumerate(file, 1)
            sizes = reader.header()
            sections = [reader.section(n, size, len(sizes)) for n, size in enumerate(sizes, 1)]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {reader.number}: {error}") from error
    return NGram(len(sizes), len(pieces), _tables(reader, sections, len(pieces), dtype))


class _Reader:
    """Takes an ARPA file apart, line by line."""

    def __init__(self, path, numbers: dict[str, int], vocab_size: int):
        self.path, self.numbers, self.vocab_size = pathlib.Path(path), numbers, vocab_size
        self.lines, self.number = iter(()), 0
        self.unknown = _NEVER

    def fail(self, what: str, line: int | None = None):
        """Raises DataError for a line, by default the last one read."""
        raise DataError(f"{self.path}:{line or self.number}: {what}: the file is damaged or of another tokenizer, write it again")

    def next(self) -> str:
        """The next line, without what surrounds it."""
        self.number, line = next(self.lines, (self.number, None))
        if line is None:
            self.fail("the file ends here, before \\end\\")
        try:
            return line.decode().strip()
        except UnicodeDecodeError:
            self.fail("this is not UTF-8")

    def after_blanks(self) -> str:
        """The next line that is not empty."""
        while not (line := self.next()):
            pass
        return line

    def header(self) -> list[int]:
        """Numbers of n-grams of each order."""
        while self.next() != "\\data\\":
            pass
        sizes = []
        while found := _COUNT.fullmatch(line := self.next()):
            if int(found[1]) != len(sizes) + 1:
                self.fail(f"the number of {len(sizes) + 1}-grams should be here")
            sizes.append(int(found[2]))
        if line or not sizes:
            self.fail(f"{line!r} is not 'ngram N=COUNT'")
        return sizes

    def section(self, n: int, size: int, order: int) -> "_Section":
        """The n-grams of one order."""
        if (line := self.after_blanks()) != f"\\{n}-grams:":
            self.fail(f"'\\{n}-grams:' should be here")
        section = _Section(array("i"), array("d"), array("d"), array("q"))
        for count in range(size):
            if not (line := self.next()):
                self.fail(f"only {count} of {size} {n}-grams are here")
            self.entry(section, line.split(), n, n < order)
        if n == order and self.after_blanks() != "\\end\\":
            self.fail("'\\end\\' should be here")
        return section

    def entry(self, section: "_Section", fields: list[str], n: int, weighted: bool) -> None:
        """Puts the n-gram of one line into its section; of an <unk> that is no piece the probability is kept."""
        if not n + 1 <= len(fields) <= n + 1 + weighted:
            self.fail(f"this is no {n}-gram")
        try:
            prob, weight = float(fields[0]), float(fields[n + 1]) if len(fields) > n + 1 else 0.0
        except ValueError:
            self.fail("there is no number where one belongs")
        if not (prob <= 0 and math.isfinite(prob) and math.isfinite(weight)):
            self.fail(f"{fields[0]} is no log-probability, or the weight is not finite")
        if fields[1:2] == ["<s>"] and n == 1 and prob == 0:
            prob = _NEVER
        words = [self.numbers.get(word) for word in fields[1 : n + 1]]
        if None not in words:
            section.ids.extend(words)
            section.probs.append(prob)
            section.weights.append(weight)
            section.lines.append(self.number)
        elif fields[1:2] == ["<unk>"] and n == 1:
            self.unknown = prob
        else:
            self.fail(f"the word {fields[1 + words.index(None)]!r} is not in the vocabulary")


class _Section(NamedTuple):
    """The M n-grams of one order: ids of their words one after the other, log10 of probabilities and weights [M], their lines [M]."""

    ids: array
    probs: array
    weights: array
    lines: array


def _natural(logs: array) -> np.ndarray:
    values = np.array(logs)
    return np.where(values <= _NEVER, -np.inf, values * _LOG10)


def _tables(reader: _Reader, sections: list[_Section], vocab_size: int, dtype) -> dict[str, np.ndarray]:
    """The tables of `lookup`, whatever the order of the lines."""
    tables, keys = {}, []
    for n, section in enumerate(sections, 1):
        ids = np.array(section.ids, np.int64).reshape(-1, n)
        histories = np.zeros(len(ids), np.int64) if n == 1 else ids[:, 0]
        for k in range(2, n):
            histories = _found(keys[k - 1], histories * vocab_size + ids[:, k - 1])
        if len(missing := np.flatnonzero(histories < 0)):
            reader.fail(f"the first {n - 1} words of this {n}-gram are no {n - 1}-gram", section.lines[missing[0]])
        key = histories * vocab_size + ids[:, -1]
        order = np.argsort(key, kind="stable")
        key = key[order]
        if len(twice := np.flatnonzero(key[1:] == key[:-1])):
            reader.fail(f"this {n}-gram is here twice", section.lines[order[twice[0] + 1]])
        if n == 1 and len(key) != vocab_size:
            lost = np.setdiff1d(np.arange(vocab_size), key)
            if reader.unknown <= _NEVER:
                reader.fail(f"up to here the word {list(reader.numbers)[lost[0]]!r} of the vocabulary has no 1-gram, nor has <unk>")
            section.probs.extend([reader.unknown] * len(lost))
            section.weights.extend([0.0] * len(lost))
            key = np.concatenate([key, lost])
            order = np.argsort(np.concatenate([ids[:, -1], lost]), kind="stable")
            key = np.sort(key)
        keys.append(key)
        tables[f"log_probs_{n}"] = _natural(section.probs)[order].astype(dtype)
        if n > 1:
            tables[f"tokens_{n}"] = (key % vocab_size).astype(np.int32)
            tables[f"begins_{n - 1}"] = np.searchsorted(key // vocab_size, np.arange(len(keys[n - 2]) + 1)).astype(np.int32)
        if n < len(sections):
            tables[f"back_offs_{n}"] = _natural(section.weights)[order].astype(dtype)
    return tables


def _found(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of wanted keys among sorted ones, -1 where there is none."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, places, -1) if len(keys) else np.full(len(wanted), -1)
