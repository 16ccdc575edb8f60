"""The mesh uses every device, in the sizes asked for, or is refused."""

import jax
import pytest

from lm.errors import ConfigError
from lm.parallel import AXES, make_mesh


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


def test_a_mesh_of_some_devices():
    mesh = make_mesh(sizes(replica=-1), jax.devices()[:2])
    assert mesh.size == 2 and make_mesh(sizes(), jax.devices()[:1]).size == 1
