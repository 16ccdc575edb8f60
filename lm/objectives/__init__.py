"""What is predicted from what, by name: an objective turns rows of data into a batch, and a batch into sums of losses."""

from lm.config.objective_keys import OF_WORDS
from lm.errors import ConfigError
from lm.objectives.base import Objective
from lm.objectives.causal import Causal
from lm.objectives.denoisers import Denoisers
from lm.objectives.glove import Glove
from lm.objectives.infill import Infill
from lm.objectives.masked import Masked
from lm.objectives.prefix import Prefix
from lm.objectives.replaced import Replaced
from lm.objectives.span import Span
from lm.objectives.translation import Translation
from lm.objectives.vae import VAE
from lm.objectives.word2vec import Cbow, SkipGram

__all__ = ["OBJECTIVES", "Objective", "make"]

OBJECTIVES: dict[str, type[Objective]] = {
    "causal": Causal,
    "infill": Infill,
    "prefix": Prefix,
    "span": Span,
    "denoisers": Denoisers,
    "masked": Masked,
    "replaced": Replaced,
    "translation": Translation,
    "skipgram": SkipGram,
    "cbow": Cbow,
    "glove": Glove,
    "vae": VAE,
}


def make(config, tokenizer, source_tokenizer=None) -> Objective:
    """The objective of a config, over the ids of a tokenizer and, of pairs, of their sources' tokenizer."""
    kind = OBJECTIVES[config.objective.name]
    if kind.paired != (source_tokenizer is not None) and tokenizer is not None:
        wanted, fix = (("pairs", "texts: use pairs:FILE, or set data.source_field") if kind.paired else
                       ("texts", "pairs: set objective.name=translation"))
        raise ConfigError(f"objective.name={config.objective.name} reads {wanted}, and data.source holds {fix}")
    # The config may name a token store or a file, so that only the tokenizer itself tells.
    if getattr(tokenizer, "kind", None) == "words" and config.objective.name not in OF_WORDS:
        source = ",".join(config.data.source)
        raise ConfigError(f"the tokenizer of data.source={source} is one of words, which loses case, spaces and rare words: "
                          f"objective.name={config.objective.name} could not say what text costs; use bpe, unigram or bytes")
    objective = kind(config.objective, tokenizer, config.data.context, config.seed)
    objective.source_tokenizer = source_tokenizer
    return objective
