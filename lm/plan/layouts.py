"""Every way in which a config can lie on some devices without changing what it computes: mesh, remat, accumulation, offload, ..."""

import collections
import functools
import itertools
import math
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from lm import config as configs
from lm.config.model_keys import ENCODER_DECODER, ENCODERS, GATED, TRANSFORMERS
from lm.config.schema import SCHEMA
from lm.errors import ConfigError
from lm.parallel import AXES, BATCH, mesh_sizes
from lm.parallel import layout as parallel_layout

# Tensors of a layer worth keeping, from little to much: attention is dear to compute again, then what its products are of.
KEPT = (("attention",), ("query", "key", "value", "attention"), ("query", "key", "value", "attention", "ff_up"))
SENT = (("attention",), ("query", "key", "value", "attention"))
# Micro-batches of a pipeline for each of its stages, and times round the stages.
MICROBATCHES, REPEATS = (1, 4), (1, 4)
# Stacks of so few layers may also be compiled layer by layer.
MOST_UNROLLED = 8
# Logits of more than so many entries on a device are also tried in chunks.
MANY_LOGITS = 2**26


class Candidate(NamedTuple):
    """Values of the keys of KEYS, in their order; `mesh` are the sizes of AXES."""

    mesh: tuple[int, ...]
    zero: int
    context: str
    microbatches: int
    repeats: int
    offload: str
    remat: str
    save: tuple[str, ...]
    send: tuple[str, ...]
    kernel: str | None
    scan_layers: bool
    accumulate: int
    loss_chunk: int

    @property
    def sizes(self) -> dict[str, int]:
        """{axis: size} of the mesh; not to be changed."""
        return _sizes(self.mesh)

    def values(self) -> dict:
        """{config key: value}, the mesh's included."""
        named = {key: value for key, value in zip(KEYS, self[1:], strict=True) if key in SCHEMA}
        return {f"mesh.{axis}": size for axis, size in self.sizes.items()} | named


@functools.cache
def _sizes(mesh: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(AXES, mesh, strict=True))


# Of the fields of a Candidate after its mesh.
KEYS = ("layout.zero", "layout.context", "layout.microbatches", "layout.repeats", "layout.offload", "model.remat", "model.remat_save",
        "model.remat_offload", "model.attention_kernel", "model.scan_layers", "train.accumulate", "train.loss_chunk")


def own(config, devices: int) -> Candidate:
    """What the config itself says, on so many devices. ConfigError when its mesh does not use them all, or cannot work."""
    sizes = mesh_sizes(config.mesh, devices)
    parallel_layout.check(config, sizes)
    flat = configs.flatten(config)
    return Candidate(tuple(sizes[axis] for axis in AXES), *(flat.get(key) for key in KEYS))


def applied(config, candidate: Candidate):
    """A copy of the config laid out as the candidate says, validated."""
    return with_values(config, candidate.values())


def with_values(config, values: dict):
    """A copy of the config with some keys {"a.b": value} at other values, validated; ConfigError when they cannot be."""
    copy = configs.from_json(configs.to_json(config))
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        copy[section][leaf] = value
    return configs.validate(copy)


def name_of(candidate: Candidate) -> str:
    """A line for a person: what differs from the plainest layout."""
    layout = parallel_layout.Layout(candidate.context, candidate.microbatches or candidate.sizes["stage"], candidate.repeats)
    mesh = parallel_layout.describe(candidate.sizes, layout, candidate.zero) or "one device"
    kept = "+".join((*candidate.save, *(f"{name} on the host" for name in candidate.send)))
    notes = [f"remat {candidate.remat}{kept and f' ({kept})'}"]
    notes += [f"accumulate {candidate.accumulate}"] * (candidate.accumulate > 1)
    notes += [f"loss by {candidate.loss_chunk}"] * bool(candidate.loss_chunk)
    notes += ["optimizer on the host"] * (candidate.offload == "optimizer")
    notes += ["layer by layer"] * (not candidate.scan_layers)
    return ", ".join([mesh, *notes])


def as_flags(overrides: dict[str, str]) -> str:
    """Overrides as part of a command line of scripts/train.py, quoted where a shell would take them apart."""
    return shlex.join(f"--config.{key}={value}" for key, value in overrides.items())


def factorisations(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ordered ways to write a number as a product of so many factors."""
    if parts == 1:
        yield (count,)
        return
    for first in divisors(count):
        for rest in factorisations(count // first, parts - 1):
            yield first, *rest


def divisors(number: int) -> list[int]:
    """Of a number, rising."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def enumerate_layouts(config, devices: int, slices: int = 1, sides: tuple[int, ...] = (), offload: bool = True,
                      ) -> tuple[list[list[Candidate]], collections.Counter]:
    """(candidates, how many meshes are out for which reason) for a config on so many devices, in slices wired as `sides`.

    What a step computes stays as it is: data, model and optimizer are the config's. Candidates come in families that differ only in what
    saves memory and costs time: accumulation, chunks of logits and, with `offload`, the memory of the host.
    """
    scratch = with_values(config, {"train.loss_chunk": 0})
    policies, flat = list(remat_policies(config, offload)), configs.flatten(config)
    kernel, places = flat.get("model.attention_kernel"), ("none", "optimizer") if offload else ("none",)
    scans = [flat["model.scan_layers"]]
    if scans == [True] and config.model.layers <= MOST_UNROLLED and config.model.name in TRANSFORMERS + ENCODERS + ENCODER_DECODER:
        scans.append(False)
    found, out = [], collections.Counter()
    for mesh in meshes(devices, slices, sides):
        sizes = _sizes(mesh)
        reasons: list[str] = []
        schedules = list(_schedules(scratch, sizes, reasons))
        if not schedules:
            out[reasons[0]] += 1
        zeros = (3, 1) if sizes["fsdp"] * sizes["fsdp_outer"] > 1 else (flat["layout.zero"],)
        for (context, microbatches, repeats, accumulations), policy, zero, scan in itertools.product(schedules, policies, zeros, scans):
            if scan or sizes["stage"] == 1:
                found.append([Candidate(mesh, zero, context, microbatches, repeats, place, *policy, kernel, scan, accumulate, chunk)
                              for place in places for accumulate in accumulations for chunk in _loss_chunks(config, sizes, accumulate)])
    return found, out


