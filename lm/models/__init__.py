"""Model families by name. A family is one file with `build(model_config, vocab_size, context) -> LanguageModel`."""

from lm.models import recurrent, transformer
from lm.models.base import LanguageModel, logits_of

__all__ = ["FAMILIES", "LanguageModel", "build", "logits_of"]

FAMILIES = {"transformer": transformer.build, "rnn": recurrent.build, "lstm": recurrent.build, "gru": recurrent.build}


def build(model, vocab_size: int, context: int) -> LanguageModel:
    """The model of the config's model section."""
    return FAMILIES[model.name](model, vocab_size, context)
