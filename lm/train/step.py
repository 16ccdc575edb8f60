"""The state of training, and one pure step of it."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lm import optim
from lm.metrics import global_norm
from lm.objectives import Objective
from lm.parallel import batch_sharding, check_replication, parameter_shardings, replicated
from lm.parallel.pipeline import micro_batches


class TrainState(NamedTuple):
    """Everything that a step changes. `ema` is None unless train.ema is set."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None


def init_state(model, optimizer, rng: jax.Array, with_ema: bool) -> TrainState:
    """The state before the first step."""
    return first_state(model.init(rng), optimizer, with_ema)


def first_state(params, optimizer, with_ema: bool) -> TrainState:
    """The state before the first step, of some parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params if with_ema else None)


def row_noise(seed, step, rows: int) -> jax.Array:
    """A random key for each row [B] of the batch of a step: what a row drops does not depend on the micro-batch or device it is on."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(seed + 1), step), jnp.arange(rows))


def gradients(model, objective: Objective, params, batch, noise, config, shardings=None):
    """(gradients of the mean loss, mean cross-entropy) of a batch cut into train.accumulate micro-batches.

    `noise` [B] are keys of the rows, `shardings` are where the gradients lie.

    Numerators are summed over micro-batches and divided once by the weights of the whole batch: exact when they differ.
    """
    count = config.train.accumulate

    def micro_loss(params, micro, noise):
        return objective.loss(model, params, micro, z_loss=config.train.z_loss, chunk=config.train.loss_chunk, noise=noise)

    def grad(*arguments):
        grads, nats = jax.grad(micro_loss, has_aux=True)(params, *arguments)
        return (jax.lax.with_sharding_constraint(grads, shardings) if shardings else grads), nats

    total = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
    if count == 1:
        grads, nats = grad(batch, noise)
    else:

        def add(sums, micro):
            return jax.tree.map(jnp.add, sums, grad(*micro)), None

        zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))
        (grads, nats), _ = jax.lax.scan(add, zero, micro_batches((batch, noise), count))
    return jax.tree.map(lambda g: g / total, grads), nats / total


def train_step(state: TrainState, batch: dict, *, model, objective, optimizer, learning_rate, config, shardings=None,
               seed=None) -> tuple[TrainState, dict]:
    """One optimizer update. Pure: the randomness of a step follows from the seed (the config's, or an array) and the step alone.

    `shardings` (see `state_shardings`) are where gradients and the optimizer's work lie; None leaves that to the compiler.
    """
    noise = row_noise(config.seed if seed is None else seed, state.step, len(batch["weights"]))
    grads, loss = gradients(model, objective, state.params, batch, noise, config, shardings and shardings.gradients)
    grad_norm = global_norm(grads)
    before = jax.device_put(state.opt_state, jax.memory.Space.Device) if config.layout.offload == "optimizer" else state.opt_state
    directions, opt_state = optimizer.update(optim.clip(grads, grad_norm, config.optim.clip), before, state.params)
    rate = learning_rate(state.step)
    updates = jax.tree.map(lambda d: -rate * d, directions)
    params = optax.apply_updates(state.params, updates)
    decay = config.train.ema
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params) if decay else None
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    new = TrainState(state.step + 1, params, opt_state, ema)
    if config.train.nonfinite == "skip":
        kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state._replace(opt_state=before))
        new = kept._replace(step=state.step + 1)
    if config.layout.offload == "optimizer":
        new = new._replace(opt_state=jax.device_put(new.opt_state, jax.memory.Space.Host))
    metrics = {
        "loss": loss, "grad_norm": grad_norm, "param_norm": global_norm(params), "update_norm": global_norm(updates),
        "learning_rate": jnp.asarray(rate, jnp.float32), "targets": objective.tokens(batch), "finite": finite,
    }
    return new, metrics


def jitted_step(model, objective, optimizer, learning_rate, config, mesh, shardings):
    """`train_step` under jit on a mesh: (state, batch) to (state, metrics), in place of the state."""
    step = functools.partial(train_step, model=model, objective=objective, optimizer=optimizer, learning_rate=learning_rate, config=config,
                             shardings=shardings)
    return jax.jit(step, in_shardings=(shardings.state, batch_sharding(mesh)), out_shardings=(shardings.state, replicated(mesh)),
                   donate_argnums=0)


class Shardings(NamedTuple):
    """Where things lie: the state, and the gradients (as the parameters do, or under ZeRO-1 as the optimizer's state does).

    `shapes` are those of the state, with its types.
    """

    state: TrainState
    gradients: dict
    shapes: TrainState


def state_shardings(model, optimizer, mesh, with_ema: bool, layout) -> Shardings:
    """Parameters by the table, what an optimizer keeps per parameter beside them (cut under layout.zero 1 too), the rest copied."""
    rng = jax.random.key(0)
    boxed = jax.eval_shape(model.init_boxed, rng)
    params, cut = parameter_shardings(boxed, mesh, layout.zero), parameter_shardings(boxed, mesh)
    check_replication(boxed, cut, mesh, layout.zero)
    abstract = jax.eval_shape(lambda boxed: first_state(nn.meta.unbox(boxed), optimizer, with_ema), boxed)
    by_path = {jax.tree_util.keystr(path): (leaf.shape, sharding) for (path, leaf), sharding in
               zip(jax.tree_util.tree_leaves_with_path(abstract.params), jax.tree.leaves(cut), strict=True)}

    def beside(path, leaf):
        name = jax.tree_util.keystr(path)
        found = [sharding for suffix, (shape, sharding) in by_path.items() if name.endswith(suffix) and leaf.shape == shape]
        sharding = found[0] if found else replicated(mesh)
        return sharding.with_memory_kind("pinned_host") if layout.offload == "optimizer" else sharding

    opt_state = jax.tree_util.tree_map_with_path(beside, abstract.opt_state)
    return Shardings(TrainState(replicated(mesh), params, opt_state, params if with_ema else None), cut, abstract)
