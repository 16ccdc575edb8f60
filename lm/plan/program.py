"""The train step of a job, compiled for devices that may be elsewhere: its text, its memory, what the compiler complained of."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import tempfile
import time

import jax
import jax.numpy as jnp

from lm.errors import PlanError
from lm.hlo.text import Module, parse
from lm.plan.topology import no_flags
from lm.train import planned
from lm.train.job import Job

# What the TPU compiler says, before and after it has found a place for everything.
_OUT_OF_MEMORY = (re.compile(r"Ran out of memory.*?\(([0-9.]+)([KMGT])\) exceeds available HBM \(([0-9.]+)([KMGT])\)", re.DOTALL),
                  re.compile(r"Ran out of memory in memory space hbm\. Used ([0-9.]+)([KMGT]) of ([0-9.]+)([KMGT]) hbm"))
_SIZES = ("argument", "output", "alias", "temp", "generated_code", "host_temp", "host_argument")
_FAR_TOO_MUCH = 2**42
_SCALE = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the partitioner says when it copies a whole array to every device to change its layout.
_COMPLAINT = re.compile(r"involuntary full rematerialization|cannot go from sharding", re.IGNORECASE)


@dataclasses.dataclass
class Program:
    """A compiled train step. Bytes are of one device.

    `peak` is the most that it holds at a time, None where it has not been compiled to the end; `wanted` is what the compiler says is too
    much, (asked, there), None where it fits. `dumps` are the compiler's reports by the end of their names. `executable` can be loaded by
    `lm.train.planned` where the devices are, None where there is none, and `not_stored` says why. `launch` is what a run of it is
    compared with (`lm.train.planned.facts`).
    """

    text: str
    peak: int | None
    wanted: tuple[float, float] | None
    memory: dict[str, int]
    cost: dict[str, float]
    seconds: float
    complaints: list[str]
    dumps: dict[str, str]
    executable: bytes | None
    not_stored: str
    launch: dict

    @functools.cached_property
    def module(self) -> Module:
        """Its text, read."""
        return parse(self.text)


def compile_job(job: Job, explain: bool = True) -> Program:
    """The train step of a job for its mesh, for the largest of its batches.

    A step that does not fit is an answer: `wanted` says so, and with `explain` it is compiled to the end all the same, for its text and
    the compiler's reports. PlanError where the compiler fails otherwise.
    """
    start = time.perf_counter()
    with jax.set_mesh(job.mesh):
        programs = job.lowered_steps()
        shape = max(programs, key=math.prod)
    lowered, launch = programs[shape], planned.facts(job, shape, programs[shape])
    tpu = job.mesh.devices.flat[0].platform == "tpu"
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled, wanted, complaints = _compile(lowered, dump if tpu else {})
        if wanted and explain:
            _compile_anyway(lowered, dump)
        dumps = _read_dumps(folder)
    seconds = time.perf_counter() - start
    if compiled is None:
        return Program(_text(dumps), None, wanted, {}, {}, seconds, complaints, dumps, None, "it does not fit",
                       launch)
    memory = compiled.memory_analysis()
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") for name in _SIZES}
    # XLA's CPU backend tells no peak of a program, whose temporaries are one block. The TPU's is of whichever memory holds most, the
    # host's too where something is sent there; the chip's is no more than what is set aside on it.
    given = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    peak = min(memory.peak_memory_in_bytes, given) if tpu else given
    # The executable of some programs for v6e cannot be printed: its text is then the compiler's report alone.
    text = _text(dumps) or compiled.as_text()
    return Program(text, peak, None, sizes, dict(compiled.cost_analysis() or {}), seconds, complaints,
                   dumps, *planned.packed(compiled), launch)


def _compile(lowered, options: dict):
    """(the compiled program or None, what it wanted of memory or None, the partitioner's complaints)."""
    with no_flags(), _captured_stderr() as said:
        try:
            compiled, wanted = lowered.compile(compiler_options=options), None
        except jax.errors.JaxRuntimeError as error:
            compiled, wanted = None, out_of_memory(str(error))
            if wanted is None:
                raise PlanError(f"the compiler failed: {' '.join(str(error).split())[:500]}") from error
    return compiled, wanted, sorted({" ".join(line.split()) for line in said() if _COMPLAINT.search(line)})


def _compile_anyway(lowered, options: dict):
    """Compiles to the end what does not fit, for the reports that the compiler leaves; the program itself cannot be had."""
    # It fails as it should, once the reports are written.
    with no_flags(), _captured_stderr(), contextlib.suppress(jax.errors.JaxRuntimeError):
        lowered.compile(compiler_options=options | {"xla_tpu_no_crash_on_oom": True})


def out_of_memory(text: str) -> tuple[float, float] | None:
    """(bytes asked for, bytes there are) of an error of the compiler; None when it is about something else."""
    match = next((found for form in _OUT_OF_MEMORY if (found := form.search(text))), None)
    return (float(match[1]) * _SCALE[match[2]], float(match[3]) * _SCALE[match[4]]) if match else None


def available(device) -> float:
    """Bytes of a device's main memory that its compiler lets a program use: what it says of one that asks for far too much."""
    with jax.set_mesh(jax.make_mesh((1,), ("one",), axis_types=(jax.sharding.AxisType.Auto,), devices=[device])):
        huge = jax.ShapeDtypeStruct((_FAR_TOO_MUCH,), jnp.uint8)
        lowered = jax.jit(lambda x: x + 1).lower(huge)
    _, wanted, _ = _compile(lowered, {})
    return wanted[1]


def _text(dumps: dict[str, str]) -> str:
    """The program in the compiler's reports: after code has been made for it, with the cycles that the compiler expects and how its
    collectives are done, or before; empty where there is none."""
    return dumps.get("after_codegen") or dumps.get("after_optimizations", "")


def _read_dumps(folder: str) -> dict[str, str]:
    """{what it is: text} of the reports that are read later: the scheduled program and what its memory holds when."""
    wanted = ("after_codegen", "after_optimizations", "after_optimizations-live-range", "after_optimizations-buffer-assignment")
    found = {}
    for path in pathlib.Path(folder).glob("*jit_train_step*.txt"):
        name = path.name.removesuffix(".txt").rpartition(".")[2]
        if name in wanted:
            found[name] = path.read_text(encoding="utf-8", errors="replace")
    return found


@contextlib.contextmanager
def _captured_stderr():
    """What is written to standard error meanwhile, by C++ too; gives a function that returns its lines, to be called afterwards."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def lines():
            file.seek(0)
            return file.read().decode(errors="replace").splitlines()

        held = []
        try:
            yield lambda: held
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held += lines()
