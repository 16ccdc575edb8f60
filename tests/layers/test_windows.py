"""Windows of attention against a dense mask made of their definition: in blocks, pieces, packed rows, prefixes and a cache."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError
from lm.layers import attention
from lm.layers.attention import Attention, Cache, Mask, Place, causal_attend, causal_mask, prefix_mask, sharded_attend

RNG = np.random.default_rng(0)
LENGTH = 23
SEGMENTS = np.array([[1] * 6 + [2] * 11 + [3] + [0] * 5, [1] * LENGTH])


def visible(window):
    """[B, T, T] by the definition: the query's own segment, and of it the last `window` tokens."""
    seen = np.zeros((2, LENGTH, LENGTH), bool)
    for row, t, s in np.ndindex(*seen.shape):
        seen[row, t, s] = SEGMENTS[row, t] == SEGMENTS[row, s] and t - window < s <= t
    return seen


@pytest.mark.parametrize("window", [1, 2, 7, LENGTH, 100])
def test_the_mask_is_its_definition(window):
    for start, stop in ((0, LENGTH), (5, 9)):
        got = causal_mask(jnp.asarray(SEGMENTS)[:, :stop], start, stop - start, window)
        np.testing.assert_array_equal(got, visible(window)[:, start:stop, :stop])


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("window", [1, 3, 8, LENGTH + 2])
# One block, blocks, pieces in a block with a rest and without, blocks of pieces.
@pytest.mark.parametrize(("block", "blocks", "longest"), [(64, 8, 256), (3, 8, 256), (1, 1, 5), (1, 1, LENGTH), (1, 2, 4)])
def test_windows_are_a_dense_mask_in_value_and_gradient(monkeypatch, block, blocks, longest, window, traced):
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", block)
    monkeypatch.setattr(attention, "MOST_BLOCKS", blocks)
    monkeypatch.setattr(attention, "LONGEST_BLOCK", longest)
    weights = RNG.normal(size=(2, LENGTH, 4, 8))
    q, k, v = (RNG.normal(size=(2, LENGTH, heads, 8)).astype(np.float32) for heads in (4, 2, 2))

    def ours(q, k, v, window):
        y = causal_attend(q, k, v, jnp.asarray(SEGMENTS), window)
        return jnp.sum(weights * y), y

    def jaxs(q, k, v):
        y = jax.nn.dot_product_attention(q, k, v, mask=visible(window)[:, None])
        return jnp.sum(weights * y), y

    gradient = functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    got = jax.jit(gradient(ours), static_argnums=() if traced else 3)(q, k, v, window)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(gradient(jaxs))(q, k, v)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_keys_before_a_window_are_never_multiplied():
    """A row of 2,048 tokens with a window of 64: a piece of 256 queries meets 319 keys, and not 1,152 of its past on average."""
    x, segments = jax.ShapeDtypeStruct((1, 2048, 1, 16), jnp.float32), jax.ShapeDtypeStruct((1, 2048), jnp.int32)

    def flops(window):
        attend = functools.partial(causal_attend, window=window)
        return jax.jit(attend).lower(x, x, x, segments).compile().cost_analysis()["flops"]

    assert flops(64) < 0.35 * flops(None)


def test_long_blocks_meet_no_more_keys_than_their_windows(monkeypatch):
    """Of what XLA counts the body of a scan once: so the shapes of the products."""
    monkeypatch.setattr(attention, "MOST_BLOCKS", 1)
    x, segments = jnp.zeros((1, 2048, 1, 16)), jnp.ones((1, 2048), jnp.int32)
    text = str(jax.make_jaxpr(functools.partial(causal_attend, window=64))(x, x, x, segments))
    assert "[1,256,319]" in text and "[1,256,2048]" not in text


@pytest.fixture
def layer():
    """(apply(x, segments, angles, ..., window), x [2, T, 12]) of a layer with random parameters."""
    module = Attention(4, 2, 6, bias=False, qk_norm=False, output_scale=1.0)
    x = RNG.normal(size=(2, LENGTH, 12)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: module.init(key, x[:, :2], jnp.ones((2, 2), int), None), jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32) / leaf.shape[0] ** 0.5, nn.meta.unbox(shapes))
    return functools.partial(module.apply, {"params": params}), x


def test_a_window_cuts_what_is_further_back_from_a_mask_of_its_own(layer):
    apply, x = layer
    segments, times = jnp.asarray(SEGMENTS), np.arange(LENGTH)
    mask = np.asarray(prefix_mask(segments, jnp.asarray([[1, 1, 0, 0, 0, 0, *[1] * 8, *[0] * 9], [1] * 9 + [0] * 14])))
    near = mask & (times[:, None] - times < 4)
    assert near.sum() < mask.sum() and near[1, 0, 8], "the window cuts nothing, or cuts what follows"
    expected, _ = apply(x, segments, None, Mask(jnp.asarray(near)))
    got, _ = apply(x, segments, None, Mask(jnp.asarray(mask)), window=4)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    expected, _ = apply(x, segments, None, Mask(jnp.asarray(visible(5))))
    got, _ = apply(x, segments, None, window=5)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slots", [[0, 0], [2, 5]])
def test_a_cache_has_windows_by_its_slots(layer, slots):
    """Rows of a cache that begin at slots of their own, in chunks and steps."""
    apply, x = layer
    window, slots = 6, np.array(slots)
    expected, _ = apply(x, jnp.ones((2, LENGTH), int), None, window=window)
    cache = Cache(*[jnp.zeros((2 * 2, LENGTH + 5, 6))] * 2)
    keys = np.arange(LENGTH + 5)
    for start, stop in ((0, 9), (9, 10), (10, 15), *((t, t + 1) for t in range(15, LENGTH))):
        queries = slots[:, None] + np.arange(start, stop)
        seen = (keys <= queries[..., None]) & (keys >= slots[:, None, None])
        place = Place(jnp.asarray(slots + start), jnp.asarray(seen))
        y, cache = apply(x[:, start:stop], None, None, cache=cache, place=place, window=window)
        np.testing.assert_allclose(y, expected[:, start:stop], rtol=1e-5, atol=1e-5)


def test_rows_that_are_cut_in_time_are_refused(monkeypatch):
    monkeypatch.setattr(attention, "extent", lambda *names: 4 if "time" in names else 1)
    q = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(ConfigError, match=r"mesh\.context=4 .* no windows: set mesh\.context=1, or model\.attention_window=0"):
        sharded_attend(q, q, q, jnp.ones((1, 2), int), "ring", 8)
