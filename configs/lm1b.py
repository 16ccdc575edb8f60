"""A GPT of 110M parameters on the One Billion Word benchmark (Chelba et al. 2013): one shuffled sentence a document.

    python -c "import tensorflow_datasets as tfds; tfds.builder('lm1b', file_format='array_record').download_and_prepare()"
    python scripts/train.py --config=configs/lm1b.py --workdir=runs/lm1b

Preparing (the first command) needs the internet (1.7 GB) and TensorFlow, best in an environment of its own (pip install tensorflow
tensorflow-datasets array-record); reading does not. Expect: this needs an accelerator. Not run by us yet: no result is claimed.
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.data.source = "tfds:lm1b:train"
    config.data.validation_source = "tfds:lm1b:test"
    config.data.vocab_size = 32_000
    config.data.context = 1024
    config.data.global_batch = 256
    config.model.layers = 12
    config.model.width = 768
    config.model.heads = 12
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.train.steps = "10e9 tokens"
    config.train.loss_chunk = 128
    config.optim.learning_rate = 6e-4
    config.optim.warmup = "2%"
    config.optim.weight_decay = 0.1
    config.checkpoint.every = "1%"
    config.eval.every = "1%"
    config.eval.max_tokens = 1_000_000
    return config
