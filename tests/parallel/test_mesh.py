"""The mesh uses every device, in the sizes asked for, or is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.errors import ConfigError
from lm.parallel import AXES, make_mesh, mesh_sizes
from lm.parallel import mesh as mesh_module


def sizes(**changes):
    """Sizes of all axes, 1 unless changed."""
    return dict.fromkeys(AXES, 1) | changes


@pytest.mark.parametrize(("wanted", "shape"), [
    (sizes(replica=-1), (8, 1)), (sizes(replica=8), (8, 1)), (sizes(fsdp=-1), (1, 8)), (sizes(replica=-1, fsdp=4), (2, 4)),
    (sizes(replica=4, fsdp=-1), (4, 2)), (sizes(replica=8, fsdp=-1), (8, 1)), (sizes(replica=2, fsdp=4), (2, 4)),
])
def test_one_axis_takes_the_devices_that_are_left(wanted, shape):
    mesh = make_mesh(wanted)
    assert mesh.axis_names == AXES and (mesh.shape["replica"], mesh.shape["fsdp"]) == shape and mesh.size == 8
    assert all(mesh.shape[axis] == 1 for axis in AXES if axis not in ("replica", "fsdp"))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}, "Linen's constraints need Auto axes"


@pytest.mark.parametrize("wanted", [sizes(), sizes(replica=4), sizes(replica=16), sizes(replica=-1, fsdp=3), sizes(replica=-1, fsdp=16)])
def test_sizes_that_do_not_use_the_devices_are_refused(wanted):
    with pytest.raises(ConfigError, match=r"mesh .* does not use the 8 devices"):
        make_mesh(wanted)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of a slice, as far as laying out a mesh looks at it."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_only_replicas_talk_between_slices():
    devices = [Device(number, slice_index=number % 2) for number in range(16)]
    laid_out = mesh_module._hybrid(sizes(replica=4, fsdp=2, tensor=2), 2, devices)
    assert laid_out.shape == (4, 1, 1, 2, 1, 1, 2)
    slices = np.vectorize(lambda device: device.slice_index)(laid_out).reshape(4, -1)
    assert [set(row) for row in slices] == [{0}, {0}, {1}, {1}]
    assert sorted(device.id for device in laid_out.flat) == list(range(16))


def test_slices_that_do_not_divide_the_replicas_are_refused():
    devices = [Device(number, slice_index=number // 4) for number in range(8)]
    with pytest.raises(ConfigError, match=r"mesh.replica=1 is not a multiple of the 2 slices"):
        make_mesh(sizes(fsdp=8), devices)


@pytest.mark.parametrize(("wanted", "axis", "size"), [
    (sizes(stage=-1), "stage", 8), (sizes(context=4, tensor=-1), "tensor", 2), (sizes(expert=-1, replica=2), "expert", 4),
])
def test_any_axis_may_take_the_devices_that_are_left(wanted, axis, size):
    assert mesh_sizes(wanted, 8)[axis] == size == make_mesh(wanted).shape[axis]


def test_a_mesh_of_some_devices():
    mesh = make_mesh(sizes(replica=-1), jax.devices()[:2])
    assert mesh.size == 2 and make_mesh(sizes(), jax.devices()[:1]).size == 1
