"""transformers: GPT2LMHeadModel and LlamaForCausalLM on `scaled_dot_product_attention`, trained as `lm.bench.peers.pytorch` trains."""

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lm.bench.peers import pytorch
from lm.bench.shapes import Shape, heads_of, swiglu_width

ATTENTION = "sdpa"


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
            tie_word_embeddings=True, attn_implementation=ATTENTION))
    # The tanh form of GELU as one operation: "gelu_new", GPT-2's default, makes it of eight.
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.context, n_embd=shape.width, n_layer=shape.layers, n_head=heads_of(shape),
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation=ATTENTION))


class Training(pytorch.Training):
    """Trains one shape; see `lm.bench.worker`."""

    def build(self, shape: Shape) -> nn.Module:
        """The model of transformers, as a module from tokens to logits."""
        return Logits(build(shape))
