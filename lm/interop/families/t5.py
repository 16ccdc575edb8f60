"""T5 (Raffel et al. 2020), its version 1.1 and FLAN-T5 (Chung et al. 2022), and mT5 (Xue et al. 2021): encoder-decoders of ours.

They write from `decoder_start_token_id` on, which their padding is: the tokenizer's bos is that id here.
"""

from lm.errors import ConfigError, DataError
from lm.interop.families.base import Family, Reading
from lm.interop.families.decoder import called
from lm.interop.families.entries import Entries
from lm.interop.families.ours import family
from lm.interop.tables import Row, Transform, dense, norm, row

# feed_forward_proj to our activation; a model that was trained here gets the first name that fits. "gated-gelu" is the one by its tanh.
ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu", "gelu": "gelu_erf", "silu": "silu", "relu2": "relu2", "gated-gelu": "geglu",
               "gated-gelu_new": "geglu", "gated-silu": "swiglu", "gated-swish": "swiglu"}
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
# Where the embedding may lie: files of tied tensors keep one of them, or all.
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
OUTPUT = "lm_head.weight"
# Distances to the source, which the first models stored and none has read.
UNUSED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
UNREAD = ("dropout_rate", "initializer_factor", "n_positions", "tie_word_embeddings", "scale_decoder_outputs", "output_past",
          "feed_forward_proj", "dense_act_fn", "is_gated_act")


def _one(first, second):
    if (first != second).any():
        raise DataError(f"tensors {EMBEDDINGS[0]} and {OUTPUT} differ, but are one in this model: is this another model's config.json?")
    return (first,)


# One matrix of ours that is stored twice.
TWICE = Transform(_one, lambda matrix: (matrix, matrix))


