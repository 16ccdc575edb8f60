"""What a train step needs whatever its layout, by tracing it: what rows keep for the backward pass, and FLOPs; nothing is compiled."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from lm import optim
from lm.config.model_keys import ENCODER_DECODER, ENCODERS, TRANSFORMERS
from lm.parallel import AXES, Layout
from lm.plan import absent
from lm.plan.layouts import with_values

# Rows of the batch that is traced: a prime, so that arrays that grow with the batch tell themselves apart by their size.
ROWS = 1009
# The plainest layout: one device, where layers compute what they do on all devices together.
PLAIN = {f"mesh.{axis}": 1 for axis in AXES} | {
    "layout.zero": 3, "layout.context": "ring", "layout.microbatches": 0, "layout.repeats": 1, "layout.offload": "none",
    "train.accumulate": 1, "train.loss_chunk": 0}
# Families whose layers may be one stack, scanned over.
STACKED = TRANSFORMERS + ENCODERS + ENCODER_DECODER


class Row(NamedTuple):
    """What one row costs: bytes of arrays that its forward pass keeps for the backward pass, of such that only attention without a kernel
    keeps (weights, and copies of queries and keys), of its float32 logits; FLOPs of both passes, what is computed again included, and
    those of them that the output matrix takes."""

    kept: float
    pieces: float
    logits: float
    flops: float
    head_flops: float


class Traced:
    """A config's model, objective and optimizer by their shapes. A trace takes about a second, the second of the same kind none."""

    def __init__(self, config):
        """Keeps the config as it is; the mesh and layout that it asks for do not matter."""
        plain = PLAIN | ({"model.scan_layers": True} if config.model.name in STACKED else {})  # a trace of one layer serves for all
        plain |= {"model.attention_kernel": "xla"} if config.model.name in TRANSFORMERS else {}
        self.config = with_values(config, plain)
        self._job = absent.job_of(self.config, jax.local_devices(backend="cpu")[:1])
        self.boxed = jax.eval_shape(self._job.model.init_boxed, jax.eval_shape(jax.random.key, 0))
        self.params = nn.meta.unbox(self.boxed)
        paths = jax.tree_util.tree_leaves_with_path(self.params)
        self.groups = [optim.group_of(jax.tree_util.keystr(path, simple=True, separator="/")) for path, _ in paths]
        self.beside, self.apart = self._optimizer_bytes([(jax.tree_util.keystr(path), leaf.shape) for path, leaf in paths])
        self.itemsize = jnp.dtype(config.model.dtype).itemsize
        self.tokens_per_row = self._job.objective.tokens_per_step(self._job.data) / config.data.global_batch
        self._rows: dict[tuple, Row] = {}

    def _optimizer_bytes(self, params) -> tuple[list[int], int]:
        """(bytes of state for each parameter that lie as it does, bytes of the rest, which every device has)."""
        state = jax.eval_shape(self._job.optimizer.init, self.params)
        beside, apart = [0] * len(params), 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            name, size = jax.tree_util.keystr(path), leaf.size * leaf.dtype.itemsize
            mine = [i for i, (suffix, shape) in enumerate(params) if name.endswith(suffix) and leaf.shape == shape]
            if mine:
                beside[mine[0]] += size
            else:
                apart += size
        return beside, apart

    def row(self, remat: str, save: tuple[str, ...] = ()) -> Row:
        """What a row costs under a remat policy, whose tensors in `save` stay."""
        if remat == "names" and not save:
            remat = "full"  # what goes to the host is not kept here
        if (remat, save) not in self._rows:
            self._rows[remat, save] = self._trace(remat, save)
        return self._rows[remat, save]

    @functools.cached_property
    def layer(self) -> float:
        """Bytes of a row in one layer that the backward pass makes again before it begins, where it keeps the layer's input alone."""
        again = "dots" if self.config.model.name in STACKED else "none"
        return (self.row(again).kept - self.row("full").kept) / self.config.model.layers

    def _trace(self, remat, save) -> Row:
        config = with_values(self.config, {"model.remat": remat, "model.remat_save": save, "model.remat_offload": ()})
        objective = self._job.objective
        model = objective.model(config, Layout())
        batch = self._batch()

        def loss(params, batch):
            return objective.loss(model, params, batch, z_loss=config.train.z_loss, chunk=0)[0]

        kept = jax.eval_shape(lambda params, batch: jax.vjp(functools.partial(loss, batch=batch), params)[1], self.params, batch)
        traced = jax.make_jaxpr(jax.grad(loss))(self.params, batch).jaxpr
        used, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
        vocab = objective.vocab_size
        # Attention goes by pieces of rows.
        lengths = {leaf.shape[1] for leaf in jax.tree.leaves(batch) if len(leaf.shape) > 1}
        whole = lengths | {ROWS * length for length in lengths}
        sizes = [(leaf.shape, leaf.size * leaf.dtype.itemsize / ROWS) for leaf in jax.tree.leaves(kept) if leaf.size % ROWS == 0]
        logits = max((size for shape, size in sizes if shape[-1] == vocab), default=0)
        others = [(shape, size) for shape, size in sizes if shape[-1] != vocab]
        pieces = sum(size for shape, size in others if not whole & set(shape))
        return Row(sum(size for _, size in others) - pieces, pieces, logits, product_flops(used) / ROWS, product_flops(used, vocab) / ROWS)

    def _batch(self):
        """A batch of ROWS rows of the longest shape that the data has."""
        shapes = self._job.data.shapes()
        row = self._job.data.batch(shapes[max(shapes, key=math.prod)], self._job.objective.build, slice(1))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((ROWS, *leaf.shape[1:]), leaf.dtype), row)


def product_flops(jaxpr, only: int = 0) -> float:
    """FLOPs of the matrix products of a jaxpr, two per multiply-add, loops of known length multiplied.

    With `only`, those of products outside of loops that have a dimension of this size: the output matrix's, by the size of the vocabulary.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right, product = *(variable.aval.shape for variable in equation.invars), equation.outvars[0].aval
            if not only or only in (*left, *right):
                total += 2 * product.size * math.prod(left[axis] for axis in equation.params["dimension_numbers"][0][0])
            continue
        loop = equation.primitive.name == "scan"
        if not (loop and only):
            times = equation.params["length"] if loop else 1
            total += times * sum(product_flops(inner, only) for inner in _inner(equation))
    return total


def _inner(equation):
    """The jaxprs that an equation runs; of the branches of a condition the first."""
    for name, value in equation.params.items():
        for item in value[:1] if name == "branches" else value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner
