"""One mesh for everything: seven named axes, whose sizes come from the config."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lm.errors import ConfigError

# From the slowest network to the fastest: neighbours along the last axes are neighbours in hardware.
AXES = ("replica", "stage", "fsdp_outer", "fsdp", "expert", "context", "tensor")


def mesh_sizes(sizes, count: int) -> dict[str, int]:
    """{axis: size} on `count` devices. `sizes` maps each axis of AXES to its size, one of them may be -1 (all that are left)."""
    wanted = {axis: sizes[axis] for axis in AXES}
    known = math.prod(size for size in wanted.values() if size != -1)
    shape = {axis: count // known if size == -1 else size for axis, size in wanted.items()}
    if math.prod(shape.values()) != count:
        text = " x ".join(f"{axis}={size}" for axis, size in wanted.items() if size != 1) or "1"
        fix = "the other axes must divide their number" if -1 in wanted.values() else "set one mesh axis to -1"
        raise ConfigError(f"mesh {text} does not use the {count} devices that are here: {fix}")
    return shape


def check_slices(shape: dict[str, int], slices: int):
    """ConfigError where a mesh of these sizes cannot be cut over so many slices."""
    if shape["replica"] % slices:
        raise ConfigError(f"mesh.replica={shape['replica']} is not a multiple of the {slices} slices: only replicas talk over the network "
                          "between slices, so give each slice as many of them")


def make_mesh(sizes, devices=None) -> Mesh:
    """A mesh over all devices, in the sizes of `mesh_sizes`.

    Devices of several slices (TPU pods joined by the data-centre network) give a hybrid mesh: replica is cut over the slices
    first, every other axis stays within one.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_sizes(sizes, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # Linen's constraints need Auto axes; jax.make_mesh would make them Explicit.
    types = (AxisType.Auto,) * len(AXES)
    check_slices(shape, slices)
    if slices == 1:
        return _within(tuple(shape.values()), types, devices)
    return Mesh(_hybrid(shape, slices, devices), AXES, axis_types=types)


def _within(sizes: tuple[int, ...], types, devices) -> Mesh:
    """Of one slice: an axis is whole sides of its torus where that can be, else part of a side."""
    try:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES, axis_types=types)


def _hybrid(shape: dict[str, int], slices: int, devices) -> np.ndarray:
    within = tuple((shape | {"replica": shape["replica"] // slices}).values())
    between = (slices,) + (1,) * (len(AXES) - 1)
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
