"""Statistics of every tensor of a forward and backward pass: module outputs, their gradients, parameters and theirs.

Modules are watched from outside: an interceptor sows the statistics of each output, row by row, so nothing of size [B, T, D] is kept.
The gradient of an output is caught by an identity whose derivative passes it on and hands its statistics to a dummy input, the probe.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.layers.dense import Kernel, Unembedding
from lm.models import logits_of
from lm.parallel import AXES, BATCH, batch_sharding, make_mesh, parameter_shardings

RMS, MAX, NONFINITE, PLACE, NORM = 0, 1, 2, 3, 3
LOGITS = "logits"
_SOWN, _PROBE = "statistics", "probe"


class Tensor(NamedTuple):
    """A tensor by its place in the order of computation: a parameter or a module's output ("activation").

    `path` leads to it in a tree; `layer` is its index in a stack of layers, or None.
    """

    name: str
    kind: str
    path: tuple[str, ...]
    layer: int | None


@dataclasses.dataclass
class Examined:
    """Some rows, forward and backward. Statistics are [..., 4] float64: rms, largest absolute value, entries not finite, and a fourth.

    forward, backward: {name: [B, 4]} of outputs and of their gradients; the fourth is the place in the row of the first entry that is
    not finite, else of the largest. weights, gradients: {name: [4]} of parameters and their gradients; the fourth is the norm.
    Rms, maximum and norm are over finite entries. `nats` is the sum of the cross-entropies, `grad_norm` that of all gradients.
    """

    nats: float
    total: float
    forward: dict[str, np.ndarray]
    backward: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.nats / self.total

    @property
    def grad_norm(self) -> float:
        """Norm of the whole gradient, as the step takes it in float32: inf where squares overflow, nan where an entry is not finite."""
        if any(value[NONFINITE] for value in self.gradients.values()):
            return math.nan
        norm = math.hypot(*(value[NORM] for value in self.gradients.values()))
        return norm if norm**2 <= float(np.finfo(np.float32).max) else math.inf


def row_statistics(x: jax.Array) -> jax.Array:
    """[B, 4] of x [B, T, ...]: rms and largest absolute value of the finite entries, how many are not, and the time of the worst."""
    x = jnp.abs(x.astype(jnp.float32))
    axes = tuple(range(1, x.ndim))
    finite = jnp.isfinite(x)
    rms, largest, _ = _moments(x, finite, axes)
    worst = jnp.max(jnp.where(finite, x, jnp.inf), axis=axes[1:])
    columns = [rms, largest, jnp.sum(~finite, axis=axes), jnp.argmax(worst, axis=1)]
    return jnp.stack([column.astype(jnp.float32) for column in columns], axis=-1)


def leaf_statistics(x: jax.Array, stacked: bool) -> jax.Array:
    """[4] of a parameter or its gradient, [L, 4] of a stack of them: rms, largest absolute value, entries not finite, norm."""
    x = jnp.abs(x.astype(jnp.float32))
    axes = tuple(range(int(stacked), x.ndim))
    finite = jnp.isfinite(x)
    rms, largest, norm = _moments(x, finite, axes)
    return jnp.stack([rms, largest, jnp.sum(~finite, axis=axes).astype(jnp.float32), norm], axis=-1)


def _moments(x, finite, axes):
    """(rms, maximum, norm) of the finite entries of |x|; scaled, so that squares neither overflow nor vanish."""
    kept = jnp.where(finite, x, 0.0)
    largest = jnp.max(kept, axis=axes)
    scale = jnp.where(largest > 0, largest, 1.0)
    squares = jnp.sum(jnp.square(kept / jnp.expand_dims(scale, axes)), axis=axes)
    return largest * jnp.sqrt(squares / jnp.maximum(jnp.sum(finite, axis=axes), 1)), largest, largest * jnp.sqrt(squares)


@jax.custom_vjp
def _tap(y, probe):
    """y; its gradient's statistics come out as the gradient of `probe` [B, 4]."""
    del probe
    return y


_tap.defvjp(lambda y, probe: (y, None), lambda _, gradient: (gradient, row_statistics(gradient)))


def _watch(call, arguments, options, context):
    """An interceptor: sows the statistics of a module's output, and taps it where there is a probe.

    In a scan it sees one layer, as the body does: what is sown and probed is stacked like the parameters.
    """
    output, module = call(*arguments, **options), context.module
    if context.method_name != "__call__" or isinstance(module, (Kernel, Unembedding)):
        return output
    y = output[0] if isinstance(output, tuple) else output
    module.sow("intermediates", _SOWN, row_statistics(y), init_fn=lambda: None, reduce_fn=lambda _, new: new)
    if module.has_variable("intermediates", _PROBE):
        y = _tap(y, module.get_variable("intermediates", _PROBE))
    return (y, *output[1:]) if isinstance(output, tuple) else y


