"""Families of models that other libraries store, by the model_type of their config.json."""

from lm.errors import ConfigError
from lm.interop.families import bert, gpt2, llama, neox, t5
from lm.interop.families.base import Family, NoCounterpartError, Reading

__all__ = ["FAMILIES", "Family", "Reading", "family_of", "written"]

FAMILIES: dict[str, Family] = {
    model_type: family for module in (gpt2, neox, llama, bert, t5) for family in module.FAMILIES for model_type in family.model_types}


def family_of(description: dict) -> Family:
    """The family of a config.json. ConfigError when there is none."""
    kind = description.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"config.json has model_type={kind!r}, but only {', '.join(sorted(FAMILIES))} can be read")
    return FAMILIES[kind]


def written(config, sizes) -> dict:
    """The config.json of a model that was trained here, in the first family that holds it. ConfigError says what the nearest one lacks."""
    reasons = {}
    for family in dict.fromkeys(FAMILIES.values()):
        if family.write is not None:
            try:
                return family.write(config, sizes)
            except NoCounterpartError as error:
                reasons[family.name] = error
    nearest = min(reasons, key=lambda name: ("model.name" in reasons[name].keys, len(reasons[name].keys)))
    raise ConfigError(f"no family of the transformers library holds this model; the nearest is {nearest}, but {reasons[nearest]}")
