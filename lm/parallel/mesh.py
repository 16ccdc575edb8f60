"""One mesh for everything: six named axes, whose sizes come from the config."""

import math

import jax
from jax.sharding import AxisType, Mesh

from lm.errors import ConfigError

# From the slowest network to the fastest: neighbours along the last axes are neighbours in hardware.
AXES = ("replica", "stage", "fsdp", "expert", "context", "tensor")


def make_mesh(sizes, devices=None) -> Mesh:
    """A mesh over all devices. `sizes` maps each axis of AXES to its size, one of them may be -1 (all that are left)."""
    devices = list(jax.devices() if devices is None else devices)
    wanted = {axis: sizes[axis] for axis in AXES}
    known = math.prod(size for size in wanted.values() if size != -1)
    shape = {axis: len(devices) // known if size == -1 else size for axis, size in wanted.items()}
    if math.prod(shape.values()) != len(devices):
        text = " x ".join(f"{axis}={size}" for axis, size in wanted.items() if size != 1) or "1"
        raise ConfigError(f"mesh {text} does not use the {len(devices)} devices that are here: set one mesh axis to -1")
    # Linen's constraints need Auto axes; make_mesh would make them Explicit.
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
