"""Models in GGUF files, under the names and in the layouts of transformers: config.json of the metadata, and llama.cpp's changes undone."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lm.errors import ConfigError, DataError
from lm.interop.gguf_file import Gguf, read_gguf, read_tensor
from lm.interop.gguf_tokenizer import gguf_tokenizer, special_ids
from lm.interop.source import Source

_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "blk.N.attn_norm": "model.layers.N.input_layernorm", "blk.N.ffn_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.attn_q": "model.layers.N.self_attn.q_proj", "blk.N.attn_k": "model.layers.N.self_attn.k_proj",
    "blk.N.attn_v": "model.layers.N.self_attn.v_proj", "blk.N.attn_output": "model.layers.N.self_attn.o_proj",
    "blk.N.ffn_gate": "model.layers.N.mlp.gate_proj", "blk.N.ffn_up": "model.layers.N.mlp.up_proj",
    "blk.N.ffn_down": "model.layers.N.mlp.down_proj"}
_QK_NORMS = {"blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm", "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm"}
_OLMO2_NORMS = {"blk.N.post_attention_norm": "model.layers.N.post_attention_layernorm",
                "blk.N.post_ffw_norm": "model.layers.N.post_feedforward_layernorm"}
_PHI3_FUSED = {"blk.N.attn_qkv": "model.layers.N.self_attn.qkv_proj", "blk.N.ffn_up": "model.layers.N.mlp.gate_up_proj"}
_GPT2_NAMES = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f", "output": "lm_head",
    "blk.N.attn_norm": "transformer.h.N.ln_1", "blk.N.ffn_norm": "transformer.h.N.ln_2",
    "blk.N.attn_qkv": "transformer.h.N.attn.c_attn", "blk.N.attn_output": "transformer.h.N.attn.c_proj",
    "blk.N.ffn_up": "transformer.h.N.mlp.c_fc", "blk.N.ffn_down": "transformer.h.N.mlp.c_proj"}
# Tensors that say what config.json says, and how many they may be in a file.
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class Architecture(NamedTuple):
    """An architecture of llama.cpp: its transformers class, names (llama.cpp's to transformers', N a layer), further metadata keys that
    are understood, what turns metadata into config.json, and what undoes the converter: (file, name, array) -> array."""

    model: str
    names: dict[str, str]
    keys: tuple[str, ...]
    describe: Callable[["_Metadata"], dict]
    restore: Callable[[Gguf, str, np.ndarray], np.ndarray]


class _Metadata:
    """A file's metadata under its architecture's prefix."""

    def __init__(self, file: Gguf):
        self.file = file
        self.architecture = file.metadata.get("general.architecture")

    def get(self, key: str, default=None):
        """The value of `architecture.key`; a list of equal values (one a layer) is that value."""
        value = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ConfigError(f"{self.file.path} has {key}={value}: layers that differ cannot be read")
            value = value[0]
        # Numbers are stored as 32-bit floats; their shortest decimal is what config.json said.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def need(self, key: str):
        """The same, DataError where it is missing."""
        if (value := self.get(key)) is None:
            raise DataError(f"{self.file.path} lacks {self.architecture}.{key}: convert it again with llama.cpp")
        return value


def open_gguf(path) -> Source:
    """The model in a GGUF file; tensors are dequantised when they are asked for. ConfigError or DataError in one line."""
    file = read_gguf(path)
    metadata = _Metadata(file)
    if metadata.architecture not in ARCHITECTURES:
        raise ConfigError(f"{path} has general.architecture={metadata.architecture!r}, but only {', '.join(ARCHITECTURES)} can be read")
    architecture = ARCHITECTURES[metadata.architecture]
    _check_keys(file, metadata.architecture, architecture)
    names = {_their_name(file, name, architecture): name for name in file.stored if name not in _ROPE_TENSORS}
    description = {**architecture.describe(metadata), **_ids(file)}
    return Source(description, _Tensors(file, names, architecture.restore), gguf_tokenizer(file), [])


class _Tensors(Mapping):
    """A file's tensors by transformers' names: name -> array, read when it is asked for and not kept."""

    def __init__(self, file: Gguf, names: dict[str, str], restore):
        self._file, self._names, self._restore = file, names, restore

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self._names[name]
        return self._restore(self._file, stored, read_tensor(self._file, stored))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_keys(file: Gguf, name: str, architecture: Architecture):
    """Whatever is not understood could change what the model computes. ConfigError."""
    known = (*_KEYS, *architecture.keys)
    for key, value in file.metadata.items():
        part = key.removeprefix(f"{name}.")
        if part != key and part not in known and value not in _NEUTRAL.get(part, (0, False, "none")):
            raise ConfigError(f"{file.path} has {key}={value!r}, which cannot be read")


def _their_name(file: Gguf, name: str, architecture: Architecture) -> str:
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
    known = architecture.names.get(f"blk.N.{layer[2]}" if layer else stem)
    if known is None or kind not in ("weight", "bias"):
        raise DataError(f"{file.path}: tensor {name} has no place in a model of architecture {file.metadata['general.architecture']}")
    return f"{known.replace('.N.', f'.{layer[1]}.') if layer else known}.{kind}"


def _ids(file: Gguf) -> dict:
    """Ids of special tokens, as config.json has them."""
    return {f"{name}_token_id": value for name, value in special_ids(file).items()}


def _sizes(metadata: _Metadata) -> dict:
    """The entries of config.json that Llama and its relatives share."""
    file, heads, width = metadata.file, metadata.need("attention.head_count"), metadata.need("embedding_length")
    head = metadata.get("attention.key_length", width // heads)
    if metadata.get("attention.value_length", head) != head:
        raise ConfigError(f"{file.path} has keys of {head} and values of {metadata.get('attention.value_length')} units a head: only equal "
                          "ones can be read")
    return {
        "model_type": metadata.architecture, "architectures": [ARCHITECTURES[metadata.architecture].model],
        "vocab_size": _rows(file, "token_embd.weight"), "hidden_size": width, "num_hidden_layers": metadata.need("block_count"),
        "intermediate_size": metadata.need("feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("attention.head_count_kv", heads), "head_dim": head, "hidden_act": "silu",
        "max_position_embeddings": metadata.need("context_length"), "rms_norm_eps": metadata.need("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(metadata, head), "tie_word_embeddings": "output.weight" not in file.stored}


def _rows(file: Gguf, name: str) -> int:
    if name not in file.stored:
        raise DataError(f"{file.path} has no tensor {name}: is it a part of a model, or an adapter?")
    return file.stored[name].shape[0]


def _llama(metadata: _Metadata) -> dict:
    stored = metadata.file.stored
    return _sizes(metadata) | {"attention_bias": "blk.0.attn_q.bias" in stored, "mlp_bias": "blk.0.ffn_up.bias" in stored}


def _qwen(metadata: _Metadata) -> dict:
    biased = {"attention_bias": "blk.0.attn_q.bias" in metadata.file.stored} if metadata.architecture != "qwen2" else {}
    return _sizes(metadata) | biased


def _phi3(metadata: _Metadata) -> dict:
    description = _sizes(metadata)
    rotated = metadata.get("rope.dimension_count", description["head_dim"])
    original = metadata.get("rope.scaling.original_context_length", description["max_position_embeddings"])
    rope = description["rope_parameters"] | {"partial_rotary_factor": rotated / description["head_dim"]}
    return description | {"rope_parameters": rope, "sliding_window": metadata.get("attention.sliding_window"),
                          "original_max_position_embeddings": original}


def _gpt2(metadata: _Metadata) -> dict:
    file = metadata.file
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": _rows(file, "token_embd.weight"),
            "n_embd": metadata.need("embedding_length"), "n_layer": metadata.need("block_count"),
            "n_head": metadata.need("attention.head_count"), "n_inner": metadata.need("feed_forward_length"),
            "n_positions": _rows(file, "position_embd.weight"), "layer_norm_epsilon": metadata.need("attention.layer_norm_epsilon"),
            "activation_function": "gelu_new", "tie_word_embeddings": "output.weight" not in file.stored}


def _rope(metadata: _Metadata, head: int) -> dict:
    """rope_parameters of config.json. ConfigError for a scaling that cannot be read."""
    rope = {"rope_theta": metadata.get("rope.freq_base", 10_000.0), "rope_type": metadata.get("rope.scaling.type", "none")}
    stored = metadata.file.stored
    rotated = metadata.get("rope.dimension_count", head)
    if rotated != head and metadata.architecture != "phi3":
        raise ConfigError(f"{metadata.file.path} rotates {rotated} of {head} units a head, but {metadata.architecture} rotates all")
    if "rope_freqs.weight" in stored:
        return rope | _llama3_scaling(metadata.file, rope["rope_theta"], rotated)
    if "rope_factors_long.weight" in stored:
        factors = {f"{name}_factor": read_tensor(metadata.file, f"rope_factors_{name}.weight").astype(float).tolist()
                   for name in ("short", "long")}
        return rope | {"rope_type": "longrope", **factors, "attention_factor": metadata.get("rope.scaling.attn_factor", 1.0),
                       "original_max_position_embeddings": metadata.need("rope.scaling.original_context_length")}
    if rope["rope_type"] == "none":
        return rope | {"rope_type": "default"}
    if rope["rope_type"] == "linear":
        return rope | {"factor": metadata.need("rope.scaling.factor")}
    if rope["rope_type"] == "yarn":
        return rope | {"factor": metadata.need("rope.scaling.factor"),
                       "original_max_position_embeddings": metadata.need("rope.scaling.original_context_length")}
    raise ConfigError(f"{metadata.file.path} has rope.scaling.type={rope['rope_type']!r}, but only none, linear and yarn can be read")


def _llama3_scaling(file: Gguf, theta: float, rotated: int) -> dict:
    """Llama 3.1's scaling from the factors by which llama.cpp divides the frequencies: those of Meta's constants, or ConfigError."""
    factors, low, high, original = read_tensor(file, "rope_freqs.weight").astype(np.float64), 1.0, 4.0, 8192
    factor = float(factors.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(0, rotated, 2) / rotated)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    if factors.shape != smooth.shape or not np.allclose(1 / factors, (1 - smooth) / factor + smooth, rtol=1e-5):
        raise ConfigError(f"{file.path}: rope_freqs.weight is not the scaling of Llama 3.1 (low_freq_factor {low}, high_freq_factor "
                          f"{high}, original_max_position_embeddings {original}), and no other can be read from it")
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original}


def _unpermuted(file: Gguf, name: str, value: np.ndarray) -> np.ndarray:
    """Undoes what llama.cpp does to Llama's queries and keys.

    Its rotation turns neighbouring units, that of transformers units half a head apart, so its converter has put unit i and unit
    i + Dh/2 of each head beside each other.
    """
    if not (part := re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", name)):
        return value
    metadata = _Metadata(file)
    heads = metadata.need("attention.head_count")
    heads = metadata.get("attention.head_count_kv", heads) if part[1] == "k" else heads
    if value.shape[0] % (2 * heads):
        raise DataError(f"{file.path}: tensor {name} has {value.shape[0]} rows, which {heads} heads cannot share")
    return value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _transposed(file: Gguf, name: str, value: np.ndarray) -> np.ndarray:
    """GPT-2's matrices are [inputs, outputs] in transformers (Conv1D) and turned by llama.cpp's converter."""
    return value.T if re.fullmatch(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name) else value


def _as_is(file: Gguf, name: str, value: np.ndarray) -> np.ndarray:
    return value


_KEYS = ("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
         "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
         "attention.layer_norm_epsilon", "rope.dimension_count", "rope.freq_base")
# Values of other keys that change nothing; of keys that are not here: 0, False and "none".
_NEUTRAL = {"attention.causal": (True,)}
_SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned")
_LONGROPE = ("rope.scaling.original_context_length", "rope.scaling.attn_factor", "attention.sliding_window")
ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", _LLAMA_NAMES, _SCALING, _llama, _unpermuted),
    "qwen2": Architecture("Qwen2ForCausalLM", _LLAMA_NAMES, _SCALING, _qwen, _as_is),
    "qwen3": Architecture("Qwen3ForCausalLM", _LLAMA_NAMES | _QK_NORMS, _SCALING, _qwen, _as_is),
    "olmo2": Architecture("Olmo2ForCausalLM", _LLAMA_NAMES | _QK_NORMS | _OLMO2_NORMS, _SCALING, _qwen, _as_is),
    "phi3": Architecture("Phi3ForCausalLM", _LLAMA_NAMES | _PHI3_FUSED, _LONGROPE, _phi3, _as_is),
    "gpt2": Architecture("GPT2LMHeadModel", _GPT2_NAMES, (), _gpt2, _transposed),
}
