"""A decoder Transformer that learns to fill gaps too (Bavarian et al. 2022): 4 layers, 256 wide.

    python scripts/train.py --config=configs/lineage/infill.py --workdir=runs/infill

Expect: 1.693 bits per byte of text left to right on the validation split after 100 steps, in 2.0 minutes of training on 2 busy cores of
an AMD EPYC (Zen 4).
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.model.layers = 4
    config.model.width = 256
    config.model.heads = 4
    config.model.activation = "relu2"
    config.model.tie_embeddings = False
    config.model.scan_layers = False
    config.objective.name = "infill"
    config.data.source = "sotu"
    config.data.vocab_size = 4096
    config.data.context = 256
    config.data.global_batch = 16
    config.train.steps = 100
    config.optim.name = "muon"
    config.optim.muon_learning_rate = 0.03
    config.optim.learning_rate = 0.02
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.warmup = "5%"
    config.optim.weight_decay = 0.1
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
