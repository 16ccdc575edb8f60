"""The keys of the objective: each objective reads those that name it."""

from lm.config.key import Key
from lm.config.model_keys import (
    ENCODER_DECODER,
    GLOVE,
    HMM,
    NGRAM,
    NPLM,
    RECURRENT,
    SEQ2SEQ,
    TRANSFORMERS,
    VAE,
    WORD2VEC,
)

# The families that each objective can train.
TRAINS = {
    "causal": TRANSFORMERS + RECURRENT + NPLM + HMM + NGRAM,
    "infill": TRANSFORMERS + RECURRENT,
    "prefix": TRANSFORMERS,
    "span": ENCODER_DECODER + TRANSFORMERS,
    "denoisers": ENCODER_DECODER + TRANSFORMERS,
    "masked": ("encoder",),
    "replaced": ("electra",),
    "translation": SEQ2SEQ + ENCODER_DECODER,
    "skipgram": WORD2VEC,
    "cbow": WORD2VEC,
    "glove": GLOVE,
    "vae": VAE,
}
# Those that are of words, and say nothing of what text costs.
OF_WORDS = ("skipgram", "cbow", "glove")
OBJECTIVES = tuple(TRAINS)

OBJECTIVE = {
    "objective.name": Key("causal", "What is predicted from what.", choices=OBJECTIVES),
    "objective.label_smoothing": Key(0.0, "Share of a target's probability that is spread over the vocabulary (Szegedy et al. 2016).",
                                     minimum=0.0, maximum=0.99, objectives=("translation",)),
    "objective.mask_rate": Key(0.15, "Share of a row's tokens that is hidden and predicted.", above=0.0, maximum=0.9,
                               objectives=("masked", "replaced")),
    "objective.whole_words": Key(False, "Hide all pieces of a word together.", objectives=("masked", "replaced")),
    "objective.mask_share": Key(0.8, "Share of the hidden tokens where the model sees <mask>.", minimum=0.0, maximum=1.0,
                                objectives=("masked",)),
    "objective.random_share": Key(0.1, "Share of the hidden tokens where it sees a random token; at the others it sees the token itself.",
                                  minimum=0.0, maximum=1.0, objectives=("masked",)),
    "objective.sentences": Key("none", "Rows of consecutive text, or pairs of texts of which the second is the next one or is not.",
                               choices=("none", "next"), objectives=("masked",)),
    "objective.discriminator_weight": Key(50.0, "Weight of the discriminator's loss beside the generator's.", minimum=0.0,
                                          objectives=("replaced",)),
    "objective.noise_density": Key(0.15, "Share of a row's tokens that is cut out.", above=0.0, maximum=0.9, objectives=("span",)),
    "objective.mean_span": Key(3.0, "Mean length of the spans that are cut out, in tokens.", minimum=1.0, objectives=("span",)),
    "objective.sentinels": Key(100, "Tokens that stand for spans; a row cannot have more spans.", minimum=1,
                               objectives=("span", "denoisers")),
    "objective.form": Key("encoder_decoder", "Inputs and targets in two rows, or one after the other in the row of a decoder.",
                          choices=("encoder_decoder", "decoder"), objectives=("span", "denoisers")),
    "objective.denoiser_rates": Key((), "Shares of the seven denoisers R3, R8, S, X3, X8 (half of the row), X64 (15 %), X64 (half); "
                                    "empty is all alike.", kind="floats", objectives=("denoisers",)),
    "objective.infill_rate": Key(0.5, "Probability that a document's part in a row is put into another order.", minimum=0.0, maximum=1.0,
                                 objectives=("infill",)),
    "objective.spm_rate": Key(0.5, "Share of these whose suffix comes first (SPM), before prefix and middle.", minimum=0.0, maximum=1.0,
                              objectives=("infill",)),
    "objective.kl_anneal": Key(0, "Sentences over which the weight of the KL rises from 0 to 1; 0 is 1 from the start.", minimum=0,
                               objectives=("vae",)),
    "objective.kl_schedule": Key("logistic", "How it rises.", choices=("linear", "logistic"), objectives=("vae",)),
    "objective.free_bits": Key(0.0, "KL below which a dimension of a sentence's code costs nothing more, in nats.", minimum=0.0,
                               objectives=("vae",)),
    "objective.word_dropout": Key(0.0, "Share of the words that the decoder reads as <unk>.", minimum=0.0, maximum=1.0,
                                  objectives=("vae",)),
    "objective.window": Key(5, "Words to either side that belong to a centre: the widest window of word2vec, which is drawn, and GloVe's.",
                            minimum=1, objectives=OF_WORDS),
    "objective.subsample": Key(1e-3, "Words whose share of the text is above this are left out at random (t of word2vec); 0 keeps all.",
                               minimum=0.0, maximum=1.0, objectives=("skipgram", "cbow")),
    "objective.hierarchical": Key(False, "Hierarchical softmax over a Huffman tree instead of negative sampling.",
                                  objectives=("skipgram", "cbow")),
    "objective.negatives": Key(5, "Negative samples that a pair (skipgram) or a centre (cbow) meets in expectation.", minimum=1,
                               objectives=("skipgram", "cbow")),
    "objective.shared_negatives": Key(64, "Negative samples drawn for a row, which all its words share.", minimum=1,
                                      objectives=("skipgram", "cbow")),
    "objective.x_max": Key(100.0, "Count from which GloVe trusts a cell fully.", above=0.0, objectives=("glove",)),
    "objective.alpha": Key(0.75, "Exponent of the trust in smaller counts.", minimum=0.0, maximum=1.0, objectives=("glove",)),
}