class _Watched:
    """A model as the objective sees it, whose modules are watched; `seen` is what the last `apply` sowed."""

    def __init__(self, model, probes=None, chunk: int = 0):
        self._model, self._probes, self._chunk, self.seen = model, probes, chunk, None

    def apply(self, params, batch, noise=None):
        """Hidden states [B, T, D]."""
        variables = {"params": params} | ({"intermediates": self._probes} if self._probes is not None else {})
        with nn.intercept_methods(_watch):
            hidden, sown = self._model.module.apply(variables, batch, noise, mutable=["intermediates"])
        self.seen = _without(sown["intermediates"], _PROBE)
        self.seen[LOGITS] = {_SOWN: self._logit_statistics(*jax.lax.stop_gradient((hidden, self.unembedding(params))))}
        return hidden

    def unembedding(self, params):
        """[D, V]."""
        return self._model.unembedding(params)

    def _logit_statistics(self, hidden, matrix):
        """[B, 4], with the logits of at most `chunk` positions per row at once."""
        if not self._chunk or self._chunk >= hidden.shape[1]:
            return row_statistics(logits_of(hidden, matrix))
        parts = jnp.moveaxis(hidden.reshape(hidden.shape[0], -1, self._chunk, hidden.shape[-1]), 1, 0)
        part = jax.lax.map(lambda x: row_statistics(logits_of(x, matrix)), parts)  # [T / chunk, B, 4]
        worst = jnp.argmax(jnp.where(part[..., NONFINITE] > 0, jnp.inf, part[..., MAX]), axis=0)
        place = worst * self._chunk + jnp.take_along_axis(part[..., PLACE], worst[None], axis=0)[0]
        rms = jnp.sqrt(jnp.mean(jnp.square(part[..., RMS]), axis=0))
        return jnp.stack([rms, jnp.max(part[..., MAX], axis=0), jnp.sum(part[..., NONFINITE], axis=0), place], axis=-1)


def _without(tree, name):
    return {key: _without(value, name) if isinstance(value, dict) else value for key, value in tree.items() if key != name}


def _probes_of(seen):
    """Zeros for every output but the logits: a dummy input each."""
    return {_PROBE if key == _SOWN else key: _probes_of(value) if isinstance(value, dict) else jnp.zeros(value.shape, jnp.float32)
            for key, value in seen.items() if key != LOGITS}


