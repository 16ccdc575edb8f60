"""A GPT of 110M parameters on C4 (Raffel et al. 2020), cleaned English web pages.

    python -c "import tensorflow_datasets as tfds; tfds.builder('c4/en', file_format='array_record').download_and_prepare()"
    python scripts/train.py --config=configs/c4.py --workdir=runs/c4

Preparing C4 (the first command) takes TensorFlow, Apache Beam and a cluster; a copy prepared elsewhere is read with
--config.data.tfds_dir=DIR and needs none of them. Expect: this needs an accelerator. Not run by us yet: no result is claimed.
"""

import pathlib

from lm import config as configs


def get_config():
    """The config of lm1b.py, on other text."""
    config = configs.load(str(pathlib.Path(__file__).with_name("lm1b.py")))
    config.data.source = "tfds:c4/en:train"
    config.data.validation_source = "tfds:c4/en:validation"
    config.data.tokenizer_sample_bytes = 1_000_000_000
    return config
