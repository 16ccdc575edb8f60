"""Replaced-token detection: what the generator puts in, what counts as replaced, and the loss against a dense oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lm import config, models
from lm.data.tokenizers import ByteTokenizer
from lm.models import electra
from lm.objectives.replaced import Replaced, draw
from lm.parallel import Layout

BYTES = ByteTokenizer()
CONTEXT = 32


@pytest.fixture(scope="module")
def model():
    """(generator and discriminator of 32 positions, their parameters): deviations large enough for uneven predictions."""
    section = config.default().model
    section.update(name="electra", layers=1, width=16, heads=4, token_types=0, positions="learned", generator_share=0.5)
    built = electra.build(section, models.Sizes(BYTES.vocab_size + 3, CONTEXT), Layout())
    rng = np.random.default_rng(0)
    fill = lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32)  # noqa: E731
    return built, jax.tree.map(fill, jax.eval_shape(built.init, jax.random.key(0)))


@pytest.fixture
def batch(objective, text_store, rows_of):
    replaced = objective(Replaced, CONTEXT)
    examples = np.array([0, 1, 2, text_store.num_tokens // replaced.raw])  # the last is partly filled
    return replaced, replaced.build(rows_of(replaced, text_store, examples), examples)


def dense(model, params, batch):
    """(tokens that the discriminator sees, generator's nats and normalisers, discriminator's logits), in float64 by NumPy."""
    logits = np.asarray(jax.jit(model.apply)(params, batch), np.float64) @ np.asarray(model.unembedding(params), np.float64)
    normaliser = np.log(np.exp(logits).sum(-1))
    nats = normaliser - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    drawn = (np.cumsum(np.exp(logits - normaliser[..., None]), axis=-1) <= batch["draw"][..., None]).sum(-1)
    tokens = np.where(batch["masked"] > 0, drawn, batch["targets"])
    seen = batch | {"tokens": tokens.astype(np.int32)}
    return tokens, nats, normaliser, np.asarray(jax.jit(model.discriminate)(params, seen), np.float64)


def test_the_generator_sees_masks_alone_and_the_discriminator_decides_on_all_text(batch):
    replaced, made = batch
    masked = made["masked"] == 1
    assert (made["tokens"][masked] == replaced.mask).all() and (made["tokens"] == made["targets"])[~masked].all()
    np.testing.assert_array_equal(made["weights"] == 1, (made["segments"] > 0) & (made["targets"] < 256))
    assert not made["masked"][made["weights"] == 0].any()
    real = made["weights"].sum(axis=1)
    np.testing.assert_array_equal(masked.sum(axis=1), np.maximum(1, np.rint(0.15 * real)))
    assert made["draw"].dtype == np.float32 and made["draw"].max() < 1


def test_loss_and_scores_are_those_of_the_oracle(model, batch):
    built, params = model
    replaced, made = batch
    tokens, nats, normaliser, logits = dense(built, params, made)
    truth, weights, masked = tokens != made["targets"], made["weights"].astype(np.float64), made["masked"].astype(np.float64)
    assert 0 < truth.sum() <= masked.sum()
    binary = np.log1p(np.exp(-np.where(truth, logits, -logits)))
    scale = weights.sum(axis=1) / masked.sum(axis=1)
    generator = np.sum(scale[:, None] * masked * (nats + 0.01 * normaliser**2))
    both = jax.jit(lambda p, b: (replaced.loss(built, p, b, z_loss=0.01, chunk=8), replaced.scores(built, p, b, chunk=8)))
    (total, reported), scores = both(params, made)
    np.testing.assert_allclose(reported, np.sum(weights * binary), rtol=2e-6)
    np.testing.assert_allclose(total, generator + 50 * np.sum(weights * binary), rtol=2e-6)
    np.testing.assert_allclose(scores["nats"], weights * binary, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores["generator_nats"], masked * nats, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores["replaced"], truth & (weights > 0))
    np.testing.assert_array_equal(scores["detected"], (logits > 0) & (weights > 0))
    np.testing.assert_array_equal(scores["correct"], ((logits > 0) == truth) & (weights > 0))


def test_the_generator_learns_from_its_own_loss_alone(model, batch):
    built, params = model
    replaced, made = batch
    both, alone = [], []
    for weight, grads in ((50.0, both), (0.0, alone)):
        replaced.options.discriminator_weight = weight
        grads.append(jax.jit(jax.grad(lambda p: replaced.loss(built, p, made)[0]))(params))
    (both,), (alone,) = both, alone
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), both["generator"], alone["generator"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), both["masked"], alone["masked"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(alone["discriminator"]))
    assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(both["discriminator"]))


def test_tokens_are_drawn_with_their_probabilities():
    logits = np.array([-np.inf, *np.log([0.5, 0.2, 0.3])])
    count = 8000
    uniform = np.random.default_rng(0).random((1, count)).astype(np.float32)
    uniform[0, 0] = 0  # not even this draws what has no probability
    places = jnp.arange(count)[None]
    drawn = draw(jnp.ones((1, count, 1)), jnp.asarray(logits[None], jnp.float32), {"draw": jnp.asarray(uniform)}, places, chunk=80)
    counts = np.bincount(np.asarray(drawn)[0], minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], count * np.array([0.5, 0.2, 0.3])).pvalue > 1e-3


def test_a_drawn_original_counts_as_original(model, batch):
    built, params = model
    replaced, made = batch
    tokens, *_ = dense(built, params, made)
    same = made | {"targets": np.where(made["masked"] > 0, tokens, made["targets"]).astype(np.int32)}
    both = jax.jit(lambda p, b: (replaced.scores(built, p, b)["replaced"], replaced.loss(built, p, b)[1]))
    found, decided = both(params, same)
    assert not np.any(found) and np.any(tokens != made["targets"])
    logits = dense(built, params, same)[3]
    np.testing.assert_allclose(decided, np.sum(made["weights"] * np.log1p(np.exp(logits))), rtol=2e-6)
