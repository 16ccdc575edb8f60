"""GPT-2 (Radford et al. 2019) as the transformers library stores it: matrices of Conv1D, which lie as ours do, q, k and v in one."""

import numpy as np

from lm.interop.families.base import Reading
from lm.interop.families.decoder import PLAIN, called, decoder
from lm.interop.families.entries import Entries
from lm.interop.tables import LAYER, Row, Transform, norm, row

PREFIX = "transformer."


def three(width: int) -> Transform:
    """Query, key and value side by side, in a matrix [D, 3 D] or a bias [3 D]."""
    return Transform(lambda array: tuple(np.split(array, (width, 2 * width), axis=-1)), lambda *arrays: (np.concatenate(arrays, axis=-1),))


def read(description: dict, names: set[str]) -> Reading:
    """See `Family`."""
    entries = Entries(description)
    width = entries.count("n_embd")
    entries.only("scale_attn_by_inverse_layer_idx", False)
    entries.only("add_cross_attention", False)
    tied = entries.flag("tie_word_embeddings", True)
    keys = {
        "objective.name": "causal", "model.name": "transformer", "model.vocab_rows": entries.count("vocab_size"),
        "model.max_positions": entries.count("n_positions"), "model.layers": entries.count("n_layer"), "model.width": width,
        "model.heads": entries.count("n_head"), "model.ff_width": entries.count("n_inner", 4 * width),
        "model.activation": entries.choice("activation_function", PLAIN), "model.norm": "layernorm", "model.bias": True,
        "model.norm_eps": entries.number("layer_norm_epsilon"), "model.positions": "learned", "model.tie_embeddings": tied,
        "model.scale_attention": entries.flag("scale_attn_weights", True),
    }
    entries.finish()
    prefix = "" if "wte.weight" in names else PREFIX
    masks = rf"({PREFIX})?h\.\d+\.attn\.(bias|masked_bias)"
    return Reading(keys, _table(prefix, width, tied), {"lm_head.weight": f"{prefix}wte.weight"} if tied else {}, (masks,))


def _table(prefix: str, width: int, tied: bool) -> tuple[Row, ...]:
    theirs = f"{prefix}h.{LAYER}"
    rows = [
        row(f"{prefix}wte.weight", "inputs/tokens/embedding"), row(f"{prefix}wpe.weight", "inputs/positions/embedding"),
        *norm(f"{theirs}.ln_1", f"{LAYER}/attention_norm"), *norm(f"{theirs}.ln_2", f"{LAYER}/feed_forward_norm"),
        *norm(f"{prefix}ln_f", "final_norm"),
    ]
    for ours, name in (("kernel", "weight"), ("bias", "bias")):
        heads = tuple(f"{LAYER}/attention/{part}/{ours}" for part in ("query", "key", "value"))
        rows += [row(f"{theirs}.attn.c_attn.{name}", heads, three(width)),
                 row(f"{theirs}.attn.c_proj.{name}", f"{LAYER}/attention/output/{ours}"),
                 row(f"{theirs}.mlp.c_fc.{name}", f"{LAYER}/feed_forward/up/{ours}"),
                 row(f"{theirs}.mlp.c_proj.{name}", f"{LAYER}/feed_forward/down/{ours}")]
    return (*rows, *([] if tied else [row("lm_head.weight", "unembedding/kernel")]))


def _describe(model, spec) -> dict:
    return {"architectures": ["GPT2LMHeadModel"], "n_positions": spec.context, "n_ctx": spec.context, "n_embd": spec.width,
            "n_layer": spec.layers, "n_head": spec.heads, "n_inner": spec.ff_width, "activation_function": called(model.activation, PLAIN),
            "layer_norm_epsilon": model.norm_eps, "tie_word_embeddings": model.tie_embeddings, "scale_attn_weights": model.scale_attention,
            "resid_pdrop": model.dropout, "embd_pdrop": model.dropout, "attn_pdrop": 0.0}


FAMILIES = (decoder("gpt2", read, _describe),)
