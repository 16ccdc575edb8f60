"""Names of topologies, the shapes that there are, and the devices that stand for them."""

import importlib.metadata
import itertools
import math
import os
import subprocess
import sys

import pytest

from lm import config as configs
from lm.errors import ConfigError, PlanError
from lm.parallel import make_mesh
from lm.plan import topology
from lm.plan.topology import Topology


@pytest.mark.parametrize(("text", "expected", "chips"), [
    ("v5e:16x16", Topology("v5e", (16, 16)), 256), ("v5p:8x8x8", Topology("v5p", (8, 8, 8)), 512),
    ("v4:2x2x1", Topology("v4", (2, 2, 1)), 4), ("2xv6e:8x16", Topology("v6e", (8, 16), 2), 256), ("cpu:8", Topology("cpu", (8,)), 8),
])
def test_a_topology_is_read_and_written_alike(text, expected, chips):
    found = topology.parse(text)
    assert (found, found.name, found.chips) == (expected, text, chips)


@pytest.mark.parametrize(("text", "words"), [
    ("v5e:16x15", ["v5e has no slice of 16x15", "v5e:16x16", "v5e:8x16"]), ("v5e:16x8", ["v5e:8x16"]), ("v5e:256x1", ["v5e:16x16"]),
    ("v5p:8x8", ["v5p:4x4x4"]), ("v5p:8x8x9", ["v5p:8x8x8"]), ("v4:16x16x32", ["v4:16x16x16"]), ("v5e:0x4", ["nearest"]),
    ("v7:4x4", ["there is no chip v7", "v5e"]), ("v5e-256", ["write its shape: v5e:16x16"]), ("v5litepod-64", ["v5e:8x8"]),
    ("v5p-128", ["v5p:4x4x4 (its number counts cores"]), ("v4-8", ["v4:2x2x1"]), ("v5p-100", ["v5p:4x4x4"]), ("v4-2048", ["or v4:"]),
    ("v5e", ["its shape too: v5e:1x1, v5e:2x2", "v5e:16x16"]), ("v5p", ["v5p:4x4x4, v5p", "..."]), ("v9-8", ["write v5e:16x16"]),
    ("2xcpu:4", ["write cpu:N"]), ("cpu:0", ["cpu:N"]),
    ("0xv5e:4x4", ["nearest"]), ("cpu:x", ["or cpu:8"]),
])
def test_a_wrong_topology_is_answered_with_the_nearest(text, words):
    with pytest.raises(ConfigError) as error:
        topology.parse(text)
    assert all(word in str(error.value) for word in [f"--topology={text}", *words])


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_every_shape_of_a_kind_can_be_named_and_is_its_own_nearest(kind):
    found = topology.shapes(kind)
    assert len(set(found)) == len(found) and all(math.prod(shape) <= topology.LARGEST.get(kind, 256) for shape in found)
    for shape in found:
        assert topology.parse(Topology(kind, shape).name).shape == shape == topology.nearest(kind, shape)[0]


@pytest.mark.parametrize(("text", "words"), [("cpu:x", "or cpu:8"), ("cpu:0", "write cpu:N")])
def test_planning_for_a_wrong_topology_ends_in_one_line(text, words):
    done = subprocess.run([sys.executable, "scripts/plan.py", "--config=configs/quickstart.py", f"--topology={text}"], capture_output=True,
                          text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "") and words in done.stderr and done.stderr.count("\n") == 1


def test_a_process_that_is_asked_for_cpus_has_them():
    code = "import jax; from lm.plan import topology; print(len(topology.devices(topology.asked_for('cpu:3'))), jax.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""})
    assert done.stdout.split() == ["3", "3"], done.stderr


def test_devices_of_this_machine_are_those_of_jax_and_no_more():
    import jax

    assert topology.devices(Topology("cpu", (1,))) == jax.devices()[:1]
    with pytest.raises(PlanError, match="JAX_NUM_CPU_DEVICES=999"):
        topology.devices(Topology("cpu", (999,)))


def test_the_compiler_describes_every_kind_with_its_chips():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    for name in ("v4:2x2x2", "v5e:1x1", "v5e:4x8", "v5p:4x4x8", "v6e:16x16", "tpu7x:2x2x1", "2xv5e:2x2"):
        asked = topology.parse(name)
        devices = topology.devices(asked)
        assert len(devices) == asked.chips * asked.chip.devices_per_chip
        assert {tuple(device.coords) for device in devices} == {(x, y, z) for x in range(asked.shape[0]) for y in range(asked.shape[1])
                                                                for z in range(asked.shape[2] if len(asked.shape) > 2 else 1)}
        assert len({getattr(device, "slice_index", 0) for device in devices}) == asked.slices


@pytest.mark.parametrize("name", ["v5p:4x4x4", "v4:4x4x4", "v5e:16x16"])
def test_the_compiler_takes_sides_for_the_rings_that_they_are(name):
    """Over lines it would gather by adding zeros, at twice the bytes."""
    import jax
    import jax.numpy as jnp

    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    devices = topology.devices(topology.parse(name))
    mesh = jax.make_mesh((len(devices),), ("fsdp",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
    cut, whole = (jax.NamedSharding(mesh, jax.P(axis)) for axis in ("fsdp", None))
    matrix = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=cut)
    with topology.no_flags():
        text = jax.jit(lambda x: 2 * jax.lax.with_sharding_constraint(x, whole), out_shardings=whole).lower(matrix).compile().as_text()
    assert " all-gather" in text and " all-reduce" not in text


def test_without_the_compiler_the_fix_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(PlanError, match=r"pip install -e '.\[plan\]'"):
        topology.devices(Topology("v5e", (2, 2)))


def test_a_mesh_axis_may_be_part_of_a_side_of_the_torus():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    devices = topology.devices(topology.parse("v5e:8x8"))
    mesh = make_mesh(configs.override(configs.default(), {"mesh.tensor": "4", "mesh.fsdp": "16", "mesh.replica": "1"}).mesh, devices)
    assert mesh.shape["tensor"] == 4 and len({device.id for device in mesh.devices.flat}) == 64
    rows = mesh.devices.reshape(16, 4)
    # Neighbours along the axis are neighbours in the torus.
    assert all(sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True)) == 1
               for row in rows for one, other in itertools.pairwise(row))
