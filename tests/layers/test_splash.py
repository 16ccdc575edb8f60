"""The splash kernel, interpreted on CPUs, against XLA's attention: packed rows, padding, windows, shared heads, meshes and a whole step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config as configs
from lm.config.schema import SCHEMA
from lm.errors import ConfigError
from lm.layers import attention, splash
from lm.layers.attention import Mask, causal_attend, kernel_for
from lm.parallel import AXES, make_mesh
from tests.parallel.conftest import run_step

RNG = np.random.default_rng(0)
ROWS = 2


def arrays(length, heads, kv_heads, head_width, rows=ROWS):
    """Queries, keys and values; segments of packed rows with padding at the end; weights of the outputs."""
    q, k, v, weights = (RNG.normal(size=(rows, length, h, head_width)).astype(np.float32) for h in (heads, kv_heads, kv_heads, heads))
    segments = np.cumsum(RNG.random((rows, length)) < 4 / length, axis=1).astype(np.int32) + 1
    segments[0, -length // 5:] = 0
    return (q, k, v), segments, weights


def graded(function, segments, weights, dtype="float32"):
    """(q, k, v) to (outputs, gradients of the weighted sum of them)."""
    def loss(*inputs):
        y = function(*(x.astype(dtype) for x in inputs), jnp.asarray(segments))
        return jnp.sum(weights * y.astype(jnp.float32)), y

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def interpreted(window=None):
    """`splash.attend` on CPUs."""
    return functools.partial(splash.attend, window=window, interpret=True)


def xla(window=None):
    """`causal_attend`."""
    return functools.partial(causal_attend, window=window)


def assert_near(got, expected, tolerance):
    """Every array within `tolerance` of the other's, relative to its largest number."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(("length", "heads", "kv_heads", "head_width", "window"), [
    (256, 2, 2, 128, None), (300, 4, 2, 24, None), (300, 2, 1, 64, 5), (300, 2, 1, 64, 200), (40, 2, 2, 16, 2), (128, 2, 2, 16, 500),
])
def test_the_kernel_is_xlas_attention_in_value_and_gradient(monkeypatch, length, heads, kv_heads, head_width, window):
    monkeypatch.setattr(splash, "LARGEST_BLOCK", splash.LANES)  # rows of several blocks
    inputs, segments, weights = arrays(length, heads, kv_heads, head_width)
    got, expected = (graded(function(window), segments, weights)(*inputs) for function in (interpreted, xla))
    assert_near(got, expected, 2e-6)


def test_the_kernel_rounds_no_more_than_xla_does_in_bfloat16():
    inputs, segments, weights = arrays(256, 2, 1, 32)
    exact = graded(xla(), segments, weights)(*inputs)
    got, theirs = (graded(function(), segments, weights, "bfloat16")(*inputs) for function in (interpreted, xla))

    def errors(result):
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True)
        return [float(np.sqrt(np.mean((np.asarray(a, np.float32) - b) ** 2)) / np.std(b)) for a, b in pairs]

    for ours, xlas in zip(errors(got), errors(theirs), strict=True):
        assert 0 < ours < max(1.3 * xlas, 0.005)


@pytest.mark.parametrize("sizes", [{"replica": 2, "fsdp": 2, "tensor": 2}, {"fsdp_outer": 4, "fsdp": 2}], ids=["heads", "rows"])
def test_devices_have_rows_and_heads_of_their_own(sizes):
    inputs, segments, weights = arrays(128, 4, 2, 16, rows=8)
    expected = graded(xla(), segments, weights)(*inputs)
    with jax.set_mesh(make_mesh(dict.fromkeys(AXES, 1) | sizes)):
        compiled = graded(interpreted(), segments, weights).lower(*inputs).compile()
        assert_near(compiled(*inputs), expected, 2e-6)


def on_tpu(monkeypatch):
    """Programs are traced as if for TPUs, with the kernel interpreted."""
    monkeypatch.setattr(splash, "platform", lambda: "tpu")
    monkeypatch.setattr(splash, "attend", functools.partial(splash.attend, interpret=True))


@pytest.mark.parametrize("layout", [
    {"mesh__fsdp": 4, "mesh__tensor": 2, "model__remat": "names", "model__remat_save": "attention"},
    {"mesh__stage": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "model__remat": "full", "model__attention_window": 5},
], ids=["remat", "pipeline"])
def test_a_training_step_is_that_of_one_device_by_xla(monkeypatch, layout):
    model = {"model__kv_heads": 2, **{name: value for name, value in layout.items() if name == "model__attention_window"}}
    expected = run_step.__wrapped__(tuple(model.items()), 1)
    on_tpu(monkeypatch)
    got = run_step.__wrapped__(tuple((model | layout | {"model__attention_kernel": "splash"}).items()), 8)
    assert got.loss == pytest.approx(expected.loss, rel=1e-5)
    assert_near(got.gradients, expected.gradients, 1e-5)


