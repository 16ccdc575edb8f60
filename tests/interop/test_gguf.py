"""GGUF files: headers, every type of block against its definition, names, llama.cpp's permutation, and what is refused."""

import math

import gguf
import ml_dtypes
import numpy as np
import pytest

from lm import run
from lm.errors import ConfigError, DataError
from lm.interop import convert, parity
from lm.interop import gguf as models
from lm.interop.gguf_file import QUANTISED, read_gguf, read_tensor
from tests.interop import gguf_files as tiny


def opened(monkeypatch, path):
    """The model in a file, without its tokenizer."""
    monkeypatch.setattr(models, "gguf_tokenizer", lambda file: None)
    return models.open_gguf(path)


def test_metadata_of_every_type_comes_back(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "x")
    wanted = {"uint8": 200, "int8": -3, "uint16": 60_000, "int16": -300, "uint32": 4_000_000_000, "int32": -70_000, "float32": 0.5,
              "uint64": 1 << 60, "int64": -(1 << 40), "float64": 0.1, "bool": True, "string": "h\u00e9llo \U0001f600"}
    for kind, value in wanted.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.words", ["a", "", "\u4e2d"])
    writer.add_array("x.numbers", [1.5, -2.0])
    writer.add_array("x.flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert {key.removeprefix("x."): value for key, value in metadata.items() if key.startswith("x.")} == {
        **wanted, "words": ["a", "", "\u4e2d"], "numbers": [1.5, -2.0], "flags": [True, False]}


# Blocks by ggml's definitions (ggml-common.h, ggml-quants.c), one number at a time.


def half(block, at):
    return float(np.frombuffer(block[at : at + 2], np.float16)[0])


def nibbles(block, start):
    """32 numbers of 4 bits: low halves of 16 bytes, then their high halves."""
    return [byte & 15 for byte in block[start : start + 16]] + [byte >> 4 for byte in block[start : start + 16]]


def fifth_bits(block, start):
    bits = int.from_bytes(block[start : start + 4], "little")
    return [16 * (bits >> i & 1) for i in range(32)]


def q4_0(block):
    return [half(block, 0) * (q - 8) for q in nibbles(block, 2)]


def q4_1(block):
    return [half(block, 0) * q + half(block, 2) for q in nibbles(block, 4)]


def q5_0(block):
    return [half(block, 0) * (q + high - 16) for q, high in zip(nibbles(block, 6), fifth_bits(block, 2), strict=True)]


def q5_1(block):
    return [half(block, 0) * (q + high) + half(block, 2) for q, high in zip(nibbles(block, 8), fifth_bits(block, 4), strict=True)]


def q8_0(block):
    return [half(block, 0) * q for q in np.frombuffer(block[2:], np.int8).tolist()]


def k_scales(scales):
    """8 pairs (scale, minimum) of 6 bits in 12 bytes."""
    first = [(scales[j] & 63, scales[j + 4] & 63) for j in range(4)]
    return first + [(scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4) for j in range(4, 8)]


