"""Text files by lines and paragraphs: byte ranges that can be read on their own, with line numbers for ids and errors.

A line ends at "\\n" or at the end of the file; other separators that Unicode knows stay inside the text.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from lm.errors import DataError

_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line or paragraph: its bytes without the line end, its offset in the file in bytes, its number from 1."""

    value: bytes
    offset: int
    number: int


def is_gzip(path: str) -> bool:
    """True for files that are read through gzip."""
    return path.endswith(".gz")


def _gzip_error(path: str, error: Exception) -> DataError:
    return DataError(f"{path} is not a complete gzip file ({error}): download or compress it again")


def read_file(path: str) -> bytes:
    """A whole file, decompressed. Raises DataError."""
    try:
        with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _gzip_error(path, error) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def decode(value: bytes, path: str, offset: int = 0) -> str:
    """UTF-8 bytes, found at `offset` of `path`, as text; drops a byte order mark at offset 0. Raises DataError."""
    try:
        return (value.removeprefix(_BOM) if offset == 0 else value).decode()
    except UnicodeDecodeError as error:
        at = offset + error.start + (len(_BOM) if offset == 0 and value.startswith(_BOM) else 0)
        encoding = "utf-16" if offset == 0 and value[:2] in (b"\xff\xfe", b"\xfe\xff") else "ENCODING"
        raise DataError(f"{path} is not UTF-8 at byte {at}: convert it with `iconv -f {encoding} -t utf-8`") from error


def parse_json(text: str, where: str):
    """The JSON value in a line. Raises DataError that starts with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{where}: not valid JSON: nested too deeply") from error


def ranges(path: str, size: int, blank: bool) -> list[tuple[int, int, int]]:
    """(start, stop, number of the first line) of byte ranges of about `size` bytes that together are the file.

    Each ends after a line end, or with `blank` after a blank line. A .gz file is one range, (0, -1, 1).
    """
    if is_gzip(path):
        return [(0, -1, 1)]
    found, start, number = [], 0, 1
    try:
        with open(path, "rb") as file:
            while block := file.read(size):
                ends = block.count(b"\n")
                if not block.endswith(b"\n"):
                    ends += file.readline().endswith(b"\n")
                while blank and (line := file.readline()):
                    ends += line.endswith(b"\n")
                    if not line.strip():
                        break
                found.append((start, file.tell(), number))
                start, number = file.tell(), number + ends
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return found


def _raw(path: str, start: int, stop: int, number: int) -> Iterator[Line]:
    """Lines with their line ends."""
    try:
        with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
            file.seek(start)
            while (start < stop or stop < 0) and (value := file.readline()):
                yield Line(value, start, number)
                start += len(value)
                number += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _gzip_error(path, error) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _without_end(value: bytes) -> bytes:
    return value.removesuffix(b"\n").removesuffix(b"\r")


def lines(path: str, start: int, stop: int, number: int) -> Iterator[Line]:
    """The lines of a range, without their line ends ("\\n" or "\\r\\n"); `number` is the number of the first."""
    for line in _raw(path, start, stop, number):
        yield line._replace(value=_without_end(line.value))


def paragraphs(path: str, start: int, stop: int, number: int) -> Iterator[Line]:
    """Runs of lines between blank lines, with their inner line ends; numbered by their first line."""
    held: list[Line] = []
    for line in _raw(path, start, stop, number):
        if line.value.strip():
            held.append(line)
        elif held:
            yield held[0]._replace(value=_without_end(b"".join(each.value for each in held)))
            held = []
    if held:
        yield held[0]._replace(value=_without_end(b"".join(each.value for each in held)))
