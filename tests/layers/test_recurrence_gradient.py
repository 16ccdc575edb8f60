"""The hand-derived backward pass of the recurrence against automatic differentiation of a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.recurrence import GATES, STEPS, empty_state, scan_cell

TIME, BATCH, WIDTH = 9, 3, 5


def arguments(cell):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    state = tuple(draw(BATCH, WIDTH) for _ in empty_state(cell, BATCH, WIDTH))
    return state, draw(TIME, BATCH, GATES[cell], WIDTH), draw(WIDTH, GATES[cell] * WIDTH) / 2, draw(WIDTH) if cell == "gru" else None


def plain(cell, state, projected, keep, recurrent, bias):
    outputs = []
    for now in range(TIME):
        before = tuple(part * keep[now] for part in state)
        state = STEPS[cell](before, projected[now], (before[0] @ recurrent).reshape(BATCH, -1, WIDTH), bias)
        outputs.append(state[0])
    return state, jnp.stack(outputs)


@pytest.mark.parametrize("cell", sorted(GATES))
def test_gradient_is_that_of_a_plain_loop(cell):
    state, projected, recurrent, bias = arguments(cell)
    keep = jnp.ones((TIME, BATCH, 1)).at[4, 1].set(0.0).at[0, 0].set(0.0)
    mix = jnp.asarray(np.random.default_rng(1).normal(size=(TIME, BATCH, WIDTH)), jnp.float32)

    def loss(run, state, projected, recurrent, bias):
        after, outputs = run(state, projected, keep, recurrent, bias)
        return jnp.sum(outputs * mix) + sum(jnp.sum(jnp.sin(part)) for part in after)

    ours = jax.grad(lambda *a: loss(lambda *b: scan_cell(cell, 2, *b), *a), argnums=(0, 1, 2, 3))(state, projected, recurrent, bias)
    theirs = jax.grad(lambda *a: loss(lambda *b: plain(cell, *b), *a), argnums=(0, 1, 2, 3))(state, projected, recurrent, bias)
    leaves = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    assert len(leaves) == len(state) + 2 + (cell == "gru")
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
