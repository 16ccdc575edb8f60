"""A plan: whether the train step of a config fits a topology, how fast it should go, and what it sends, in a folder that a run can take.

The folder has plan.json (what `plan` gives), page.txt, program.hlo.gz (the text of the compiled step) and executable (the step itself,
for `lm.train.planned`; only where it fits).
"""

import gzip
import importlib.metadata
import pathlib

import jax

import lm
from lm import config as configs
from lm.data.files import atomic_file, digest, json_digest, read_json, write_json
from lm.errors import writing
from lm.hlo.collectives import collectives, summed
from lm.plan import memory, roofline
from lm.plan.absent import fingerprints, job_of, known_length
from lm.plan.analytic import share_of_memory
from lm.plan.folders import check_writable, plans_folder
from lm.plan.page import page
from lm.plan.program import Program, available, compile_job
from lm.plan.topology import Topology, compiler_version, devices
from lm.train import planned
from lm.train.job import Job

FORMAT = 3
SECONDS_PER_DAY = 86_400


def plan(config, topology: Topology, out: str | pathlib.Path | None = None, explain: bool = True, source: str = "",
         overrides: dict[str, str] | None = None) -> dict:
    """The plan of a config for a topology, made in the folder `out`, by default one of the cache, with its page.txt; "folder" says where.

    A plan of the same config, tokenizer, topology, code and versions that is there already is read and not made again. `source` and
    `overrides` say where the config comes from. A step that does not fit is an answer; with `explain` it says which buffers there would
    be. Raises ConfigError for a config that could not start there, PlanError where the compiler is missing or fails, DiskError where the
    folder cannot be written.
    """
    overrides = overrides or {}
    made_by = [versions(topology), planned.flags(), sources_digest(), fingerprints(config)]
    key = json_digest([FORMAT, configs.to_json(config), topology.name, made_by, explain, source, overrides])
    folder = pathlib.Path(out or plans_folder() / key[:24]).absolute()
    if (folder / "plan.json").exists():
        found = read_json(folder / "plan.json")
        if found.get("key") == key:
            return _placed(found, folder)
    job = job_of(config, devices(topology))
    check_writable(folder)
    program = compile_job(job, explain)
    result = {"key": key, "format": FORMAT, "source": source, "overrides": overrides,
              **describe(job, topology, program, known_length(config)),
              "launch": program.launch | {"config": configs.to_json(config), "not_stored": program.not_stored}}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").unlink(missing_ok=True)
        with atomic_file(folder / "program.hlo.gz") as file:
            file.write(gzip.compress(program.text.encode()))
        (folder / planned.EXECUTABLE).unlink(missing_ok=True)
        if program.executable:
            with atomic_file(folder / planned.EXECUTABLE) as file:
                file.write(program.executable)
        with atomic_file(folder / "page.txt") as file:
            file.write(f"{page(result)}\n".encode())
        write_json(folder / "plan.json", result)  # last: a folder with it is whole
    return _placed(result, folder)


def _placed(result: dict, folder: pathlib.Path) -> dict:
    """A plan with where it lies, which plan.json does not say: folders are moved."""
    executable = folder / planned.EXECUTABLE
    return result | {"folder": str(folder), "executable": str(executable) if executable.exists() else None}


def versions(topology: Topology) -> dict[str, str]:
    """Versions that decide what the compiler makes of a program. PlanError where there is no TPU compiler and one is needed."""
    found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return found if topology.kind == "cpu" else found | {"libtpu": compiler_version()}


def sources_digest() -> str:
    """A digest of this package's code: what it plans is what it trains."""
    root = pathlib.Path(lm.__file__).parent
    return digest(*(path.read_bytes() for path in sorted(root.rglob("*.py"))))


def describe(job: Job, topology: Topology, program: Program, known: bool) -> dict:
    """Everything that a plan says of a compiled program; numbers of time are null where it was not compiled to the end, and those of the
    whole run where its length is not `known`."""
    config, mesh = job.config, dict(job.mesh.shape)
    tokens = job.objective.tokens_per_step(job.data)
    steps = config.train.steps if known else None
    found = {
        "topology": topology.name, "chips": topology.chips, "mesh": mesh, "config": configs.to_json(config),
        "versions": versions(topology), "tokens_per_step": tokens, "train_tokens": tokens * steps if known else None,
        "model_flops_per_token": job.flops_per_token, "parameters": sum(leaf.size for leaf in jax.tree.leaves(job.abstract_state().params)),
        "compile_seconds": round(program.seconds, 1), "warnings": program.complaints,
    }
    return found | _memory(job, topology, program) | _speed(job, topology, program, tokens, steps)


def _memory(job: Job, topology: Topology, program: Program) -> dict:
    """What is asked of the memory of a chip, all its devices together, and what there is."""
    per_chip = topology.devices_per_chip
    state = memory.state_bytes(job.abstract_state())
    held = memory.buffers(program.module, program.dumps) if "after_optimizations-live-range" in program.dumps else []
    limit = hbm_limit(topology, job.mesh)
    peak = program.peak
    if peak is None:
        peak = program.wanted[0] + sum(state.values())
        peak = max(peak, sum(buffer.bytes for buffer in memory.at_peak(held))) if held else peak
    parts = memory.breakdown(int(peak), state, held)
    largest, timeline = (memory.largest(held), memory.timeline(held)) if held else ([], [])
    return {
        "fits": program.wanted is None and peak * per_chip <= limit, "hbm_bytes_per_chip": int(peak * per_chip), "hbm_limit": int(limit),
        "peak_breakdown": {name: size * per_chip for name, size in parts.items()},
        "temporary_bytes": program.memory["temp"] * per_chip if program.memory else None,
        "host_bytes": (program.memory.get("host_temp", 0) + program.memory.get("host_argument", 0)) * per_chip,
        "largest_buffers": [row | {name: row[name] * per_chip for name in ("bytes", "count")} for row in largest],
        "timeline": [[start, most * per_chip] for start, most in timeline],
    }


def hbm_limit(topology: Topology, mesh: jax.sharding.Mesh) -> float:
    """Bytes of a chip's memory that a program may use, as the compiler has it; of a CPU's devices, their share of the machine's."""
    if topology.kind == "cpu":
        return share_of_memory(topology)
    return available(mesh.devices.flat[0]) * topology.devices_per_chip


def _speed(job: Job, topology: Topology, program: Program, tokens: float, steps: int | None) -> dict:
    """How long a step, and so many of them, should take and what bounds it."""
    if not program.text or program.wanted:
        unknown = ("flops_per_chip", "bytes_accessed", "estimated_step_seconds", "lower_bound_seconds", "compiler_seconds",
                   "optimal_seconds", "starting_seconds", "bound", "estimated_mfu", "tokens_per_second", "days_for_tokens")
        return dict.fromkeys(unknown) | {"collectives": [], "classes": []}
    module, mesh = program.module, dict(job.mesh.shape)
    found = roofline.estimate(module, topology, job.mesh)
    sent = summed(collectives(module, mesh))
    for row in sent:
        row.update({name: topology.devices_per_chip * row[name] for name in ("count", "bytes", "sent")})
    peak = topology.chips * found.peak_flops
    return {
        "flops_per_chip": found.flops, "bytes_accessed": found.bytes, "collectives": sent,
        "estimated_step_seconds": found.seconds, "lower_bound_seconds": found.lower_bound, "compiler_seconds": found.compiler_seconds,
        "optimal_seconds": optimal if (optimal := program.cost.get("optimal_seconds", 0.0)) > 0 else None,
        "starting_seconds": found.starting, "bound": found.bound, "estimated_mfu": job.flops_per_token * tokens / (found.seconds * peak),
        "tokens_per_second": tokens / found.seconds,
        "days_for_tokens": steps and found.seconds * steps / SECONDS_PER_DAY, "classes": found.by_class,
    }
