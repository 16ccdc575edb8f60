"""The neural probabilistic language model (Bengio et al. 2003): the last 8 tokens, one tanh layer, direct connections.

    python scripts/train.py --config=configs/lineage/nplm.py --workdir=runs/nplm

Expect: 1.642 bits per byte on the validation split after 655,360 tokens, in 1.9 minutes of training on 2 busy cores of an AMD EPYC (Zen
4). With configs/lineage/nplm.py:long, eight passes in 50 minutes, 1.403: fewer than a trigram with Katz's back-off (1.412, all text once),
more than one with modified Kneser-Ney (1.374). With configs/lineage/nplm.py:512, over 512 pieces and all 5,587,959 tokens of the training
split, 1.674 in ten busy minutes, where the trigram of the same tokens (configs/lineage/ngram.py:3 --config.data.vocab_size=512
--config.train.steps='1 epochs') has 1.703.
"""

from lm.config import default
from lm.errors import ConfigError

# Variants of the config by its argument: tokenizer's pieces, steps, and what a long run wants otherwise.
VARIANTS = {
    "4096": {},
    # A tight layer without direct connections generalises better (as in the paper), in small steps of 1,024 tokens.
    "long": {"data.global_batch": 4, "train.steps": "8 epochs", "model.direct": False, "model.dropout": 0.1,
             "optim.muon_learning_rate": 0.02, "optim.learning_rate": 0.003, "checkpoint.every": 2740, "eval.every": 2740},
    "512": {"data.vocab_size": 512, "data.global_batch": 4, "train.steps": "1 epochs", "optim.muon_learning_rate": 0.03,
            "optim.learning_rate": 0.006},
}


def get_config(variant="4096"):
    """The config of one of `VARIANTS`: 4096 pieces, as all of configs/lineage have; the same for eight passes; 512, of which the training
    split is read once."""
    if variant not in VARIANTS:
        raise ConfigError(f"there is no nplm of {variant}: use {', '.join(VARIANTS)}")
    config = default()
    config.model.name = "nplm"
    config.model.window = 8
    config.model.width = 512
    config.model.embedding_width = 64
    config.data.source = "sotu"
    config.data.vocab_size = 4096
    config.data.context = 256
    config.data.global_batch = 16
    config.train.steps = 160
    config.optim.name = "muon"
    config.optim.muon_learning_rate = 0.1
    config.optim.learning_rate = 0.05
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.warmup = "5%"
    config.checkpoint.every = 0
    config.eval.every = 0
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
