"""What parameters begin with: samples of a program that is not run against draws, and against what papers say."""

import jax
import numpy as np
import pytest

from lm import config as configs
from lm import models
from lm.describe import initial

ORTHOGONAL = ("recurrent",)  # entries that depend on each other


def names_of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]


def build(family, vocab=3000, **settings):
    section = configs.default().model
    section.update({"layers": 1, "width": 64} | settings, name=family)
    return models.build(section, vocab, 64, source_vocab=vocab)


@pytest.mark.parametrize(("family", "settings"), [("transformer", {}), ("transformer", {"layers": 2, "scan_layers": False}), ("rnn", {}),
                                                  ("nplm", {}), ("word2vec", {})])
def test_samples_are_like_draws(monkeypatch, family, settings):
    model = build(family, **settings)
    drawn = initial.initial_values(model, 3)
    monkeypatch.setattr(initial, "MOST_DRAWN", 0)
    sampled = initial.initial_values(model, 3)
    for name, draw, sample in zip(names_of(model), drawn, sampled, strict=True):
        if name.endswith(ORTHOGONAL):
            assert sample is None, name
        else:
            assert sample[1] == pytest.approx(draw[1], rel=0.1), name  # some have a few hundred entries
            assert sample[0] == pytest.approx(draw[0], abs=0.3 * draw[1]), name


def test_a_small_model_is_drawn_from_the_runs_own_seed():
    model = build("nplm")
    leaves = jax.tree.leaves(jax.device_get(jax.jit(model.init)(jax.random.key(5))))
    for leaf, (mean, deviation) in zip(leaves, initial.initial_values(model, 5), strict=True):
        assert (mean, deviation) == (pytest.approx(np.mean(leaf), abs=1e-6), pytest.approx(np.std(leaf), rel=1e-4))


def test_a_model_of_70_billion_parameters_is_told_without_drawing_any():
    """Standard deviations are 1 / sqrt(inputs), and less by 1 / sqrt(2 layers) where a matrix writes to the residual stream."""
    model = build("transformer", vocab=32000, layers=80, width=8192, heads=64, kv_heads=8, ff_width=28672, activation="swiglu",
                  tie_embeddings=False, scan_layers=True)
    told = dict(zip(names_of(model), initial.initial_values(model, 0), strict=True))
    expected = {"attention/query/kernel": 8192**-0.5, "attention/output/kernel": (8192 * 160) ** -0.5,
                "feed_forward/down/kernel": (28672 * 160) ** -0.5, "feed_forward/gate/kernel": 8192**-0.5}
    for name, deviation in expected.items():
        assert told[f"layers/{name}"][1] == pytest.approx(deviation, rel=0.02)
    assert told["layers/attention_norm/scale"] == (1, 0)
