"""Llama 2 (Touvron et al. 2023b) and Llama 3 (Grattafiori et al. 2024) as published, on C4, each laid out for a slice of TPUs.

    python scripts/plan.py --config=configs/llama.py:7b --topology=v5e:16x16
    python scripts/train.py --config=configs/llama.py:7b --workdir=runs/llama-7b

There are 7b and 13b (v5e:16x16), 70b (v5p:8x8x8), 3-8b (v6e:16x16) and 3-70b (v5p:8x8x8). The shape of 7b and 13b is also that of the
first Llama (Touvron et al. 2023a). C4 is prepared as configs/c4.py says.

Expect: no result, since we have not trained these; tests/goldens/plans/ has what is planned for 7b and 70b (memory, collectives, MFU).
"""

import dataclasses

from lm.config import default
from lm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Size:
    """One published model. `rows` of `context` tokens are the four million tokens of a step; `layout` are keys of its slice."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ff_width: int
    learning_rate: float
    layout: dict
    vocab_size: int = 32_000
    context: int = 4096
    rows: int = 1024
    tokens: float = 2e12
    rope_base: float = 10_000.0


# On 256 chips of a torus of 16 x 16, on 512 of one of 8 x 8 x 8: two axes, so that gradients are scattered and not reduced whole.
_SQUARE, _CUBE = {"mesh.fsdp_outer": 16, "mesh.fsdp": 16}, {"mesh.fsdp_outer": 64, "mesh.fsdp": 8}


def _saving(*names: str) -> dict:
    return {"model.remat": "names", "model.remat_save": names}


_MOST = _saving("query", "key", "value", "attention", "attention_output", "ff_up")


def _llama3(layers, width, heads, ff_width, learning_rate, layout):
    return Size(layers, width, heads, 8, ff_width, learning_rate, layout, 128_256, 8192, 512, 15e12, 500_000.0)


# Rates and lengths: table 1 of Llama 2, table 3 of Llama 3.
SIZES = {
    "7b": Size(32, 4096, 32, 32, 11008, 3e-4, _SQUARE | _saving("attention")),
    "13b": Size(40, 5120, 40, 40, 13824, 3e-4, _SQUARE | {"model.remat": "full"}),
    "70b": Size(80, 8192, 64, 8, 28672, 1.5e-4, _CUBE | _MOST | {"train.loss_chunk": 1024}),
    "3-8b": _llama3(32, 4096, 32, 14336, 3e-4, _SQUARE | _saving("attention") | {"train.loss_chunk": 2048}),
    "3-70b": _llama3(80, 8192, 64, 28672, 1.5e-4, _CUBE | _MOST | {"train.loss_chunk": 2048}),
}


def get_config(name="7b"):
    """The config of one of SIZES."""
    if name not in SIZES:
        raise ConfigError(f"there is no Llama {name}: use {', '.join(SIZES)}")
    size, config = SIZES[name], default()
    config.data.source = "tfds:c4/en:train"
    config.data.validation_source = "tfds:c4/en:validation"
    config.data.tokenizer = "bytebpe" if name.startswith("3-") else "bpe"
    config.data.tokenizer_sample_bytes = 1_000_000_000
    config.data.vocab_size = size.vocab_size
    config.data.context = size.context
    config.data.global_batch = size.rows
    config.model.layers = size.layers
    config.model.width = size.width
    config.model.heads = size.heads
    config.model.kv_heads = size.kv_heads
    config.model.ff_width = size.ff_width
    config.model.activation = "swiglu"
    config.model.norm_eps = 1e-5
    config.model.rope_base = size.rope_base
    config.model.tie_embeddings = False
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = size.learning_rate
    config.optim.warmup = 2000
    config.optim.weight_decay = 0.1
    config.train.steps = f"{size.tokens:g} tokens"
    config.checkpoint.every = "0.5%"
    config.eval.every = "0.5%"
    config.eval.max_tokens = 10_000_000
    config.mesh.replica = 1
    config.update_from_flattened_dict(size.layout)
    return config
