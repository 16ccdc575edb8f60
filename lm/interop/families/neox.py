"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023) as the transformers library stores them."""

import numpy as np

from lm.errors import DataError
from lm.interop.families.base import Reading
from lm.interop.families.decoder import PLAIN, called, decoder
from lm.interop.families.entries import Entries
from lm.interop.families.rope import read_rope, write_rope
from lm.interop.tables import LAYER, Row, Transform, dense, norm, row

PREFIX = "gpt_neox."
# The output matrix has had two names.
OUTPUTS = ("embed_out.weight", "lm_head.weight")


def interleaved(heads: int, transposed: bool) -> Transform:
    """Rows [H * 3 * Dh, ...] that hold each head's query, key and value one after the other, cut into three of [H * Dh, ...]."""
    def ours(array):
        if len(array) % (3 * heads):
            raise DataError(f"a tensor query_key_value has {len(array)} rows, not three for each unit of {heads} heads: is this another "
                            "model's config.json?")
        cut = array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1)
        parts = cut.reshape(3, -1, *array.shape[1:])
        return tuple(part.T if transposed else part for part in parts)

    def theirs(*arrays):
        parts = np.stack([array.T if transposed else array for array in arrays])
        return (parts.reshape(3, heads, -1, *parts.shape[2:]).swapaxes(0, 1).reshape(-1, *parts.shape[2:]),)

    return Transform(ours, theirs)


def read(description: dict, names: set[str]) -> Reading:
    """See `Family`."""
    entries = Entries(description)
    longest, heads = entries.count("max_position_embeddings"), entries.count("num_attention_heads")
    biased, tied = entries.flag("attention_bias", True), entries.flag("tie_word_embeddings", False)
    keys = {
        "objective.name": "causal", "model.name": "transformer", "model.vocab_rows": entries.count("vocab_size"),
        "model.max_positions": longest, "model.layers": entries.count("num_hidden_layers"), "model.width": entries.count("hidden_size"),
        "model.heads": heads, "model.ff_width": entries.count("intermediate_size"),
        "model.activation": entries.choice("hidden_act", PLAIN), "model.norm": "layernorm", "model.bias": True,
        "model.norm_eps": entries.number("layer_norm_eps"), "model.attention_bias": "all" if biased else "none",
        "model.parallel_residual": entries.flag("use_parallel_residual", True), "model.tie_embeddings": tied,
        **read_rope(entries, longest, base="rotary_emb_base", share=("rotary_pct", 0.25)),
    }
    entries.only("rope_theta", keys["model.rope_base"])  # version 4 wrote both again under these names
    entries.only("partial_rotary_factor", keys["model.rope_share"])
    entries.finish()
    prefix = "" if "embed_in.weight" in names else PREFIX
    output = OUTPUTS[1] if OUTPUTS[1] in names else OUTPUTS[0]
    buffers = rf"({PREFIX})?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    same = dict.fromkeys(OUTPUTS, f"{prefix}embed_in.weight") if tied else {}
    return Reading(keys, _table(prefix, heads, biased, "" if tied else output), same, (buffers,))


def _table(prefix: str, heads: int, biased: bool, output: str) -> tuple[Row, ...]:
    theirs = f"{prefix}layers.{LAYER}"
    parts = [(name, tuple(f"{LAYER}/attention/{part}/{leaf}" for part in ("query", "key", "value")), leaf == "kernel")
             for name, leaf in (("weight", "kernel"), ("bias", "bias")) if biased or name == "weight"]
    return (
        row(f"{prefix}embed_in.weight", "inputs/tokens/embedding"), *norm(f"{prefix}final_layer_norm", "final_norm"),
        *norm(f"{theirs}.input_layernorm", f"{LAYER}/attention_norm"),
        *norm(f"{theirs}.post_attention_layernorm", f"{LAYER}/feed_forward_norm"),
        *[row(f"{theirs}.attention.query_key_value.{name}", ours, interleaved(heads, matrix)) for name, ours, matrix in parts],
        *dense(f"{theirs}.attention.dense", f"{LAYER}/attention/output", biased),
        *dense(f"{theirs}.mlp.dense_h_to_4h", f"{LAYER}/feed_forward/up"),
        *dense(f"{theirs}.mlp.dense_4h_to_h", f"{LAYER}/feed_forward/down"),
        *([row(output, "unembedding/kernel")] if output else []),
    )


def _describe(model, spec) -> dict:
    return {"architectures": ["GPTNeoXForCausalLM"], "max_position_embeddings": spec.context, "hidden_size": spec.width,
            "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "intermediate_size": spec.ff_width,
            "hidden_act": called(model.activation, PLAIN), "layer_norm_eps": model.norm_eps,
            "attention_bias": (model.attention_bias or "all") != "none", "use_parallel_residual": model.parallel_residual,
            "tie_word_embeddings": model.tie_embeddings, "hidden_dropout": model.dropout, "attention_dropout": 0.0,
            **write_rope(model, spec.context, base="rotary_emb_base", share="rotary_pct")}


FAMILIES = (decoder("gpt_neox", read, _describe),)
