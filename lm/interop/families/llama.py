"""Llama (Touvron et al. 2023) and its relatives as the transformers library stores them: one table, and a line for what each adds."""

from typing import NamedTuple

from lm.errors import ConfigError
from lm.interop.families.base import Family, NoCounterpartError, Reading
from lm.interop.families.decoder import GATED, PLAIN, called, decoder
from lm.interop.families.entries import Entries, unsupported
from lm.interop.families.rope import PHI3, TYPES, read_rope, write_rope
from lm.interop.tables import LAYER, Row, columns, dense, norm, row

PREFIX, OUTPUT = "model.", "lm_head.weight"
FULL, SLIDING = "full_attention", "sliding_attention"


class Kind(NamedTuple):
    """What tells a relative apart. `biases` are those of attention: none, inputs, or "entry" where attention_bias says so; `window`
    is what its config.json has of sliding windows: nothing, one for all layers, or one from a layer on."""

    name: str
    architecture: str
    biases: str = "none"
    ff_bias: bool = False
    window: str = ""
    qk_norm: str = ""
    norm_position: str = "pre"
    gated: bool = True
    fused: bool = False
    head_width: int | None = None
    shared_keys: bool = False
    divides: bool = False


KINDS = (
    Kind("llama", "LlamaForCausalLM", biases="entry", ff_bias=True, shared_keys=True, divides=True),
    Kind("mistral", "MistralForCausalLM", window="all"),
    Kind("qwen2", "Qwen2ForCausalLM", biases="inputs", window="from"),
    Kind("qwen3", "Qwen3ForCausalLM", biases="entry", window="from", qk_norm="head", head_width=128),
    Kind("olmo2", "Olmo2ForCausalLM", biases="entry", qk_norm="all", norm_position="output", shared_keys=True),
    Kind("phi3", "Phi3ForCausalLM", window="all", fused=True, shared_keys=True),
    Kind("arcee", "ArceeForCausalLM", biases="entry", ff_bias=True, gated=False, shared_keys=True, divides=True),
)


class Heads(NamedTuple):
    """Query heads, key and value heads, and units of a head."""

    query: int
    value: int
    width: int


def read(kind: Kind, description: dict, names: set[str]) -> Reading:
    """See `Family`."""
    entries = Entries(description)
    longest, layers, tied = _longest(kind, entries), entries.count("num_hidden_layers"), entries.flag("tie_word_embeddings", False)
    heads, ff_width = _heads(kind, entries), entries.count("intermediate_size")
    bias = kind.ff_bias and entries.flag("mlp_bias", False)
    attention_bias = kind.biases if kind.biases != "entry" else "all" if entries.flag("attention_bias", False) else "none"
    keys = {
        "objective.name": "causal", "model.name": "transformer", "model.vocab_rows": entries.count("vocab_size"),
        "model.max_positions": longest, "model.layers": layers, "model.width": entries.count("hidden_size"), "model.heads": heads.query,
        "model.kv_heads": heads.value, "model.head_width": heads.width, "model.ff_width": ff_width,
        "model.activation": entries.choice("hidden_act", GATED if kind.gated else PLAIN), "model.norm": "rmsnorm", "model.bias": bias,
        "model.norm_eps": entries.number("rms_norm_eps"), "model.norm_position": kind.norm_position, "model.attention_bias": attention_bias,
        "model.qk_norm": bool(kind.qk_norm), "model.qk_norm_over": kind.qk_norm or "head", "model.tie_embeddings": tied,
        **_window(kind, entries, layers), **_rope(kind, entries, longest),
    }
    entries.finish()
    prefix = "" if "embed_tokens.weight" in names else PREFIX
    table = (row(f"{prefix}embed_tokens.weight", "inputs/tokens/embedding"), *norm(f"{prefix}norm", "final_norm", bias=False),
             *_layer(kind, f"{prefix}layers.{LAYER}", heads, ff_width, bias, attention_bias),
             *([] if tied else [row(OUTPUT, "unembedding/kernel")]))
    buffers = r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    return Reading(keys, table, {OUTPUT: f"{prefix}embed_tokens.weight"} if tied else {}, (buffers,))


def _longest(kind: Kind, entries: Entries) -> int:
    """The longest row; the first copies of Llama had another name for it, or none, for the 2,048 tokens of all of them."""
    older = entries.count("max_sequence_length", 2048) if kind.name == "llama" else None
    return entries.count("max_position_embeddings", older)


