"""Attention of recurrent decoders against NumPy, and its scan against an unscanned loop, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers import seq_attention
from lm.layers.recurrence import GATES, empty_state
from lm.layers.seq_attention import AttentiveRecurrence, Memory

BATCH, TIME, SOURCE, INPUTS, WIDTH, KEYS, VALUES = 3, 3, 4, 3, 6, 7, 8
LENGTHS = np.array([4, 2, 1])
REAL = np.arange(SOURCE) < LENGTHS[:, None]
RNG = np.random.default_rng(0)
CELLS = ["rnn", "lstm", "gru"]
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)  # float32, sums in another order


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = draw(BATCH, TIME, INPUTS)
MEMORY = Memory(draw(BATCH, SOURCE, VALUES), draw(BATCH, SOURCE, KEYS), REAL)


def test_scores_are_the_papers():
    queries, energy = draw(BATCH, TIME, KEYS), draw(KEYS)
    additive = np.zeros((BATCH, TIME, SOURCE))
    product = np.zeros((BATCH, TIME, SOURCE))
    for b, t, s in np.ndindex(additive.shape):
        q, k = queries[b, t].astype(np.float64), MEMORY.keys[b, s].astype(np.float64)
        additive[b, t, s] = sum(energy[a] * np.tanh(q[a] + k[a]) for a in range(KEYS))
        product[b, t, s] = sum(q[a] * k[a] for a in range(KEYS))
    CLOSE(seq_attention.additive_scores(queries, MEMORY.keys, energy), additive)
    CLOSE(seq_attention.multiplicative_scores(queries, MEMORY.keys), product)


def test_softmax_is_over_real_tokens_alone():
    scores = 30 * draw(BATCH + 1, TIME, SOURCE)
    real = np.concatenate([REAL, np.zeros((1, SOURCE), bool)])
    scores[:, :, 2:] += 1000  # where rows have padding it must not count, however large
    got = np.asarray(seq_attention.softmax_over(real, scores))
    for row, length in enumerate(LENGTHS):
        p = np.exp((scores[row, :, :length] - scores[row, :, :length].max(-1, keepdims=True)).astype(np.float64))
        CLOSE(got[row, :, :length], p / p.sum(-1, keepdims=True))
    np.testing.assert_array_equal(got[~np.repeat(real[:, None], TIME, 1)], 0.0)


def test_gradient_of_the_softmax_is_that_of_a_plain_one():
    """Also where one token is real (the gradient is 0) and where none is."""
    real = np.concatenate([REAL, np.zeros((1, SOURCE), bool)])
    scores, weights = draw(BATCH + 1, TIME, SOURCE), draw(BATCH + 1, TIME, SOURCE)
    got = np.asarray(jax.grad(lambda scores: jnp.sum(weights * seq_attention.softmax_over(real, scores)))(scores))
    for row, length in enumerate([*LENGTHS, 0]):
        np.testing.assert_array_equal(got[row, :, length:], 0.0)
        if length:
            part, by = scores[row, :, :length], weights[row, :, :length]
            p = np.exp(part) / np.exp(part).sum(-1, keepdims=True)
            CLOSE(got[row, :, :length], p * (by - np.sum(p * by, axis=-1, keepdims=True)))


def test_what_is_read_is_the_mean_by_the_weights():
    weights = np.asarray(seq_attention.softmax_over(REAL, draw(BATCH, TIME, SOURCE)))
    CLOSE(seq_attention.read(MEMORY, weights), np.stack([w @ v for w, v in zip(weights, MEMORY.values, strict=True)]))


def parameters(cell):
    """Random everywhere: zero biases would hide where they are added."""
    rng, gates = np.random.default_rng(1), GATES[cell] * WIDTH
    sizes = {"input": (INPUTS + VALUES, gates), "recurrent": (WIDTH, gates), "bias": (gates,)}
    if cell == "gru":
        sizes["recurrent_bias"] = (WIDTH,)
    made = {name: rng.normal(0, 0.5, size).astype(np.float32) for name, size in sizes.items()}
    return made | {name: {"kernel": rng.normal(0, 0.5, size).astype(np.float32)}
                   for name, size in (("query", (WIDTH, KEYS)), ("energy", (KEYS, 1)))}


def start(cell):
    return tuple(np.full((BATCH, WIDTH), 0.1 * (i + 1), np.float32) for i, _ in enumerate(empty_state(cell, BATCH, WIDTH)))


def run(cell, params, x, memory, valid=None, unroll=1, remat=False):
    return AttentiveRecurrence(cell, WIDTH, unroll, remat).apply({"params": params}, x, start(cell), memory, valid)


def loop(cell, p, x, memory):
    """The same by Bahdanau et al. (2015), a row and a step at a time: (outputs, contexts, weights), each a stack over rows and times."""
    outputs = []
    for b in range(BATCH):
        h, c = start(cell)[0][b], start(cell)[-1][b]
        length, steps = LENGTHS[b], []
        for t in range(TIME):
            asked = h @ p["query"]["kernel"]
            weights = jax.nn.softmax(jnp.stack([jnp.tanh(asked + memory.keys[b, s]) @ p["energy"]["kernel"][:, 0] for s in range(length)]))
            context = sum(weights[s] * memory.values[b, s] for s in range(length))
            a, r = jnp.concatenate([x[b, t], context]) @ p["input"] + p["bias"], h @ p["recurrent"]
            if cell == "rnn":
                h = jnp.tanh(a + r)
            elif cell == "lstm":
                i, f, g, o = jnp.split(a + r, 4)
                c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
            else:
                (ar, az, an), (rr, rz, rn) = jnp.split(a, 3), jnp.split(r, 3)
                z = jax.nn.sigmoid(az + rz)
                h = (1 - z) * jnp.tanh(an + jax.nn.sigmoid(ar + rr) * (rn + p["recurrent_bias"])) + z * h
            steps.append((h, context, jnp.pad(weights, (0, SOURCE - length))))
        outputs.append([jnp.stack(part) for part in zip(*steps, strict=True)])
    return tuple(jnp.stack(part) for part in zip(*outputs, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_attentive_layer_is_the_loop_and_so_is_its_gradient(cell):
    by = draw(BATCH, TIME, WIDTH), draw(BATCH, TIME, VALUES)

    def loss(function, params, x, values, keys):
        outputs, contexts, weights, *state = function(cell, params, x, Memory(values, keys, REAL))
        return jnp.sum(by[0] * outputs) + jnp.sum(by[1] * contexts), (outputs, contexts, weights, *state)

    arguments = parameters(cell), X, MEMORY.values, MEMORY.keys
    both = (jax.jit(jax.grad(functools.partial(loss, function), argnums=(0, 1, 2, 3), has_aux=True)) for function in (run, loop))
    (ours, (*got, state)), (theirs, expected) = (gradient(*arguments) for gradient in both)
    for mine, other in zip(got, expected, strict=True):
        CLOSE(mine, other)
    CLOSE(state[0], got[0][:, -1])
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=2e-5)


def test_unrolling_and_recomputing_change_no_result():
    def loss(params, **options):
        return jnp.sum(jnp.sin(run("lstm", params, X, MEMORY, **options)[0]))

    plain = jax.jit(jax.value_and_grad(loss))(parameters("lstm"))
    for options in ({"unroll": 2}, {"unroll": TIME + 4, "remat": True}):
        other = jax.jit(jax.value_and_grad(functools.partial(loss, **options)))(parameters("lstm"))
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            CLOSE(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_invalid_tokens_leave_the_state_alone(cell):
    lengths = np.array([TIME, 2, 0])
    valid = np.arange(TIME) < lengths[:, None]
    *_, after = run(cell, parameters(cell), X, MEMORY, valid)
    *_, two = run(cell, parameters(cell), X[:, :2], MEMORY)
    *_, whole = run(cell, parameters(cell), X, MEMORY, np.ones_like(valid))
    for now, short, long, old in zip(after, two, whole, start(cell), strict=True):
        CLOSE(now[0], long[0])
        CLOSE(now[1], short[1])
        np.testing.assert_array_equal(now[2], old[2])


def test_a_memory_has_keys_of_its_values():
    alone = seq_attention.remembered(MEMORY.values, REAL, None)
    assert alone.keys is alone.values
