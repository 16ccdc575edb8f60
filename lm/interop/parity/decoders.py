"""Decoders of transformers, small and random: odd sizes, all kinds of heads, biases, windows and scalings. Needs the extra parity."""

import functools

from lm.interop.parity import Case
from lm.interop.parity.random_models import random_model

GPT2 = {"vocab_size": 263, "n_embd": 30, "n_head": 5, "n_layer": 3, "n_positions": 101, "bos_token_id": 1, "eos_token_id": 2}
# Heads of 16 units, of which NeoX turns a quarter unless it is told otherwise.
COMMON = {"vocab_size": 267, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 76,
          "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
# Six heads of 8 units, which share keys and values two and two, in threes, all, or not at all.
GROUPED = COMMON | {"num_attention_heads": 6, "num_key_value_heads": 2}
FACTORS = [1.0, 1.25, 1.5, 2.0]
LONG_FACTORS = [1.5, 3.0, 6.0, 9.5]


def _rope(kind: str, theta: float = 1000.0, **entries) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **entries}}


def _longrope(**entries) -> dict:
    return _rope("longrope", short_factor=FACTORS, long_factor=LONG_FACTORS, **entries)


SCALINGS = {
    "linear": _rope("linear", factor=2.5),
    "dynamic": {"max_position_embeddings": 40} | _rope("dynamic", factor=2.5),
    "yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=32),
    "yarn, every entry": _rope("yarn", factor=8.0, original_max_position_embeddings=16, beta_fast=6.0, beta_slow=0.5, mscale=1.5,
                               mscale_all_dim=0.5, truncate=False),
    "yarn, its own growth": _rope("yarn", factor=3.0, original_max_position_embeddings=24, attention_factor=1.3),
    "llama3": _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    "longrope, long": _longrope(original_max_position_embeddings=32),
    "longrope, short": _longrope(original_max_position_embeddings=96),
    "longrope, its own growth": _longrope(original_max_position_embeddings=40, factor=5.0, attention_factor=1.2),
}
# Phi-3 keeps the context before scaling beside the rest.
PHI3 = GROUPED | {"resid_pdrop": 0.0}


def _case(name: str, kind: str, **entries) -> Case:
    architecture = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return Case(name, functools.partial(random_model, f"{kind}Config", architecture, **entries))


CASES = (
    _case("gpt2", "GPT2", **GPT2),
    _case("gpt2, untied, relu", "GPT2", **GPT2 | {"activation_function": "relu", "n_inner": 44, "tie_word_embeddings": False}),
    _case("gpt2, exact gelu, unscaled", "GPT2", **GPT2 | {"activation_function": "gelu", "scale_attn_weights": False}),
    _case("gpt2, silu", "GPT2", **GPT2 | {"activation_function": "silu", "layer_norm_epsilon": 1e-3}),
    _case("gpt2, quick gelu", "GPT2", **GPT2 | {"activation_function": "quick_gelu", "n_head": 3}),
    _case("neox, parallel", "GPTNeoX", **COMMON),
    _case("neox, one after the other", "GPTNeoX", **COMMON | {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    _case("neox, all turned, tied", "GPTNeoX",
          **COMMON | {"attention_bias": False, "tie_word_embeddings": True} | _rope("default", partial_rotary_factor=1.0)),
    _case("neox, linear scaling", "GPTNeoX", **COMMON | _rope("linear", factor=2.0, partial_rotary_factor=0.5)),
    _case("llama", "Llama", **GROUPED),
    _case("llama, one key head, tied", "Llama", **GROUPED | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    _case("llama, all key heads, wide", "Llama", **GROUPED | {"num_key_value_heads": 6, "head_dim": 10, "rms_norm_eps": 1e-3}),
    _case("llama, all biases", "Llama", **GROUPED | {"attention_bias": True, "mlp_bias": True}),
    _case("llama, attention biases", "Llama", **GROUPED | {"attention_bias": True, "hidden_act": "gelu"}),
    _case("llama, feed-forward biases", "Llama", **GROUPED | {"mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    *[_case(f"llama, {name}", "Llama", **GROUPED | entries) for name, entries in SCALINGS.items()],
    _case("mistral", "Mistral", **GROUPED | {"sliding_window": None, "head_dim": 10}),
    _case("mistral, window", "Mistral", **GROUPED | {"sliding_window": 7}),
    _case("qwen2", "Qwen2", **GROUPED | {"tie_word_embeddings": True}),
    _case("qwen2, windows from a layer on", "Qwen2",
          **GROUPED | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    _case("qwen3", "Qwen3", **GROUPED | {"head_dim": 10}),
    _case("qwen3, biases and windows", "Qwen3", **GROUPED | {
        "head_dim": 12, "attention_bias": True, "use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    _case("olmo2", "Olmo2", **GROUPED),
    _case("olmo2, biases, yarn", "Olmo2", **GROUPED | {"attention_bias": True, "num_key_value_heads": 3} | SCALINGS["yarn"]),
    _case("phi3", "Phi3", **PHI3 | {"sliding_window": 13}),
    _case("phi3, half turned", "Phi3", **PHI3 | _rope("default", partial_rotary_factor=0.5)),
    _case("phi3, longrope, long", "Phi3", **PHI3 | {"original_max_position_embeddings": 32} | _longrope()),
    _case("phi3, longrope, short", "Phi3", **PHI3 | {"original_max_position_embeddings": 100} | _longrope()),
    _case("phi3, longrope, half turned", "Phi3", **PHI3 | {"original_max_position_embeddings": 32} | _rope(
        "longrope", short_factor=FACTORS[:2], long_factor=LONG_FACTORS[:2], partial_rotary_factor=0.5)),
    _case("arcee", "Arcee", **GROUPED | {"rms_norm_eps": 1e-6}),
    _case("arcee, biases, gelu", "Arcee", **GROUPED | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new",
                                                       "tie_word_embeddings": True}),
)
