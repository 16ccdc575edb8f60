"""Objectives with their options, and random text, for tests of what objectives make of rows."""

import numpy as np
import pytest

from lm import config
from lm.data.packing import read_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer


@pytest.fixture(scope="session")
def objective():
    """objective(class, context, seed, tokenizer, **options of the objective section)."""

    def make(kind, context=64, seed=0, tokenizer=None, **options):
        section = config.default().objective
        section.update(options)
        return kind(section, tokenizer or ByteTokenizer(), context, seed)

    return make


@pytest.fixture(scope="session")
def text_store():
    """A store of 120 documents of 0 to 60 words of one to seven letters, as bytes; every document has a letter of its own kind in front."""
    rng = np.random.default_rng(0)
    word = lambda: "".join(rng.choice(list("abcdefgh"), rng.integers(1, 8)))  # noqa: E731
    texts = [f"{i} " + " ".join(word() for _ in range(rng.integers(0, 60))) for i in range(120)]
    return TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], ByteTokenizer())


@pytest.fixture(scope="session")
def rows_of():
    """rows_of(objective, store, examples): the rows with the numbers `examples`, as training reads them."""

    def rows(objective, store, examples):
        if hasattr(objective, "read"):
            return objective.read(store, np.asarray(examples), np.asarray(examples))
        return read_rows(store, np.asarray(examples) * objective.context, objective.context)

    return rows
