"""Trains on from a run, or from a model that scripts/convert.py imported: configs/continued.py:WORKDIR.

    python scripts/convert.py import --from=FILE.gguf --workdir=runs/imported
    python scripts/train.py --config=configs/continued.py:runs/imported --workdir=runs/continued --config.data.source=text:FILES

Model, tokenizer, objective and data are those of the run; the optimizer starts afresh, with a rate that does little harm to what was
learned: raise it for text that is unlike the model's own. Expect: a first loss as scripts/eval.py reports it, and one that falls.
"""

from lm.config import continued
from lm.errors import ConfigError


def get_config(workdir=""):
    """The config that goes on from the run in `workdir`."""
    if not workdir:
        raise ConfigError("name the work directory to go on from: --config=configs/continued.py:WORKDIR")
    config = continued(workdir)
    config.train.steps = 100
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "cosine"
    config.optim.warmup = "5%"
    config.data.global_batch = 8
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
