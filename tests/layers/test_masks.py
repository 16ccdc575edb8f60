"""Attention that is not causal: every kind of mask against a loop in float64 over what its definition lets a query see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError
from lm.layers import attention
from lm.layers.attention import Attention, Cache, Mask, Place, causal_mask, masked_attend, prefix_mask, segment_mask
from lm.layers.positions import rotary_angles

RNG = np.random.default_rng(0)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
PREFIX = np.array([[1, 1, 0, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])
LENGTH, WIDTH, HEADS, KV_HEADS, HEAD_WIDTH = 10, 12, 4, 2, 6
BIAS = RNG.normal(size=(HEADS, LENGTH, LENGTH)).astype(np.float32)

# What a query t may see of a key s of its own segment.
SEES = {
    "bidirectional": lambda row, t, s: True,
    "prefix": lambda row, t, s: s <= t or bool(PREFIX[row, s]),
    "causal": lambda row, t, s: s <= t,
}
MASKS = {
    "bidirectional": lambda segments: segment_mask(segments, segments),
    "prefix": lambda segments: prefix_mask(segments, jnp.asarray(PREFIX)),
    "causal": lambda segments: causal_mask(segments, 0, LENGTH),
}


def visible(kind):
    """[B, T, T] by its definition."""
    seen = np.zeros((*SEGMENTS.shape, LENGTH), bool)
    for row, t, s in np.ndindex(*seen.shape):
        seen[row, t, s] = SEGMENTS[row, t] == SEGMENTS[row, s] and SEES[kind](row, t, s)
    return seen


def loop(q, k, v, seen, bias, scale):
    """Softmax attention [B, T, H, Dh] in float64, a query and a head at a time."""
    y = np.zeros(q.shape)
    for row, t, head in np.ndindex(*q.shape[:3]):
        keys = np.flatnonzero(seen[row, t])
        key_head = head * k.shape[2] // q.shape[2]
        scores = k[row, keys, key_head].astype(np.float64) @ q[row, t, head] * scale + (0 if bias is None else bias[head, t, keys])
        weights = np.exp(scores - scores.max())
        y[row, t, head] = weights @ v[row, keys, key_head] / weights.sum()
    return y


def parameters(module):
    x = jnp.zeros((1, 2, WIDTH))
    shapes = jax.eval_shape(lambda key: module.init(key, x, jnp.ones((1, 2), int), None), jax.random.key(0))["params"]
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32) / leaf.shape[0] ** 0.5, nn.meta.unbox(shapes))


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_their_definitions(kind):
    mask = np.asarray(MASKS[kind](jnp.asarray(SEGMENTS)))
    np.testing.assert_array_equal(mask, visible(kind))
    assert mask.any(axis=2).all(), "a query that sees no key has no softmax"


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["plain", "bias"])
@pytest.mark.parametrize("kind", MASKS)
def test_attention_by_a_mask_is_a_loop_in_float64(kind, bias, scaled):
    module = Attention(HEADS, KV_HEADS, HEAD_WIDTH, bias=False, qk_norm=False, output_scale=1.0, scaled=scaled)
    x, params = RNG.normal(size=(2, LENGTH, WIDTH)).astype(np.float32), parameters(module)
    segments = jnp.asarray(SEGMENTS)
    got, _ = jax.jit(module.apply)({"params": params}, x, segments, None, Mask(MASKS[kind](segments), bias))
    q, k, v = ((x @ params[name]["kernel"]).reshape(2, LENGTH, -1, HEAD_WIDTH) for name in ("query", "key", "value"))
    expected = loop(q, k, v, visible(kind), bias, HEAD_WIDTH**-0.5 if scaled else 1.0).reshape(2, LENGTH, -1)
    np.testing.assert_allclose(got, expected @ params["output"]["kernel"], rtol=1e-4, atol=2e-5)


def test_a_causal_mask_is_the_causal_path():
    """Also where logits are not scaled, with grouped heads and rotated queries, value and gradient."""
    module = Attention(HEADS, KV_HEADS, HEAD_WIDTH, bias=True, qk_norm=True, output_scale=1.0, scaled=False)
    x, params, segments = RNG.normal(size=(2, LENGTH, WIDTH)).astype(np.float32), parameters(module), jnp.asarray(SEGMENTS)
    angles = rotary_angles(jnp.broadcast_to(jnp.arange(LENGTH), SEGMENTS.shape), HEAD_WIDTH, 100.0)

    def loss(params, mask):
        return jnp.sum(jnp.sin(module.apply({"params": params}, x, segments, angles, mask)[0]))

    expected = jax.jit(jax.value_and_grad(loss))(params, None)
    got = jax.jit(jax.value_and_grad(loss))(params, Mask(causal_mask(segments, 0, LENGTH)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("per_row", [False, True])
def test_a_cache_takes_an_addition_to_its_logits(per_row):
    module = Attention(HEADS, KV_HEADS, HEAD_WIDTH, bias=False, qk_norm=False, output_scale=1.0, scaled=False)
    x, params = RNG.normal(size=(2, LENGTH, WIDTH)).astype(np.float32), parameters(module)
    seen = jnp.broadcast_to(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (2, LENGTH, LENGTH))
    apply = jax.jit(module.apply)
    expected, _ = apply({"params": params}, x, None, None, Mask(seen, jnp.asarray(BIAS)))
    cache = Cache(*[jnp.zeros((2 * KV_HEADS, LENGTH, HEAD_WIDTH))] * 2)
    bias = jnp.broadcast_to(BIAS, (2, *BIAS.shape)) if per_row else jnp.asarray(BIAS)
    for start, stop in ((0, 7), (7, 10)):
        place = Place(jnp.full(2, start) if per_row else jnp.int32(start), seen[:, start:stop], bias[..., start:stop, :])
        y, cache = apply({"params": params}, x[:, start:stop], None, None, cache=cache, place=place)
        np.testing.assert_allclose(y, expected[:, start:stop], rtol=1e-5, atol=1e-5)


def test_rows_that_are_cut_in_time_are_refused(monkeypatch):
    monkeypatch.setattr(attention, "extent", lambda *names: 4 if "time" in names else 1)
    q = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(ConfigError, match=r"mesh\.context=4 .* set mesh\.context=1"):
        masked_attend(q, q, q, Mask(jnp.ones((1, 2, 2), bool)))