def _heads(kind: Kind, entries: Entries) -> Heads:
    width, query = entries.count("hidden_size"), entries.count("num_attention_heads")
    value = entries.count("num_key_value_heads", query if kind.shared_keys else None)
    head_width = entries.count("head_dim", kind.head_width or (width // query or None))
    if query % value:
        raise ConfigError(f"config.json has num_key_value_heads={value}, which does not divide num_attention_heads={query}")
    if kind.divides and width % query:
        raise ConfigError(f"config.json has num_attention_heads={query}, which does not divide hidden_size={width}")
    return Heads(query, value, head_width)


def _window(kind: Kind, entries: Entries, layers: int) -> dict[str, int]:
    """The keys of the sliding window; of layers with and without one, those with one come last."""
    size, first = 0, 0
    if kind.window == "all":
        size = entries.count("sliding_window") if entries.get("sliding_window") else 0
        if kind.name == "mistral" and not entries.has("sliding_window"):
            raise ConfigError("config.json has no sliding_window: add the number of tokens, or null for none")
    if kind.window == "from":
        used, since = entries.flag("use_sliding_window", False), entries.get("max_window_layers", layers)
        if not isinstance(since, int):
            raise ConfigError(f"config.json has max_window_layers={since!r}, which is not a whole number")
        size, entered = entries.count("sliding_window") if entries.get("sliding_window") else 0, entries.get("layer_types")
        size = size if used else 0
        types = entered or [FULL if not size or layer < since else SLIDING for layer in range(layers)]
        first = types.count(FULL)
        if types != [FULL] * first + [SLIDING] * (layers - first) or (first < layers and not size):
            raise ConfigError(f"config.json has layer_types={types!r}, but only {FULL} up to a layer and {SLIDING} from it on can be read, "
                              "with use_sliding_window and sliding_window")
        size = size if first < layers else 0
    return {"model.attention_window": size, "model.window_from": first if size else 0}


def _rope(kind: Kind, entries: Entries, longest: int) -> dict[str, object]:
    if kind.name == "phi3":
        entries.only("full_attn_mod", 1)  # of Phi-4-mini, and so is the next
        entries.only("interpolate_factor", 1)
        return read_rope(entries, longest, PHI3, share=("partial_rotary_factor", 1.0), original=4096)
    if entries.get("rope_interleaved", False):
        raise unsupported("rope_interleaved", True, (False,))
    return read_rope(entries, longest, TYPES)


def _layer(kind: Kind, theirs: str, heads: Heads, ff_width: int, bias: bool, attention_bias: str) -> tuple[Row, ...]:
    attention, feed_forward = f"{LAYER}/attention", f"{LAYER}/feed_forward"
    inputs = attention_bias != "none"
    if kind.fused:
        sizes = [count * heads.width for count in (heads.query, heads.value, heads.value)]
        rows = [row(f"{theirs}.self_attn.qkv_proj.weight", tuple(f"{attention}/{part}/kernel" for part in ("query", "key", "value")),
                    columns(sizes)),
                row(f"{theirs}.mlp.gate_up_proj.weight", tuple(f"{feed_forward}/{part}/kernel" for part in ("gate", "up")),
                    columns((ff_width, ff_width)))]
    else:
        rows = [line for name, part in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
                for line in dense(f"{theirs}.self_attn.{name}", f"{attention}/{part}", inputs)]
        rows += [line for part in (("gate", "up") if kind.gated else ("up",))
                 for line in dense(f"{theirs}.mlp.{part}_proj", f"{feed_forward}/{part}", bias)]
    rows += [*dense(f"{theirs}.self_attn.o_proj", f"{attention}/output", attention_bias == "all"),
             *dense(f"{theirs}.mlp.down_proj", f"{feed_forward}/down", bias)]
    if kind.qk_norm:
        rows += [*norm(f"{theirs}.self_attn.q_norm", f"{attention}/query_norm", bias=False),
                 *norm(f"{theirs}.self_attn.k_norm", f"{attention}/key_norm", bias=False)]
    before = ("input_layernorm", "post_attention_layernorm")
    names = before if kind.norm_position == "pre" else ("post_attention_layernorm", "post_feedforward_layernorm")
    return (*rows, *norm(f"{theirs}.{names[0]}", f"{LAYER}/attention_norm", bias=False),
            *norm(f"{theirs}.{names[1]}", f"{LAYER}/feed_forward_norm", bias=False))


def describe(kind: Kind, model, spec) -> dict:
    """The config.json of a model that was trained here, as far as this family can say it."""
    biases = model.attention_bias or ("all" if model.bias else "none")
    if kind.divides and spec.width % spec.heads:
        raise NoCounterpartError({"model.heads": spec.heads})
    if kind.name == "phi3" and model.rope_scaling not in PHI3.values():
        raise NoCounterpartError({"model.rope_scaling": model.rope_scaling})
    written = {
        "architectures": [kind.architecture], "max_position_embeddings": spec.context, "hidden_size": spec.width,
        "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.ff_width, "hidden_act": called(model.activation, GATED if kind.gated else PLAIN),
        "rms_norm_eps": model.norm_eps, "tie_word_embeddings": model.tie_embeddings, "attention_dropout": 0.0,
        **(write_rope(model, spec.context, share="partial_rotary_factor", top=True) if kind.name == "phi3" else
           write_rope(model, spec.context)),
    }
    if kind.head_width or kind.divides or spec.head_width != spec.width // spec.heads:
        written["head_dim"] = spec.head_width
    if kind.biases == "entry":
        written["attention_bias"] = biases == "all"
    if kind.ff_bias:
        written["mlp_bias"] = model.bias
    if kind.window:
        written["sliding_window"] = model.attention_window or None
    if kind.window == "from":
        written |= {"use_sliding_window": bool(model.attention_window), "max_window_layers": model.window_from or (
            0 if model.attention_window else spec.layers)}
    return written


def _family(kind: Kind) -> Family:
    return decoder(kind.name, lambda description, names: read(kind, description, names), lambda model, spec: describe(kind, model, spec))


FAMILIES = tuple(_family(kind) for kind in KINDS)
