"""Token stores: reads equal naive slices, from memory, from disk and from a URL; damage is noticed."""

import subprocess
import sys

import fsspec
import numpy as np
import pytest

from lm import config
from lm.data.prepare import prepare_into
from lm.data.sources import Document, open_source
from lm.data.store import TokenStore, open_splits, token_dtype
from lm.data.tokenizers import ByteTokenizer, load_tokenizer
from lm.errors import ConfigError, DataError

TEXTS = [f"line {i} \u4e2d" * (1 + i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(folder of a small store, its input)."""
    root = tmp_path_factory.mktemp("store")
    (root / "in.txt").write_text("\n".join(TEXTS))
    data = config.default().data
    data.update(source=(f"text:{root}/in.txt",), documents="line", tokenizer="bytes", cache_dir=str(root / "cache"), workers=1,
                validation_fraction=0.3)
    prepare_into(data, 0, str(root / "out"))
    return root / "out", data


@pytest.fixture(params=["memory", "local", "url"])
def store(request, prepared):
    """The training split: (store, its tokens, its documents)."""
    folder, data = prepared
    source = open_source(data.source[0], data)
    documents = list(source.documents())
    local = TokenStore.open(folder / "train")
    kept = [document for document in documents if document.id in {local.document_id(i) for i in range(local.num_documents)}]
    assert 0 < len(kept) < len(documents)
    tokens = np.concatenate([np.append(ByteTokenizer().encode(document.text), 258) for document in kept])
    if request.param == "memory":
        return TokenStore.from_documents(kept, ByteTokenizer()), tokens, kept
    if request.param == "local":
        return local, tokens, kept
    url = "memory://bucket/store"
    fs, path = fsspec.core.url_to_fs(url)
    if not fs.exists(path):
        fs.put(str(folder), path, recursive=True)
    return open_splits(url)["train"], tokens, kept


def test_reads_equal_slices(store):
    opened, tokens, documents = store
    assert (opened.num_tokens, opened.num_documents) == (len(tokens), len(documents))
    np.testing.assert_array_equal(opened.byte_counts, [len(document.text.encode()) for document in documents])
    np.testing.assert_array_equal(np.diff(opened.offsets), opened.byte_counts + 1)
    assert opened.offsets.dtype == opened.byte_counts.dtype == np.int64
    for start, stop in ((0, 0), (0, 1), (5, 300), (len(tokens) - 1, len(tokens)), (0, len(tokens))):
        got = opened.read(start, stop)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, tokens[start:stop])
    starts = np.random.default_rng(0).integers(0, len(tokens) - 17, 50)
    got = opened.read_many(starts, 17)
    assert got.shape == (50, 17) and got.dtype == np.int32
    np.testing.assert_array_equal(got, np.stack([tokens[start:start + 17] for start in starts]))
    assert opened.read_many([], 17).shape == (0, 17)


def test_documents_of_a_range(store):
    opened, tokens, documents = store
    owner = np.repeat(np.arange(len(documents)), np.diff(opened.offsets))
    assert [opened.document_id(i) for i in range(len(documents))] == [document.id for document in documents]
    for start, stop in ((0, 1), (3, 3), (10, 200), (int(opened.offsets[2]), int(opened.offsets[3])), (0, len(tokens))):
        assert opened.documents_in(start, stop) == [documents[i].id for i in np.unique(owner[start:stop])]


def test_reads_outside_are_errors(store):
    opened, tokens, _ = store
    for call in (lambda: opened.read(0, len(tokens) + 1), lambda: opened.read(-1, 1), lambda: opened.read(2, 1),
                 lambda: opened.read_many([0, len(tokens) - 3], 4), lambda: opened.documents_in(0, len(tokens) + 1)):
        with pytest.raises(IndexError, match="outside a store"):
            call()


def test_a_url_store_reads_only_what_is_asked_for(prepared, monkeypatch):
    fs = fsspec.filesystem("memory")
    fs.put(str(prepared[0]), "/counted", recursive=True)
    opened = TokenStore.open("memory://counted/train")
    read = []
    original = type(fs).cat_file
    monkeypatch.setattr(type(fs), "cat_file", lambda self, path, start=None, end=None, **options: (
        read.append((path, start, end)), original(self, path, start, end, **options))[1])
    opened.read_many([7, 100], 10)
    assert read == [("/counted/train/tokens.bin", 14, 34), ("/counted/train/tokens.bin", 200, 220)]


def test_tokenizer_beside_a_url_store(prepared):
    fsspec.filesystem("memory").put(str(prepared[0]), "/beside", recursive=True)
    assert load_tokenizer("memory://beside/tokenizer").fingerprint() == ByteTokenizer().fingerprint()


def test_empty_split_and_empty_documents(prepared):
    empty = open_splits(prepared[0])["test"]
    assert (empty.num_tokens, empty.num_documents, empty.read(0, 0).tolist()) == (0, 0, [])
    with pytest.raises(DataError, match="there are no documents"):
        TokenStore.from_documents([], ByteTokenizer())
    one = TokenStore.from_documents([Document("a", "x")], ByteTokenizer())
    assert one.read(0, 2).tolist() == [120, 258]


def test_large_vocabularies_take_four_bytes():
    assert token_dtype(65536).itemsize == 2 and token_dtype(65537).itemsize == 4
    assert np.array([65535]).astype(token_dtype(65536)).tolist() == [65535]


def damage(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name, change, message", [
    ("manifest.json", lambda value: value[:40], "is not a prepared token store"),
    ("manifest.json", lambda value: value.replace(b'"format": 1', b'"format": 99'), "reads stores of format 1: prepare it again"),
    ("train/tokens.bin", lambda value: value[:-2], "tokens.bin has"),
    ("train/offsets.npy", lambda value: value[:60], "cannot be read"),
    ("train/offsets.npy", lambda value: value[:-8] + b"\1" * 8, "does not match its manifest"),
])
def test_damage_is_noticed(prepared, tmp_path, name, change, message):
    for path in prepared[0].rglob("*.*"):
        target = tmp_path / "s" / path.relative_to(prepared[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    damage(tmp_path / "s", name, change)
    with pytest.raises(DataError, match=message) as caught:
        TokenStore.open(tmp_path / "s" / "train")
    assert "\n" not in str(caught.value)


def test_missing_stores_and_drivers(tmp_path, prepared):
    with pytest.raises(DataError, match="is not a prepared token store"):
        TokenStore.open(tmp_path / "train")
    with pytest.raises(DataError, match="has no split 'dev'"):
        TokenStore.open(prepared[0] / "dev")
    with pytest.raises(DataError, match="memory://nothing is not a prepared token store"):
        TokenStore.open("memory://nothing/train")
    with pytest.raises(ConfigError, match="Protocol not known"):
        TokenStore.open("nowhere://x/train")


def test_importing_and_opening_needs_no_jax(prepared):
    code = ("import sys; from lm.data.store import open_splits; open_splits(sys.argv[1])['train'].read(0, 1);"
            "import lm.data.prepare; bad = {'jax', 'tensorflow', 'sentencepiece', 'pyarrow', 'tensorflow_datasets'} & set(sys.modules);"
            "assert not bad, bad")
    done = subprocess.run([sys.executable, "-c", code, str(prepared[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_manifest_describes_the_store(prepared):
    folder, data = prepared
    again = prepare_into(data, 0, str(folder))
    total = sum(split["bytes"] for split in again["splits"].values())
    assert total == sum(len(text.encode()) for text in TEXTS)
    assert again["tokenizer"]["kind"] == "bytes" and again["options"]["documents"] == "line" and again["directory"] == str(folder)
    assert [(row["name"], row["size"]) for row in again["files"]] == [("in.txt", len("\n".join(TEXTS).encode()))]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "test", "tokenizer", "train", "validation"]
