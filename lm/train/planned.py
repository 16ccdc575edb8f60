"""A run that was planned: is this what the plan is for, is its executable this very program, and does it come out as planned?

`facts` and `packed` are for the one who plans; the rest is for the run. The file `executable` in a plan's folder is a pickle, and
code: it is to be trusted like the checkout that runs it.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import pickle
import re

import jax
from jax.experimental import serialize_executable

from lm import cli
from lm import config as configs
from lm.config.planned import CONSTANTS, Plan, differences
from lm.errors import ConfigError
from lm.parallel import mesh_sizes, processes
from lm.train.job import Job, Steps

EXECUTABLE = "executable"
# Of a backend's flags, those that say nothing about programs.
_NO_MATTER = re.compile(r"--xla_(force_host_platform_device_count|dump_\w+)(=\S*)?")
# What reading, unpickling and loading an executable of another time or place may raise.
_NOT_LOADED = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, ImportError, NotImplementedError, pickle.UnpicklingError,
               jax.errors.JaxRuntimeError)


def facts(job: Job, shape: tuple[int, int], lowered: jax.stages.Lowered) -> dict:
    """What plan.json has under "launch": all that a run must have in common with the job that was planned.

    The config as it was given, with its overrides, and why there is no executable, come to it as "config" and "not_stored". `lowered` is
    the step of `job.lowered_steps()` that was compiled, for batches of `shape`.
    """
    devices = job.mesh.devices.flat
    return {
        "resolved": configs.to_json(job.config), "mesh": dict(job.mesh.shape),
        "devices": device_facts(devices), "vocabulary": vocabulary(job), "versions": versions(devices[0]), "flags": flags(),
        "order": order(job.mesh), "batch": list(shape), "program": digest(lowered),
    }


def packed(program: jax.stages.Compiled) -> tuple[bytes | None, str]:
    """(the content of a plan's file `executable`, "") or (None, why there is none).

    XLA's CPU backend gives back an incomplete program where JAX had it from its cache on disk: a plan is compiled without one.
    """
    sharding = jax.tree.leaves(program.input_shardings)[0]
    if jax.config.jax_compilation_cache_dir and next(iter(sharding.device_set)).platform == "cpu":
        return None, "a CPU's programs cannot be stored once more from JAX's cache: unset JAX_COMPILATION_CACHE_DIR to plan"
    try:
        return pickle.dumps(serialize_executable.serialize(program)), ""
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return None, f"the backend cannot store programs ({_line(error)})"


def device_facts(devices) -> dict:
    """Platform, kind and number of devices, slices and the sides of a slice (none where devices have no place in a torus)."""
    devices = list(devices)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    first = [device.coords for device in devices if getattr(device, "slice_index", 0) == min(slices) and hasattr(device, "coords")]
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices), "slices": len(slices),
            "sides": [max(side) - min(side) + 1 for side in zip(*first, strict=True)]}


def vocabulary(job: Job) -> list[int]:
    """Ids that the model knows, and ids of the sources that it reads."""
    return [job.objective.vocab_size, job.objective.source_vocab_size]


def versions(device) -> dict[str, str]:
    """What an executable is made by and for."""
    made = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    if device.platform == "tpu":
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # TPU_LIBRARY_PATH may bring it
            made["libtpu"] = importlib.metadata.version("libtpu")
    return made | ({"processor": cli.processor()} if device.platform == "cpu" else {})


def flags() -> list[str]:
    """The flags that change what XLA makes of a program."""
    given = f"{os.environ.get('XLA_FLAGS', '')} {os.environ.get('LIBTPU_INIT_ARGS', '')}"
    return sorted(_NO_MATTER.sub("", given).split())


def order(mesh: jax.sharding.Mesh) -> str:
    """16 hex digits over the devices of a mesh in its order: their numbers, slices and places."""
    return _digest(json.dumps([[device.id, getattr(device, "slice_index", 0), list(getattr(device, "coords", ()))]
                               for device in mesh.devices.flat]))


def digest(lowered: jax.stages.Lowered) -> str:
    """16 hex digits over a program before its compilation."""
    return _digest(lowered.as_text())


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_devices(plan: Plan, config):
    """ConfigError when the devices here, or how the config spreads a run over them, are not what is planned."""
    here, there = device_facts(jax.devices()), plan.launch["devices"]
    if here | {"sides": sorted(here["sides"])} != there | {"sides": sorted(there["sides"])}:
        raise ConfigError(f"the plan {plan.folder} is for {plan.topology} ({_told(there)}), and here are {_told(here)}: start the run "
                          "there, or plan for what is here with scripts/plan.py --topology=...")
    sizes = mesh_sizes(config.mesh, here["count"])
    planned = dict.fromkeys(sizes, 1) | plan.launch["mesh"]  # an axis may be younger than the plan
    changed = [axis for axis, size in sizes.items() if size != planned[axis]]
    if changed:
        text = ", ".join(f"mesh.{axis}={sizes[axis]} here and {planned[axis]} there" for axis in changed)
        fix = " ".join(f"--config.mesh.{axis}={planned[axis]}" for axis in changed)
        raise ConfigError(f"the plan {plan.folder} is of another mesh: {text}. To launch it give {fix}, or plan this "
                          "one with scripts/plan.py")


def _told(devices: dict) -> str:
    """Devices in words."""
    sides = f", {'x'.join(map(str, devices['sides']))} a slice" if devices["sides"] else ""
    slices = f" in {devices['slices']} slices" if devices["slices"] > 1 else ""
    kind = devices["kind"] if devices["platform"] in devices["kind"].lower() else f"{devices['platform']} {devices['kind']}"
    return f"{devices['count']} x {kind}{slices}{sides}"


def check_vocabulary(plan: Plan, job: Job):
    """ConfigError when the tokenizer here makes the model another size than the planned one."""
    here, there = vocabulary(job), plan.launch["vocabulary"]
    if here != there:
        a, b = (" and ".join(f"{size:,}" for size in sorted(set(sizes))) for sizes in (there, here))
        raise ConfigError(f"the plan {plan.folder} counts on a vocabulary of {a} ids, and this run's tokenizer makes it {b}: plan "
                          "again with this tokenizer (--config.data.tokenizer=FILE), or with its number in --config.data.vocab_size")


def steps(plan: Plan, job: Job, say, lowered: dict) -> Steps:
    """The train step of `job.lowered_steps()`: the plan's executable where it is this very program and can be loaded here, else compiled.
    `say` hears which.

    Batches of other shapes than the planned one have programs of their own, which are compiled. Processes agree: all of them load, or
    all compile. Call it under `jax.set_mesh`.
    """
    shape = tuple(plan.launch["batch"])
    why = _why_not(plan, job, lowered.get(shape))
    loaded, why = (None, why) if why else _load(plan, job, lowered[shape])
    whys = processes.gather("planned executable", why)
    if any(whys):
        say(f"compiling, not loading the executable of {plan.folder}: {next(filter(None, whys))}")
        return job.compile_step(lowered)
    others = {other: program for other, program in lowered.items() if other != shape}
    say(f"loaded the executable of {plan.folder}: "
        + (f"{len(others)} other shapes to compile" if others else "the train step is not compiled"))
    return Steps({shape: loaded} | (job.compile_step(others) if others else {}))


def _why_not(plan: Plan, job: Job, lowered: jax.stages.Lowered | None) -> str:
    """Why the plan's executable cannot be this program, or ""."""
    launch = plan.launch
    made, here = launch["versions"], versions(job.mesh.devices.flat[0])
    if not (plan.folder / EXECUTABLE).is_file():
        return "there is none" + (f": {launch['not_stored']}" if launch["not_stored"] else "")
    if made != here:
        other = sorted(name for name in made.keys() | here.keys() if made.get(name) != here.get(name))
        return "it was made with " + ", ".join(f"{name} {made.get(name)} and here is {name} {here.get(name)}" for name in other)
    if launch["flags"] != flags():
        return f"it was made with XLA_FLAGS or LIBTPU_INIT_ARGS {' '.join(launch['flags'])!r}, and here are {' '.join(flags())!r}"
    if launch["order"] != order(job.mesh):
        return "the devices here have other numbers or places in the mesh"
    if lowered is None:
        return f"it is for batches of {launch['batch']}, of which there are none here"
    if launch["program"] == digest(lowered):
        return ""
    changed = differences(launch["resolved"], job.config, CONSTANTS)
    return "its program has " + (", ".join(f"{name}={there!r} (here {here!r})" for name, (there, here) in changed.items())
                                 or "changed: lm or JAX's settings are not those that it was planned with")


def _load(plan: Plan, job: Job, lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str]:
    """(the executable on this job's devices, "") or (None, why not)."""
    try:
        stored = pickle.loads((plan.folder / EXECUTABLE).read_bytes())
        loaded = serialize_executable.deserialize_and_load(*stored, execution_devices=list(job.mesh.devices.flat))
    except _NOT_LOADED as error:
        return None, f"it cannot be loaded ({_line(error)})"
    return (loaded, "") if _takes(loaded, lowered, job) else (None, "it takes arrays of other shapes or shardings")


def _takes(loaded: jax.stages.Compiled, lowered: jax.stages.Lowered, job: Job) -> bool:
    """Whether a loaded program takes what a lowered one does, where the job has it."""
    if (loaded.in_tree, loaded.out_tree) != (lowered.in_tree, lowered.out_tree):
        return False
    alike = all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in
                zip(jax.tree.leaves(loaded.args_info), jax.tree.leaves(lowered.args_info), strict=True))
    # Where a program takes its arguments only a compiled one tells; the state's places are the job's.
    state = jax.tree.leaves(job.abstract_state())
    return alike and all(here.is_equivalent_to(leaf.sharding, leaf.ndim) for here, leaf in
                         zip(jax.tree.leaves(loaded.input_shardings[0][0]), state, strict=True))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def compared(plan: Plan, job: Job, seconds: float, mfu: float) -> dict:
    """What a train line has of a plan: "planned", "measured" and "ratio" (measured over planned), by name.

    step_seconds, mfu, and peak_bytes, the most that a chip of this process has held so far, None where the backend does not tell.
    """
    values = plan.values
    planned = {"step_seconds": values.get("estimated_step_seconds"), "mfu": values.get("estimated_mfu"),
               "peak_bytes": values.get("hbm_bytes_per_chip")}
    measured = {"step_seconds": seconds, "mfu": mfu, "peak_bytes": _peak_bytes(job, values.get("chips"))}
    ratio = {name: measured[name] / planned[name] if planned[name] and measured[name] is not None else None for name in planned}
    return {"planned": planned, "measured": measured, "ratio": ratio}


def _peak_bytes(job: Job, chips: int | None) -> int | None:
    stats = [device.memory_stats() for device in job.mesh.local_devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    return max(peaks) * math.ceil(job.mesh.size / (chips or job.mesh.size)) if peaks else None


def told(line: dict) -> str:
    """A train line's comparison, for a person."""
    forms = {"step_seconds": "step {:.4g} s", "mfu": "MFU {:.1%}", "peak_bytes": "memory {:,} bytes a chip"}
    texts = []
    for name, form in forms.items():
        one, other, ratio = (line[part][name] for part in ("measured", "planned", "ratio"))
        if ratio is not None:
            texts.append(f"{form.format(one)} (planned {form.format(other).split(' ', 1)[1]}, {ratio:.2f} x)")
    return "measured against planned: " + ("; ".join(texts) or "the plan estimates nothing")
