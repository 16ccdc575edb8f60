"""Preparation: splits, fingerprints, any number of workers give one result; every refusal is one clear line."""

import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from lm.data import files, shards, sources, splits
from lm.data.prepare import prepare, prepare_into
from lm.errors import ConfigError, DataError
from tests.data.text_stores import TEXTS, contents, options, write_texts

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "prepare.py"


@pytest.fixture
def corpus(tmp_path):
    """TEXTS in files, in a folder of its own."""
    write_texts(tmp_path)
    return tmp_path


def texts_of(prepared, split):
    return [prepared.tokenizer.decode(store.read(int(a), int(b))) for store in prepared.split_stores(split)
            for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


def test_every_document_is_in_one_split(corpus):
    prepared = prepare(options(corpus), 0)
    found = {split: texts_of(prepared, split) for split in ("train", "validation", "test")}
    assert sorted(found["train"] + found["validation"] + found["test"]) == sorted(TEXTS)
    assert 35 <= len(found["validation"]) <= 85 and 12 <= len(found["test"]) <= 50
    assert found["train"] == [text for part in range(3) for text in TEXTS[part::3] if text in set(found["train"])]
    store = prepared.sources[0]["train"]
    assert [store.document_id(0), store.byte_counts[0]] == [f"0.txt:{TEXTS[0::3].index(found['train'][0]) + 1}", len(found["train"][0])]


def test_splits_do_not_depend_on_files_or_order_and_keep_duplicates_together(corpus, tmp_path):
    before = prepare(options(corpus), 0)
    other = tmp_path / "other"
    (other / "in").mkdir(parents=True)
    shuffled = TEXTS * 2
    random.Random(1).shuffle(shuffled)
    (other / "in" / "all.txt").write_text("\n".join(shuffled))
    after = prepare(options(other), 7)
    for split in ("train", "validation", "test"):
        assert sorted(texts_of(after, split)) == sorted(texts_of(before, split) * 2)


def test_split_of_is_pinned():
    """Changing the hash would move documents between the splits of every store ever made."""
    fractions = splits.Fractions(0.3, 0.3)
    assert [splits.split_of(f"{i}".encode(), fractions) for i in range(8)] == [
        "validation", "test", "test", "validation", "test", "test", "test", "test"]
    shares = [splits.split_of(f"{i}".encode(), fractions) for i in range(4000)]
    assert abs(shares.count("validation") - 1200) < 120 and abs(shares.count("test") - 1200) < 120


def test_sample_is_drawn_by_hash():
    texts = [f"{i} \u4e2d" * 5 for i in range(100)]
    total = sum(len(text.encode()) for text in texts)
    assert splits.sample(texts, total, 0) == splits.sample(texts[::-1], total + 5, 1) and len(splits.sample(texts, total, 0)) == 100
    for size in (1, 2, 3, 50, 777, 778, 779):
        drawn = splits.sample(texts, size, 0)
        assert drawn == splits.sample(texts[::-1], size, 0)
        used = sum(len(text.encode()) for text in drawn)
        assert size - 3 < used <= size
        assert sum(text not in texts for text in drawn) <= 1
    assert splits.sample(texts, 700, 0) != splits.sample(texts, 700, 1)
    assert splits.sample(["\u4e2d" * 100, "b"], 10, 3) in (["\u4e2d" * 3], ["b", "\u4e2d" * 3], ["\u4e2d" * 3, "b"])


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_processes_and_shard_sizes_do_not_change_the_result(corpus, monkeypatch, tokenizer):
    options_ = {"tokenizer": tokenizer, "vocab_size": 290}
    prepare_into(options(corpus, **options_), 0, corpus / "serial")
    monkeypatch.setattr(sources, "SHARD_BYTES", 700)
    prepare_into(options(corpus, workers=2, cache_dir=str(corpus / "cache2"), **options_), 0, corpus / "parallel")
    prepare_into(options(corpus, cache_dir=str(corpus / "cache3"), **options_), 0, corpus / "small")
    assert contents(corpus / "serial") == contents(corpus / "parallel") == contents(corpus / "small")


def test_fingerprint_follows_content_and_options(corpus):
    prints = [prepare(options(corpus), 0).fingerprint]
    for values in ({"documents": "paragraph"}, {"validation_fraction": 0.25}, {"test_fraction": 0.2},
                   {"tokenizer": "bpe", "vocab_size": 290}, {"tokenizer": "bpe", "vocab_size": 291}):
        prints.append(prepare(options(corpus, **values), 0).fingerprint)
    path = corpus / "in" / "1.txt"
    os.utime(path)
    assert prepare(options(corpus), 0).fingerprint == prints[0]
    assert prepare(options(corpus, workers=2, cache_dir=str(corpus / "elsewhere")), 5).fingerprint == prints[0]
    value = path.read_bytes()
    path.write_bytes(value[:-2] + b"~\n")
    prints.append(prepare(options(corpus), 0).fingerprint)
    path.write_bytes(value)
    path.rename(corpus / "in" / "1b.txt")
    prints.append(prepare(options(corpus), 0).fingerprint)
    assert len(set(prints)) == len(prints)


def test_contents_are_hashed_again_only_when_a_file_changed(corpus, monkeypatch):
    paths = sorted((corpus / "in").glob("*.txt"))
    for path in paths:
        os.utime(path, (1e9, 1e9))
    read = []
    original = files._file_digest
    monkeypatch.setattr(files, "_file_digest", lambda path: (read.append(pathlib.Path(path).name), original(path))[1])
    first = files.hash_files(paths, corpus / "cache")
    assert files.hash_files(paths, corpus / "cache") == first and read == ["0.txt", "1.txt", "2.txt"]
    paths[1].write_text("new")
    again = files.hash_files(paths, corpus / "cache")
    assert again[1] != first[1] and read[3:] == ["1.txt"]
    # Just changed: another change could leave size and time as they are, so it is not remembered yet.
    assert files.hash_files(paths, corpus / "cache") == again and read[4:] == ["1.txt"]


def test_reuse_does_not_tokenize(corpus, monkeypatch):
    first = prepare(options(corpus, tokenizer="bpe", vocab_size=290), 0)
    monkeypatch.setattr(shards.Job, "run", None)
    monkeypatch.setattr("lm.data.prepare.train_tokenizer", None)
    assert prepare(options(corpus, tokenizer="bpe", vocab_size=290), 0).fingerprint == first.fingerprint


def test_another_store_is_never_overwritten(corpus):
    out = corpus / "out"
    first = prepare_into(options(corpus), 0, out)
    assert prepare_into(options(corpus), 0, out) == first
    for values, what in (({"validation_fraction": 0.1}, "options"), ({"tokenizer": "bpe", "vocab_size": 290}, "tokenizer")):
        with pytest.raises(DataError, match=rf"holds another store \({what} differ\): give another --out, or delete it"):
            prepare_into(options(corpus, **values), 0, out)
    (corpus / "in" / "0.txt").write_text("changed\n" * 3)
    with pytest.raises(DataError, match=r"\(source files differ\)"):
        prepare_into(options(corpus), 0, out)
    with pytest.raises(DataError, match="is there and is not a token store"):
        prepare_into(options(corpus), 0, corpus / "in")


def test_several_sources_weights_and_names(corpus):
    (corpus / "b.jsonl").write_text("".join(json.dumps({"text": text * 3}) + "\n" for text in TEXTS))
    both = (f"text:{corpus}/in/*.txt", f"{corpus}/b.jsonl")
    prepared = prepare(options(corpus, source=both), 0)
    tokens = [source["train"].num_tokens for source in prepared.sources]
    np.testing.assert_allclose(prepared.weights, np.array(tokens) / sum(tokens))
    assert len(set(prepared.names)) == 2 and [manifest["source"] for manifest in prepared.manifests] == list(both)
    assert len(prepared.split_stores("train")) == len(prepared.split_stores("validation")) == 2
    np.testing.assert_allclose(prepare(options(corpus, source=both, weights=(3.0, 1.0)), 0).weights, [0.75, 0.25])
    for weights in ((1.0,), (-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ConfigError, match=r"data.weights"):
            prepare(options(corpus, source=both, weights=weights), 0)
    same = prepare(options(corpus, source=(both[0], both[0])), 0)
    assert len(set(same.names)) == 2


def test_validation_source_is_the_whole_validation_split(corpus):
    (corpus / "dev.txt").write_text("held out one\n" + TEXTS[3] + "\n")
    prepared = prepare(options(corpus, validation_source=f"text:{corpus}/dev.txt"), 0)
    assert texts_of(prepared, "validation") == ["held out one", TEXTS[3]]
    assert sorted(texts_of(prepared, "train") + texts_of(prepared, "test")) == sorted(TEXTS)
    store = prepare_into(options(corpus, source=(f"text:{corpus}/dev.txt",), validation_fraction=0.0), 0, corpus / "dev")
    again = prepare(options(corpus, validation_source=f"store:{store['directory']}"), 0)
    assert sorted(texts_of(again, "validation")) == sorted(["held out one", TEXTS[3]])
    assert again.fingerprint != prepared.fingerprint


def test_store_sources_bring_their_tokenizer(corpus):
    prepare_into(options(corpus, tokenizer="bpe", vocab_size=290), 0, corpus / "a")
    prepare_into(options(corpus), 0, corpus / "b")
    mixed = prepare(options(corpus, source=(f"store:{corpus}/a", f"text:{corpus}/in/0.txt"), tokenizer="bytes"), 0)
    assert mixed.tokenizer.vocab_size == 290 and mixed.manifests[1]["tokenizer"] == mixed.manifests[0]["tokenizer"]
    with pytest.raises(ConfigError, match="different tokenizers: prepare both with the same one"):
        prepare(options(corpus, source=(f"store:{corpus}/a", f"store:{corpus}/b")), 0)
    with pytest.raises(DataError, match="does not exist"):
        prepare(options(corpus, source=(f"store:{corpus}/nothing",)), 0)


def test_tokenizer_learns_from_training_documents_only(corpus, monkeypatch):
    seen = []
    monkeypatch.setattr("lm.data.prepare.sample", lambda texts, size, seed: seen.extend(texts) or seen)
    prepared = prepare(options(corpus, tokenizer="bpe", vocab_size=290), 0)
    assert sorted(seen) == sorted(texts_of(prepared, "train")) and len(seen) < len(TEXTS)


def test_seed_matters_only_where_the_text_is_sampled(corpus):
    def fingerprint(seed, size):
        return prepare(options(corpus, tokenizer="bpe", vocab_size=290, tokenizer_sample_bytes=size), seed).tokenizer.fingerprint()

    assert fingerprint(0, 10**6) == fingerprint(1, 10**6)
    assert fingerprint(0, 400) != fingerprint(1, 400)


def test_what_cannot_be_used_is_one_line(corpus, monkeypatch):
    blank = corpus / "blank.txt"
    blank.write_text(" \n\n")
    one = corpus / "one.txt"
    one.write_text("a single document")
    for values, error, message in (
            ({"source": (f"text:{blank}",)}, DataError, "holds no documents: give text that is more than white space"),
            ({"source": (f"text:{blank}",), "tokenizer": "bpe"}, DataError, "no text to train a tokenizer on"),
            ({"tokenizer": "bpe", "vocab_size": 9000}, DataError, "vocab_size=9000 is more than this text supports"),
            ({"tokenizer": "gpt2"}, ConfigError, "use bpe, unigram, bytebpe, wordpiece, words, bytes, or a path: of a SentencePiece"),
            ({"source": ()}, ConfigError, "data.source is empty"),
            ({"cache_dir": "gs://bucket/x"}, ConfigError, "the cache must be a local folder")):
        with pytest.raises(error, match=message) as caught:
            prepare(options(corpus, **values), 0)
        assert "\n" not in str(caught.value)
    prepared = prepare(options(corpus, source=(f"text:{one}",), validation_fraction=0.0, test_fraction=0.0), 0)
    with pytest.raises(DataError, match=r"the validation split is empty: use data\.documents=line or paragraph, a larger "
                                        r"data\.validation_fraction, or data.validation_source"):
        prepared.split_stores("validation")
    monkeypatch.setattr(splits, "_uniform", lambda *_: 0.0)
    with pytest.raises(DataError, match="has no training documents"):
        prepare(options(corpus, source=(f"text:{one}",)), 0)


def test_bad_input_in_a_worker_is_the_same_line(corpus, monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 700)
    with open(corpus / "in" / "2.txt", "ab") as file:
        file.write(b"\xff\n")
    with pytest.raises(DataError, match=r"2.txt is not UTF-8 at byte \d+"):
        prepare(options(corpus, workers=2), 0)


def run_script(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_script(corpus):
    common = (f"--input={corpus}/in/*.txt", f"--out={corpus}/out", "--documents=line", f"--cache_dir={corpus}/cache", "--workers=1")
    code, out, err = run_script(*common, "--tokenizer=bpe", "--vocab_size=290")
    assert code == 0, err
    manifest = json.loads(out.splitlines()[-1])
    assert manifest["directory"] == f"{corpus}/out" and manifest["tokenizer"]["vocab_size"] == 290 and "1 of 1 shards" in err
    code, _, err = run_script(*common, "--tokenizer=bytes")
    assert code == 1 and err == f"error: {corpus}/out holds another store (tokenizer differ): give another --out, or delete it\n"
    for arguments in ((), ("--input=x.txt",), (*common, "--nonsense=1"), (*common, "--vocab_size=many")):
        code, out, err = run_script(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")
    file = corpus / "c.py"
    file.write_text("from lm import config\ndef get_config():\n    c = config.default()\n    c.data.tokenizer = 'bytes'\n    return c\n")
    code, out, err = run_script(f"--config={file}", f"--config.data.source={corpus}/in/0.txt,{corpus}/in/1.txt",
                                "--config.data.documents=line", f"--config.data.cache_dir={corpus}/cache")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert [store["files"][0]["name"] for store in result["stores"]] == ["0.txt", "1.txt"]
