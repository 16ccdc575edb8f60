"""Attention to a source against a loop in float64, with keys made before or on the way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.attention import segment_mask
from lm.layers.cross_attention import WEIGHTS, CrossAttention, Source

RNG = np.random.default_rng(1)
WIDTH, HEADS, KV_HEADS, HEAD_WIDTH = 12, 4, 2, 6
SEGMENTS = np.array([[1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 0]])  # the third has no source
SOURCE_SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
VISIBLE = SEGMENTS[:, :, None] == SOURCE_SEGMENTS[:, None, :]
X = RNG.normal(size=(2, 6, WIDTH)).astype(np.float32)
STATES = RNG.normal(size=(2, 8, WIDTH)).astype(np.float32)


def module_and_parameters(scaled=True):
    module = CrossAttention(HEADS, KV_HEADS, HEAD_WIDTH, WIDTH, bias=True, output_scale=1.0, scaled=scaled)
    shapes = jax.eval_shape(lambda key: module.init(key, X[:, :2], Source(STATES[:, :2], VISIBLE[:, :2, :2])), jax.random.key(0))["params"]
    return module, jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32) / leaf.shape[0] ** 0.5, nn.meta.unbox(shapes))


def loop(params, scale):
    """(outputs [B, T, D], weights [B, T, S], the mean over heads) in float64."""

    def heads(x, name):
        return (x @ params[name]["kernel"] + params[name]["bias"]).reshape(*x.shape[:2], -1, HEAD_WIDTH).astype(np.float64)

    q, k, v = heads(X, "query"), heads(STATES, "key"), heads(STATES, "value")
    y, every = np.zeros(q.shape), np.zeros(VISIBLE.shape)
    for row, t, head in np.ndindex(*q.shape[:3]):
        keys, key_head = np.flatnonzero(VISIBLE[row, t]), head * KV_HEADS // HEADS
        if len(keys):
            weights = np.exp(k[row, keys, key_head] @ q[row, t, head] * scale)
            weights /= weights.sum()
            y[row, t, head] = weights @ v[row, keys, key_head]
            every[row, t, keys] += weights / HEADS
    return y.reshape(*X.shape[:2], -1) @ params["output"]["kernel"] + params["output"]["bias"], every


@pytest.mark.parametrize("scaled", [True, False])
def test_it_is_a_loop_in_float64(scaled):
    module, params = module_and_parameters(scaled)
    mask = segment_mask(jnp.asarray(SEGMENTS), jnp.asarray(SOURCE_SEGMENTS))
    got, sown = module.apply({"params": params}, X, Source(STATES, mask), mutable=[WEIGHTS])
    expected, weights = loop(params, HEAD_WIDTH**-0.5 if scaled else 1.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(sown[WEIGHTS]["weights"], weights, rtol=1e-4, atol=1e-6)


def test_a_token_without_a_source_reads_nothing():
    module, params = module_and_parameters()
    got = np.asarray(module.apply({"params": params}, X, Source(STATES, jnp.asarray(VISIBLE))))
    np.testing.assert_array_equal(got[~VISIBLE.any(axis=2)], np.broadcast_to(params["output"]["bias"], (2, WIDTH)))
    read = jax.jit(jax.grad(lambda states: jnp.sum(module.apply({"params": params}, X, Source(states, VISIBLE))[0, 4] ** 2)))
    gradient = read(STATES)
    np.testing.assert_array_equal(gradient, 0.0)


def test_keys_and_values_that_were_made_before_are_the_same():
    module, params = module_and_parameters(scaled=False)
    cache = module.apply({"params": params}, STATES, method="keys_and_values")
    assert cache.keys.shape == (2 * KV_HEADS, 8, HEAD_WIDTH)
    got = module.apply({"params": params}, X, Source(cache, jnp.asarray(VISIBLE)))
    np.testing.assert_allclose(got, module.apply({"params": params}, X, Source(STATES, VISIBLE)), rtol=1e-6, atol=1e-6)
