"""Files of word vectors that word2vec, gensim, fastText, GloVe and their users read and write.

By the end of the name: `.bin` is word2vec's binary format (a header `V D`, then a word, a space and D little-endian float32 each),
`.vec` and `.txt` its text format (the header, then a word and D numbers a line), and `.glove.txt` and `.glove` GloVe's, which is the
same without a header. Text of either kind is told by its first line when it is read.
"""

import itertools

import numpy as np

from lm.data.files import atomic_file, read_bytes
from lm.errors import ConfigError, DataError
from lm.words.vectors import Vectors


def save(vectors: Vectors, path) -> None:
    """Writes a file in the format that its name asks for; text has as many digits as it takes to read the same numbers. ConfigError."""
    name = str(path)
    header = f"{len(vectors.words)} {vectors.matrix.shape[1]}\n".encode()
    if not name.endswith((".bin", ".vec", ".txt", ".glove")):
        raise ConfigError(f"{path}: name a file of vectors .vec or .txt (word2vec's text), .bin (binary) or .glove.txt (no header)")
    with atomic_file(path) as file:
        if not name.endswith((".glove.txt", ".glove")):
            file.write(header)
        for word, row in zip(vectors.words, vectors.matrix, strict=True):
            if name.endswith(".bin"):
                file.write(word.encode() + b" " + row.astype("<f4").tobytes() + b"\n")
            else:
                file.write(f"{word} {' '.join([f'{x:.9g}' for x in row.tolist()])}\n".encode())


def load(path) -> Vectors:
    """The vectors in a file; of a word that stands in it twice, the first. Raises DataError when it cannot be read as one."""
    content = read_bytes(path)
    words, matrix = (_binary if str(path).endswith(".bin") else _text)(content, path)
    first = {}
    for i, word in enumerate(words):
        first.setdefault(word, i)
    return Vectors(list(first), np.ascontiguousarray(matrix[list(first.values())]))


def _header(line: bytes) -> tuple[int, int] | None:
    fields = line.split()
    return (int(fields[0]), int(fields[1])) if len(fields) == 2 and all(field.isdigit() for field in fields) else None


def _binary(content: bytes, path) -> tuple[list[str], np.ndarray]:
    line, _, _ = content.partition(b"\n")
    if not (header := _header(line)):
        raise DataError(f"{path} does not begin with the number of words and of dimensions: it is not in word2vec's binary format")
    (count, width), place = header, len(line) + 1
    if count * (4 * width + 1) > len(content):
        raise DataError(f"{path} is too short for {count} words of {width} numbers: copy it again")
    words, matrix = [], np.empty((count, width), np.float32)
    for row in range(count):
        stop = content.find(b" ", place)
        if stop < 0 or stop + 1 + 4 * width > len(content):
            raise DataError(f"{path} ends after {row} of {count} words: copy it again")
        # word2vec.c ends each vector with a newline, gensim does not.
        words.append(_decoded(content[place:stop].lstrip(b"\n"), path))
        matrix[row] = np.frombuffer(content, "<f4", width, stop + 1)
        place = stop + 1 + 4 * width
    return words, matrix


def _text(content: bytes, path) -> tuple[list[str], np.ndarray]:
    # Not splitlines: a word may hold what Python takes for the end of a line.
    lines = [line for line in content.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty")
    header = _header(lines[0])
    lines = lines[1:] if header else lines
    if header and header[0] != len(lines):
        raise DataError(f"{path} has {len(lines)} lines of vectors, and its first line says {header[0]}: copy it again")
    width = header[1] if header else len(lines[0].split()) - 1
    words, matrix = [], np.empty((len(lines), width), np.float32)
    for number, (row, line) in enumerate(zip(matrix, lines, strict=True), 2 if header else 1):
        # Words (but without a header the first) may hold spaces, as in GloVe's vectors of Common Crawl: the numbers stand last.
        word, *numbers = line.rstrip().rsplit(b" ", width)
        try:
            row[:] = np.array([float(x) for x in numbers]).reshape(width)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: a word and {width} numbers are meant") from error
        words.append(_decoded(word, path))
    return words, matrix


def _decoded(word: bytes, path) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds a word that is not UTF-8: write it anew with UTF-8") from error


def rows_of(path) -> list[tuple[int, list[str]]]:
    """(number, fields) of the lines of a file with tabs, commas or else spaces between fields; without empty lines and `#` comments."""
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()  # spreadsheets put a mark of byte order first
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8") from error
    kept = [(number, line.strip()) for number, line in zip(itertools.count(1), lines, strict=False)
            if line.strip() and not line.lstrip().startswith("#")]
    separators = [next((mark for mark in ("\t", ",") if mark in line), None) for _, line in kept]
    return [(number, [field.strip() for field in line.split(mark)]) for (number, line), mark in zip(kept, separators, strict=True)]

