"""Documents packed into one row never see each other, and no token sees the future: exactly, for every family."""

import functools

import jax
import numpy as np
import pytest

from lm.objectives import causal

FIRST, SECOND = 9, 11  # tokens of documents A and B; 2 of padding follow
SEGMENTS = np.array([1] * FIRST + [2] * SECOND + [0] * 2)
LENGTH = len(SEGMENTS)
MODELS = {
    "rope": ("transformer", {"kv_heads": 2, "activation": "swiglu"}),
    "learned": ("transformer", {"positions": "learned", "norm": "layernorm", "bias": True, "scan_layers": False}),
    "sinusoidal": ("transformer", {"positions": "sinusoidal", "tie_embeddings": False}),
    "rnn": ("rnn", {}),
    "lstm": ("lstm", {"residual": True, "layer_norm": True}),
    "gru": ("gru", {"embedding_width": 8, "unroll": 3}),
}


@pytest.fixture(scope="module", params=MODELS)
def score(request, make):
    """Nats [LENGTH, LENGTH] of a batch, compiled once per model."""
    name, settings = MODELS[request.param]
    model, params = make(name, **settings)
    return functools.partial(jax.jit(lambda params, batch: causal.token_nats(model, params, batch)), params)


@pytest.fixture(scope="module")
def batch(random_batch):
    """The same row LENGTH times."""
    return jax.tree.map(lambda row: np.repeat(row, LENGTH, axis=0), random_batch(SEGMENTS[None]))


def test_a_changed_token_changes_its_document_from_there_on_and_nothing_else(score, batch):
    tokens = batch["tokens"].copy()
    tokens[np.arange(LENGTH), np.arange(LENGTH)] += 1  # row i has token i changed
    before, after = np.asarray(score(batch)), np.asarray(score(batch | {"tokens": tokens % 19}))
    for i, segment in enumerate(SEGMENTS):
        may_change = (segment == SEGMENTS) & (np.arange(LENGTH) >= i)
        np.testing.assert_array_equal(after[i, ~may_change], before[i, ~may_change])
        if segment:
            assert (after[i, may_change] != before[i, may_change]).all(), "the context is not used"


def test_a_target_is_only_scored(score, batch):
    targets = batch["targets"].copy()
    targets[np.arange(LENGTH), np.arange(LENGTH)] += 1
    changed = np.asarray(score(batch)) != np.asarray(score(batch | {"targets": targets % 19}))
    np.testing.assert_array_equal(changed, np.eye(LENGTH, dtype=bool))


def test_a_packed_document_scores_as_it_does_alone(score, batch):
    def alone(name, fill):
        return np.concatenate([batch[name][:, FIRST : FIRST + SECOND], np.full((LENGTH, LENGTH - SECOND), fill)], axis=1).astype(np.int32)

    unpacked = {name: alone(name, 0) for name in ("tokens", "targets", "positions")} | {"segments": alone("segments", 0) // 2}
    packed = np.asarray(score(batch))[:, FIRST : FIRST + SECOND]
    # float32 sums over keys in other places.
    np.testing.assert_allclose(np.asarray(score(unpacked))[:, :SECOND], packed, rtol=1e-5, atol=1e-5)


def test_padding_is_finite(score, batch):
    assert np.isfinite(np.asarray(score(batch))).all()
    assert np.isfinite(np.asarray(score(batch | {"segments": np.zeros_like(batch["segments"])}))).all()
