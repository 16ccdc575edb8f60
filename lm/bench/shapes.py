"""The models that are timed: the same architecture, optimizer and shape of data on every side."""

from typing import NamedTuple

import numpy as np

from lm.config import default
from lm.errors import ConfigError


class Shape(NamedTuple):
    """A model's size and its batch: `batch` rows of `context` tokens."""

    family: str
    layers: int
    width: int
    context: int
    batch: int
    vocab_size: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.context


HEAD_WIDTH = 64
# Tokens of a micro-batch of ours: their activations stay in a CPU's caches.
MICRO_BATCH = 512
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0

SHAPES = {
    "tiny": Shape("gpt2", 2, 64, 32, 2, 256),  # for tests
    "S": Shape("gpt2", 4, 256, 256, 16, 4096),
    "M": Shape("gpt2", 6, 384, 256, 8, 8192),
    "L": Shape("gpt2", 12, 768, 512, 4, 32000),
    "LSTMtiny": Shape("lstm", 2, 32, 32, 2, 256),
    "LSTM512": Shape("lstm", 2, 512, 256, 16, 8192),
    "LSTM1024": Shape("lstm", 2, 1024, 256, 16, 8192),
}


def shape_of(name: str, **changes) -> Shape:
    """A shape by its name, with some of it changed, such as `family="llama"` or `context=1024`."""
    if name not in SHAPES:
        raise ConfigError(f"shape={name} is not one of {', '.join(SHAPES)}")
    return SHAPES[name]._replace(**changes)


def heads_of(shape: Shape) -> int:
    """Attention heads of a Transformer."""
    return max(1, shape.width // HEAD_WIDTH)


def swiglu_width(shape: Shape) -> int:
    """Feed-forward width of a Llama: 8/3 of the width, rounded up to 64."""
    return -(-8 * shape.width // 3 // 64) * 64


def config_of(shape: Shape):
    """The config of a shape: GPT-2 (Radford et al. 2019), Llama (Touvron et al. 2023) or an LSTM, with tied embeddings, on AdamW."""
    config = default()
    model, optim = config.model, config.optim
    model.layers, model.width = shape.layers, shape.width
    if shape.family == "lstm":
        model.name = "lstm"
    else:
        model.heads = heads_of(shape)
        model.scan_layers = False
        # 1.05 to 1.14 times as fast as whole batches on two cores, in two thirds of the memory.
        rows = max(1, MICRO_BATCH // shape.context)
        config.train.accumulate = shape.batch // rows if shape.batch % rows == 0 else 1
    if shape.family == "gpt2":
        model.norm, model.positions, model.bias, model.activation = "layernorm", "learned", True, "gelu"
    if shape.family == "llama":
        model.norm, model.positions, model.activation = "rmsnorm", "rope", "swiglu"
        model.ff_width = swiglu_width(shape)
    config.data.context, config.data.global_batch, config.data.vocab_size = shape.context, shape.batch, max(264, shape.vocab_size)
    optim.name, optim.learning_rate, optim.schedule = "adamw", LEARNING_RATE, "constant"
    optim.beta1, optim.beta2, optim.eps, optim.weight_decay, optim.clip = *BETAS, EPSILON, WEIGHT_DECAY, CLIP
    return config


def random_tokens(shape: Shape, seed: int = 0) -> np.ndarray:
    """Tokens [B, T + 1], int32: rows of text whose words are as frequent as Zipf says."""
    weights = 1 / np.arange(1, shape.vocab_size + 1)
    draws = np.random.default_rng(seed).choice(shape.vocab_size, (shape.batch, shape.context + 1), p=weights / weights.sum())
    return draws.astype(np.int32)
