"""A hidden Markov model of 256 classes, trained by stepwise EM (Liang and Klein 2009).

    python scripts/train.py --config=configs/lineage/hmm.py --workdir=runs/hmm

Expect: 1.856 bits per byte on the validation split after 655,360 tokens, in 9 seconds of training on 2 busy cores of an AMD EPYC (Zen
4).
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.model.name = "hmm"
    config.model.classes = 256
    config.data.source = "sotu"
    config.data.vocab_size = 4096
    config.data.context = 256
    config.data.global_batch = 16
    config.train.steps = 160
    config.optim.name = "em"
    config.optim.learning_rate = 1.0
    config.optim.em_exponent = 0.4
    config.optim.em_prior = 0.0002
    config.optim.schedule = "constant"
    config.optim.clip = 0.0
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
