"""A small text of words for the tests of word vectors, and a model with random numbers in every table."""

import jax
import numpy as np

from lm import config, models
from lm.data.store import TokenStore
from lm.data.words import train_words

RANDOM = np.random.default_rng(1)
TEXTS = [" ".join(f"w{i}" for i in RANDOM.zipf(1.4, RANDOM.integers(1, 40)) % 25) for _ in range(30)]
TOKENIZER = train_words(TEXTS, 20, 2)
STORE = TokenStore.from_documents([(str(i), text) for i, text in enumerate(TEXTS)], TOKENIZER)


def options_of(name, **changes):
    """The objective section of a config."""
    section = config.default().objective
    section.update(changes, name=name)
    return section


def model_of(name, width=6):
    """(a model over the tokenizer's words, random parameters)."""
    section = config.default().model
    section.update(name=name, width=width)
    model = models.build(section, TOKENIZER.vocab_size, 16)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: (0.7 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
