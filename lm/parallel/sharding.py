"""The table from logical axes to mesh axes, and what follows from it: shardings of parameters, batches and activations.

Parameters and activations name their axes; the table below is the only place that knows the mesh. An unknown name is an
error, never a silent replication.
"""

import math

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.errors import ConfigError

BATCH = ("replica", "fsdp")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": BATCH,
    "time": (),
    "act_width": (),
    "act_heads": (),
    "act_ff": (),
    "act_vocab": (),
    # parameters
    "width": ("fsdp",),
    "heads": (),
    "ff": (),
    "cell": (),
    "vocab": (),
    "positions": (),
    "norm": (),
    "layers": (),
}

REPLICATED_LIMIT = 0.02


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """Mesh axes of logical axes; ConfigError on a name that the table does not have."""
    for name in names:
        if name is not None and name not in RULES:
            raise ConfigError(f"unknown logical axis {name!r}: lm/parallel/sharding.py has {', '.join(RULES)}")
    axes = [RULES[name] if name else () for name in names]
    return PartitionSpec(*(axis[0] if len(axis) == 1 else (axis or None) for axis in axes))


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """x with its axes laid out by the table, under `jax.set_mesh`; without a mesh, x itself."""
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} logical axes {names} for an array of shape {x.shape}")
    spec = partition_spec(names)
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def parameter_shardings(boxed, mesh: Mesh):
    """Shardings for a tree of Linen's boxed abstract parameters, in the shape of the unboxed tree.

    A dimension that its mesh axes do not divide stays whole; `check_replication` counts what that costs.
    """

    def sharding(leaf):
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else None
        shape = nn.meta.unbox(leaf).shape
        if names is None:
            raise ConfigError(f"a parameter of shape {shape} has no logical axes")
        spec = partition_spec(names)
        fits = [axis if axis is None or size % _axis_size(mesh, axis) == 0 else None for axis, size in zip(spec, shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def _axis_size(mesh: Mesh, axis) -> int:
    return math.prod(mesh.shape[name] for name in (axis if isinstance(axis, tuple) else (axis,)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, split over the data axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_replication(abstract_params, shardings, mesh: Mesh):
    """ConfigError when an fsdp mesh leaves more than 2 % of the parameter bytes on every device."""
    if mesh.shape["fsdp"] == 1:
        return
    sizes = jax.tree.map(lambda leaf: leaf.size * leaf.dtype.itemsize, abstract_params)
    whole = jax.tree.map(lambda size, sharding: size if sharding.is_fully_replicated else 0, sizes, shardings)
    share = sum(jax.tree.leaves(whole)) / sum(jax.tree.leaves(sizes))
    if share > REPLICATED_LIMIT:
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, size in
                 sorted(jax.tree_util.tree_leaves_with_path(whole), key=lambda item: -item[1])[:3] if size]
        raise ConfigError(f"mesh.fsdp={mesh.shape['fsdp']} leaves {share:.1%} of the parameter bytes on every device "
                          f"(largest: {', '.join(paths)}): choose a width that mesh.fsdp divides")
