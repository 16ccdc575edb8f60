"""Runs out to the form of transformers and in again, without that library: what goes along, what is refused, what is left of a failure."""

import json

import jax
import numpy as np
import pytest

from lm import config as configs
from lm import run
from lm.checkpoint import Checkpoints
from lm.data.tokenizers import ByteTokenizer, train_tokenizer
from lm.errors import ConfigError, DataError
from lm.interop import convert
from lm.interop.checkpoint_files import open_tensors, write_tensors

TEXTS = ["the union of states is strong and the state of the union is good " * 4, "peace and order for all people of the union\n" * 5]


def make_run(workdir, tokenizer, **model):
    """A run at step 0 with random weights."""
    config = configs.default()
    config.model.update({"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "activation": "swiglu"} | model)
    config.data.context = 32
    config = configs.validate(config)
    run.write(workdir, config, config, tokenizer, None, None)
    params = run.open_run(workdir).model.init(jax.random.key(0))
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(0, {"params": params}, {"tokens": 0, "seconds": 0.0, "skipped": 0})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def pieces():
    """A small SentencePiece model."""
    return train_tokenizer(TEXTS, "bpe", 300)


@pytest.fixture(scope="module")
def out(tmp_path_factory, pieces):
    """(a run, the folder that it went out to)."""
    folder = tmp_path_factory.mktemp("convert")
    result = convert.export_run(make_run(folder / "run", pieces), folder / "out")
    assert result["family"] == "llama" and result["dtype"] == "float32"
    return folder / "run", folder / "out"


def test_a_run_comes_back_with_its_weights_and_its_tokens(out, tmp_path):
    workdir, folder = out
    convert.import_run(folder, tmp_path / "run")
    ours, back = run.open_run(workdir), run.open_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, ours.parameters()[0], back.parameters()[0])
    for text in TEXTS:
        np.testing.assert_array_equal(ours.tokenizer.encode(text), back.tokenizer.encode(text))
    assert (ours.tokenizer.bos_id, ours.tokenizer.eos_id) == (back.tokenizer.bos_id, back.tokenizer.eos_id)
    convert.export_run(tmp_path / "run", tmp_path / "again")
    first, again = open_tensors(folder), open_tensors(tmp_path / "again")
    assert set(first) == set(again) and all(first[name].tobytes() == again[name].tobytes() for name in first)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    described = json.loads((tmp_path / "again" / "config.json").read_text())
    assert described["dtype"] == described["torch_dtype"] == "float32" and described["eos_token_id"] == ours.tokenizer.eos_id


def test_types_and_shards_are_as_asked(out, tmp_path):
    convert.export_run(out[0], tmp_path / "half", dtype="bfloat16", shard_bytes=5_000)
    half, whole = open_tensors(tmp_path / "half"), open_tensors(out[1])
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    for name in whole:
        np.testing.assert_array_equal(half[name], whole[name].astype(half[name].dtype))
        assert half[name].dtype.name == "bfloat16"
    convert.import_run(tmp_path / "half", tmp_path / "run")
    convert.export_run(tmp_path / "run", tmp_path / "again")  # in the type in which it came
    again = open_tensors(tmp_path / "again")
    assert all(again[name].tobytes() == half[name].tobytes() for name in half)


def test_a_tensor_that_repeats_another_goes_out_again(out, tmp_path):
    description = json.loads((out[1] / "config.json").read_text())
    assert description["tie_word_embeddings"]
    named = dict(open_tensors(out[1]).items())
    named["lm_head.weight"] = named["model.embed_tokens.weight"]
    source = tmp_path / "source"
    source.mkdir()
    for path in out[1].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    write_tensors(source, named.items())
    convert.import_run(source, tmp_path / "run")
    convert.export_run(tmp_path / "run", tmp_path / "again")
    assert set(open_tensors(tmp_path / "again")) == set(named)
    write_tensors(source, (named | {"lm_head.weight": named["lm_head.weight"] + 1}).items())
    with pytest.raises(DataError, match=r"differ, and config.json says that they are one"):
        convert.import_run(source, tmp_path / "other")


def test_the_tokenizer_of_the_run_goes_out_not_the_one_that_came(out, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in out[1].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    convert.import_run(source, tmp_path / "run", tokenizer=ByteTokenizer())
    convert.export_run(tmp_path / "run", tmp_path / "again")
    convert.import_run(tmp_path / "again", tmp_path / "back")
    tokenizer = run.open_run(tmp_path / "back").tokenizer
    assert tokenizer.vocab_size == ByteTokenizer.vocab_size and tokenizer.encode("ab").tolist() == [97, 98]


def test_a_model_that_was_changed_here_goes_out_as_it_is(out, tmp_path):
    convert.import_run(out[1], tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text())
    stored["config"]["model"]["rope_base"] = 5e5
    file.write_text(json.dumps(stored))
    convert.export_run(tmp_path / "run", tmp_path / "again")
    described = json.loads((tmp_path / "again" / "config.json").read_text())
    assert described["rope_theta"] == 5e5


def test_nothing_is_left_of_what_went_wrong(out, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "write_tokenizer", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.export_run(out[0], tmp_path / "folder")
    monkeypatch.setattr(run, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.import_run(out[1], tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_full_folders_and_models_without_counterpart_are_refused(out, tmp_path, pieces):
    with pytest.raises(ConfigError, match="is not empty: give --workdir a new folder"):
        convert.import_run(out[1], out[0])
    with pytest.raises(ConfigError, match="is not empty: give --to a new folder"):
        convert.export_run(out[0], out[1])
    with pytest.raises(ConfigError, match=r"no family of the transformers library holds this model.*model\.positions='sinusoidal'"):
        convert.export_run(make_run(tmp_path / "run", pieces, positions="sinusoidal"), tmp_path / "folder")


def test_an_imported_run_is_evaluated_in_its_own_tokens_wherever_it_lies(out, tmp_path, monkeypatch):
    convert.import_run(out[1], tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{TEXTS[0]}{i}\n" for i in range(40)))
    file = tmp_path / "moved" / "config.json"
    stored = json.loads(file.read_text())
    stored["config"]["data"] |= {"source": [f"text:{text}"], "documents": "line", "validation_fraction": 0.3}
    file.write_text(json.dumps(stored))
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    prepared = run.open_run(tmp_path / "moved").prepare()
    assert prepared.tokenizer.vocab_size == 300
