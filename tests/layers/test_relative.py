"""T5's buckets of distances, for all distances up to 2,000, and the numbers that they look up."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.relative import RelativeBias, bucket

DISTANCES = np.arange(-2000, 2001)
SIZES = [(32, 128), (32, 64), (16, 128), (64, 1000), (12, 50), (8, 20), (4, 9), (10, 77)]


def by_the_paper(relative_position, bidirectional, num_buckets, max_distance):
    """One distance, by sections 2.1 of Raffel et al. (2020) and its logarithm; exact powers are not left to rounding."""
    after = 0
    if bidirectional:
        num_buckets //= 2
        after = num_buckets if relative_position > 0 else 0
        distance = abs(relative_position)
    else:
        distance = max(-relative_position, 0)
    exact = num_buckets // 2
    if distance < exact:
        return after + distance
    share = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    share = round(share) if abs(share - round(share)) < 1e-9 else math.floor(share)
    return after + min(exact + share, num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_buckets_are_the_papers(size, bidirectional):
    expected = [by_the_paper(int(d), bidirectional, *size) for d in DISTANCES]
    np.testing.assert_array_equal(bucket(DISTANCES, bidirectional, *size), expected)
    np.testing.assert_array_equal(jax.jit(lambda d: bucket(d, bidirectional, *size))(DISTANCES), expected)
    assert set(expected) == set(range(size[0])) - ({size[0] // 2} if bidirectional else set()), "0 is not after the query"


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_transformers(bidirectional):
    torch = pytest.importorskip("torch", reason="PARITY NOT CHECKED: pip install -e '.[parity]'")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="PARITY NOT CHECKED: pip install -e '.[parity]'")
    for size in SIZES:
        theirs = t5.T5Attention._relative_position_bucket(torch.tensor(DISTANCES), bidirectional, *size)
        np.testing.assert_array_equal(bucket(DISTANCES, bidirectional, *size), theirs.numpy())


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 7])
def test_a_square_is_a_lookup_for_every_query_and_key(bidirectional, length):
    module = RelativeBias(3, bidirectional, 8, 6)
    table = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(3, length, length)).astype(np.float32)
    expected, d_expected = np.zeros_like(weights), np.zeros_like(table)
    for head, query, key in np.ndindex(*weights.shape):
        number = by_the_paper(key - query, bidirectional, 8, 6)
        expected[head, query, key] = table[number, head]
        d_expected[number, head] += weights[head, query, key]

    def loss(table):
        square = module.apply({"params": {"embedding": table}}, length, method="square")
        return jnp.sum(weights * square), square

    gradient, square = jax.jit(jax.grad(loss, has_aux=True))(table)
    np.testing.assert_array_equal(square, expected)
    np.testing.assert_allclose(gradient, d_expected, rtol=1e-5, atol=1e-5)
    times = jnp.arange(length)
    np.testing.assert_array_equal(module.apply({"params": {"embedding": table}}, times, times, method="at"), expected)
    rows = jnp.stack([times, times + 2])  # a slot for each row
    at = module.apply({"params": {"embedding": table}}, rows, jnp.arange(length + 2), method="at")
    np.testing.assert_array_equal(at[1, :, :, 2:], expected)
