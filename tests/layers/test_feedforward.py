"""Feed-forward layers against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.model_keys import GATED, MODEL
from lm.layers import feedforward
from lm.layers.feedforward import FeedForward

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8)).astype(np.float32)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


PLAIN = {"gelu": gelu_tanh, "gelu_erf": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
         "relu": lambda x: np.where(x > 0, x, 0), "relu2": lambda x: np.where(x > 0, x, 0) ** 2, "silu": lambda x: x / (1 + np.exp(-x)),
         "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x))}
GATES = {"swiglu": PLAIN["silu"], "geglu": gelu_tanh, "geglu_erf": PLAIN["gelu_erf"]}


def test_all_activations_are_known():
    assert set(PLAIN) == set(feedforward.PLAIN) and set(GATES) == set(feedforward.GATED) == set(GATED)
    assert set(PLAIN | GATES) == set(MODEL["model.activation"].choices)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [*PLAIN, *GATES])
def test_feed_forward_is_its_formula(activation, bias):
    sizes = {"up": (8, 12), "down": (12, 8)} | ({"gate": (8, 12)} if activation in GATES else {})
    params = {name: {"kernel": RNG.normal(size=size), "bias": RNG.normal(size=size[1])} for name, size in sizes.items()}
    if not bias:
        params = {name: {"kernel": p["kernel"]} for name, p in params.items()}
    dense = {name: (lambda x, p=p: x @ p["kernel"] + p.get("bias", 0)) for name, p in params.items()}
    up = dense["up"](X)
    inner = GATES[activation](dense["gate"](X)) * up if activation in GATES else PLAIN[activation](up)
    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    y = FeedForward(12, activation, bias, 1.0).apply({"params": low}, X)
    np.testing.assert_allclose(y, dense["down"](inner), rtol=2e-5, atol=2e-4)  # float32 sums of 12 products of up to 100
    made = jax.eval_shape(FeedForward(12, activation, bias, 1.0).init, jax.random.key(0), X)["params"]
    assert {name: set(leaves) for name, leaves in made.items()} == {name: set(leaves) for name, leaves in params.items()}
