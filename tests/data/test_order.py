"""The order of examples: a bijection per epoch, exact shares of a mixture, pure in its index, and well mixed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.order import _BLOCK, Order, permute, shuffled
from lm.errors import ConfigError


def test_permute_is_a_bijection_for_every_small_size():
    for size in range(1, 201):
        assert sorted(permute(np.arange(size), size, 0)) == list(range(size)), size


@given(st.integers(1, 20_000), st.integers(0, 2**32 - 1))
def test_permute_is_a_bijection_for_any_size_and_seed(size, seed):
    values = permute(np.arange(size), size, seed)
    assert values.dtype == np.int64 and (np.bincount(values, minlength=size) == 1).all()


def test_permute_is_a_bijection_for_a_large_prime():
    size = 1_000_003
    assert (np.bincount(permute(np.arange(size), size, 3), minlength=size) == 1).all()


def test_permute_stays_in_range_and_apart_for_more_rows_than_fit_in_memory():
    size = 2**40 + 15
    indices = np.arange(0, size, size // 1000)
    values = permute(indices, size, 1)
    assert len(set(values.tolist())) == len(indices) and (values >= 0).all() and (values < size).all()


def test_permute_of_some_indices_is_part_of_the_whole_and_leaves_them_alone():
    indices = np.array([5, 0, 77, 5])
    assert permute(indices, 100, 9).tolist() == permute(np.arange(100), 100, 9)[[5, 0, 77, 5]].tolist()
    assert indices.tolist() == [5, 0, 77, 5]


def test_seed_epoch_stream_and_size_each_give_another_order():
    orders = [shuffled(np.arange(500) + 500 * epoch, 500, seed, stream) for seed, epoch, stream in
              [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 0), (1, 1, 0)]]
    for a in range(len(orders)):
        for b in range(a):
            assert (orders[a] == orders[b]).sum() < 10, "two orders agree in more places than chance"  # on average one
    assert (permute(np.arange(500), 501, 0) == permute(np.arange(500), 500, 0)).sum() < 10


@pytest.mark.parametrize("size", [1000, 1024, 4095])
def test_neighbours_in_order_are_no_neighbours_in_rows(size):
    values = permute(np.arange(size), size, 4)
    # Of two independent uniform rows the mean distance is a third of the size.
    assert abs(np.abs(np.diff(values)).mean() / (size / 3) - 1) < 0.1
    assert abs(np.abs(values - np.arange(size)).mean() / (size / 3) - 1) < 0.1
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.1


@given(st.integers(1, 300), st.integers(0, 1000), st.integers(0, 2**32 - 1))
def test_shuffled_covers_every_row_once_in_each_epoch(size, epoch, seed):
    assert sorted(shuffled(np.arange(size) + epoch * size, size, seed)) == list(range(size))


def test_shuffled_across_epochs_is_its_parts():
    whole = shuffled(np.arange(250), 100, 7)
    assert whole.tolist() == [int(shuffled(np.array([i]), 100, 7)[0]) for i in range(250)]


def test_one_source_is_its_own_shuffled_epochs():
    sources, rows = Order((37,), (1.0,), 5).locate(np.arange(37 * 3))
    assert not sources.any()
    for epoch in range(3):
        assert sorted(rows[epoch * 37 : (epoch + 1) * 37]) == list(range(37))


MIXTURES = [((50, 700), (0.3, 0.7)), ((1, 10_000, 3), (1.0, 5.0, 0.001)), ((10,) * 7, (1.0,) * 7), ((9, 9), (1e-9, 1.0)),
            ((100, 100, 100), (1 / 3, 1 / 3, 1 / 3))]


@pytest.mark.parametrize(("sizes", "weights"), MIXTURES)
def test_shares_of_a_mixture_are_exact_after_every_block(sizes, weights):
    order, shares = Order(sizes, weights, 3), np.array(weights) / sum(weights)
    sources, _ = order.locate(np.arange(4 * _BLOCK))
    for blocks in range(1, 5):
        counts = np.bincount(sources[: blocks * _BLOCK], minlength=len(sizes))
        error = np.abs(counts - shares * blocks * _BLOCK)
        largest = int(np.argmax(shares))
        assert (np.delete(error, largest) <= 1).all() and error[largest] <= len(sizes)


@pytest.mark.parametrize(("sizes", "weights"), MIXTURES)
def test_every_source_of_a_mixture_goes_through_its_rows_epoch_by_epoch(sizes, weights):
    sources, rows = Order(sizes, weights, 3).locate(np.arange(2 * _BLOCK))
    for source, size in enumerate(sizes):
        mine = rows[sources == source]
        for epoch in range(min(3, len(mine) // size)):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
        if rest := mine[len(mine) // size * size :].tolist():
            assert len(set(rest)) == len(rest)


def test_random_access_to_a_mixture_is_sequential_access_and_depends_on_the_seed():
    order = Order((50, 700, 3), (0.3, 0.6, 0.1), 3)
    sources, rows = order.locate(np.arange(3 * _BLOCK))
    picked = np.random.default_rng(0).integers(0, 3 * _BLOCK, 300)
    got_sources, got_rows = order.locate(picked)
    assert (got_sources == sources[picked]).all() and (got_rows == rows[picked]).all()
    one_source, one_row = order.locate(picked[:1])
    assert (one_source[0], one_row[0]) == (sources[picked[0]], rows[picked[0]])
    other, _ = Order((50, 700, 3), (0.3, 0.6, 0.1), 4).locate(np.arange(3 * _BLOCK))
    assert (other != sources).mean() > 0.2


def test_sources_are_mixed_within_a_block_and_each_block_in_its_own_way():
    sources, _ = Order((50, 50), (0.5, 0.5), 0).locate(np.arange(2 * _BLOCK))
    for part in sources[:_BLOCK].reshape(16, -1):
        assert 0.3 < part.mean() < 0.7
    assert 0.4 < (sources[:_BLOCK] != sources[_BLOCK:]).mean() < 0.6


def test_too_many_sources_are_refused():
    Order((1,) * 64, (1.0,) * 64, 0)
    with pytest.raises(ConfigError, match=r"data.source has 65 sources"):
        Order((1,) * 65, (1.0,) * 65, 0)


def test_sources_of_one_size_have_orders_of_their_own():
    sources, rows = Order((500, 500), (0.5, 0.5), 0).locate(np.arange(_BLOCK))
    assert (rows[sources == 0][:500] == rows[sources == 1][:500]).sum() < 10
