"""Model families by name. A family is one file with `build(model_config, vocab_size, context, layout) -> LanguageModel`."""

from lm.models import recurrent, transformer
from lm.models.base import LanguageModel, logits_of
from lm.parallel import Layout

__all__ = ["FAMILIES", "LanguageModel", "build", "logits_of"]

FAMILIES = {"transformer": transformer.build, "rnn": recurrent.build, "lstm": recurrent.build, "gru": recurrent.build}


def build(model, vocab_size: int, context: int, layout: Layout = Layout()) -> LanguageModel:  # noqa: B008 - it is immutable
    """The model of the config's model section."""
    return FAMILIES[model.name](model, vocab_size, context, layout)
