"""Every parameter of a model, what is done to it, and what of it a device holds."""

import math
import re

import jax
import numpy as np

from lm import models, optim
from lm.describe.components import part_of
from lm.describe.initial import initial_values
from lm.parallel.sharding import partition_spec, table
from lm.train.step import state_shardings

HOST = "pinned_host"


def parameters(config, model, mesh) -> list[dict]:
    """Each parameter, in the order of the tree: {"name", "shape", "axes" (logical), "mesh" (axes that may cut them), "sharding" (for each
    dimension the axes of this mesh that do), "group" (of the optimizer), "decays", "entries", "init" (see `initial_values`), "component"
    (see `part_of`), "bytes" (of one device: {"parameters", "gradients", "optimizer", "ema"}), "host_bytes"}.

    `mesh` may be abstract. A model that is made by counting has none.
    """
    if isinstance(model, models.CountedModel):
        return []
    boxed = jax.eval_shape(model.init_boxed, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
    names = [_path(path) for path, _ in leaves]
    optimizer = optim.optimizer(config.optim, models.widening(config.model))
    shardings = state_shardings(model, optimizer, mesh, bool(config.train.ema), config.layout)
    sizes, rules = _sizes(shardings, names), table(config.layout.zero)
    rows = []
    for (_, leaf), name, sharding, init in zip(leaves, names, jax.tree.leaves(shardings.state.params), initial_values(model, config.seed),
                                               strict=True):
        shape, group, axes = jax.tree.leaves(leaf)[0].shape, optim.group_of(name), list(leaf.names)
        rows.append({
            "name": name, "shape": list(shape), "axes": axes, "mesh": _joined(partition_spec(tuple(axes), rules)),
            "sharding": _axes(sharding.spec, len(shape)), "group": group,
            "decays": group == "matrix" and config.optim.weight_decay > 0, "entries": math.prod(shape),
            "init": None if init is None else list(init), "component": part_of(name), "bytes": sizes[name]["device"],
            "host_bytes": sizes[name]["host"]})
    return rows


def _path(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _joined(spec) -> list[str | None]:
    return ["x".join(axis) if isinstance(axis, tuple) else axis for axis in spec]


def _axes(spec, dimensions: int) -> list[list[str]]:
    """The mesh axes of each dimension of an array."""
    named = [list(axis) if isinstance(axis, tuple) else [axis] if axis else [] for axis in spec]
    return named + [[] for _ in range(dimensions - len(named))]


def _sizes(shardings, names) -> dict[str, dict]:
    """{name: {"device": {"parameters", "gradients", "optimizer", "ema"}, "host": bytes}} of one device; the optimizer's counters are too
    small to count."""
    sizes = {name: {"device": dict.fromkeys(("parameters", "gradients", "optimizer", "ema"), 0), "host": 0} for name in names}
    state = shardings.shapes
    held = {"parameters": (state.params, shardings.state.params), "gradients": (state.params, shardings.gradients),
            "optimizer": (state.opt_state, shardings.state.opt_state), "ema": (state.ema, shardings.state.ema)}
    for kind, (tree, where) in held.items():
        for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(where), strict=True):
            path = f"/{_path(path)}"
            name = max((name for name in names if path.endswith(f"/{name}")), key=len, default=None)
            if name is None:
                continue
            size = math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
            if sharding.memory_kind == HOST:
                sizes[name]["host"] += size
            else:
                sizes[name]["device"][kind] += size
    return sizes


def any_layer(name: str) -> str:
    """The path of a parameter without the number of its layer: `layer_*/bias`."""
    return re.sub(r"(?<=_)\d+(?=/|$)", "*", name)


def grouped(rows: list[dict]) -> list[dict]:
    """The rows of `parameters` with those of equal layers as one: `layer_0/bias`, `layer_1/bias`, ... become `layer_*/bias` with a
    "count", sums of entries and bytes, and the mean of what they begin with."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        alike = any_layer(row["name"]), str([row[key] for key in ("shape", "axes", "sharding", "group", "decays")])
        groups.setdefault(alike, []).append(row)
    merged = []
    for (name, _), same in groups.items():
        inits = [row["init"] for row in same if row["init"]]
        merged.append(same[0] | {
            "name": name if len(same) > 1 else same[0]["name"], "count": len(same), "entries": sum(row["entries"] for row in same),
            "bytes": {kind: sum(row["bytes"][kind] for row in same) for kind in same[0]["bytes"]},
            "host_bytes": sum(row["host_bytes"] for row in same), "init": np.mean(inits, axis=0).tolist() if inits else None})
    return merged


def cuts(row: dict, sizes: dict[str, int]) -> str:
    """How a mesh cuts the dimensions of a parameter, for people: `fsdp 16, -`, or `whole`."""
    told = [" x ".join(f"{axis} {sizes[axis]}" for axis in axes) or "-" for axes in row["sharding"]]
    return ", ".join(told) if any(row["sharding"]) else "whole"
