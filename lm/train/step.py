"""The state of training, and one pure step of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm import optim
from lm.metrics import global_norm
from lm.objectives import causal
from lm.parallel import check_replication, parameter_shardings, replicated


class TrainState(NamedTuple):
    """Everything that a step changes. `ema` is None unless train.ema is set."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None


def init_state(model, optimizer, rng: jax.Array, with_ema: bool) -> TrainState:
    """The state before the first step."""
    params = model.init(rng)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params if with_ema else None)


def gradients(model, params, batch, rng, config):
    """(gradients of the mean loss, mean cross-entropy) of a batch cut into train.accumulate micro-batches.

    Numerators are summed over micro-batches and divided once by the weights of the whole batch: exact when they differ.
    """
    count = config.train.accumulate

    def micro_loss(params, micro, key):
        return causal.loss(model, params, micro, z_loss=config.train.z_loss, chunk=config.train.loss_chunk, train=True, dropout_rng=key)

    grad = jax.grad(micro_loss, has_aux=True)
    total = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
    if count == 1:
        grads, nats = grad(params, batch, rng)
    else:
        # Row r goes to micro-batch r mod count: each device cuts its own rows, nothing moves.
        micros = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch)

        def add(sums, micro):
            return jax.tree.map(jnp.add, sums, grad(params, *micro)), None

        zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))
        (grads, nats), _ = jax.lax.scan(add, zero, (micros, jax.random.split(rng, count)))
    return jax.tree.map(lambda g: g / total, grads), nats / total


def train_step(state: TrainState, batch: dict, *, model, optimizer, learning_rate, config) -> tuple[TrainState, dict]:
    """One optimizer update. Pure: the randomness of a step follows from the seed and the step alone."""
    rng = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
    grads, loss = gradients(model, state.params, batch, rng, config)
    grad_norm = global_norm(grads)
    directions, opt_state = optimizer.update(optim.clip(grads, grad_norm, config.optim.clip), state.opt_state, state.params)
    rate = learning_rate(state.step)
    updates = jax.tree.map(lambda d: -rate * d, directions)
    params = optax.apply_updates(state.params, updates)
    decay = config.train.ema
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params) if decay else None
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    new = TrainState(state.step + 1, params, opt_state, ema)
    if config.train.nonfinite == "skip":
        kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        new = kept._replace(step=state.step + 1)
    metrics = {
        "loss": loss, "grad_norm": grad_norm, "param_norm": global_norm(params), "update_norm": global_norm(updates),
        "learning_rate": jnp.asarray(rate, jnp.float32), "targets": jnp.sum(batch["weights"] > 0), "finite": finite,
    }
    return new, metrics


def state_shardings(model, optimizer, mesh, with_ema: bool) -> TrainState:
    """Where each array of the state lies: parameters by the table, what an optimizer keeps per parameter beside it, the rest copied."""
    rng = jax.random.key(0)
    boxed = jax.eval_shape(model.init_boxed, rng)
    params = parameter_shardings(boxed, mesh)
    abstract = jax.eval_shape(lambda key: init_state(model, optimizer, key, with_ema), rng)
    check_replication(abstract.params, params, mesh)
    by_path = {jax.tree_util.keystr(path): (leaf.shape, sharding) for (path, leaf), sharding in
               zip(jax.tree_util.tree_leaves_with_path(abstract.params), jax.tree.leaves(params), strict=True)}

    def beside(path, leaf):
        name = jax.tree_util.keystr(path)
        for suffix, (shape, sharding) in by_path.items():
            if name.endswith(suffix) and leaf.shape == shape:
                return sharding
        return replicated(mesh)

    opt_state = jax.tree_util.tree_map_with_path(beside, abstract.opt_state)
    return TrainState(replicated(mesh), params, opt_state, params if with_ema else None)
