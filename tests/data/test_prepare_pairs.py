"""Pairs from files to stores: both sides of every pair in the same place, splits by the source, one clear line for bad input."""

import gzip
import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lm import config
from lm.data import shards, sources, splits
from lm.data.prepare import prepare, prepare_into
from lm.data.sources import open_source
from lm.data.store import open_splits
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError, DataError

RNG = random.Random(0)
HAN = "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年"
WORDS = ["".join(RNG.choices("abcdefghijklmnop", k=RNG.randint(2, 6))) for _ in range(60)]
# Some sources come with several targets.
PAIRS = [(f"{i % 90} {' '.join(WORDS[(i % 90) * k % 60] for k in range(5))}", f"{i}\u3000{''.join(RNG.choices(HAN, k=9))}。")
         for i in range(200)]


def options(root, **values):
    data = config.default().data
    data.update({"source": (f"pairs:{root}/in/*.tsv",), "tokenizer": "bytes", "cache_dir": str(root / "cache"), "workers": 1,
                 "validation_fraction": 0.2, "test_fraction": 0.1} | values)
    return data


@pytest.fixture
def corpus(tmp_path):
    """The pairs in three files, with lines that hold none."""
    (tmp_path / "in").mkdir()
    for part in range(3):
        lines = [f"{source}\t{target}\n" for source, target in PAIRS[part::3]]
        (tmp_path / "in" / f"{part}.tsv").write_text("".join(lines) + "\n \n\t\n\tno source\nno target\t \n")
    return tmp_path


def documents(spec, **values):
    data = config.default().data
    data.update(values)
    source = pickle.loads(pickle.dumps(open_source(spec, data)))
    assert source.paired
    return [tuple(document) for shard in source.shards() for document in source.read(shard)]


def texts_of(store, tokenizer):
    return [tokenizer.decode(tokens) for tokens in store.read_documents(np.arange(store.num_documents))]


def pairs_of(prepared, split):
    found = []
    for store in prepared.pair_stores(split):
        assert all(store.source.document_id(i) == store.target.document_id(i) for i in range(store.num_pairs))
        found += zip(texts_of(store.source, prepared.source_tokenizer), texts_of(store.target, prepared.tokenizer), strict=True)
    return found


# Sources.


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_lines_are_pairs_however_the_file_is_cut(tmp_path, monkeypatch, size, suffix):
    monkeypatch.setattr(sources, "SHARD_BYTES", size)
    text = "\ufeffa b\t一二\r\n\nc\t d \textra\n \u2028\t\n  \ne\tf"
    value = text.encode()
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(value) if suffix.endswith(".gz") else value)
    name = f"x{suffix}"
    expected = [(f"{name}:1", "一二", "a b"), (f"{name}:3", " d ", "c"), (f"{name}:6", "f", "e")]
    for spec in (f"{tmp_path}/{name}", f"pairs:{tmp_path}/{name}"):
        assert documents(spec) == expected
        assert documents(spec, pair_columns="1,0") == [(number, source, target) for number, target, source in expected]


def test_records_with_two_fields_are_pairs(tmp_path):
    texts = (("one", "一"), (None, "二"), ("three", " "), ("four", "四"))
    rows = [{"en": source, "zh": target, "n": 1} for source, target in texts]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=3)
    fields = {"source_field": "en", "text_field": "zh"}
    for name, first in (("x.jsonl", 1), ("x.parquet", 0)):
        assert documents(f"{tmp_path}/{name}", **fields) == [(f"{name}:{first}", "一", "one"), (f"{name}:{first + 3}", "四", "four")]
        with pytest.raises(DataError, match=r"'fr'.*set data.source_field"):
            documents(f"{tmp_path}/{name}", source_field="fr", text_field="zh")
        with pytest.raises(DataError, match=r"field 'n' is int, not text: set data.source_field to a field"):
            documents(f"{tmp_path}/{name}", source_field="n", text_field="zh")


