"""Tiny models of every kind, with random values in every parameter: zero biases and unit scales would hide errors in them."""

import functools

import jax
import numpy as np
import pytest

from lm import config, models
from lm.config.model_keys import RECURRENT
from lm.layers import attention

VOCAB, CONTEXT = 19, 24


def random_parameters(model, seed=0):
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name == "scale":
            return (1 + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32)
        deviation = leaf.shape[-2] ** -0.5 if name in ("kernel", "input", "recurrent") else 0.3
        return (deviation * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0)))


@functools.cache
def _make(name, vocab, context, settings):
    section = config.default().model
    small = {"layers": 2, "width": 16} | ({"unroll": 2} if name in RECURRENT else {})
    section.update(small | dict(settings), name=name)
    model = models.build(section, vocab, context)
    return model, random_parameters(model)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Rows of these tests go through attention in several blocks, as long ones do."""
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 8)


@pytest.fixture(scope="session")
def make():
    """make(name, vocab, context, **settings of the model section) -> (model, parameters)."""
    return lambda name, vocab=VOCAB, context=CONTEXT, **settings: _make(name, vocab, context, tuple(sorted(settings.items())))


@pytest.fixture(scope="session")
def random_batch():
    """random_batch(segments, vocab) -> a batch with random tokens and targets, positions from 0 in each segment."""

    def build(segments, vocab=VOCAB, seed=0):
        rng, segments = np.random.default_rng(seed), np.asarray(segments, np.int32)
        times = np.arange(segments.shape[1])
        begins = np.concatenate([np.ones((len(segments), 1), bool), segments[:, 1:] != segments[:, :-1]], axis=1)
        positions = times - np.maximum.accumulate(np.where(begins, times, 0), axis=1)
        tokens, targets = rng.integers(0, vocab, (2, *segments.shape)).astype(np.int32)
        return {"tokens": tokens, "targets": targets, "segments": segments, "positions": positions.astype(np.int32),
                "weights": (segments > 0).astype(np.float32)}

    return build
