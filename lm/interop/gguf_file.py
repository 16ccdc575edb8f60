"""GGUF files, the format of llama.cpp: their metadata, and their tensors one at a time.

The layout is that of ggml's docs/gguf.md, versions 2 and 3, little endian. Blocks are dequantised by the package gguf. The header is read
here, because gguf's own reader keeps some kilobytes of objects for each token of a vocabulary and takes a cut file for a whole one.
"""

import os
import pathlib
import struct
from typing import NamedTuple

import ml_dtypes
import numpy as np

from lm.errors import DataError

_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")))
_STRING, _ARRAY = 8, 9
_MOST_NESTED = 4  # arrays in arrays; a file cannot make the reader recurse for ever
_PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


class Stored(NamedTuple):
    """Where a tensor lies: its shape [rows, columns], ggml's name of its type, first byte and number of bytes."""

    shape: tuple[int, ...]
    kind: str
    start: int
    size: int


class Gguf(NamedTuple):
    """A file's metadata and its tensors by llama.cpp's names."""

    path: pathlib.Path
    metadata: dict[str, object]
    stored: dict[str, Stored]


def read_gguf(path) -> Gguf:
    """The header of a GGUF file; no weights are read. Raises DataError where the file is foreign, cut or damaged."""
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            return _read_header(path, _Bytes(path, file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


class _Bytes:
    """Values one after the other from a file; DataError where it ends too early."""

    def __init__(self, path, file, size: int):
        self.path, self.file, self.size = path, file, size

    def take(self, count: int) -> bytes:
        left = self.size - self.file.tell()
        if count > left:
            raise DataError(f"{self.path} ends in its header ({self.size:,} bytes): it is cut or damaged, copy it again")
        return self.file.read(count)

    def number(self, code: str):
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.decode(self.take(self.number("Q")))

    def decode(self, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} holds a string that is not UTF-8 ({value[:20]!r}): it is damaged, copy it again") from error

    def value(self, kind: int, depth: int = 0):
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < _MOST_NESTED:
            item, count = self.number("I"), self.number("Q")
            if code := _SCALARS.get(item):
                return np.frombuffer(self.take(count * struct.calcsize(f"<{code}")), f"<{code}").tolist()
            # A string or an array takes at least 8 bytes, so a wrong count ends the file, never the memory.
            return [self.value(item, depth + 1) for _ in range(count)]
        if code := _SCALARS.get(kind):
            return self.number(code)
        raise DataError(f"{self.path} holds a value of unknown type {kind}: it is damaged, copy it again")


def _read_header(path, file: _Bytes) -> Gguf:
    if file.size < 4 or file.take(4) != b"GGUF":
        raise DataError(f"{path} is not a GGUF file (it does not begin with 'GGUF')")
    version = file.number("I")
    if version not in (2, 3):
        raise DataError(f"{path} has GGUF version {version if version < 1 << 16 else 'of a big-endian machine'}, but 2 and 3 little-endian "
                        "can be read: convert it again with llama.cpp")
    tensors, keys = file.number("Q"), file.number("Q")
    metadata = {}
    for _ in range(keys):
        key = file.text()
        metadata[key] = file.value(file.number("I"))
    if metadata.get("split.count", 1) > 1:
        raise DataError(f"{path} is one of {metadata['split.count']} parts: join them with llama-gguf-split --merge")
    infos = {}
    for _ in range(tensors):
        if (name := file.text()) in infos:
            raise DataError(f"{path} has the tensor {name} twice: it is damaged, copy it again")
        shape = tuple(file.number("Q") for _ in range(file.number("I")))[::-1]
        infos[name] = shape, file.number("I"), file.number("Q")
    align = metadata.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1:
        raise DataError(f"{path} has general.alignment={align!r}: it is damaged, copy it again")
    start = -(-file.file.tell() // align) * align
    return Gguf(path, metadata, {name: _stored(file, name, *info, start) for name, info in infos.items()})


def _stored(file: _Bytes, name: str, shape: tuple[int, ...], number: int, offset: int, start: int) -> Stored:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(number) if number in set(GGMLQuantizationType) else None
    if kind is None or kind.name not in (*_PLAIN, *QUANTISED):
        raise DataError(f"{file.path}: tensor {name} has type {kind.name if kind else number}, but only {', '.join((*_PLAIN, *QUANTISED))} "
                        "can be read: quantise the model to one of these")
    block, size = GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block:
        raise DataError(f"{file.path}: tensor {name} is {list(shape)}, not whole {kind.name} blocks of {block}: it is damaged")
    stored = Stored(shape, kind.name, start + offset, int(np.prod(shape, dtype=object)) // block * size)
    if stored.start + stored.size > file.size:
        raise DataError(f"{file.path} has {file.size:,} bytes, but tensor {name} ends at byte {stored.start + stored.size:,}: "
                        "it is cut, copy it again")
    return stored


def read_tensor(file: Gguf, name: str) -> np.ndarray:
    """The tensor `name` (llama.cpp's) in its stored dtype, or in float32 where it is quantised."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    shape, kind, start, size = file.stored[name]
    with open(file.path, "rb") as handle:
        handle.seek(start)
        data = np.frombuffer(handle.read(size), np.uint8)
    if data.size != size:
        raise DataError(f"{file.path} changed while it was read: import it again")
    if kind in _PLAIN:
        return data.view(_PLAIN[kind]).reshape(shape)
    return dequantize(data.reshape(*shape[:-1], -1), GGMLQuantizationType[kind])
