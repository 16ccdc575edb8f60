"""Recurrent layers against Flax's own cells and plain loops; documents, padding and unrolling change nothing else."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.recurrence import GATES, Recurrence, empty_state

BATCH, TIME, INPUTS, WIDTH = 3, 12, 5, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(BATCH, TIME, INPUTS)).astype(np.float32)
NEVER = np.zeros((BATCH, TIME), bool)
CELLS = ["rnn", "lstm", "gru"]
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)  # float32, 12 steps, sums in another order


def parameters(cell):
    """Random everywhere: zero biases would hide where they are added."""
    rng, gates = np.random.default_rng(1), GATES[cell] * WIDTH
    sizes = {"input": (INPUTS, gates), "recurrent": (WIDTH, gates), "bias": (gates,)}
    if cell == "gru":
        sizes["recurrent_bias"] = (WIDTH,)
    return {name: rng.normal(0, 0.5, size).astype(np.float32) for name, size in sizes.items()}


@functools.partial(jax.jit, static_argnames=("cell", "unroll"))
def run(cell, params, x, state, restart, valid=None, unroll=4):
    return Recurrence(cell, WIDTH, unroll).apply({"params": params}, x, state, restart, valid)


def start(cell, batch=BATCH):
    return empty_state(cell, batch, WIDTH)


def blocks(matrix, count):
    return np.split(np.asarray(matrix), count, axis=-1)


def flax_cell(cell):
    """(Flax's cell, our parameters in its names)."""
    p = parameters(cell)
    w, u, b = (blocks(p[name], GATES[cell]) for name in ("input", "recurrent", "bias"))
    if cell == "rnn":
        return nn.SimpleCell(WIDTH), {"i": {"kernel": w[0], "bias": b[0]}, "h": {"kernel": u[0]}}
    if cell == "lstm":
        opened = [b[0], b[1] + 1.0, b[2], b[3]]  # the forget gate's bias is stored less 1
        ours = {f"i{g}": {"kernel": w[i]} for i, g in enumerate("ifgo")}
        return nn.OptimizedLSTMCell(WIDTH), ours | {f"h{g}": {"kernel": u[i], "bias": opened[i]} for i, g in enumerate("ifgo")}
    ours = {f"i{g}": {"kernel": w[i], "bias": b[i]} for i, g in enumerate("rzn")}
    return nn.GRUCell(WIDTH), ours | {"hr": {"kernel": u[0]}, "hz": {"kernel": u[1]}, "hn": {"kernel": u[2], "bias": p["recurrent_bias"]}}


@pytest.mark.parametrize("cell", CELLS)
def test_layer_is_flaxs_cell(cell):
    theirs, their_params = flax_cell(cell)
    begin = RNG.normal(size=(2, BATCH, WIDTH)).astype(np.float32)
    state = tuple(begin[: len(start(cell))])
    outputs, after = run(cell, parameters(cell), X, state, NEVER)
    carry = (state[1], state[0]) if cell == "lstm" else state[0]  # Flax's carry is (c, h)
    step = jax.jit(lambda carry, x: theirs.apply({"params": their_params}, carry, x))
    for t in range(TIME):
        carry, y = step(carry, X[:, t])
        CLOSE(outputs[:, t], y)
    CLOSE(after[0], y)
    if cell == "lstm":
        CLOSE(after[1], carry[0])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loop(cell, p, x, state):
    """One row [T, N] in float64 by the papers' equations: outputs [T, D]."""
    p = {name: value.astype(np.float64) for name, value in p.items()}
    h, c, outputs = state[0], state[-1], []
    for now in x.astype(np.float64):
        a, r = now @ p["input"] + p["bias"], h @ p["recurrent"]
        if cell == "rnn":
            h = np.tanh(a + r)
        elif cell == "lstm":
            i, f, g, o = np.split(a + r, 4)
            c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (ar, az, an), (rr, rz, rn) = np.split(a, 3), np.split(r, 3)
            z = sigmoid(az + rz)
            h = (1 - z) * np.tanh(an + sigmoid(ar + rr) * (rn + p["recurrent_bias"])) + z * h
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize("cell", CELLS)
def test_restart_runs_documents_separately(cell):
    borders = [[0, 4, 5], [0, 9], [0]]
    restart = NEVER.copy()
    for row, places in enumerate(borders):
        restart[row, places] = True
    full = tuple(np.full((BATCH, WIDTH), 0.7, np.float32) for _ in start(cell))  # must be forgotten at the first token
    outputs, _ = run(cell, parameters(cell), X, full, restart)
    for row, places in enumerate(borders):
        for begin, stop in zip(places, [*places[1:], TIME], strict=True):
            CLOSE(outputs[row, begin:stop], loop(cell, parameters(cell), X[row, begin:stop], np.zeros((2, WIDTH))))


@pytest.mark.parametrize("cell", CELLS)
def test_invalid_tokens_leave_the_state_alone(cell):
    lengths = np.array([12, 5, 0])
    valid = np.arange(TIME) < lengths[:, None]
    state = tuple(RNG.normal(size=(BATCH, WIDTH)).astype(np.float32) for _ in start(cell))
    outputs, after = run(cell, parameters(cell), X, state, NEVER, valid)
    free, _ = run(cell, parameters(cell), X, state, NEVER)
    _, shorter = run(cell, parameters(cell), X[:, :5], state, NEVER[:, :5])
    for row, length in enumerate(lengths):
        CLOSE(outputs[row, :length], free[row, :length])
    for now, old, five in zip(after, state, shorter, strict=True):
        CLOSE(now[1], five[1])
        np.testing.assert_array_equal(now[2], old[2])


@pytest.mark.parametrize("cell", CELLS)
def test_unrolling_changes_no_result(cell):
    once = run(cell, parameters(cell), X, start(cell), NEVER, unroll=1)
    for unroll in (5, TIME):  # one that does not divide the row, and all of it
        other = run(cell, parameters(cell), X, start(cell), NEVER, unroll=unroll)
        for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(other), strict=True):
            CLOSE(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_states_start_empty_in_float32(cell):
    state = start(cell, 4)
    assert len(state) == (2 if cell == "lstm" else 1)
    for part in state:
        assert (part.shape, part.dtype) == ((4, WIDTH), jnp.float32)
        np.testing.assert_array_equal(part, 0.0)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_matrices_start_orthogonal_gate_by_gate(cell):
    x, restart = jnp.zeros((1, 1, 64)), jnp.zeros((1, 1), bool)
    made = Recurrence(cell, 16, 1).init(jax.random.key(0), x, empty_state(cell, 1, 16), restart)["params"]
    gates = [np.asarray(gate) for gate in blocks(made["recurrent"].unbox(), GATES[cell])]
    for i, gate in enumerate(gates):
        np.testing.assert_allclose(gate.T @ gate, np.eye(16), atol=1e-5)
        assert all(not np.allclose(gate, other) for other in gates[:i])
    assert np.std(made["input"].unbox()) == pytest.approx(1 / 8, rel=0.12)  # at least 1,024 draws: five standard errors


def test_bfloat16_cell_accumulates_its_state_in_float32():
    """A cell state near 1 that gains 1/1,024 a step: a state rounded to bfloat16 would never move."""
    width, steps = 2, 512
    params = {"input": np.zeros((1, 8)), "recurrent": np.zeros((2, 8)), "bias": np.repeat([0.0, 30.0, 0.0, 0.0], 2)}
    small = np.arctanh(2 / 1024.0)  # times an input gate of a half
    params["bias"][4:6] = small
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    state = (jnp.zeros((1, width)), jnp.ones((1, width)))
    x = jnp.zeros((1, steps, 1), jnp.bfloat16)
    outputs, (_, c) = Recurrence("lstm", width, 1).apply({"params": params}, x, state, jnp.zeros((1, steps), bool))
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(c, 1.5, rtol=0.01)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_gradient_over_a_long_row_is_the_float32_one(cell):
    """Summed over time in bfloat16, the gradients of the recurrent parameters would be 10 % off here, and 38 % for a GRU's bias."""
    steps = 1024
    x = np.random.default_rng(3).normal(size=(2, steps, INPUTS)).astype(np.float32)
    weights = 1 + np.random.default_rng(4).normal(size=WIDTH)

    def loss(params, dtype):
        y, _ = Recurrence(cell, WIDTH, 1).apply({"params": params}, x.astype(dtype), start(cell, 2), np.zeros((2, steps), bool))
        return jnp.mean(y.astype(jnp.float32) * weights + y.astype(jnp.float32) ** 2)

    exact, low = (jax.jit(jax.grad(loss), static_argnums=1)(parameters(cell), dtype) for dtype in (jnp.float32, jnp.bfloat16))
    for name in exact:
        assert low[name].dtype == jnp.float32
        # Each term carries a few roundings of 2^-9, up to 2 % of a sum in which terms cancel; the summing must not add its own.
        assert np.linalg.norm(low[name] - exact[name]) < 0.03 * np.linalg.norm(exact[name]), name
