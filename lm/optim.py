"""Optimizers and schedules, on optax. The learning rate is a function of the step, applied once at the end.

Every parameter belongs to a group by its name (`GROUPS`); weight decay and Muon touch matrices only.
"""

import re

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from lm.errors import ConfigError

# First match wins; a parameter that no line matches is an error.
GROUPS: tuple[tuple[str, str], ...] = (
    (r"(^|/)embedding$", "embedding"),
    (r"^unembedding/kernel$", "embedding"),
    (r"/(kernel|input|recurrent)$", "matrix"),
    (r"(^|/)(scale|bias|recurrent_bias)$", "vector"),
)


def group_of(path: str) -> str:
    """Group of a parameter by its path, such as `layers/attention/query/kernel`."""
    for pattern, group in GROUPS:
        if re.search(pattern, path):
            return group
    raise ConfigError(f"parameter {path} matches no line of GROUPS in lm/optim.py: add one that says whether it decays")


def groups(params):
    """The tree of group names of a tree of parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: group_of(jax.tree_util.keystr(path, simple=True, separator="/")), params)


def schedule(optim, total_steps: int):
    """Learning rate as a function of the step (from 0), of a config whose durations are steps."""
    peak, warmup, last = optim.learning_rate, optim.warmup, optim.learning_rate * optim.final_ratio
    rest = max(1, total_steps - warmup)
    if optim.schedule == "inverse_sqrt":
        # Continuous at the end of the warm-up; without one it falls from the first step on.
        after = lambda step: peak * jnp.sqrt(max(1, warmup) / (jnp.maximum(step, 0) + max(1, warmup)))  # noqa: E731
    elif optim.schedule == "wsd":
        stable = total_steps - warmup - optim.decay
        after = optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, last, max(1, optim.decay))], [stable])
    else:
        after = {
            "constant": lambda: optax.constant_schedule(peak),
            "linear": lambda: optax.linear_schedule(peak, last, rest),
            "cosine": lambda: optax.cosine_decay_schedule(peak, rest, optim.final_ratio),
        }[optim.schedule]()
    if not warmup:
        return after
    # Step 0 moves already: the warm-up reaches the peak at step `warmup`.
    return optax.join_schedules([lambda step: peak * (step + 1) / (warmup + 1), after], [warmup])


def _decay(optim):
    """Adds weight_decay x parameter to the update of matrices."""
    return optax.add_decayed_weights(optim.weight_decay, mask=lambda params: jax.tree.map(lambda group: group == "matrix", groups(params)))


def _adam(optim):
    return optax.scale_by_adam(optim.beta1, optim.beta2, optim.eps)


def _muon(optim):
    """Muon (Jordan et al. 2024) on matrices, Adam on the rest; each with its own learning rate."""
    numbers = lambda params: jax.tree.map(lambda p: MuonDimensionNumbers(p.ndim - 2, p.ndim - 1), params)  # noqa: E731

    def grow(updates, params=None):
        # Wide matrices get longer steps, so that the change of their output is alike (Jordan et al. 2024).
        return jax.tree.map(lambda u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5, updates)

    matrices = optax.chain(scale_by_muon(beta=optim.beta1, weight_dimension_numbers=numbers), optax.stateless(grow),
                           optax.scale(optim.muon_learning_rate / optim.learning_rate))
    return optax.partition({"matrix": matrices, "rest": _adam(optim)},
                           lambda params: jax.tree.map(lambda group: "matrix" if group == "matrix" else "rest", groups(params)))


def optimizer(optim) -> optax.GradientTransformation:
    """Turns gradients into a direction; the update is minus the learning rate times it. Moments are float32."""
    steps = {
        "adamw": lambda: [_adam(optim), _decay(optim)],
        "adam": lambda: [_decay(optim), _adam(optim)],
        "sgd": lambda: [_decay(optim), optax.trace(optim.beta1)],
        "adafactor": lambda: [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms(), _decay(optim)],
        "lion": lambda: [optax.scale_by_lion(optim.beta1, optim.beta2), _decay(optim)],
        "muon": lambda: [_muon(optim), _decay(optim)],
    }[optim.name]()
    return optax.chain(*steps)


def clip(grads, norm, limit: float):
    """Gradients whose global norm is at most `limit`; `norm` is the norm they have now, 0 as limit leaves them alone."""
    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda grad: grad * scale, grads)