def q_k(block, fifth):
    """Q4_K, and Q5_K with 32 bytes of fifth bits."""
    values, pairs = [], k_scales(block[4:16])
    low = 48 if fifth else 16
    for j, (scale, least) in enumerate(pairs):
        for i in range(32):
            q = block[low + 32 * (j // 2) + i] >> 4 * (j % 2) & 15
            q += 16 * (block[16 + i] >> j & 1) if fifth else 0
            values.append(half(block, 0) * scale * q - half(block, 2) * least)
    return values


def q6_k(block):
    values, scales = [0.0] * 256, np.frombuffer(block[192:208], np.int8).tolist()
    for i in range(256):
        part, quarter, at = i // 128, i % 128 // 32, i % 32
        low = block[64 * part + 32 * (quarter % 2) + at] >> 4 * (quarter // 2) & 15
        high = block[128 + 32 * part + at] >> 2 * quarter & 3
        values[i] = half(block, 208) * scales[i // 16] * (low + 16 * high - 32)
    return values


BLOCKS = {"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0, "Q4_K": lambda b: q_k(b, False),
          "Q5_K": lambda b: q_k(b, True), "Q6_K": q6_k}
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


@pytest.mark.parametrize("kind", QUANTISED)
def test_blocks_mean_what_their_definition_says(tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    size, width = gguf.GGML_QUANT_SIZES[number]
    draw = np.random.default_rng(0)
    data = draw.integers(0, 256, (3, 2, width), np.uint8)  # 3 rows of 2 blocks
    for at in HALVES[kind]:
        data[..., at : at + 2] = draw.normal(size=(3, 2, 1)).astype(np.float16).view(np.uint8)
    first = np.ones(5, np.float32), gguf.GGMLQuantizationType.F32  # so that x does not begin the data
    file = read_gguf(tiny.write_raw(tmp_path / "m.gguf", {"first": first, "x": (data.reshape(3, -1), number)}))
    assert file.stored["x"].shape == (3, 2 * size) and file.stored["x"].kind == kind
    wanted = np.array([[value for block in row for value in BLOCKS[kind](block.tobytes())] for row in data])
    np.testing.assert_allclose(read_tensor(file, "x"), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind, dtype", [("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_plain_types_stay_as_they_are(tmp_path, kind, dtype):
    value = np.random.default_rng(0).normal(size=(6, 32)).astype(dtype)
    stored = value.view(np.uint8) if kind == "BF16" else value, gguf.GGMLQuantizationType[kind]
    read = read_tensor(read_gguf(tiny.write_raw(tmp_path / "m.gguf", {"x": stored})), "x")
    assert read.dtype == dtype and read.tobytes() == value.tobytes()


def test_config_and_names_are_those_of_transformers(tmp_path, monkeypatch):
    source = opened(monkeypatch, tiny.write_gguf(tmp_path / "m.gguf"))
    assert source.description == {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(tiny.TOKENS), "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None}
    layer = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    layer += ["input_layernorm", "post_attention_layernorm"]
    assert set(source.tensors) == {"model.embed_tokens.weight", "model.norm.weight",
                                   *(f"model.layers.{i}.{name}.weight" for i in range(2) for name in layer)}
    stored = tiny.random_tensors()
    assert np.array_equal(source.tensors["model.layers.1.mlp.up_proj.weight"], stored["blk.1.ffn_up.weight"])
    assert np.array_equal(source.tensors["model.layers.0.post_attention_layernorm.weight"], stored["blk.0.ffn_norm.weight"])


def rotated(x, neighbours):
    """RoPE of x [heads, T, Dh]: of units 2i and 2i + 1 (llama.cpp) or i and i + Dh/2 (transformers)."""
    size = x.shape[-1]
    angle = np.arange(x.shape[1])[:, None] * tiny.THETA ** (-np.arange(0, size, 2) / size)
    one, two = (x[..., ::2], x[..., 1::2]) if neighbours else (x[..., : size // 2], x[..., size // 2 :])
    turned = one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle)
    return np.stack(turned, -1).reshape(x.shape) if neighbours else np.concatenate(turned, -1)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_attention_scores_are_llama_cpps(tmp_path, monkeypatch, architecture):
    """With the stored matrices and llama.cpp's rotation of the architecture, and with ours and the rotation of transformers."""
    stored = tiny.random_tensors(architecture=architecture)
    source = opened(monkeypatch, tiny.write_gguf(tmp_path / "m.gguf", stored, architecture))
    inputs = np.random.default_rng(1).normal(size=(40, tiny.WIDTH))

    def scores(query, key, neighbours):
        heads = [(inputs @ matrix.T).reshape(40, count, -1).swapaxes(0, 1)
                 for matrix, count in ((query, tiny.HEADS), (key, tiny.KEYS))]
        turned = [rotated(part, neighbours) for part in heads]
        return np.einsum("htd,hsd->hts", turned[0], np.repeat(turned[1], tiny.HEADS // tiny.KEYS, 0))

    ours = scores(*(source.tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qk"), neighbours=False)
    theirs = scores(*(stored[f"blk.1.attn_{part}.weight"] for part in "qk"), neighbours=architecture == "llama")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_qwen_has_its_biases_and_norms(tmp_path, monkeypatch):
    stored = tiny.random_tensors(architecture="qwen2")
    source = opened(monkeypatch, tiny.write_gguf(tmp_path / "2.gguf", stored, "qwen2"))
    assert np.array_equal(source.tensors["model.layers.1.self_attn.k_proj.bias"], stored["blk.1.attn_k.bias"])
    source = opened(monkeypatch, tiny.write_gguf(tmp_path / "3.gguf", architecture="qwen3"))
    assert source.tensors["model.layers.0.self_attn.q_norm.weight"].shape == (8,) and source.description["attention_bias"] is False


def test_gpt_2_phi_3_and_olmo_2_have_their_own_names(tmp_path, monkeypatch):
    """GPT-2's matrices are [inputs, outputs] in transformers and turned in the file; Phi-3's are fused; OLMo 2's norms come after."""
    there = {"gpt2": ("transformer.h.1.attn.c_attn.weight", "blk.1.attn_qkv.weight", True),
             "phi3": ("model.layers.1.mlp.gate_up_proj.weight", "blk.1.ffn_up.weight", False),
             "olmo2": ("model.layers.1.post_feedforward_layernorm.weight", "blk.1.post_ffw_norm.weight", False)}
    for architecture, (name, stored, turned) in there.items():
        values = tiny.random_tensors(architecture=architecture)
        source = opened(monkeypatch, tiny.write_gguf(tmp_path / f"{architecture}.gguf", values, architecture))
        assert len(source.tensors) == len(values) and source.description["model_type"] == architecture
        assert np.array_equal(source.tensors[name], values[stored].T if turned else values[stored])
        assert source.description["tie_word_embeddings"] is True
    source = opened(monkeypatch, tmp_path / "gpt2.gguf")
    assert np.array_equal(source.tensors["transformer.wpe.weight"], tiny.random_tensors(architecture="gpt2")["position_embd.weight"])
    assert (source.description["n_positions"], source.description["n_inner"]) == (tiny.CONTEXT, tiny.HIDDEN)


def llama3_factors(theta, factor):
    """By what llama.cpp's converter divides the 4 frequencies of a head of 8 units, from Meta's constants."""
    values = []
    for wavelength in (2 * math.pi * theta ** (i / 8) for i in range(0, 8, 2)):
        smooth = (8192 / wavelength - 1) / (4 - 1)
        values.append(1.0 if wavelength < 8192 / 4 else factor if wavelength > 8192 else 1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(values, np.float32)}


def test_llama_3_scaling_is_recognised_by_its_factors(tmp_path, monkeypatch):
    values = tiny.random_tensors() | llama3_factors(500_000.0, 32.0)
    assert len(set(values["rope_freqs.weight"])) == 3  # frequencies that stay, that are divided, and one between
    source = opened(monkeypatch, tiny.write_gguf(tmp_path / "m.gguf", values, theta=500_000.0))
    assert source.description["rope_parameters"] == {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}
    assert "rope_freqs.weight" not in source.tensors and len(source.tensors) == 2 + 9 * 2


@pytest.mark.parametrize("factors", [{"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}, llama3_factors(5_000.0, 32.0)],
                         ids=["not Llama's", "none that is divided by the factor"])
def test_another_scaling_is_refused(tmp_path, monkeypatch, factors):
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight is not the scaling of Llama 3\.1"):
        opened(monkeypatch, tiny.write_gguf(tmp_path / "m.gguf", tiny.random_tensors() | factors))


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("architecture", list(models.ARCHITECTURES))
def test_logits_are_llama_cpps(tmp_path, architecture, untied):
    """The same file, run by llama.cpp in float32 with its cache in float32."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp itself: pip install llama-cpp-python (compiles it)")
    if architecture == "olmo2" and not untied:
        pytest.skip("llama.cpp reads OLMo 2 with an output matrix of its own alone")
    path = tiny.write_gguf(tmp_path / "m.gguf", tiny.random_tensors(architecture=architecture, untied=untied), architecture)
    convert.import_run(path, tmp_path / "run")
    opened = run.open_run(tmp_path / "run")
    params, _ = opened.parameters()
    tokens = np.random.default_rng(0).integers(0, len(tiny.TOKENS), (1, tiny.CONTEXT))
    ours = opened.model.logits(params, opened.model.apply(params, parity.batch_of(tokens)))[0]
    theirs = llama_cpp.Llama(str(path), n_ctx=tiny.CONTEXT, n_batch=tiny.CONTEXT, logits_all=True, verbose=False, type_k=0, type_v=0,
                             flash_attn=False, n_threads=1)
    theirs.eval(tokens[0].tolist())
    # Its GELU comes from a table of 16-bit floats.
    np.testing.assert_allclose(np.asarray(ours), theirs.scores[: tiny.CONTEXT], atol=5e-3 if architecture == "gpt2" else 1e-4)


BAD_MODELS = {
    "a key that changes what is computed": ({"extra": [("add_logit_scale", 0.5)]}, "llama.logit_scale=0.5, which cannot be read"),
    "experts": ({"extra": [("add_expert_count", 8)]}, "llama.expert_count=8, which cannot be read"),
    "attention to later tokens": ({"extra": [("add_causal_attention", False)]}, "llama.attention.causal=False, which cannot be read"),
    "a scaling": ({"extra": [("add_string", "llama.rope.scaling.type", "dynamic")]}, "rope.scaling.type='dynamic', but only none, linear"),
    "a part of a head": ({"extra": [("add_rope_dimension_count", 4)]}, "rotates 4 of 8 units a head"),
    "values of another size": ({"extra": [("add_value_length", 16)]}, "keys of 8 and values of 16 units"),
    "another architecture": ({"architecture": "mamba"}, "general.architecture='mamba', but only llama, qwen2"),
    "no embedding": ({"left_out": ("token_embd.weight",)}, "has no tensor token_embd.weight"),
    "no alignment": ({"extra": [("add_uint32", "general.alignment", 0)]}, "has general.alignment=0: it is damaged"),
    "one of several files": ({"extra": [("add_uint16", "split.count", 3)]}, "is one of 3 parts: join them"),
    "layers that differ": ({"extra": [("add_array", "llama.attention.key_length", [8, 4])]}, r"key_length=\[8, 4\]: layers that differ"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_are_not_understood_are_refused(tmp_path, monkeypatch, name):
    arguments, message = BAD_MODELS[name]
    path = tiny.write_gguf(tmp_path / "m.gguf", **arguments)
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        opened(monkeypatch, path)
    assert "\n" not in str(caught.value)


def test_a_tensor_without_a_place_is_named(tmp_path, monkeypatch):
    values = tiny.random_tensors() | {"blk.0.ffn_gate_inp.weight": np.ones((4, 32), np.float32)}
    with pytest.raises(DataError, match=r"tensor blk.0.ffn_gate_inp.weight has no place in a model of architecture llama"):
        opened(monkeypatch, tiny.write_gguf(tmp_path / "m.gguf", values))


def test_a_type_that_is_not_read_is_named_with_its_tensor(tmp_path):
    blocks = np.zeros((2, 18), np.uint8), gguf.GGMLQuantizationType.IQ4_NL
    path = tiny.write_raw(tmp_path / "m.gguf", {"blk.0.attn_q.weight": blocks})
    with pytest.raises(DataError, match=r"tensor blk.0.attn_q.weight has type IQ4_NL, but only F32, F16, BF16, Q4_0"):
        read_gguf(path)


def test_a_cut_file_is_one_line_wherever_it_is_cut(tmp_path):
    """At every byte of the header's beginning, and at some of the rest; the whole file opens."""
    whole = tiny.write_gguf(tmp_path / "m.gguf", kind="Q8_0").read_bytes()
    read_gguf(tmp_path / "m.gguf")
    cut = tmp_path / "cut.gguf"
    for length in (*range(0, 200), *range(200, len(whole), 997), len(whole) - 33):
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"is not a GGUF file|ends in its header|it is cut, copy it again") as caught:
            read_gguf(cut)
        assert "\n" not in str(caught.value)


def test_foreign_and_damaged_files(tmp_path):
    whole = tiny.write_gguf(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "x.gguf"
    for content, message in (
            (b"PK\3\4" + whole, "does not begin with 'GGUF'"), (whole[:4] + b"\1\0\0\0" + whole[8:], "has GGUF version 1, but"),
            (whole[:4] + b"\0\0\0\3" + whole[8:], "of a big-endian machine"),
            (whole[:8] + b"\xff" * 8 + whole[16:], "ends in its header|unknown type|not UTF-8|twice"),
            (whole.replace(b"llama.block_count\4", b"llama.block_count\x63"), "value of unknown type 99"),
            (whole.replace(b"general.architecture", b"general.\xff\xfe\xfd\xfctecture"), "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_gguf(path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_gguf(tmp_path / "none.gguf")
