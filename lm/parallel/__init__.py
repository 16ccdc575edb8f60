"""Devices: the mesh, and which logical axis of an array lies along which mesh axis."""

from lm.parallel.mesh import AXES, make_mesh
from lm.parallel.sharding import BATCH, batch_sharding, check_replication, constrain, parameter_shardings, replicated

__all__ = ["AXES", "BATCH", "batch_sharding", "check_replication", "constrain", "make_mesh", "parameter_shardings", "replicated"]
