"""Weights that are cut, incomplete or of another kind, through scripts/convert.py: one clear line, its exit code, and nothing written."""

import importlib.util
import json
import shutil
import struct
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from lm import cli
from lm.data.tokenizers import ByteTokenizer
from lm.interop.tokenizers import write_tokenizer
from tests.interop import gguf_files

WIDTH, HEADS, HIDDEN, LAYERS, ROWS = 16, 2, 24, 2, ByteTokenizer.vocab_size
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": ROWS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "intermediate_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False}


def tensors():
    """A tiny Llama's."""
    draw = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (ROWS, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in {
            **{f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"}, "mlp.gate_proj": (HIDDEN, WIDTH),
            "mlp.up_proj": (HIDDEN, WIDTH), "mlp.down_proj": (WIDTH, HIDDEN),
            "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}.items()}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as transformers would save it."""
    folder = tmp_path_factory.mktemp("model")
    save_file(tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(ByteTokenizer(), folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(whole, tmp_path / "model")


def convert(monkeypatch, capsys, *arguments):
    """(exit code, lines of standard error) of scripts/convert.py, in this process."""
    spec = importlib.util.spec_from_file_location("convert_script", "scripts/convert.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    for module, name in ((sys, "unraisablehook"), (warnings, "formatwarning")):
        monkeypatch.setattr(module, name, getattr(module, name))  # which cli.run replaces for its process
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main)
    return ended.value.code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]


def refused(monkeypatch, capsys, source, code, words, *more):
    """One line with these words, that exit code, and no work directory."""
    workdir = source.parent / "run"
    got, lines = convert(monkeypatch, capsys, "import", f"--from={source}", f"--workdir={workdir}", *more)
    assert (got, len(lines)) == (code, 1), lines
    for word in [words] if isinstance(words, str) else words:
        assert word in lines[0], lines[0]
    assert not workdir.exists() and not list(source.parent.glob("*run*"))


def test_the_whole_model_comes_in_and_goes_out(monkeypatch, capsys, folder):
    workdir, out = folder.parent / "run", folder.parent / "out"
    assert convert(monkeypatch, capsys, "import", f"--from={folder}", f"--workdir={workdir}") == (0, [])
    assert convert(monkeypatch, capsys, "export", f"--workdir={workdir}", f"--to={out}") == (0, [])
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode  # for whoever may read the one


@pytest.mark.parametrize("left", [0, 4, 100, 5000, -1])
def test_a_cut_file(monkeypatch, capsys, folder, left):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    refused(monkeypatch, capsys, folder, 1, ["model.safetensors is not a whole safetensors file", "fetch it again"])


def test_a_pointer_in_place_of_a_file(monkeypatch, capsys, folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(monkeypatch, capsys, folder, 1, "model.safetensors is not a whole safetensors file")


def test_a_tensor_is_missing(monkeypatch, capsys, folder):
    values = tensors()
    del values["model.layers.1.mlp.up_proj.weight"]
    save_file(values, folder / "model.safetensors")
    refused(monkeypatch, capsys, folder, 1, "there is no tensor model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "score.weight"])
def test_a_tensor_more(monkeypatch, capsys, folder, name):
    save_file(tensors() | {name: np.ones(WIDTH, np.float32)}, folder / "model.safetensors")
    refused(monkeypatch, capsys, folder, 1, [f"tensor {name} (of 1 such) has no place in this model"])


def test_a_tensor_of_another_shape(monkeypatch, capsys, folder):
    save_file(tensors() | {"model.norm.weight": np.ones(WIDTH + 1, np.float32)}, folder / "model.safetensors")
    refused(monkeypatch, capsys, folder, 1, ["tensor model.norm.weight makes an array (17,), but (16,) is meant"])


def test_tied_tensors_that_differ(monkeypatch, capsys, folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    refused(monkeypatch, capsys, folder, 1, ["lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings"])


def raw_tensor(kind, size, name, shape):
    """A safetensors file of one tensor of any type."""
    header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.mark.parametrize(("kind", "width"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("I64", 8), ("U8", 1), ("F64", 8)])
def test_a_type_that_is_not_taken(monkeypatch, capsys, folder, kind, width):
    """All other tensors are whole, in a shard of their own."""
    name, values = "model.norm.weight", tensors()
    del values[name]
    shards(folder, {"a.safetensors": values})
    (folder / "b.safetensors").write_bytes(raw_tensor(kind, WIDTH * width, name, [WIDTH]))
    index(folder, dict.fromkeys(values, "a.safetensors") | {name: "b.safetensors"})
    refused(monkeypatch, capsys, folder, 1, [f"tensor {name}", "only float32, float16 and bfloat16 can be read"])


def shards(folder, files):
    """Several files in place of the one."""
    (folder / "model.safetensors").unlink()
    for name, values in files.items():
        save_file(values, folder / name)


def index(folder, where):
    """Says which tensor is in which file."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def two_shards(folder):
    """{tensor: file} of the model in two files."""
    values = tensors()
    names = sorted(values)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    shards(folder, {file: {name: values[name] for name in its} for file, its in files.items()})
    return {name: file for file, its in files.items() for name in its}


def test_two_shards_come_in(monkeypatch, capsys, folder):
    index(folder, two_shards(folder))
    code, lines = convert(monkeypatch, capsys, "import", f"--from={folder}", f"--workdir={folder.parent / 'run'}")
    assert (code, lines) == (0, [])


def test_a_shard_that_is_not_there(monkeypatch, capsys, folder):
    index(folder, two_shards(folder))
    (folder / "b.safetensors").unlink()
    refused(monkeypatch, capsys, folder, 1, ["names b.safetensors, which is not there"])


@pytest.mark.parametrize("lie", ["swapped", "one less", "one more"])
def test_an_index_that_lies(monkeypatch, capsys, folder, lie):
    where = two_shards(folder)
    if lie == "swapped":
        where["model.norm.weight"] = "b.safetensors" if where["model.norm.weight"] == "a.safetensors" else "a.safetensors"
    elif lie == "one less":
        del where["model.norm.weight"]
    else:
        where["model.other.weight"] = "a.safetensors"
    index(folder, where)
    words = {"swapped": ["do not belong together", "model.norm.weight"], "one more": ["do not belong together", "model.other.weight"],
             "one less": ["there is no tensor model.norm.weight"]}  # what an index does not name is not there
    refused(monkeypatch, capsys, folder, 1, words[lie])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"x": 3}}'])
def test_an_index_that_is_none(monkeypatch, capsys, folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    refused(monkeypatch, capsys, folder, 1, "is not an index of safetensors files")


def test_an_index_cannot_lead_out_of_its_folder(monkeypatch, capsys, folder):
    where = two_shards(folder)
    (folder / "b.safetensors").rename(folder.parent / "b.safetensors")
    index(folder, {name: f"../{file}" if file == "b.safetensors" else file for name, file in where.items()})
    refused(monkeypatch, capsys, folder, 1, "names b.safetensors, which is not there")


@pytest.mark.parametrize(("entries", "words"), [
    ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, ["rope_type='spiral'", "only"]),
    ({"rope_parameters": None, "rope_scaling": {"type": "spiral", "factor": 2.0}}, ["rope_type='spiral'", "only"]),
    ({"hidden_act": "swishy"}, ["hidden_act='swishy'", "only"]),
    ({"model_type": "gemma"}, ["model_type='gemma'", "llama"]),
    ({"model_type": None}, "model_type=None"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ({"num_hidden_layers": "two"}, "num_hidden_layers='two'"),
    ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
    ({"vocab_size": ROWS + 1}, ["model.embed_tokens.weight", "(260, 16)"]),
    ({"num_hidden_layers": 3}, "there is no tensor model.layers.2."),
    ({"num_hidden_layers": 1}, "tensor model.layers.1.input_layernorm.weight (of 9 such) has no place"),
    ({"a_new_entry": 7}, "a_new_entry"),
])
def test_a_config_of_another_model(monkeypatch, capsys, folder, entries, words):
    (folder / "config.json").write_text(json.dumps(CONFIG | entries))
    tensors_are_wrong = any("tensor" in word for word in ([words] if isinstance(words, str) else words))
    refused(monkeypatch, capsys, folder, 1 if tensors_are_wrong or "vocab_size" in entries else 2, words)


@pytest.mark.parametrize(("text", "words"), [(None, "there is no config.json"), ("{", "is not JSON"), ("[1]", "is no JSON object")])
def test_no_config(monkeypatch, capsys, folder, text, words):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    refused(monkeypatch, capsys, folder, 1, words)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows(monkeypatch, capsys, folder):
    values = tensors()
    small = {name: values[name][:200] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(values | small, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 200}))
    refused(monkeypatch, capsys, folder, 2, ["259", "200", "tokenizer"])


def test_no_tokenizer(monkeypatch, capsys, folder):
    for path in folder.glob("*token*"):
        path.unlink()
    save_file({name: np.resize(value, (ROWS + 5, WIDTH)) if value.shape == (ROWS, WIDTH) else value for name, value in tensors().items()},
              folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": ROWS + 5}))
    refused(monkeypatch, capsys, folder, 2, ["has no tokenizer", "--tokenizer"])


def test_a_tokenizer_is_the_file_that_was_named(monkeypatch, capsys, folder):
    place, named = folder.parent / "tok", folder.parent / "tok" / "my.json"
    place.mkdir()
    described = json.loads((folder / "tokenizer.json").read_text())
    named.write_text(json.dumps(described | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [described["pre_tokenizer"]]}}))
    for beside in (False, True):
        if beside:
            (place / "tokenizer.json").write_text(json.dumps(described))
        workdir = folder.parent / f"run{beside}"
        assert convert(monkeypatch, capsys, "import", f"--from={folder}", f"--workdir={workdir}", f"--tokenizer={named}") == (0, [])
        assert (workdir / "tokenizer" / "model.json").read_bytes() == named.read_bytes()
    missing = [f"--tokenizer={place / 'other.json'}"]
    for path in folder.parent.glob("run*"):
        shutil.rmtree(path)
    refused(monkeypatch, capsys, folder, 1, ["other.json does not exist"], *missing)


@pytest.mark.parametrize(("text", "code"), [("", 1), ("{", 1), ("{}", 2), ('{"model": {"type": "BPE"}}', 2)])
def test_a_tokenizer_that_is_none(monkeypatch, capsys, folder, text, code):
    (folder / "tokenizer.json").write_text(text)
    refused(monkeypatch, capsys, folder, code, "tokenizer.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_reason_and_the_fix(monkeypatch, capsys, folder, name):
    (folder / "model.safetensors").rename(folder / name)
    refused(monkeypatch, capsys, folder, 2, [name, "runs whatever program is in it", "safetensors"])
    refused(monkeypatch, capsys, folder / name, 2, [name, "runs whatever program is in it", "safetensors"])


def test_no_weights_and_no_folder(monkeypatch, capsys, folder):
    (folder / "model.safetensors").unlink()
    refused(monkeypatch, capsys, folder, 1, "there is no model.safetensors")
    refused(monkeypatch, capsys, folder.parent / "none", 2, "neither a folder nor a .gguf file")


def test_a_cut_gguf_file(monkeypatch, capsys, tmp_path):
    path = gguf_files.write_gguf(tmp_path / "m.gguf", kind="Q8_0")
    whole = path.read_bytes()
    for left, words in ((10, "ends in its header"), (len(whole) // 2, "it is cut"), (0, "is not a GGUF file")):
        path.write_bytes(whole[:left])
        refused(monkeypatch, capsys, path, 1, words)


def test_a_gguf_file_without_a_tensor(monkeypatch, capsys, tmp_path):
    path = gguf_files.write_gguf(tmp_path / "m.gguf", left_out=("blk.1.ffn_up.weight",))
    refused(monkeypatch, capsys, path, 1, "there is no tensor model.layers.1.mlp.up_proj.weight")


def test_a_work_directory_that_is_taken_stays_as_it_is(monkeypatch, capsys, folder):
    workdir = folder.parent / "run"
    workdir.mkdir()
    (workdir / "mine.txt").write_text("keep")
    code, lines = convert(monkeypatch, capsys, "import", f"--from={folder}", f"--workdir={workdir}")
    assert (code, len(lines)) == (2, 1) and "is not empty" in lines[0]
    assert [path.name for path in workdir.iterdir()] == ["mine.txt"]


def test_exports_that_cannot_be(monkeypatch, capsys, folder, tmp_path):
    workdir, to = tmp_path / "run", tmp_path / "out"
    assert convert(monkeypatch, capsys, "import", f"--from={folder}", f"--workdir={workdir}")[0] == 0
    code, lines = convert(monkeypatch, capsys, "export", f"--workdir={tmp_path / 'none'}", f"--to={to}")
    assert code and len(lines) == 1 and not to.exists()
    code, lines = convert(monkeypatch, capsys, "export", f"--workdir={workdir}", f"--to={to}", "--step=7")
    assert code and len(lines) == 1 and "step 7" in lines[0] and not to.exists()
    code, lines = convert(monkeypatch, capsys, "export", f"--workdir={workdir}", f"--to={folder}")
    assert code == 2 and len(lines) == 1 and "is not empty" in lines[0]