class Examiner:
    """Runs rows forward and backward and gives the statistics of every tensor, in the order of computation (`tensors`).

    Make it outside `jax.set_mesh`: what finds the order is a row of two tokens, which a mesh could not cut.
    """

    def __init__(self, model, objective, config, mesh):
        self._model, self._objective, self._config = model, objective, config
        self.mesh = _without_stages(mesh)
        self._copies = math.prod(self.mesh.shape[axis] for axis in BATCH)
        self._shardings = parameter_shardings(jax.eval_shape(model.init_boxed, jax.random.key(0)), self.mesh, config.layout.zero)
        self.tensors, self._stacked = order_of_computation(model, jax.eval_shape(model.init, jax.random.key(0)))
        self._examine = jax.jit(self._forward_and_backward, out_shardings=(self._shardings, None, None, None))
        self._describe = jax.jit(lambda tree: jax.tree.map(leaf_statistics, tree, self._stacked))
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
        self._divide = jax.jit(lambda tree, by: jax.tree.map(lambda leaf: leaf / by, tree), donate_argnums=0)

    def _forward_and_backward(self, params, batch, noise):
        train = self._config.train
        seen = jax.eval_shape(lambda: _seen_by(self._model, params, batch, train.loss_chunk))

        def loss(params, probes):
            model = _Watched(self._model, probes, train.loss_chunk)
            total, nats = self._objective.loss(model, params, batch, z_loss=train.z_loss, chunk=train.loss_chunk, noise=noise)
            return total, (nats, model.seen)

        (grads, backward), (nats, forward) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, _probes_of(seen))
        return grads, nats, forward, backward

    def place(self, params):
        """Parameters where this examiner works: as they are, unless the run's mesh has pipeline stages, which hide their layers."""
        return jax.device_put(params, self._shardings)

    def batch(self, params, batch: dict, noise: jax.Array, weights: dict | None = None) -> Examined:
        """The whole batch in the run's micro-batches. `noise` [B] is a random key per row."""
        count = self._config.train.accumulate
        places = [np.arange(first, len(noise), count) for first in range(count)]
        grads, nats, forward, backward = None, 0.0, {}, {}
        for rows in places:
            more, part, *statistics = self._run(params, {key: value[rows] for key, value in batch.items()}, noise[rows])
            grads = more if grads is None else self._add(grads, more)
            nats += part
            for tree, found in zip((forward, backward), statistics, strict=True):
                for name, value in found.items():
                    tree.setdefault(name, np.empty((len(noise), 4)))[rows] = value
        total = max(float(batch["weights"].sum()), 1.0)
        return self._examined(params, grads, nats, total, forward, backward, weights)

    def row(self, params, batch: dict, noise: jax.Array, row: int, weights: dict | None = None) -> Examined:
        """One row alone, of a batch: its statistics are [1, 4]."""
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        grads, nats, forward, backward = self._run(params, alone, noise[row : row + 1])
        return self._examined(params, grads, nats, max(float(alone["weights"].sum()), 1.0), forward, backward, weights)

    def _run(self, params, batch, noise):
        """(gradients of the sum of losses, sum of cross-entropies, forward and backward statistics by name) of some rows.

        Rows that the mesh does not divide are filled up with copies of the last one, of no weight. (Other rows would not do: what is
        not finite in them would remain so under no weight.)
        """
        count = len(noise)
        filled = np.minimum(np.arange(-(-count // self._copies) * self._copies), count - 1)
        batch = {key: value[filled] for key, value in batch.items()}
        batch["weights"][count:] = 0
        with jax.set_mesh(self.mesh):
            grads, nats, forward, backward = self._examine(params, jax.device_put(batch, batch_sharding(self.mesh)), noise[filled])
        forward, backward = jax.device_get((forward, backward))
        rows = (self._by_name(tree, leaf, "activation") for tree, leaf in ((forward, _SOWN), (backward, _PROBE)))
        return grads, float(nats), *({name: value[:count] for name, value in found.items()} for found in rows)

    def _examined(self, params, grads, nats, total, forward, backward, weights) -> Examined:
        with jax.set_mesh(self.mesh):
            gradients = self._by_name(jax.device_get(self._describe(self._divide(grads, total))), None, "parameter")
        for value in backward.values():
            value[..., [RMS, MAX]] /= total
        return Examined(nats, total, forward, backward, weights or self.weights(params), gradients)

    def weights(self, params) -> dict[str, np.ndarray]:
        """{name: [4]} of the parameters."""
        with jax.set_mesh(self.mesh):
            return self._by_name(jax.device_get(self._describe(params)), None, "parameter")

    def _by_name(self, tree, leaf, kind) -> dict[str, np.ndarray]:
        found = {}
        for tensor in self.tensors:
            value = _at(tree, (*tensor.path, leaf) if leaf else tensor.path) if tensor.kind == kind else None
            if value is not None:
                found[tensor.name] = np.array(value if tensor.layer is None else value[tensor.layer], np.float64)
        return found


def _seen_by(model, params, batch, chunk=0):
    watched = _Watched(model, chunk=chunk)
    watched.apply(params, batch)
    return watched.seen


def _at(tree, path):
    for key in path:
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def _without_stages(mesh):
    """The mesh with its pipeline stages as further parts of fsdp: the same devices, and every layer in the one module."""
    sizes = dict(mesh.shape)
    if sizes["stage"] == 1:
        return mesh
    sizes |= {"stage": 1, "fsdp": sizes["fsdp"] * sizes["stage"]}
    return make_mesh({axis: sizes[axis] for axis in AXES}, list(mesh.devices.flat))


def order_of_computation(model, params) -> tuple[list[Tensor], dict]:
    """(tensors, tree like `params` of whether a leaf is a stack of layers). A module's parameters come before its output."""
    calls: list[tuple[str, ...]] = []

    def note(call, arguments, options, context):
        output = call(*arguments, **options)
        if context.method_name == "__call__" and context.module.path not in calls:
            calls.append(context.module.path)
        return output

    row = jnp.zeros((1, 2), jnp.int32)
    with nn.intercept_methods(note):
        seen = jax.eval_shape(lambda: _seen_by(model, params_zeros(params), {"tokens": row, "segments": row + 1, "positions": row}))
    stacks = {path for path in calls if (found := _at(seen, (*path, _SOWN))) is not None and found.ndim == 3}

    def depth(path) -> int | None:
        above = [path[:n] for n in range(len(path) + 1) if path[:n] in stacks]
        return _at(seen, (*above[0], _SOWN)).shape[0] if above else None

    tensors: list[Tensor] = []
    for stack, paths in _runs(calls, lambda path: path[0] if path and depth(path) else None):
        for layer in range(depth((stack,))) if stack else (None,):
            tensors += [tensor for path in paths for tensor in _tensors_of(path, params, seen, layer)]
    tensors.append(Tensor(LOGITS, "activation", (LOGITS,), None))
    stacked = jax.tree_util.tree_map_with_path(lambda path, _: depth(tuple(key.key for key in path)) is not None, params)
    return tensors, stacked


def params_zeros(params):
    """Zeros in the shapes of the parameters."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)


def _runs(items, key):
    """[(key, consecutive items that have it)]."""
    runs: list[tuple] = []
    for item in items:
        if not runs or runs[-1][0] != key(item):
            runs.append((key(item), []))
        runs[-1][1].append(item)
    return runs


def _tensors_of(path, params, seen, layer) -> list[Tensor]:
    """A module's own parameters and its output, under names such as layers/3/attention/query/kernel."""
    shown = path if layer is None else (path[0], str(layer), *path[1:])
    own = _at(params, path) or {}
    tensors = [Tensor("/".join((*shown, leaf)), "parameter", (*path, leaf), layer) for leaf in own if not isinstance(own[leaf], dict)]
    if _at(seen, (*path, _SOWN)) is not None:
        tensors.append(Tensor("/".join(shown) or "hidden", "activation", path, layer))
    return tensors