def test_fields_may_be_in_fields(tmp_path):
    rows = [{"translation": {"en": "one", "zh": "一"}, "a.b": "plain"}, {"translation": {"en": "two", "zh": None}, "a.b": "x"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name, first in (("x.jsonl", 1), ("x.parquet", 0)):
        fields = {"source_field": "translation.en", "text_field": "translation.zh"}
        assert documents(f"{tmp_path}/{name}", **fields) == [(f"{name}:{first}", "一", "one")]
        with pytest.raises(DataError, match=r"'(translation\.)?fr'.*'(translation\.)?en', '(translation\.)?zh'.*set data.source_field"):
            documents(f"{tmp_path}/{name}", source_field="translation.fr", text_field="translation.zh")
    assert documents(f"{tmp_path}/x.jsonl", source_field="translation.en", text_field="a.b")[0] == ("x.jsonl:1", "plain", "one")


TFDS = """
import sys
import tensorflow_datasets as tfds
from lm import config
from lm.data.sources import open_source
class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(languages=("en", "zh")))
    def _split_generators(self, manager):
        return {"train": ((i, {"en": f"text {i}", "zh": f"\u6587 {i}" if i != 2 else ""}) for i in range(5))}
    def _generate_examples(self):
        raise NotImplementedError
Toy(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
data = config.default().data
data.update(tfds_dir=sys.argv[1], source_field="en", text_field="zh")
source = open_source("tfds:toy:train", data)
found = list(source.documents())
assert source.paired and sorted((d.source, d.text) for d in found) == [(f"text {i}", f"\u6587 {i}") for i in (0, 1, 3, 4)], found
assert "tensorflow" not in sys.modules
"""


def test_tfds_translation_sets_are_pairs(tmp_path):
    (tmp_path / "toy.py").write_text(TFDS)
    done = subprocess.run([sys.executable, tmp_path / "toy.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BAD = [
    (b"a\tb\nno tab\n", {}, DataError, "x.tsv:2: no column 1 (data.pair_columns=0,1); there are 1: write SOURCE, a tab and TARGET"),
    (b"a\tb\n", {"pair_columns": "0,2"}, DataError, "x.tsv:1: no column 2 (data.pair_columns=0,2); there are 2: "),
    (b"a\tb\nc\t\xffd\n", {}, DataError, "x.tsv:2 is not UTF-8 at byte 6: convert it"),
    (b"", {}, DataError, "x.tsv is empty"),
    *((b"a\tb\n", {"pair_columns": value}, ConfigError, f"data.pair_columns={value}: give the columns")
      for value in ("0", "1,1", "1,01", "a,b", "", "0,1,2", "-1,0")),
    (b"a\tb\n", {"source_field": "en"}, ConfigError, "data.source_field=en is for jsonl, parquet and tfds: "),
]


@pytest.mark.parametrize(("value", "values", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_lines_and_options_are_one_line_that_names_the_place(tmp_path, value, values, error, message):
    (tmp_path / "x.tsv").write_bytes(value)
    with pytest.raises(error) as caught:
        documents(f"{tmp_path}/x.tsv", **values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Preparation.


TOKENIZERS = {
    "bytes": {},
    "joint bpe": {"tokenizer": "bpe", "vocab_size": 340},
    "two unigrams": {"joint_tokenizer": False, "tokenizer": "unigram", "vocab_size": 310},
    "bytes to bpe": {"joint_tokenizer": False, "tokenizer": "bpe", "vocab_size": 330, "source_tokenizer": "bytes"},
}


@pytest.mark.parametrize("values", TOKENIZERS.values(), ids=TOKENIZERS)
def test_every_pair_is_in_one_split_and_comes_back(corpus, values, capsys):
    prepared = prepare(options(corpus, **values), 0)
    assert capsys.readouterr().err.endswith(": 9 pairs with an empty side are left out\n")
    found = {split: pairs_of(prepared, split) for split in ("train", "validation", "test")}
    assert sorted([*found["train"], *found["validation"], *found["test"]]) == sorted(PAIRS)
    for split, pairs in found.items():
        # By the source alone: the pairs of one source share a side.
        assert {splits.split_of(source.encode(), splits.Fractions(0.2, 0.1)) for source, _ in pairs} == {split}
    assert prepared.manifests[0]["pairs"]["skipped"] == 9
    assert prepared.manifests[0]["pairs"]["source_tokenizer"] == prepared.source_tokenizer.describe()
    store = prepared.sources[0]["train"]
    assert store.byte_counts.tolist() == [len(target.encode()) for _, target in found["train"]]


def test_one_tokenizer_for_both_sides_or_one_for_each(corpus, monkeypatch):
    seen = []
    monkeypatch.setattr("lm.data.prepare.sample", lambda texts, size, seed: seen.append(sorted(texts)) or seen[-1])
    joint = prepare(options(corpus, tokenizer="bpe", vocab_size=340), 0)
    assert joint.source_tokenizer.fingerprint() == joint.tokenizer.fingerprint()
    apart = prepare(options(corpus, tokenizer="bpe", vocab_size=330, source_vocab_size=300, joint_tokenizer=False), 0)
    assert (apart.tokenizer.vocab_size, apart.source_tokenizer.vocab_size) == (330, 300)
    train = pairs_of(joint, "train")
    targets, texts = sorted(target for _, target in train), sorted(source for source, _ in train)
    assert seen == [sorted(targets + texts), targets, texts]
    assert len({joint.fingerprint, apart.fingerprint, prepare(options(corpus), 0).fingerprint}) == 3
    with pytest.raises(ConfigError, match=r"read with data.joint_tokenizer=false alone"):
        prepare(options(corpus, source_vocab_size=300), 0)


def contents(folder):
    """{name: bytes} of a store, without the times in its manifests."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in ("manifest.json", "source/manifest.json"):
        found[name] = {key: value for key, value in json.loads(found[name]).items() if key not in ("seconds", "tokens_per_second")}
    return found


def test_processes_and_shards_do_not_change_the_result_and_a_stopped_job_goes_on(corpus, monkeypatch):
    values = {"tokenizer": "bpe", "vocab_size": 330, "joint_tokenizer": False, "source_tokenizer": "bytes"}
    prepare_into(options(corpus, **values), 0, corpus / "serial")
    monkeypatch.setattr(sources, "SHARD_BYTES", 1500)
    prepare_into(options(corpus, workers=2, **values), 0, corpus / "parallel")
    original, made = shards.Job.run, []

    def run(self, shard, path):
        made.append(path)
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(self, shard, path)

    monkeypatch.setattr(shards.Job, "run", run)
    with pytest.raises(KeyboardInterrupt):
        prepare_into(options(corpus, **values), 0, corpus / "stopped")
    prepare_into(options(corpus, **values), 0, corpus / "stopped")
    assert len(made) == len(set(made)) + 1  # two were finished before
    assert contents(corpus / "serial") == contents(corpus / "parallel") == contents(corpus / "stopped")


def test_a_prepared_folder_is_two_token_stores_and_is_used_again(corpus, monkeypatch):
    values = {"tokenizer": "bpe", "vocab_size": 330, "joint_tokenizer": False}
    folder = prepare_into(options(corpus, **values), 0, corpus / "out")["directory"]
    fresh = prepare(options(corpus, **values), 0)
    monkeypatch.setattr(shards.Job, "run", None)
    assert prepare(options(corpus, **values), 0).fingerprint == fresh.fingerprint
    stored = prepare(options(corpus, source=(f"store:{folder}",)), 0)
    assert pairs_of(stored, "train") == pairs_of(fresh, "train") and stored.fingerprint == fresh.fingerprint
    assert stored.source_tokenizer.fingerprint() == fresh.source_tokenizer.fingerprint() != fresh.tokenizer.fingerprint()
    # For a language model of one side, each is a store of texts.
    assert texts_of(prepare(options(corpus, source=(f"store:{folder}/source",)), 0).sources[0]["train"], fresh.source_tokenizer) == [
        source for source, _ in pairs_of(fresh, "train")]
    assert texts_of(open_splits(folder)["train"], fresh.tokenizer) == [target for _, target in pairs_of(fresh, "train")]
    with pytest.raises(DataError, match=r"holds another store \(tokenizer differ\)"):
        prepare_into(options(corpus, **values | {"source_vocab_size": 300}), 0, folder)
    with pytest.raises(DataError, match=r"holds another store \(tokenizer, options differ\)"):
        prepare_into(options(corpus, pair_columns="1,0"), 0, folder)


def test_validation_pairs_of_their_own_and_several_sources(corpus):
    (corpus / "dev.tsv").write_text("line 3 of the text\t甲\nnew\t乙\n")
    first, rest = f"pairs:{corpus}/in/0.tsv", f"pairs:{corpus}/in/[12].tsv"
    prepared = prepare(options(corpus, source=(first, rest), validation_source=f"pairs:{corpus}/dev.tsv"), 0)
    assert pairs_of(prepared, "validation") == [("line 3 of the text", "甲"), ("new", "乙")]
    assert sorted(pairs_of(prepared, "train") + pairs_of(prepared, "test")) == sorted(PAIRS)
    assert len(prepared.pair_stores("train")) == 2
    np.testing.assert_allclose(prepared.weights * sum(s["train"].num_tokens for s in prepared.sources),
                               [s["train"].num_tokens for s in prepared.sources])


def test_pairs_and_texts_do_not_mix(corpus):
    (corpus / "text.txt").write_text("".join(f"text {i}\n" for i in range(50)))
    texts, pairs = f"text:{corpus}/text.txt", f"pairs:{corpus}/in/*.tsv"
    for values in ({"source": (pairs, texts)}, {"validation_source": texts}, {"source": (texts,), "validation_source": pairs}):
        with pytest.raises(ConfigError, match=r"pairs:.* holds pairs and text:.* texts: give sources of one kind"):
            prepare(options(corpus, documents="line", **values), 0)
    prepared = prepare(options(corpus, source=(texts,), documents="line"), 0)
    assert prepared.source_tokenizer is None and "pairs" not in prepared.manifests[0]
    with pytest.raises(ConfigError, match=r"pairs are needed: use pairs:FILE, or set data.source_field"):
        prepared.pair_stores("train")
    with pytest.raises(DataError, match="the validation split is empty"):
        prepare(options(corpus, validation_fraction=0.0), 0).pair_stores("validation")


def test_pairs_of_white_space_alone_are_no_documents(corpus):
    (corpus / "blank.tsv").write_text("\ta\n \tb\nc\t\n")
    with pytest.raises(DataError, match="holds no documents"):
        prepare(options(corpus, source=(f"{corpus}/blank.tsv",)), 0)


def test_a_trained_tokenizer_keeps_chinese_it_has_never_seen(corpus):
    rare = "龘靐齉\U00020000 「鑫」\uff0c繁體字與简体字 \u3000全角\uff21\uff22\uff23"
    for name in ("joint bpe", "two unigrams"):
        prepared = prepare(options(corpus, **TOKENIZERS[name]), 0)
        for tokenizer in (prepared.tokenizer, prepared.source_tokenizer):
            assert tokenizer.decode(tokenizer.encode(rare)) == rare
        known = "人我在有他这中大。"
        assert len(prepared.tokenizer.encode(known)) <= len(known) < len(ByteTokenizer().encode(known))
