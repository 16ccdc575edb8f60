"""transformers: GPT2LMHeadModel and LlamaForCausalLM on `scaled_dot_product_attention`, trained as `lm.bench.peers.pytorch` trains, and
`generate`."""

import numpy as np
import torch
from torch import nn
from transformers import CompileConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lm.bench.peers import pytorch
from lm.bench.rounds import seconds_of
from lm.bench.shapes import Shape, heads_of, swiglu_width

ATTENTION = "sdpa"
NORM_EPSILON = 1e-6  # ours


class Logits(nn.Module):
    """Tokens [B, T] to the logits [B, T, V] of a model of transformers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        """Logits; nothing is kept for decoding."""
        return self.model(tokens, use_cache=False).logits


def build(shape: Shape) -> nn.Module:
    """The model of transformers for a shape of the families gpt2 and llama: embeddings tied, no dropout."""
    if shape.family == "llama":
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.width, intermediate_size=swiglu_width(shape),
            num_hidden_layers=shape.layers, num_attention_heads=heads_of(shape), max_position_embeddings=shape.context,
            rms_norm_eps=NORM_EPSILON, tie_word_embeddings=True, attn_implementation=ATTENTION))
    # The tanh form of GELU as one operation: "gelu_new", GPT-2's default, makes it of eight.
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.context, n_embd=shape.width, n_layer=shape.layers, n_head=heads_of(shape),
        activation_function="gelu_pytorch_tanh", layer_norm_epsilon=NORM_EPSILON, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, attn_implementation=ATTENTION))


class Training(pytorch.Training):
    """Trains one shape; see `lm.bench.worker`."""

    def build(self, shape: Shape) -> nn.Module:
        """The model of transformers, as a module from tokens to logits."""
        return Logits(build(shape))


class Decoding:
    """Greedy `generate` with the weights that `lm.bench.ours_decode.Decoding.save` wrote; see `lm.bench.worker`.

    The end of a document, here the token `start`, is forbidden until all new tokens are there. `compiled`: the static cache, with which
    `generate` compiles the model's forward pass; else its default, a cache that grows.
    """

    def __init__(self, shape: list, start: int, weights: str, compiled: bool):
        self._model = build(Shape(*shape)).eval()
        with np.load(weights) as arrays:
            load(self._model, {name: torch.from_numpy(arrays[name]) for name in arrays}, Shape(*shape))
        self._settings = {"do_sample": False, "use_cache": True, "eos_token_id": start, "pad_token_id": start}
        if compiled:
            compilation = CompileConfig(mode="default")
            compilation._compile_all_devices = True  # without it `generate` compiles on accelerators alone
            self._settings |= {"cache_implementation": "static", "compile_config": compilation}

    def tokens(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """The `new` tokens after each prompt."""
        rows = torch.tensor(prompts)
        settings = self._settings | {"min_new_tokens": new, "max_new_tokens": new}
        with torch.inference_mode():
            done = self._model.generate(rows, attention_mask=torch.ones_like(rows), **settings)
        return done[:, rows.shape[1]:].tolist()

    def seconds(self, prompts: list[list[int]], new: int, count: int) -> list[float]:
        """Seconds that this takes, each of some times."""
        return seconds_of(lambda: self.tokens(prompts, new), count)


def load(model: nn.Module, weights: dict[str, torch.Tensor], shape: Shape):
    """Puts our weights, by our names, into the model of transformers."""
    missing, unexpected = model.load_state_dict((_llama if shape.family == "llama" else _gpt2)(weights, shape), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # which is the embedding
        raise RuntimeError(f"our weights are not those of {type(model).__name__}: {missing} missing, {unexpected} unexpected")


def _gpt2(weights: dict, shape: Shape) -> dict:
    """The weights of GPT2LMHeadModel, whose matrices are [inputs, outputs] as ours, with queries, keys and values in one."""
    names = {"attention_norm": "ln_1", "output": "attn.c_proj", "feed_forward_norm": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    state = {"wte.weight": weights["inputs/tokens/embedding"], "wpe.weight": weights["inputs/positions/embedding"],
             "ln_f.weight": weights["final_norm/scale"], "ln_f.bias": weights["final_norm/bias"]}
    for i in range(shape.layers):
        layer = _layer(weights, i)
        for kind in ("weight", "bias"):
            state[f"h.{i}.attn.c_attn.{kind}"] = torch.cat([layer.pop((part, kind)) for part in ("query", "key", "value")], dim=-1)
        state |= {f"h.{i}.{names[part]}.{kind}": value for (part, kind), value in layer.items()}
    return {f"transformer.{name}": value for name, value in state.items()}


def _llama(weights: dict, shape: Shape) -> dict:
    """The weights of LlamaForCausalLM, whose matrices are [outputs, inputs]."""
    names = {"attention_norm": "input_layernorm", "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
             "output": "self_attn.o_proj", "feed_forward_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
             "down": "mlp.down_proj"}
    state = {"embed_tokens.weight": weights["inputs/tokens/embedding"], "norm.weight": weights["final_norm/scale"]}
    for i in range(shape.layers):
        for (part, kind), value in _layer(weights, i).items():
            state[f"layers.{i}.{names[part]}.{kind}"] = value.T if value.ndim == 2 else value
    return {f"model.{name}": value for name, value in state.items()}


def _layer(weights: dict, number: int) -> dict:
    """{(part, weight or bias): value} of one of our layers."""
    parts = [(name.split("/"), value) for name, value in weights.items() if name.startswith(f"layer_{number}/")]
    return {(part, "bias" if kind == "bias" else "weight"): value for (*_, part, kind), value in parts}
