"""What decoders of others need of a layer, against a Transformer written out in NumPy; decoded, stacked and packed it is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import transformer
from lm.models.base import logits_of

LENGTH, ORIGINAL = 24, 10
FACTORS = {"rope_short_factors": (1.0, 1.2), "rope_long_factors": (1.5, 4.0)}
KEYS = {
    "parallel": {"parallel_residual": True, "bias": True, "norm": "layernorm", "rope_share": 0.5, "head_width": 8},
    "output": {"norm_position": "output", "qk_norm": True, "qk_norm_over": "all", "norm_eps": 0.3, "kv_heads": 2},
    "inputs": {"attention_bias": "inputs", "activation": "swiglu", "kv_heads": 1, "qk_norm": True, "norm_eps": 0.1},
    "all": {"attention_bias": "all", "activation": "silu"},
    "none": {"attention_bias": "none", "bias": True, "norm": "layernorm"},
    "window": {"attention_window": 5, "kv_heads": 2},
    "later window": {"attention_window": 3, "window_from": 1, "layers": 3},
    "window learned": {"attention_window": 4, "positions": "learned"},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": ORIGINAL},
    "llama3": {"rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_context": ORIGINAL},
    "dynamic": {"rope_scaling": "dynamic", "rope_factor": 2.0, "rope_original_context": ORIGINAL},
    "longrope": {"rope_scaling": "longrope", "rope_factor": 3.0, "rope_original_context": ORIGINAL} | FACTORS,
}
BY_LENGTH = ("dynamic", "longrope")


def norm(x, p, kind, eps):
    x = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p["scale"] + p.get("bias", 0)


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def attention(s, p, x, positions, segments, layer):
    """[T, D] of one row, head by head."""
    length, eps = len(x), s.norm_eps
    q, k, v = (dense(x, p[name]).reshape(length, heads, -1) for name, heads in
               (("query", s.heads), ("key", s.kv_heads), ("value", s.kv_heads)))
    if s.qk_norm and s.qk_norm_over == "all":
        q, k = (norm(a.reshape(length, -1), p[name], "rmsnorm", eps).reshape(a.shape) for a, name in ((q, "query_norm"), (k, "key_norm")))
    elif s.qk_norm:
        q, k = norm(q, p["query_norm"], "rmsnorm", eps), norm(k, p["key_norm"], "rmsnorm", eps)
    if s.positions == "rope":
        cos, sin = (np.asarray(a[0], np.float64) for a in s.angles(jnp.asarray(positions)[None], jnp.asarray(segments)[None]))
        half = cos.shape[-1]

        def turn(a):
            one, two = a[..., :half], a[..., half : 2 * half]
            return np.concatenate([one * cos - two * sin, two * cos + one * sin, a[..., 2 * half :]], axis=-1)

        q, k = turn(q), turn(k)
    window = s.attention_window if s.attention_window and layer >= s.window_from else length
    y = np.zeros_like(q)
    for t, head in np.ndindex(length, s.heads):
        keys = [i for i in range(max(0, t - window + 1), t + 1) if segments[i] == segments[t]]
        scores = k[keys, head * s.kv_heads // s.heads] @ q[t, head] / np.sqrt(s.head_width)
        weights = np.exp(scores - scores.max())
        y[t, head] = weights @ v[keys, head * s.kv_heads // s.heads] / weights.sum()
    return dense(y.reshape(length, -1), p["output"])


def silu(x):
    return x / (1 + np.exp(-x))


def feed_forward(s, p, x):
    up = dense(x, p["up"])
    if s.activation == "swiglu":
        return dense(silu(dense(x, p["gate"])) * up, p["down"])
    act = silu if s.activation == "silu" else lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return dense(act(up), p["down"])


def forward(s, params, tokens, positions, segments):
    """Hidden states [T, D] of one row in float64."""
    x = params["inputs"]["tokens"]["embedding"][tokens].astype(np.float64)
    if s.positions == "learned":
        x = x + params["inputs"]["positions"]["embedding"][positions]
    for layer in range(s.layers):
        p = transformer.layer_of(s, params, layer)
        norms = [lambda x, name=name, p=p: norm(x, p[f"{name}_norm"], s.norm, s.norm_eps) for name in ("attention", "feed_forward")]
        attend = lambda x, p=p, layer=layer: attention(s, p["attention"], x, positions, segments, layer)  # noqa: E731
        if s.parallel_residual:
            x = x + attend(norms[0](x)) + feed_forward(s, p["feed_forward"], norms[1](x))
        elif s.norm_position == "output":
            x = x + norms[0](attend(x))
            x = x + norms[1](feed_forward(s, p["feed_forward"], x))
        else:
            x = x + attend(norms[0](x))
            x = x + feed_forward(s, p["feed_forward"], norms[1](x))
    return norm(x, params["final_norm"], s.norm, s.norm_eps)


SEGMENTS = np.array([[1] * 13 + [2] * 8 + [0] * 3, [1] * LENGTH])


@pytest.mark.parametrize("name", KEYS)
def test_a_layer_is_its_definition_in_packed_rows(make, random_batch, name):
    model, params = make("transformer", **KEYS[name])
    batch = random_batch(SEGMENTS)
    got = jax.jit(model.apply)(params, batch)
    for row in range(len(SEGMENTS)):
        expected = forward(model.spec, params, batch["tokens"][row], batch["positions"][row], SEGMENTS[row])
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["parallel", "output", "inputs", "later window", "dynamic", "longrope"])
def test_layers_that_are_not_scanned_are_those_that_are_and_gradients_are_finite(make, random_batch, name):
    (scanned, params), (unscanned, _) = (make("transformer", scan_layers=scan, **KEYS[name]) for scan in (True, False))
    layers = {f"layer_{i}": transformer.layer_of(scanned.spec, params, i) for i in range(scanned.spec.layers)}
    batch = random_batch(SEGMENTS)
    other = {key: value for key, value in params.items() if key != "layers"} | layers

    def value(model, params):
        return jnp.mean(jnp.sin(logits_of(model.apply(params, batch), model.unembedding(params))))

    (got, gradient), (expected, other_gradient) = (
        jax.jit(jax.value_and_grad(value, argnums=1), static_argnums=0)(*pair) for pair in ((unscanned, other), (scanned, params)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for i in range(scanned.spec.layers):
        ours, theirs = gradient[f"layer_{i}"], transformer.layer_of(scanned.spec, other_gradient, i)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert np.isfinite(b).all() and np.abs(b).max() > 0
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", KEYS)
def test_decoding_is_the_full_forward_pass(make, random_batch, name):
    """Padded prompts in chunks, then single steps, of rows whose lengths are known from the start."""
    model, params = make("transformer", **KEYS[name])
    padding, chunk = np.array([0, 6]), 8
    batch = random_batch(np.ones((2, LENGTH)))
    full = np.asarray(jax.jit(lambda params, batch: logits_of(model.apply(params, batch), model.unembedding(params)))(params, batch))
    columns = LENGTH + padding.max()
    padded = np.take_along_axis(batch["tokens"], np.clip(np.arange(columns) - padding[:, None], 0, LENGTH - 1), axis=1)
    step, state = jax.jit(model.decode_step), model.expecting(model.init_decode(2, columns + 5), np.full(2, LENGTH))
    for start, stop in ((0, chunk), (chunk, 2 * chunk), *((t, t + 1) for t in range(2 * chunk, columns))):
        valid = np.arange(start, stop) >= padding[:, None]
        logits, state = step(params, state, padded[:, start:stop], valid if start < 2 * chunk else None)
        for row, skip in enumerate(padding):
            for column in range(start, min(stop, LENGTH + skip)):
                if column >= skip:
                    np.testing.assert_allclose(logits[row, column - start], full[row, column - skip], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_wavelengths_go_by_the_tokens_so_far_and_not_by_the_cache(make, random_batch, name):
    """Left padding takes no part; beyond the original context it is all the same how many tokens are read at once, as of drafts."""
    model, params = make("transformer", **KEYS[name])
    tokens, padding = random_batch(np.ones((1, LENGTH)))["tokens"], np.zeros((1, 6), np.int32)
    short = random_batch(np.ones((1, ORIGINAL))) | {"tokens": tokens[:, :ORIGINAL]}
    expected = model.logits(params, model.apply(params, short))
    padded, step = np.concatenate([padding, tokens], axis=1), jax.jit(model.decode_step)
    start, there = 6 + ORIGINAL, np.arange(6 + ORIGINAL)[None] >= 6
    after = []
    for slots in (6 + LENGTH, 6 + 2 * LENGTH):
        logits, state = step(params, model.init_decode(1, slots), padded[:, :start], there)
        np.testing.assert_allclose(logits[:, 6:], expected, rtol=1e-5, atol=1e-5)
        after.append(step(params, state, padded[:, start:])[0])
    singly = []
    for column in range(start, 6 + LENGTH):
        logits, state = step(params, state, padded[:, column : column + 1])
        singly.append(logits)
    for at_once in after:
        np.testing.assert_allclose(at_once, np.concatenate(singly, axis=1), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_prompt_has_the_wavelengths_of_its_length_and_rows_keep_theirs_when_they_are_taken(make, random_batch, name):
    model, params = make("transformer", **KEYS[name])
    batch = random_batch(np.ones((2, LENGTH)))
    full = model.logits(params, model.apply(params, batch))
    state = model.take(model.expecting(model.init_decode(2, LENGTH), np.array([ORIGINAL, LENGTH])), np.array([1, 0]))
    logits, state = model.decode_step(params, state, batch["tokens"][:, :6])
    np.testing.assert_allclose(logits[0], full[0, :6], rtol=1e-5, atol=2e-5)
    assert np.abs(np.asarray(logits[1] - full[1, :6])).max() > 1e-3
    np.testing.assert_array_equal(state.expected, [LENGTH, ORIGINAL])


def test_flops_count_the_keys_of_windows(make):
    (dense, _), (window, _), (later, _) = (make("transformer", layers=3, **keys) for keys in (
        {}, {"attention_window": 5}, {"attention_window": 5, "window_from": 2}))
    seen = np.mean([min(t, 5) for t in range(1, LENGTH + 1)])
    per_key = 2 * 2 * dense.spec.heads * dense.spec.head_width
    for causal, fewer in ((True, (LENGTH + 1) / 2 - seen), (False, LENGTH - 5)):
        full = dense.forward_flops(LENGTH, causal)
        assert full - window.forward_flops(LENGTH, causal) == pytest.approx(3 * per_key * fewer)
        assert full - later.forward_flops(LENGTH, causal) == pytest.approx(per_key * fewer)
    assert window.forward_flops(3) == dense.forward_flops(3)


@pytest.mark.parametrize(("settings", "biased"), [
    ({}, set()), ({"bias": True}, {"query", "key", "value", "output", "up", "down"}),
    ({"attention_bias": "inputs"}, {"query", "key", "value"}), ({"attention_bias": "all"}, {"query", "key", "value", "output"}),
    ({"attention_bias": "none", "bias": True}, {"up", "down"}),
    ({"attention_bias": "inputs", "bias": True}, {"query", "key", "value", "up", "down"}),
])
def test_biases_are_where_they_are_asked_for(make, settings, biased):
    _, params = make("transformer", **settings)
    matrices = params["layers"]["attention"] | params["layers"]["feed_forward"]
    assert {name for name, part in matrices.items() if "bias" in part} == biased
