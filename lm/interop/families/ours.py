"""Models of ours in the words of another library: what a config.json says is found by reading it back."""

from collections.abc import Callable

from lm import config as configs
from lm.config.model_keys import MODEL
from lm.interop.families.base import Family, NoCounterpartError, Reading
from lm.interop.families.rope import ENTRIES
from lm.layers.feedforward import PLAIN
from lm.models import Sizes
from lm.models.transformer import spec_of
from lm.parallel import Layout

# Keys that are about training and running a model, or that other entries follow from.
FREE = ("name", "dropout", "dtype", "remat", "remat_save", "remat_offload", "scan_layers", "vocab_rows", "max_positions")
SHARED_BY_SCALINGS = {"rope_base", "rope_share", "rope_scaling"}


def family(ours: str, name: str, read: Callable[[dict, set[str]], Reading], describe: Callable, objectives: tuple[str, ...] = ()) -> Family:
    """A family of theirs whose models are of our family `ours`, trained with one of `objectives` (empty: with any).

    `describe(model, spec, sizes)` gives the config.json of a model whose keys and layers these are. What it leaves out or cannot say
    comes back otherwise, and is named in a NoCounterpartError.
    """
    def write(config, sizes: Sizes) -> dict:
        if config.model.name != ours:
            raise NoCounterpartError({"model.name": config.model.name})
        if objectives and config.objective.name not in objectives:
            raise NoCounterpartError({"objective.name": config.objective.name})
        described = {"model_type": name} | describe(config.model, spec_of(config.model, sizes, Layout()), sizes)
        back = configs.default().model
        back.update({key.removeprefix("model."): value for key, value in read(described, set()).keys.items() if key.startswith("model.")})
        before, after = _meaning(config.model, sizes), _meaning(back, sizes)
        if lost := {f"model.{key}": value for key, value in before.items() if after.get(key, value) != value}:
            raise NoCounterpartError(lost)
        return described

    return Family(name, (name,), read, write)


def _meaning(model, sizes: Sizes) -> dict[str, object]:
    """The keys that count, with nothing left to default."""
    spec = spec_of(model, sizes, Layout())
    meaning = {leaf: model[leaf] for key, value in MODEL.items() if value.families is None or model.name in value.families
               if (leaf := key.removeprefix("model.")) not in FREE}
    meaning |= {"kv_heads": spec.kv_heads, "head_width": spec.head_width, "ff_width": spec.ff_width,
                "attention_bias": model.attention_bias or ("all" if model.bias else "none"),
                "rope_original_context": model.rope_original_context or sizes.context}
    meaning = {leaf: value for leaf, value in meaning.items() if leaf not in _unread(model)}
    if model.name == "encoder_decoder":
        return meaning | {"encoder_layers": model.encoder_layers or model.layers}
    if model.name != "encoder":
        return meaning
    plain = model.activation if model.activation in PLAIN else "gelu"
    head = (model.head_activation or plain) if model.masked_head or model.replaced_head else ""
    return meaning | {"embedding_width": model.embedding_width or model.width, "pooler": model.pooler or model.next_sentence,
                      "head_activation": head}


def _unread(model) -> set[str]:
    """Keys that say nothing, given the others."""
    leaves = [key.removeprefix("model.") for key in MODEL]
    unread = {leaf for leaf in leaves if leaf.startswith("relative_") and model.positions != "relative"}
    rope = {leaf for leaf in leaves if leaf.startswith("rope_")}
    if model.positions == "rope":
        rope -= SHARED_BY_SCALINGS | {key for key, _ in ENTRIES[model.rope_scaling].values()}
        rope -= {"rope_original_context"} if model.rope_scaling not in ("none", "linear") else set()
    unread |= rope
    unread |= set() if model.qk_norm else {"qk_norm_over"}
    return unread | (set() if model.attention_window else {"window_from"})
