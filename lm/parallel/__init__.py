"""Devices and processes: the mesh, which logical axis of an array lies along which mesh axis, and how processes meet."""

from lm.parallel.layout import Layout
from lm.parallel.mesh import AXES, make_mesh, mesh_sizes
from lm.parallel.sharding import (
    BATCH,
    alone,
    alone_on_cpu,
    batch_sharding,
    check_replication,
    constrain,
    extent,
    gathered,
    gathers,
    parameter_shardings,
    platform,
    replicated,
)

__all__ = ["AXES", "BATCH", "Layout", "alone", "alone_on_cpu", "batch_sharding", "check_replication", "constrain", "extent", "gathered",
           "gathers", "make_mesh", "mesh_sizes", "parameter_shardings", "platform", "replicated"]
