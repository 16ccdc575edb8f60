"""Rotary positions in a config.json: rope_parameters as transformers 5 writes them, rope_scaling and rope_theta as version 4 did."""

from lm.errors import ConfigError
from lm.interop.families.entries import Entries, unsupported

# Their name of a scaling to ours.
TYPES = {name: name for name in ("linear", "dynamic", "yarn", "llama3", "longrope")} | {"default": "none"}
PHI3 = {"default": "none", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}
ORIGINAL = "original_max_position_embeddings"
# What a scaling says: {its entry: (our key, its value where there is no entry)}. None: there must be one; RATIO: the growth of the context.
RATIO = "ratio"
ENTRIES: dict[str, dict[str, tuple]] = {
    "none": {},
    "linear": {"factor": ("rope_factor", None)},
    "dynamic": {"factor": ("rope_factor", None)},
    "llama3": {"factor": ("rope_factor", None), "low_freq_factor": ("rope_low_frequency", None),
               "high_freq_factor": ("rope_high_frequency", None)},
    "yarn": {"factor": ("rope_factor", RATIO), "attention_factor": ("rope_attention_factor", 0.0), "beta_fast": ("rope_beta_fast", 32.0),
             "beta_slow": ("rope_beta_slow", 1.0), "mscale": ("rope_mscale", 0.0), "mscale_all_dim": ("rope_mscale_all", 0.0),
             "truncate": ("rope_truncate", True)},
    "longrope": {"factor": ("rope_factor", RATIO), "attention_factor": ("rope_attention_factor", 0.0),
                 "short_factor": ("rope_short_factors", None), "long_factor": ("rope_long_factors", None)},
}
# Those that know the context before they were stretched.
STRETCHED = ("yarn", "llama3", "longrope")


def read_rope(entries: Entries, longest: int, types: dict[str, str] = TYPES, base: str = "rope_theta",
              share: tuple[str, float] | None = None, original: int | None = None) -> dict[str, object]:
    """Our keys of the rotary positions of a model of up to `longest` tokens, which is more with scaling by the length of a row.

    `base` is the older name of rope_theta, `share` that of the rotated share of a head and its value where there is no entry (None:
    all of it is rotated), `original` the context before scaling where there is no entry. ConfigError for what we do not have.
    """
    where = "rope_scaling" if entries.get("rope_scaling") else "rope_parameters"
    older, newer = entries.get("rope_scaling"), entries.get("rope_parameters")
    rope = older or newer or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"config.json has {where}={rope!r}, which is not a table of entries")
    rope = {name: value for name, value in rope.items() if value is not None}
    kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", kind)
    if not isinstance(kind, str) or kind not in types:
        raise unsupported(f"{where}.rope_type", kind, types)
    scaling = types[kind]
    keys = {"model.positions": "rope", "model.rope_scaling": scaling,
            "model.rope_base": _number(rope.pop("rope_theta", entries.number(base, 10000.0)), f"{where}.rope_theta")}
    keys |= _share(entries, rope, where, share)
    context, unstretched = _original(entries, rope, longest, scaling, original)
    if scaling in ("dynamic", *STRETCHED):
        keys["model.rope_original_context"] = context
    for name, (key, value) in ENTRIES[scaling].items():
        if name not in rope and value is None:
            raise ConfigError(f"config.json has no {where}.{name}, which rope_type={kind!r} needs")
        keys[f"model.{key}"] = _value(rope.pop(name, None), longest / context if value == RATIO else value, f"{where}.{name}")
    if unstretched and keys["model.rope_factor"] > 1:  # rows are longer than the config.json says
        keys["model.max_positions"] = int(longest * keys["model.rope_factor"])
    if rope:
        name, value = next(iter(rope.items()))
        raise ConfigError(f"config.json has {where}.{name}={value!r}, which rope_type={kind!r} does not know: take it out if it "
                          "does not change what the model computes")
    return keys


def write_rope(model, longest: int, base: str = "rope_theta", share: str = "", top: bool = False) -> dict[str, object]:
    """The entries that `read_rope` reads back, in the form of transformers 4, which every reader takes; `top` puts the original context
    beside rope_scaling, as Phi-3 has it. The longest row is that after scaling, but with dynamic."""
    written: dict[str, object] = {base: model.rope_base, "rope_scaling": None}
    if share:
        written[share] = model.rope_share
    if model.rope_scaling == "none":
        return written
    context = model.rope_original_context or longest
    scaling: dict[str, object] = {"rope_type": model.rope_scaling}
    for name, (key, default) in ENTRIES[model.rope_scaling].items():
        value = model[key]
        needed = model.rope_scaling == "yarn" and name == "factor"  # transformers reads it unasked
        if needed or value != (longest / context if default == RATIO else default):
            scaling[name] = list(value) if isinstance(value, tuple) else value
    if model.rope_scaling in STRETCHED:
        (written if top else scaling)[ORIGINAL] = context
    if model.rope_scaling == "dynamic":
        written["max_position_embeddings"] = context
    return written | {"rope_scaling": scaling}


def _share(entries: Entries, rope: dict, where: str, share: tuple[str, float] | None) -> dict[str, object]:
    name, default = share or ("partial_rotary_factor", 1.0)
    value = _number(rope.pop("partial_rotary_factor", entries.number(name, default)), f"{where}.partial_rotary_factor")
    if share is None and value != 1:
        raise unsupported("partial_rotary_factor", value, (1.0,))
    return {"model.rope_share": value}


def _original(entries: Entries, rope: dict, longest: int, scaling: str, default: int | None) -> tuple[int, bool]:
    """(the context before scaling, whether `longest` is that one and grows by the factor); an entry beside the table counts first.

    With linear `longest` is after scaling unless such an entry says otherwise: both are in use, and no other entry tells.
    """
    inside = rope.pop(ORIGINAL, None)
    stated = entries.get(ORIGINAL, inside)
    if scaling not in STRETCHED:
        return longest, scaling == "dynamic" or (scaling == "linear" and stated == longest)
    context = entries.count(ORIGINAL, default or inside or longest)
    return context, scaling == "yarn" and context == longest


def _value(value, default, name: str):
    if value is None:
        return default
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise unsupported(name, value, (True, False))
        return value
    if name.endswith(("short_factor", "long_factor")):
        if not isinstance(value, list) or not value:
            raise ConfigError(f"config.json has {name}={value!r}, which is not a list of numbers")
        return tuple(_number(one, name) for one in value)
    return _number(value, name)


def _number(value, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"config.json has {name}={value!r}, which is not a number of at least 0")
    return float(value)
