"""Attention against `jax.nn.dot_product_attention`, a loop in numpy, and the definition of its mask and cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers import attention
from lm.layers.attention import Attention, attend, causal_attend, causal_mask, write

RNG = np.random.default_rng(0)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])


def qkv(heads, kv_heads, width=8, dtype=np.float32):
    shape = (2, SEGMENTS.shape[1])
    return [RNG.normal(size=(*shape, n, width)).astype(dtype) for n in (heads, kv_heads, kv_heads)]


TIMES = np.arange(SEGMENTS.shape[1])
MASK = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]) & (TIMES[:, None] >= TIMES)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 4), (4, 9)])
def test_mask_is_same_document_and_not_the_future(start, stop):
    mask = np.asarray(causal_mask(jnp.asarray(SEGMENTS)[:, :stop], start, stop - start))
    np.testing.assert_array_equal(mask, MASK[:, start:stop, :stop])
    assert mask.any(axis=2).all(), "a query that sees no key has no softmax"


# The last ones in pieces: two whole ones, one block of them, two blocks with a rest.
@pytest.mark.parametrize(("block", "blocks", "longest"), [(64, 8, 256), (3, 8, 256), (1, 4, 256), (1, 100, 256),
                                                          (1, 1, 5), (1, 1, 3), (1, 2, 4), (1, 3, 2)])
def test_blocks_of_queries_change_neither_value_nor_gradient(monkeypatch, block, blocks, longest):
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", block)
    monkeypatch.setattr(attention, "MOST_BLOCKS", blocks)
    monkeypatch.setattr(attention, "LONGEST_BLOCK", longest)
    weights = RNG.normal(size=(2, SEGMENTS.shape[1], 4, 8))

    def ours(q, k, v):
        y = causal_attend(q, k, v, jnp.asarray(SEGMENTS))
        return jnp.sum(weights * y), y

    def jaxs(q, k, v):
        y = jax.nn.dot_product_attention(q, k, v, mask=MASK[:, None])
        return jnp.sum(weights * y), y

    arrays = qkv(4, 2)
    got, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True))(*arrays) for f in (ours, jaxs))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)  # float32 sums of order ten in another order


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_attention_is_jaxs_with_grouped_heads(heads, kv_heads):
    q, k, v = qkv(heads, kv_heads)
    expected = jax.nn.dot_product_attention(q, k, v, mask=MASK[:, None])
    # Sums of 10 and of 8 products of order one, in another order.
    np.testing.assert_allclose(attend(q, k, v, MASK), expected, rtol=1e-5, atol=1e-5)


def test_attention_is_a_loop_in_float64():
    q, k, v = qkv(4, 2)
    expected = np.zeros(q.shape)
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen, kv = MASK[b, t], h // 2  # query heads 0 and 1 share key head 0
        scores = k[b, seen, kv].astype(np.float64) @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        expected[b, t, h] = weights @ v[b, seen, kv] / weights.sum()
    np.testing.assert_allclose(attend(q, k, v, MASK), expected, rtol=1e-5, atol=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_softmax_in_low_precision():
    """Two keys whose logits, near 400, differ by 1: bfloat16 logits (spacing 2) could not tell them apart."""
    q = jnp.full((1, 1, 1, 4), 20.0, jnp.bfloat16)
    k = jnp.array([[10.0, 10.0, 10.0, 10.0], [10.125, 10.0, 10.0, 9.9375]], jnp.bfloat16).reshape(1, 2, 1, 4)
    v = jnp.array([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1) * jnp.ones(4, jnp.bfloat16)
    expected = 1 / (1 + np.exp(-20 * (0.125 - 0.0625) / 2))
    y = attend(q, k, v, jnp.ones((1, 1, 2), bool))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2.0**-7)  # weights and output rounded to bfloat16


@pytest.mark.parametrize("slot", [4, [0, 5, 3]])
def test_write_puts_each_row_at_its_own_slot(slot):
    cache, new = np.zeros((3, 2, 7, 4), np.float32), RNG.normal(size=(3, 2, 2, 4)).astype(np.float32)  # the cache has heads before slots
    expected = cache.copy()
    for row, start in enumerate(np.broadcast_to(slot, 3)):
        expected[row, :, start : start + 2] = new[row].swapaxes(0, 1)
    np.testing.assert_array_equal(write(cache.reshape(6, 7, 4), new, jnp.array(slot)), expected.reshape(6, 7, 4))


def test_memory_of_long_rows_is_linear():
    """What is alive at once in the gradient of attention, for rows of 4,096 and 8,192 tokens: twice as much, and not four times."""

    def temporaries(length):
        def loss(q, k, v, segments):
            return jnp.sum(causal_attend(q, k, v, segments) ** 2)

        x, segments = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32), jax.ShapeDtypeStruct((1, length), jnp.int32)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, segments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(4096), temporaries(8192)
    assert long < 2.3 * short


def test_output_matrix_starts_smaller_by_the_scale_of_its_depth():
    module = Attention(4, 2, 64, bias=True, qk_norm=True, output_scale=0.25)
    x = jnp.zeros((1, 2, 128))
    params = module.init(jax.random.key(0), x, jnp.ones((1, 2), int), None)["params"]
    std = {name: float(np.std(params[name]["kernel"].unbox())) for name in ("query", "key", "value", "output")}
    for name in ("query", "key", "value"):
        assert std[name] == pytest.approx(128**-0.5, rel=0.03)  # at least 16,384 draws: five standard errors
    assert std["output"] == pytest.approx(0.25 * 256**-0.5, rel=0.03)
    assert params["query_norm"]["scale"].unbox().shape == params["key_norm"]["scale"].unbox().shape == (64,)
