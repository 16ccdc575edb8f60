"""What there is to say of a config, as numbers."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from lm import config as configs
from lm import models, objectives, optim
from lm.describe.activations import activations
from lm.describe.components import components
from lm.describe.parameters import parameters
from lm.parallel import Layout
from lm.parallel import layout as layouts
from lm.parallel.mesh import AXES, check_slices, mesh_sizes
from lm.plan.absent import tokenizers_of
from lm.plan.topology import Topology


class Place(NamedTuple):
    """Where a config is to run: the sizes of its mesh, and the chips, where they are named."""

    sizes: dict[str, int]
    topology: Topology | None = None

    @property
    def devices(self) -> int:
        """In the mesh."""
        return math.prod(self.sizes.values())

    @property
    def limit(self) -> int | None:
        """Bytes of main memory installed for one device, where the chips are named; a compiled step has a little less."""
        known = self.topology is not None and self.topology.kind != "cpu"
        return self.topology.chip.hbm_bytes // self.topology.chip.devices_per_chip if known else None


def place_of(config, topology: Topology | None = None, devices: int = 0) -> Place:
    """The mesh of a config on a topology or a number of devices; without them, on as many devices as its axes name.

    ConfigError where the mesh does not fit them or their slices, or the config the mesh.
    """
    if topology is not None:
        devices = topology.chips * topology.devices_per_chip
    sizes = mesh_sizes(config.mesh, devices or math.prod(size for size in config.mesh.values() if size != -1))
    check_slices(sizes, topology.slices if topology else 1)
    layouts.check(config, sizes)
    return Place(sizes, topology)


def model_of(config, sizes: dict[str, int]) -> tuple:
    """(objective, model) of a config on a mesh."""
    objective = objectives.make(config, *tokenizers_of(config))
    return objective, objective.model(config, Layout.of(config.layout, sizes))


def describe(config, place: Place | None = None, traced: bool = False) -> dict:
    """{"config", "mesh", "devices", "topology", "parameters": see `lm.describe.parameters`, "components": see `lm.describe.components`,
    "memory", "totals"} of a config.

    Bytes and FLOPs of "totals" are of one copy of the model; "memory" is of one device: {"parameters", "gradients",
    "optimizer", "ema", "activations", "logits", "host", "limit"} in bytes; the
    forward pass is only `traced`, which takes seconds, for activations and logits (see `lm.describe.activations`), else they are null.
    """
    place = place or place_of(config)
    objective, model = model_of(config, place.sizes)
    mesh = AbstractMesh(tuple(place.sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    rows = parameters(config, model, mesh)
    forward, training = objective.forward_flops(model), objective.train_flops(model)
    tokens = config.data.global_batch * objective.row_tokens
    memory = {kind: sum(row["bytes"][kind] for row in rows) for kind in (rows[0]["bytes"] if rows else ())}
    totals = {
        "model": config.model.name, "objective": config.objective.name, "vocab_size": objective.vocab_size,
        "parameters": sum(row["entries"] for row in rows),
        "embedding_parameters": sum(row["entries"] for row in rows if row["group"] == "embedding"),
        "decayed_parameters": sum(row["entries"] for row in rows if row["decays"]),
        "forward_flops_per_token": forward, "train_flops_per_token": training,
        "tokens_per_step": tokens, "train_flops_per_step": training * tokens, "bytes": _bytes(config, model),
    }
    memory |= activations(config, model, place.topology, place.devices) if traced else {"activations": None, "logits": None}
    memory |= {"host": sum(row["host_bytes"] for row in rows), "limit": place.limit}
    return {
        "config": configs.to_json(config), "mesh": place.sizes, "devices": place.devices,
        "topology": place.topology and place.topology.name, "parameters": rows,
        "components": components(rows, objective.flops_by_component(model), training / forward if forward else 0.0),
        "memory": memory, "totals": totals,
    }


def _bytes(config, model) -> dict[str, int]:
    """What training keeps between steps, and the gradients; activations come on top (scripts/bench.py memory measures them)."""
    if isinstance(model, models.CountedModel):
        return {}
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = _size(shapes)
    state = _size(jax.eval_shape(optim.optimizer(config.optim, models.widening(config.model)).init, shapes))
    return {"parameters": params, "optimizer": state, "ema": params if config.train.ema else 0, "gradients": params}


def _size(tree) -> int:
    return int(sum(np.dtype(leaf.dtype).itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)))
