"""Model families by name. A family is one file with `build(model_config, sizes, layout) -> Model`."""

from lm.models import electra, encoder, encoder_decoder, hmm, ngram, nplm, recurrent, seq2seq, transformer, vae, word_vectors
from lm.models.base import CountedModel, LanguageModel, Model, ProbabilityModel, Sizes, logits_of
from lm.parallel import Layout

__all__ = ["FAMILIES", "CountedModel", "LanguageModel", "Model", "ProbabilityModel", "Sizes", "build", "logits_of"]

FAMILIES = {
    "transformer": transformer.build,
    "rnn": recurrent.build,
    "lstm": recurrent.build,
    "gru": recurrent.build,
    "nplm": nplm.build,
    "hmm": hmm.build,
    "ngram": ngram.build,
    "seq2seq": seq2seq.build,
    "vae": vae.build,
    "encoder": encoder.build,
    "electra": electra.build,
    "encoder_decoder": encoder_decoder.build,
    "word2vec": word_vectors.build,
    "glove": word_vectors.build,
}


def build(model, vocab_size: int, context: int, layout: Layout = Layout(), source_vocab: int = 0, bos: int = 0) -> Model:  # noqa: B008
    """The model of the config's model section; see `Sizes`. Models that read no source leave `source_vocab` alone, and most `bos`."""
    return FAMILIES[model.name](model, Sizes(vocab_size, context, source_vocab, bos), layout)