def _stack(name: str, feed_forward: int, gated: bool) -> tuple[Row, ...]:
    """The rows of the encoder or the decoder but for attention across; `feed_forward` is the number of its feed-forward part."""
    theirs, ours = f"{name}.block.{{layer}}.layer", f"{name}/{{layer}}"
    matrices = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    rows = [(f"0.SelfAttention.{their}", f"attention/{our}") for their, our in ATTENTION.items()]
    rows += [(f"{feed_forward}.DenseReluDense.{their}", f"feed_forward/{our}") for their, our in matrices.items()]
    return (
        *(entry for their, our in rows for entry in dense(f"{theirs}.{their}", f"{ours}/{our}", bias=False)),
        *norm(f"{theirs}.0.layer_norm", f"{ours}/attention_norm", bias=False),
        *norm(f"{theirs}.{feed_forward}.layer_norm", f"{ours}/feed_forward_norm", bias=False),
        # The first layer's table is that of all.
        row(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{name}/relative/embedding"),
        *norm(f"{name}.final_layer_norm", f"{name}/final_norm", bias=False),
    )


def _across() -> tuple[Row, ...]:
    theirs, ours = "decoder.block.{layer}.layer.1", "decoder/{layer}"
    matrices = (dense(f"{theirs}.EncDecAttention.{their}", f"{ours}/cross_attention/{our}", bias=False) for their, our in ATTENTION.items())
    return (*(entry for rows in matrices for entry in rows), *norm(f"{theirs}.layer_norm", f"{ours}/cross_attention_norm", bias=False))


def _output(description: dict, names: set[str], scaled: bool) -> tuple[bool, bool]:
    """(logits come from the embedding, which is stored as the output matrix too).

    Version 1.1 has an output matrix of its own and stores it; what stores none uses the embedding, and only 1.0 scales.
    """
    if scaled or (names and OUTPUT not in names):
        return True, False
    # Both entries say the same: a model that we write has the second where its one matrix is both.
    twice = not names and "scale_decoder_outputs" in description
    return twice, twice


def _read(description: dict, names: set[str], scaled: bool) -> Reading:
    entries = Entries(description)
    for name in UNREAD:
        entries.get(name)
    entries.only("is_encoder_decoder", True)
    entries.only("is_decoder", False)
    start = entries.get("decoder_start_token_id")
    if not isinstance(start, int) or start < 0:
        raise ConfigError(f"config.json has decoder_start_token_id={start!r}, but T5 needs one: put in that of padding")
    activation = _activation(entries)
    tied, twice = _output(description, names, scaled)
    layers = entries.count("num_layers")
    keys = {
        "name": "encoder_decoder", "layers": entries.count("num_decoder_layers", layers), "encoder_layers": layers,
        "width": entries.count("d_model"), "heads": entries.count("num_heads"), "head_width": entries.count("d_kv"),
        "ff_width": entries.count("d_ff"), "activation": activation, "norm": "rmsnorm",
        "norm_eps": entries.number("layer_norm_epsilon", 1e-6), "bias": False, "positions": "relative",
        "relative_buckets": entries.count("relative_attention_num_buckets", 32),
        "relative_distance": entries.count("relative_attention_max_distance", 128), "scale_attention": False, "share_embeddings": True,
        "tie_embeddings": tied, "scale_logits": scaled, "vocab_rows": entries.count("vocab_size")}
    entries.finish()
    embedding = next((name for name in EMBEDDINGS if name in names), EMBEDDINGS[0])
    same = {name: embedding for name in (*EMBEDDINGS, *([OUTPUT] if tied and not twice else [])) if name != embedding}
    table = (
        row((embedding, OUTPUT) if twice else embedding, "inputs/tokens/embedding", *([TWICE] if twice else [])),
        *_stack("encoder", 1, activation in ("geglu", "swiglu")),
        *_stack("decoder", 2, activation in ("geglu", "swiglu")),
        *_across(),
        *([] if tied else [row(OUTPUT, "unembedding/kernel")]),
    )
    return Reading({f"model.{name}": value for name, value in keys.items()} | {"objective.name": "translation"}, table, same, UNUSED)


def _activation(entries: Entries) -> str:
    """Our activation. ConfigError where the entries that transformers derives from feed_forward_proj say something else."""
    name = entries.get("feed_forward_proj", "relu")
    if name not in ACTIVATIONS:
        raise ConfigError(f"config.json has feed_forward_proj={name!r}, but only {', '.join(ACTIVATIONS)} can be read")
    *gated, plain = name.split("-")
    entries.only("dense_act_fn", "gelu_new" if name == "gated-gelu" else plain)
    entries.only("is_gated_act", bool(gated))
    return ACTIVATIONS[name]


def _read_t5(description: dict, names: set[str]) -> Reading:
    # transformers 4 stores tie_word_embeddings=false for version 1.1, and transformers 5 what it has made of it.
    scaled = description.get("scale_decoder_outputs", description.get("tie_word_embeddings") is not False)
    if not isinstance(scaled, bool):
        raise ConfigError(f"config.json has scale_decoder_outputs={scaled!r}, but only True or False can be read")
    return _read(description, names, scaled)


def _read_mt5(description: dict, names: set[str]) -> Reading:
    entries = Entries(description)
    entries.only("scale_decoder_outputs", False)
    return _read(description, names, scaled=False)


def _t5(model, spec, sizes) -> dict:
    once = {"scale_decoder_outputs": False} if model.tie_embeddings and not model.scale_logits else {}
    return {
        "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "vocab_size": sizes.vocab, "d_model": spec.width,
        "d_kv": spec.head_width, "d_ff": spec.ff_width, "num_layers": model.encoder_layers or model.layers,
        "num_decoder_layers": spec.layers, "num_heads": spec.heads, "relative_attention_num_buckets": model.relative_buckets,
        "relative_attention_max_distance": model.relative_distance, "dropout_rate": spec.dropout, "layer_norm_epsilon": spec.norm_eps,
        "feed_forward_proj": called(spec.activation, ACTIVATIONS), "tie_word_embeddings": model.scale_logits,
        "decoder_start_token_id": sizes.bos, **once}


FAMILIES = (family("encoder_decoder", "t5", _read_t5, _t5), Family("mt5", ("mt5",), _read_mt5))
