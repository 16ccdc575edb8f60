"""A GPT of 110M parameters on the English part of Wiki-40B (Guo et al. 2020), cleaned encyclopedia articles.

    python -c "import tensorflow_datasets as tfds; tfds.builder('wiki40b/en', file_format='array_record').download_and_prepare()"
    python scripts/train.py --config=configs/wiki40b.py --workdir=runs/wiki40b

Preparing (the first command) needs the internet, TensorFlow and Apache Beam, best in an environment of its own; a copy prepared elsewhere
is read with --config.data.tfds_dir=DIR and needs neither. Expect: this needs an accelerator. Not run by us yet: no result is claimed.
"""

import pathlib

from lm import config as configs


def get_config():
    """The config of lm1b.py, on other text."""
    config = configs.load(str(pathlib.Path(__file__).with_name("lm1b.py")))
    config.data.source = "tfds:wiki40b/en:train"
    config.data.validation_source = "tfds:wiki40b/en:validation"
    config.data.tokenizer_sample_bytes = 1_000_000_000
    return config
