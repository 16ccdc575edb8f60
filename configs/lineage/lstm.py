"""An LSTM language model (Sundermeyer et al. 2012): 2 layers, 416 wide.

    python scripts/train.py --config=configs/lineage/lstm.py --workdir=runs/lstm

Expect: 1.537 bits per byte on the validation split after 655,360 tokens, in 3.0 minutes of training on 2 busy cores of an AMD EPYC (Zen
4).
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.model.name = "lstm"
    config.model.layers = 2
    config.model.width = 416
    config.model.embedding_width = 256
    config.model.tie_embeddings = False
    config.data.source = "sotu"
    config.data.vocab_size = 4096
    config.data.context = 256
    config.data.global_batch = 16
    config.train.steps = 160
    config.optim.name = "muon"
    config.optim.muon_learning_rate = 0.1
    config.optim.learning_rate = 0.06
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.warmup = "5%"
    config.optim.weight_decay = 0.1
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
