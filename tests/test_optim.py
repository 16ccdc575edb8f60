"""Optimizers equal optax's own complete ones on a real model; groups are total; schedules equal their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from lm import config, models, optim
from lm.errors import ConfigError
from lm.metrics import global_norm

RATE, STEPS = 0.01, 4


def drawn(shapes, seed):
    """Arrays drawn at random, of a tree of shapes; drawn by numpy, as nothing needs compiling then."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), shapes)


def parameters(**changes):
    """Parameters of a small model; a transformer of two layers of width 8 unless changed."""
    model = config.default().model
    with model.unlocked():
        model.update({"layers": 2, "width": 8, "heads": 2, "scan_layers": False} | changes)
    return drawn(jax.eval_shape(models.build(model, 11, 6).init, jax.random.key(0)), 0)


def chosen(name, **changes):
    """An optim section."""
    section = config.default().optim
    section.update({"name": name, "learning_rate": RATE, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6} | changes)
    return section


def gradients_of(params, steps=STEPS):
    """Random gradients for some steps."""
    return [drawn(params, 1 + step) for step in range(steps)]


def path_of(path):
    """a/b/c of a path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_matrix(params):
    """Which parameters are hidden matrices, by shape alone; the tables of tokens and positions are none."""
    def rule(path, leaf):
        stacked = path_of(path).startswith("layers/")
        return leaf.ndim - stacked == 2 and "embedding" not in path_of(path)

    return jax.tree_util.tree_map_with_path(rule, params)


def ours(section, params, grads, rate=lambda step: RATE):
    """Parameters after our optimizer, applied as the train step does."""
    optimizer = optim.optimizer(section)
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for step, grad in enumerate(grads):
        directions, state = update(grad, state, params)
        params = jax.tree.map(lambda p, d, step=step: np.asarray(p) - rate(step) * np.asarray(d), params, directions)
    return params


def theirs(optimizer, params, grads):
    """Parameters after a complete optax optimizer."""
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = jax.tree.map(lambda p, u: np.asarray(p) + np.asarray(u), params, updates)
    return params


def assert_close(a, b, start, tolerance=1e-5):
    """Equal to float32 rounding, and different from the start everywhere."""
    for (path, x), y, z in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), jax.tree.leaves(start), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * 0.1, err_msg=path_of(path))
        assert np.abs(x - z).max() > 1e-4, path_of(path)


def line(step):
    """A learning rate that changes with the step."""
    return RATE / (1 + step)


def with_l2(optimizer):
    """The optimizer with weight decay added to the gradient of matrices."""
    return optax.chain(optax.add_decayed_weights(0.3, mask=is_matrix), optimizer)


ORACLES = {
    "adamw": lambda: optax.adamw(line, 0.8, 0.9, 1e-6, weight_decay=0.3, mask=is_matrix),
    "adam": lambda: with_l2(optax.adam(line, 0.8, 0.9, 1e-6)),
    "sgd": lambda: with_l2(optax.sgd(line, momentum=0.8)),
    "adagrad": lambda: with_l2(optax.adagrad(line, 0.0, 1e-12)),  # its eps is added under the root
    "lion": lambda: optax.lion(line, 0.8, 0.9, weight_decay=0.3, mask=is_matrix),
}


@pytest.mark.parametrize("name", ORACLES)
def test_optimizer_equals_optax(name):
    params = parameters()
    grads = gradients_of(params)
    assert_close(ours(chosen(name), params, grads, line), theirs(ORACLES[name](), params, grads), params)


def test_adafactor_equals_optax_with_factored_matrices():
    params = parameters(width=128, layers=1)  # smaller ones are not factored
    grads = gradients_of(params, 3)
    # optax decays after the learning rate, we before it.
    oracle = optax.adafactor(RATE, weight_decay_rate=0.3 * RATE, weight_decay_mask=is_matrix)
    state = optim.optimizer(chosen("adafactor")).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < sum(leaf.size for leaf in jax.tree.leaves(params)) / 4
    assert_close(ours(chosen("adafactor"), params, grads), theirs(oracle, params, grads), params)


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_muon_equals_optax_on_matrices_and_adam_on_the_rest(family):
    params = parameters() if family == "transformer" else parameters(name=family)
    grads, factor = gradients_of(params), 3.0
    labels = lambda params: jax.tree.map(lambda m: "matrix" if m else "rest", is_matrix(params))  # noqa: E731
    oracle = optax.chain(optax.partition({
        # Decay runs at the common learning rate, not at Muon's.
        "matrix": optax.contrib.muon(lambda step: factor * line(step), beta=0.8, weight_decay=0.3 / factor),
        "rest": optax.adam(line, 0.8, 0.9, 1e-6),
    }, labels))
    got = ours(chosen("muon", muon_learning_rate=factor * RATE), params, grads, line)
    assert_close(got, theirs(oracle, params, grads), params, tolerance=1e-4)


def test_muon_without_momentum_makes_matrices_nearly_orthogonal():
    params = parameters(ff_width=40)
    (grads,) = gradients_of(params, 1)
    section = chosen("muon", beta1=0.0, weight_decay=0.0, muon_learning_rate=RATE)
    optimizer = optim.optimizer(section)
    directions, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for (path, direction), matrix, grad in zip(jax.tree_util.tree_leaves_with_path(directions), jax.tree.leaves(is_matrix(params)),
                                               jax.tree.leaves(grads), strict=True):
        if not matrix:
            continue
        inputs, outputs = direction.shape
        values = np.linalg.svd(direction, compute_uv=False) / max(1.0, outputs / inputs) ** 0.5
        assert (values > 0.5).all() and (values < 1.3).all(), path_of(path)  # Newton-Schulz stops near one, by design
        u, _, v = np.linalg.svd(grad, full_matrices=False)
        cosine = np.sum(direction * (u @ v)) / np.linalg.norm(direction) / np.linalg.norm(u @ v)
        assert cosine > 0.95, path_of(path)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad", "lion", "muon"])
def test_stacked_layers_are_treated_like_separate_ones(name):
    apart = parameters()
    grads = gradients_of(apart)

    def stacked(tree):
        rest = {key: value for key, value in tree.items() if not key.startswith("layer_")}
        return rest | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), tree["layer_0"], tree["layer_1"])}

    together = stacked(apart)
    assert jax.tree.structure(together) == jax.tree.structure(parameters(scan_layers=True))
    got = ours(chosen(name), together, [stacked(grad) for grad in grads])
    assert_close(got, stacked(ours(chosen(name), apart, grads)), together)


EVERYTHING = [
    {}, {"scan_layers": True, "bias": True, "norm": "layernorm", "qk_norm": True, "positions": "learned", "tie_embeddings": False},
    {"activation": "swiglu", "positions": "sinusoidal", "kv_heads": 1, "bias": True},
    *({"name": name} | rest for name in ("rnn", "lstm", "gru")
      for rest in ({}, {"layer_norm": True, "norm": "layernorm", "residual": True, "tie_embeddings": False}, {"embedding_width": 4})),
]


@pytest.mark.parametrize("changes", EVERYTHING, ids=lambda changes: "-".join(f"{value}" for value in changes.values()) or "default")
def test_every_parameter_has_a_group_and_decay_touches_matrices_alone(changes):
    params = parameters(**changes)
    assert jax.tree.map(lambda group: group == "matrix", optim.groups(params)) == is_matrix(params)
    zero = jax.tree.map(np.zeros_like, params)
    optimizer = optim.optimizer(chosen("adamw"))
    directions, _ = jax.jit(optimizer.update)(zero, jax.jit(optimizer.init)(params), params)
    for direction, param, matrix in zip(*map(jax.tree.leaves, (directions, params, is_matrix(params))), strict=True):
        np.testing.assert_allclose(direction, 0.3 * np.asarray(param) * matrix, rtol=1e-6)


def test_a_parameter_without_a_group_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="layers/new_thing matches no line of GROUPS"):
        optim.groups({"layers": {"new_thing": jnp.ones(3)}})


def rates(total, **changes):
    """The learning rate at steps 0 to total."""
    at = optim.schedule(chosen("adamw", **changes), total)
    return np.array([float(at(step)) for step in range(total + 1)])


def closed_form(name, step, total, warmup, decay, ratio):
    """Learning rate as a share of the peak."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / (total - warmup)
    return {
        "constant": lambda: 1.0,
        "linear": lambda: 1 - (1 - ratio) * done,
        "cosine": lambda: ratio + (1 - ratio) * (1 + math.cos(math.pi * done)) / 2,
        "inverse_sqrt": lambda: (max(warmup, 1) / (step - warmup + max(warmup, 1))) ** 0.5,
        "wsd": lambda: 1 - (1 - ratio) * max(0, step - (total - decay)) / decay,
    }[name]()


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedule_equals_its_closed_form_at_every_step(name, warmup):
    total, decay, ratio = 40, 10, 0.2
    got = rates(total, schedule=name, warmup=warmup, decay=decay, final_ratio=ratio)
    wanted = [RATE * closed_form(name, step, total, warmup, decay, ratio) for step in range(total + 1)]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert got.max() == pytest.approx(RATE) and (got > 0).all()
    assert got[warmup] == pytest.approx(RATE), "the peak comes right after the warm-up"
    assert (np.abs(np.diff(got[: warmup + 1])) <= RATE / (warmup + 1) * 1.001).all(), "no jump at the border"
    if name in ("linear", "cosine", "wsd"):
        assert got[total] == pytest.approx(RATE * ratio)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_a_run_that_is_all_warm_up_or_has_no_decay_stays_finite(name):
    assert np.isfinite(rates(5, schedule=name, warmup=5, decay=0)).all()
    assert np.isfinite(rates(5, schedule=name, warmup=0, decay=0, final_ratio=0.0)).all()


def test_clip_limits_the_global_norm_keeps_the_direction_and_leaves_small_gradients_alone():
    grads = gradients_of(parameters(), 1)[0]
    norm = global_norm(grads)
    for limit in (0.1, 1.0, float(norm) * 0.99):
        clipped = optim.clip(grads, norm, limit)
        assert float(global_norm(clipped)) == pytest.approx(limit, rel=1e-5)
        jax.tree.map(lambda a, b, limit=limit: np.testing.assert_allclose(a, b * limit / norm, rtol=1e-5, atol=1e-8), clipped, grads)
    for limit in (float(norm) * 1.01, 1e9, 0.0):
        jax.tree.map(np.testing.assert_array_equal, optim.clip(grads, norm, limit), grads)
    zero = jax.tree.map(jnp.zeros_like, grads)
    jax.tree.map(np.testing.assert_array_equal, optim.clip(zero, global_norm(zero), 1.0), zero)