def meshes(devices: int, slices: int, sides: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Sizes of AXES: replicas over slices, no experts (no family has any), and fsdp cut in two where a part is a side of the torus."""
    outer, expert = AXES.index("fsdp_outer"), AXES.index("expert")
    parts = {math.prod(sides[:count]) for count in range(1, len(sides))} | set(sides)
    for mesh in factorisations(devices // slices, len(AXES) - 2):
        mesh = [*mesh[:outer], 1, *mesh[outer:]]
        mesh.insert(expert, 1)
        mesh[0] *= slices
        yield tuple(mesh)
        fsdp = mesh[outer + 1]
        for part in sorted(part for part in parts if part > 1 and fsdp % part == 0 and fsdp > part):
            yield (*mesh[:outer], part, fsdp // part, *mesh[outer + 2:])


def remat_policies(config, offload: bool) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(model.remat, remat_save, remat_offload) that the family takes, the config's own among them; the last only with `offload`."""
    model = config.model
    mine = model.remat, tuple(model.remat_save), tuple(model.remat_offload)
    options = [("none", (), ()), ("full", (), ())]
    if model.name in TRANSFORMERS + ENCODERS + ENCODER_DECODER:
        gated = ("ff_gate",) if model.activation in GATED else ()
        kept = [*KEPT[:-1], (*KEPT[-1], *gated)]
        options += [("dots", (), ()), *(("names", names, ()) for names in kept)]
        options += [("names", (), names) for names in SENT] if offload else []
    yield from dict.fromkeys([mine, *options])


def _schedules(scratch, sizes, reasons: list[str]) -> Iterator[tuple[str, int, int, list[int]]]:
    """(layout.context, microbatches, repeats, values of accumulate) that work on a mesh; why others do not is added to `reasons`.

    Rings and gathers cost the same by their bounds: the config's own comes first, the other where that cannot be.
    """
    mine = scratch.train.accumulate, scratch.layout.context, scratch.layout.microbatches, scratch.layout.repeats
    contexts = dict.fromkeys([scratch.layout.context, "ring", "all_gather"]) if sizes["context"] > 1 else [scratch.layout.context]
    piped = sizes["stage"] > 1
    pipelines = itertools.product([sizes["stage"] * times for times in MICROBATCHES], REPEATS) if piped else [(0, 1)]
    rows = max(1, scratch.data.global_batch // math.prod(sizes[axis] for axis in BATCH))
    powers = [1] if piped else [d for d in divisors(rows) if d & (d - 1) == 0]
    try:
        for microbatches, repeats in pipelines:
            for context in contexts:
                scratch.layout.context, scratch.layout.microbatches, scratch.layout.repeats = context, microbatches, repeats
                works = [each for each in powers if _works(scratch, sizes, each, reasons)]
                if works:
                    yield context, microbatches, repeats, works
                    break
    finally:
        scratch.train.accumulate, scratch.layout.context, scratch.layout.microbatches, scratch.layout.repeats = mine


def _works(scratch, sizes, accumulate: int, reasons: list[str]) -> bool:
    scratch.train.accumulate = accumulate
    try:
        parallel_layout.check(scratch, sizes)
    except ConfigError as error:
        reasons.append(reason(error))
        return False
    return True


def reason(error: ConfigError) -> str:
    """An error of many layouts without the numbers in which they differ."""
    text = re.sub(r"=\d+", "", str(error).partition(": ")[0])
    return re.sub(r" \(.*\)| = \d+", "", re.sub(r"multiple of \d+", "multiple of the devices that split it", text))


def _loss_chunks(config, sizes, accumulate) -> list[int]:
    """The config's own train.loss_chunk where it works, the whole row, and a part with few logits where the row has many."""
    context, parts = config.data.context, sizes["context"]
    rows = config.data.global_batch / (math.prod(sizes[axis] for axis in BATCH) * accumulate)
    across = config.data.vocab_size / sizes["tensor"]
    few = [size * parts for size in divisors(context // parts) if rows * size * across <= MANY_LOGITS]
    chunks = dict.fromkeys([config.train.loss_chunk, 0, max(few, default=parts)])
    whole = dict.fromkeys(0 if chunk == context else chunk for chunk in chunks)
    return [chunk for chunk in whole if chunk % parts == 0]