@pytest.mark.parametrize("length", [1, 100, 128, 384, 1000, 1536])
@pytest.mark.parametrize("window", [None, 1, 130, 700])
def test_visited_blocks_are_those_with_a_pair_that_the_mask_leaves(length, window):
    padded, block = splash.blocks(length)
    assert padded % block == block % splash.LANES == 0 and padded - splash.LANES < length <= padded and block <= splash.LARGEST_BLOCK
    t, s = np.indices((padded, padded))
    seen = (s <= t) & (t - s < (window or padded))
    cut = seen.reshape(padded // block, block, padded // block, block).any(axis=(1, 3))
    assert splash.visited(length, window) == (cut.sum(), block)


def test_auto_takes_the_kernel_where_it_can_run(monkeypatch):
    assert [kernel_for(asked) for asked in ("xla", "auto")] == ["xla", "xla"], "on a CPU"
    monkeypatch.setattr(splash, "platform", lambda: "tpu")
    assert [kernel_for(asked) for asked in ("xla", "auto", "splash")] == ["xla", "splash", "splash"]
    assert kernel_for("auto", window=7) == "splash"
    assert kernel_for("auto", masked=True) == kernel_for("auto", window=jnp.int32(7)) == "xla"
    with jax.set_mesh(make_mesh(dict.fromkeys(AXES, 1) | {"context": 8})):
        assert kernel_for("auto") == "xla"


@pytest.mark.parametrize(("options", "context", "device", "message"), [
    ({}, 1, "cpu", "model.attention_kernel=splash is a kernel for TPUs, and the program is for cpu: set model.attention_kernel=xla"),
    ({}, 8, "tpu", "needs whole rows, which mesh.context=8 cuts: set mesh.context=1"),
    ({"masked": True}, 1, "tpu", "this objective has a mask of its own: set model.attention_kernel=xla"),
    ({"window": jnp.int32(3)}, 1, "tpu", "has one window for all layers: set model.window_from=0"),
])
def test_what_the_kernel_cannot_do_is_an_error_where_it_is_asked_for(monkeypatch, options, context, device, message):
    monkeypatch.setattr(splash, "platform", lambda: device)
    with jax.set_mesh(make_mesh(dict.fromkeys(AXES, 1) | {"context": context, "replica": -1})), pytest.raises(ConfigError, match=message):
        kernel_for("splash", **options)


def test_a_mask_of_its_own_is_never_lost(monkeypatch):
    """With auto on a TPU, attention that sees what follows goes by XLA."""
    monkeypatch.setattr(splash, "platform", lambda: "tpu")
    module = attention.Attention(2, 2, 8, bias=False, qk_norm=False, output_scale=1.0, kernel="auto")
    x, segments = RNG.normal(size=(1, 6, 16)).astype(np.float32), jnp.ones((1, 6), jnp.int32)
    everything = Mask(jnp.ones((1, 6, 6), bool))
    params = module.init(jax.random.key(0), x, segments, None)
    changed = x.copy()
    changed[0, -1] += 1
    before, after = (module.apply(params, rows, segments, None, everything)[0] for rows in (x, changed))
    assert np.abs(before[0, 0] - after[0, 0]).max() > 1e-3


def test_a_run_may_change_the_kernel_when_it_resumes():
    assert SCHEMA["model.attention_kernel"].resume == "free" and configs.default().model.attention_kernel == "auto"


@pytest.mark.parametrize(("save", "forward"), [((), 2), (("attention",), 1)], ids=["nothing", "attention"])
def test_what_is_kept_by_name_is_not_computed_again_on_a_tpu(monkeypatch, save, forward):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    from lm.plan import topology

    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the compiler ends the process on flags of CPUs

    policy = jax.checkpoint_policies.save_only_these_names(*save)
    shape = jax.ShapeDtypeStruct((8, 256, 2, 64), jnp.bfloat16)

    def loss(q, k, v):
        attended = jax.checkpoint(lambda q, k, v: splash.attend(q, k, v, jnp.ones((8, 256), jnp.int32)), policy=policy)
        return jnp.sum(jnp.sin(attended(q, k, v).astype(jnp.float32)))

    with jax.set_mesh(make_mesh(dict.fromkeys(AXES, 1) | {"fsdp": 4}, topology.devices(topology.parse("v5e:2x2")))):
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile().as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    assert [sum(f"splash_mha_{kind}" in line.split("=")[0] for line in calls) for kind in ("fwd", "dq", "dkv")] == [forward, 1, 1]
    assert "splash_1_blocks_of_256" in text
