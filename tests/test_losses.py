"""Losses against optax, float64 numpy and closed forms; the chunked loss is the dense one without its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from lm.losses import chunk_of, chunked_token_nats, dense_loss, loss, token_losses

BATCH, TIME, WIDTH, VOCAB = 2, 12, 8, 17
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(BATCH, TIME, WIDTH)).astype(np.float32)
MATRIX = RNG.normal(size=(WIDTH, VOCAB)).astype(np.float32)
TARGETS = RNG.integers(0, VOCAB, (BATCH, TIME))
WEIGHTS = (RNG.random((BATCH, TIME)) * (RNG.random((BATCH, TIME)) < 0.7)).astype(np.float32)


def oracle(hidden, matrix, z_loss):
    """(cross-entropy, z-loss) per token in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(matrix, np.float64)
    top = logits.max(-1)
    normaliser = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    return normaliser - np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0], z_loss * normaliser**2


def close(got, expected, rtol=1e-5, atol=1e-6):
    """Equal but for float32 sums in another order."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def gradient(loss, z_loss, factor=1.0, hidden=HIDDEN):
    return jax.jit(jax.grad(lambda h, w: factor * loss(h, w, z_loss), argnums=(0, 1)))(hidden, MATRIX)


def dense(h, w, z_loss):
    return dense_loss(h, w, TARGETS, WEIGHTS, z_loss)[0]


def chunked(chunk):
    return lambda h, w, z_loss: loss(h, w, TARGETS, WEIGHTS, z_loss, chunk)[0]


def test_token_losses_are_optaxs_and_numpys():
    cross_entropy, z = token_losses(HIDDEN, MATRIX, TARGETS, 0.25)
    close(cross_entropy, optax.softmax_cross_entropy_with_integer_labels(HIDDEN @ MATRIX, TARGETS))
    close((cross_entropy, z), oracle(HIDDEN, MATRIX, 0.25))


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    cross_entropy, z = token_losses(HIDDEN, np.zeros_like(MATRIX), TARGETS, 2.0)
    close((cross_entropy, z), (np.full_like(WEIGHTS, np.log(VOCAB)), np.full_like(WEIGHTS, 2 * np.log(VOCAB) ** 2)))


def test_sums_weigh_tokens_and_report_cross_entropy_apart():
    total, cross_entropy = dense_loss(HIDDEN, MATRIX, TARGETS, WEIGHTS, 0.25)
    expected, z = oracle(HIDDEN, MATRIX, 0.25)
    close((total, cross_entropy), (np.sum(WEIGHTS * (expected + z)), np.sum(WEIGHTS * expected)))


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_dense_gradient_is_the_closed_form(z_loss):
    logits = HIDDEN @ MATRIX
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    d_logits = p - np.eye(VOCAB)[TARGETS] + 2 * z_loss * np.log(np.exp(logits).sum(-1, keepdims=True)) * p
    d_logits *= WEIGHTS[..., None]
    close(gradient(dense, z_loss), (d_logits @ MATRIX.T, np.einsum("btd,btv->dv", HIDDEN, d_logits)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("chunk", "z_loss"), [(1, 0.0), (3, 0.1), (4, 0.0), (12, 0.1)])
def test_chunked_is_dense_in_value_and_gradient(chunk, z_loss):
    values = jax.jit(lambda: loss(HIDDEN, MATRIX, TARGETS, WEIGHTS, z_loss, chunk))()
    close(values, dense_loss(HIDDEN, MATRIX, TARGETS, WEIGHTS, z_loss))
    close(gradient(chunked(chunk), z_loss), gradient(dense, z_loss))


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothing_trains_on_spread_targets_and_reports_plain_nats(smoothing):
    """The definition in float64: the cross-entropy of the target distribution (1 - eps) one-hot + eps / V."""
    logits = np.asarray(HIDDEN, np.float64) @ MATRIX
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    spread = (1 - smoothing) * np.eye(VOCAB)[TARGETS] + smoothing / VOCAB
    nats, z = oracle(HIDDEN, MATRIX, 0.25)
    expected = np.sum(WEIGHTS * (-(spread * log_p).sum(-1) + z)), np.sum(WEIGHTS * nats)
    assert abs(expected[0] - np.sum(WEIGHTS * (nats + z))) > 0.1
    for chunk in (4, 12):
        close(loss(HIDDEN, MATRIX, TARGETS, WEIGHTS, 0.25, chunk, smoothing), expected)
    with_optax = optax.softmax_cross_entropy(HIDDEN @ MATRIX, optax.smooth_labels(np.eye(VOCAB, dtype=np.float32)[TARGETS], smoothing))
    close(dense_loss(HIDDEN, MATRIX, TARGETS, WEIGHTS, 0.0, smoothing)[0], np.sum(WEIGHTS * with_optax))


@pytest.mark.parametrize(("chunk", "z_loss", "smoothing"), [(1, 0.0, 0.1), (4, 0.1, 0.1), (6, 0.0, 0.9)])
def test_smoothed_chunks_are_dense_in_value_and_gradient(chunk, z_loss, smoothing):
    def by(chunk):
        return lambda h, w, z: loss(h, w, TARGETS, WEIGHTS, z, chunk, smoothing)[0]

    close(jax.jit(by(chunk), static_argnums=2)(HIDDEN, MATRIX, z_loss), by(TIME)(HIDDEN, MATRIX, z_loss))
    close(gradient(by(chunk), z_loss), gradient(by(TIME), z_loss))
    distance = max(np.abs(a - b).max() for a, b in zip(gradient(by(chunk), z_loss), gradient(dense, z_loss), strict=True))
    assert distance > 0.01


@pytest.mark.parametrize("chunk", [0, 1, 3, 12, 100])
def test_chunks_change_no_tokens_nats(chunk):
    got = jax.jit(lambda: chunked_token_nats(HIDDEN, MATRIX, TARGETS, chunk))()
    close(got, token_losses(HIDDEN, MATRIX, TARGETS)[0])


def test_one_cpu_takes_512_rows_at_a_time_and_a_mesh_what_it_is_told():
    alone, pair = (jax.make_mesh((n,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:n]) for n in (1, 2))
    with jax.set_mesh(alone):
        assert [chunk_of(0, rows, 256) for rows in (1, 8, 16, 300, 1000)] == [256, 64, 32, 1, 1]
        assert (chunk_of(0, 3, 512), chunk_of(128, 8, 256), chunk_of(256, 8, 256)) == (128, 128, 256)
    with jax.set_mesh(pair):
        assert (chunk_of(0, 8, 256), chunk_of(64, 8, 256)) == (256, 64)
    assert (chunk_of(0, 8, 256), chunk_of(512, 8, 256)) == (256, 256)


def test_chunked_gradient_carries_the_scale_from_above():
    close(gradient(chunked(4), 0.1, factor=-3.0), jax.tree.map(lambda g: -3.0 * g, gradient(dense, 0.1)))


@pytest.mark.parametrize("weigh", [lambda h, w: dense(h, w, 0.1), lambda h, w: chunked(4)(h, w, 0.1)])
def test_tokens_of_no_weight_have_no_gradient(weigh):
    d_hidden = jax.grad(weigh)(HIDDEN, MATRIX)
    np.testing.assert_array_equal(d_hidden[WEIGHTS == 0], 0.0)
    assert (np.abs(d_hidden[WEIGHTS > 0]).max(-1) > 0).all()


@pytest.mark.parametrize("loss", [dense, chunked(4)])
def test_bfloat16_hidden_states_with_large_logits_lose_nothing_more(loss):
    """Logits of about 100: in bfloat16 they would be off by up to a quarter, in the loss as well."""
    hidden, matrix = jnp.asarray(20 * HIDDEN, jnp.bfloat16), jnp.asarray(2 * MATRIX, jnp.bfloat16)
    cross_entropy, z = oracle(np.asarray(hidden, np.float32), np.asarray(matrix, np.float32), 1e-3)
    expected = np.sum(WEIGHTS * (cross_entropy + z))
    # Products of bfloat16 numbers are exact in float32: only float32 sums are left.
    np.testing.assert_allclose(loss(hidden, np.asarray(matrix, np.float32), 1e-3), expected, rtol=1e-5)
    grads = gradient(loss, 1e-3, hidden=hidden)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]


def avals(jaxpr):
    """Shapes of everything that a jaxpr computes, inside its loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from avals(inner)


@pytest.mark.parametrize(("chunk", "fits"), [(16, True), (512, False)])
def test_chunked_loss_never_holds_all_logits(chunk, fits):
    """All logits would be 16 MiB; a chunk's are half a MiB. A chunk of the whole row shows that the measurement works."""
    batch, time, width, vocab = 2, 512, 8, 4096
    shapes = ((batch, time, width), jnp.float32), ((width, vocab), jnp.float32), ((batch, time), jnp.int32), ((batch, time), jnp.float32)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    function = jax.grad(lambda h, w, t, weights: loss(h, w, t, weights, 1e-4, chunk)[0], argnums=(0, 1))
    held = jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    assert (held < 4 * batch * time * vocab / 4) == fits
    largest = max(aval.size for aval in avals(jax.make_jaxpr(function)(*arguments).jaxpr) if hasattr(aval, "size"))
    assert (largest <= batch * 16 * vocab) == fits
