"""The train step compiled for devices that are here or not: what is told of it, and what does not fit."""

import pickle

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import serialize_executable

from lm.hlo.collectives import collectives
from lm.hlo.text import parse
from lm.plan import memory, program, topology
from lm.plan.absent import job_of
from lm.plan.program import compile_job, out_of_memory
from lm.plan.roofline import estimate
from tests.plan.tiny import tiny
from tests.uncached import uncached


def test_what_the_compiler_asks_for_is_read_from_its_error():
    text = ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(25.69G) exceeds available HBM (15.75G). HLO module: jit_train_step.\nSee ...")
    assert out_of_memory(text) == (25.69 * 2**30, 15.75 * 2**30)
    text = ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.38G of 15.48G hbm. "
            "Exceeded hbm capacity by 2.90G.")
    assert out_of_memory(text) == (18.38 * 2**30, 15.48 * 2**30)
    assert out_of_memory("INTERNAL: something else (25.69G)") is None


@pytest.fixture(scope="module")
def here():
    """A job on this machine's first device, and its program."""
    job = job_of(tiny(), topology.devices(topology.parse("cpu:1")))
    with uncached():
        return job, compile_job(job)


def instructions(text):
    """What each instruction of a program does to what; source lines follow the caller."""
    return [(one.opcode, one.results, one.operands) for body in parse(text).computations.values() for one in body.values()]


def test_a_program_for_this_machine_is_the_train_step_itself(here):
    job, program = here
    with jax.set_mesh(job.mesh):
        (compiled,) = job.compile_step().values()
    assert instructions(program.text) == instructions(compiled.as_text())
    assert program.peak >= compiled.memory_analysis().temp_size_in_bytes and program.wanted is None
    assert program.memory["argument"] == compiled.memory_analysis().argument_size_in_bytes


def test_its_executable_runs_as_the_step_does(here):
    job, program = here
    with jax.set_mesh(job.mesh):
        (compiled,) = job.compile_step().values()
        devices = list(job.mesh.devices.flat)
        loaded = serialize_executable.deserialize_and_load(*pickle.loads(program.executable), execution_devices=devices)
        batch = job.batch(0)
        results = [step(job.initial_state(), batch) for step in (compiled, loaded)]
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("another result"), *results)


def test_the_state_without_weights_has_the_bytes_of_the_program(here):
    job, program = here
    sizes = memory.state_bytes(job.abstract_state())
    batch = sum(array.nbytes for array in job.batch(0).values())
    counters = 8  # of the step and of Adam
    assert sizes["params"] + sizes["optimizer"] + batch + counters == pytest.approx(program.memory["argument"], abs=16)


@pytest.mark.parametrize("name", ["cpu:8", "v5e:2x4"])
def test_what_the_partitioner_complains_of_is_in_the_plan(name):
    """That it copies a whole array to every device, which it says on standard error alone."""
    if name != "cpu:8":
        pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    automatic = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=automatic, devices=topology.devices(topology.parse(name)))
    rows_and_columns, rows = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("a", "b"), (("a", "b", "c"), None)))
    given = jax.ShapeDtypeStruct((24, 64), jnp.float32, sharding=rows_and_columns)

    def complaints(cut):
        with jax.set_mesh(mesh), uncached():
            return program._compile(jax.jit(lambda x: jax.lax.with_sharding_constraint(2 * x, cut)).lower(given), {})[2]

    (said,) = complaints(rows)
    assert "Involuntary full rematerialization" in said and complaints(rows_and_columns) == []


def test_what_the_sparse_core_sends_is_seen():
    """The compiler of tpu7x gives it the sums of gradients, of which each of eight devices has a whole."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    job = job_of(tiny(mesh__fsdp=1, mesh__replica=-1, data__global_batch=16), topology.devices(topology.parse("tpu7x:2x2x1")))
    program = compile_job(job)
    gradients = sum(leaf.size for leaf in jax.tree.leaves(job.abstract_state().params))
    found = collectives(program.module, dict(job.mesh.shape))
    sums = sum(one.bytes for one in found if one.kind == "all-reduce" and one.axis == "replica")
    assert 'execution_thread="sparsecore"' in program.text and 2 * gradients <= sums <= 4.1 * gradients
    seconds = estimate(program.module, topology.parse("tpu7x:2x2x1"), job.mesh)
    (row,) = [row for row in seconds.by_class if row["class"] == "collectives"]
    assert row["seconds"] > 0 and seconds.lower_bound <= seconds.seconds


def test_a_step_that_does_not_fit_is_explained_to_the_end():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    job = job_of(tiny(data__global_batch=32768, model__layers=1), topology.devices(topology.parse("v5e:2x2")))
    program = compile_job(job)
    assert program.peak is None and program.executable is None
    asked, there = program.wanted
    assert asked > there == 15.75 * 2**30
    found = memory.largest(memory.buffers(program.module, program.dumps))
    assert len(found) == memory.LARGEST and sum(row["bytes"] for row in found) > there
    assert any(row["source"].startswith("lm/") for row in found)


def test_what_is_sent_to_the_host_is_not_held_by_the_chip():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    keys = {"data__global_batch": 128, "data__context": 512, "model__layers": 12, "train__loss_chunk": 32, "model__remat": "names"}
    sent = ("query", "key", "value", "attention", "attention_output", "ff_gate", "ff_up", "ff_output")
    program = compile_job(job_of(tiny(**keys, model__remat_offload=",".join(sent)), topology.devices(topology.parse("v5e:2x2"))))
    held = memory.buffers(program.module, program.dumps)
    most = max(held_then for _, held_then in memory.timeline(held))
    assert program.memory["host_temp"] > 2 * most
    assert most <= program.peak <= 1.25 * most
