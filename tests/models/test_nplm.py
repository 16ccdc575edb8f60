"""The neural probabilistic language model against Bengio et al. (2003), equation 1 written out for one word at a time."""

import jax
import numpy as np
import pytest

from lm.objectives import causal

SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * 12 + [0]])


def nats_of(params, batch, window, direct):
    """-log p of each target, in float64: y = b + W x + U tanh(d + H x)."""
    table = np.float64(params["embedding"]["embedding"])
    matrix, bias = (np.float64(params["hidden"][name]) for name in ("kernel", "bias"))
    output = np.float64(params["unembedding"]["kernel"])
    nats = np.zeros(batch["tokens"].shape)
    for b, t in np.ndindex(*nats.shape):
        x = [table[batch["tokens"][b, t - k]] if batch["positions"][b, t] >= k else np.zeros(table.shape[1]) for k in range(window)]
        x = np.concatenate(x)
        hidden = np.tanh(x @ matrix + bias)
        y = output @ np.concatenate([hidden, x, [1.0]] if direct else [hidden, [1.0]])
        nats[b, t] = np.log(np.sum(np.exp(y - y.max()))) + y.max() - y[batch["targets"][b, t]]
    return nats


@pytest.mark.parametrize(("window", "direct"), [(1, True), (3, True), (3, False), (20, True)])
def test_it_is_the_equation_of_the_paper(make, random_batch, window, direct):
    model, params = make("nplm", window=window, direct=direct, embedding_width=5)
    batch = random_batch(SEGMENTS)
    nats = jax.jit(lambda params, batch: causal.token_nats(model, params, batch))(params, batch)
    np.testing.assert_allclose(nats, nats_of(params, batch, window, direct), rtol=1e-5, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences(make, random_batch):
    model, params = make("nplm", window=3, embedding_width=5)
    batch = random_batch(SEGMENTS)

    def total(params):
        return float(np.sum(batch["weights"] * nats_of(params, batch, 3, True)))

    objective = causal.Causal(None, None, SEGMENTS.shape[1], 0)
    grads = jax.jit(jax.grad(lambda params: objective.loss(model, params, batch)[0]))(params)
    rng = np.random.default_rng(0)
    for leaf, grad in zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True):
        where = tuple(rng.integers(0, size, 6) for size in leaf.shape)
        for place in zip(*where, strict=True):
            kept, leaf[place] = leaf[place], leaf[place] + np.float32(1e-3)
            above, up = total(params), leaf[place]
            leaf[place] = kept - np.float32(1e-3)
            slope = (above - total(params)) / (np.float64(up) - np.float64(leaf[place]))
            leaf[place] = kept
            np.testing.assert_allclose(grad[place], slope, rtol=2e-3, atol=2e-3)


def test_flops_are_those_of_its_two_matrices(make):
    model, params = make("nplm", window=3, embedding_width=5)
    matrices = params["hidden"]["kernel"].size + params["unembedding"]["kernel"].size
    assert model.forward_flops(7) == 2 * matrices
