"""Dense products, embeddings and dropout against einsum, indexing and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.dense import Embedding, Kernel, Matrix, dropout, matmul, project

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
KERNELS = [RNG.normal(size=(8, width)).astype(np.float32) for width in (6, 3, 10)]
BIASES = [RNG.normal(size=6).astype(np.float32), None, RNG.normal(size=10).astype(np.float32)]


def weighed(outputs):
    """A scalar in which every output counts differently."""
    return sum(jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)) for y in outputs)


def close(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # float32 sums of 8 to 10 products in another order


def test_matmul_is_einsum_in_value_and_gradient():
    kernel = KERNELS[0]
    assert matmul(X, kernel).shape == (2, 5, 6)
    close(matmul(X, kernel), np.einsum("btn,nm->btm", X, kernel))
    close(matmul(X[0, 0], kernel), X[0, 0] @ kernel)
    ours = jax.grad(lambda x, w: weighed([matmul(x, w)]), argnums=(0, 1))(X, kernel)
    close(ours, jax.grad(lambda x, w: weighed([jnp.einsum("btn,nm->btm", x, w)]), argnums=(0, 1))(X, kernel))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_project_is_one_product_per_kernel_in_value_and_gradient(count):
    kernels = list(zip(KERNELS[:count], BIASES[:count], strict=True))

    def separately(x, kernels):
        return [jnp.einsum("btn,nm->btm", x, w) + (0 if b is None else b) for w, b in kernels]

    def joined(x, kernels):
        return project(x, [Matrix(w, b, ("width", "ff")) for w, b in kernels], "batch", "time", "act_width")

    close(joined(X, kernels), separately(X, kernels))
    ours = jax.grad(lambda x, k: weighed(joined(x, k)), argnums=(0, 1))(X, kernels)
    close(ours, jax.grad(lambda x, k: weighed(separately(x, k)), argnums=(0, 1))(X, kernels))


def test_kernels_start_normal_with_deviation_by_their_inputs():
    module = Kernel(300, ("width", "ff"), scale=0.5, bias=True)
    params = module.init(jax.random.key(0), 400, jnp.float32)["params"]
    kernel = np.asarray(params["kernel"].unbox())
    assert kernel.shape == (400, 300)
    # 120,000 draws: the sample deviation is within 1 % (five standard errors) of the true one.
    assert kernel.std() == pytest.approx(0.5 / 20, rel=0.01)
    assert abs(kernel.mean()) < 5 * 0.5 / 20 / 346
    np.testing.assert_array_equal(params["bias"].unbox(), 0.0)


def test_parameters_stay_float32_and_products_take_the_compute_type():
    params = {"kernel": KERNELS[0], "bias": BIASES[0]}
    kernel, bias, _ = Kernel(6, ("width", "ff"), bias=True).apply({"params": params}, 8, jnp.bfloat16)
    assert (kernel.dtype, bias.dtype) == (jnp.bfloat16, jnp.bfloat16)
    made = Embedding(4, 8).init(jax.random.key(0), jnp.zeros((1, 1), int), jnp.bfloat16)["params"]["embedding"].unbox()
    assert made.dtype == jnp.float32


def test_embedding_looks_rows_up_and_adds_gradients_of_repeated_ones():
    table, indices = KERNELS[2], np.array([[0, 3, 3], [7, 3, 0]])
    embed = Embedding(8, 10)
    np.testing.assert_array_equal(embed.apply({"params": {"embedding": table}}, indices, jnp.float32), table[indices])
    gradient = jax.grad(lambda t: jnp.sum(embed.apply({"params": {"embedding": t}}, indices, jnp.float32)))(table)
    np.testing.assert_array_equal(gradient[:, 0], np.bincount(indices.ravel(), minlength=8))


def noise_of(rows, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))


def dropped(rate, shared=(), seed=0, train=True, shape=(8, 30, 50)):
    return np.asarray(dropout(jnp.ones(shape), rate, noise_of(shape[0], seed) if train else None, 0, shared))


def test_dropout_keeps_the_mean_and_drops_independently():
    y = dropped(0.25)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    share = (y == 0).mean()
    assert share == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / y.size))  # five standard errors
    for axis in range(3):  # neighbours differ as often as independent draws do
        assert (np.diff(y, axis=axis) != 0).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.025)


def test_dropout_shared_over_time_has_one_mask_per_row_and_unit():
    y = dropped(0.25, shared=(1,))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    mask = y[:, 0] == 0
    assert (mask[0] != mask[1]).any()
    assert (mask[:, 0] != mask[:, 1]).any()
    assert mask.mean() == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / mask.size))


def test_dropout_is_a_function_of_its_key_and_off_outside_training():
    np.testing.assert_array_equal(dropped(0.5, seed=3), dropped(0.5, seed=3))
    assert (dropped(0.5, seed=3) != dropped(0.5, seed=4)).any()
    np.testing.assert_array_equal(dropped(0.5, train=False), 1.0)
    np.testing.assert_array_equal(dropout(X, 0.0, None, 0), X)  # needs no key


def test_a_mask_follows_its_row_and_its_place():
    x, noise = jnp.ones((6, 5, 7)), noise_of(6)
    whole = dropout(x, 0.5, noise, 3)
    np.testing.assert_array_equal(dropout(x[2:4], 0.5, noise[2:4], 3), whole[2:4])
    assert (np.asarray(dropout(x, 0.5, noise, 4)) != np.asarray(whole)).any()
