"""Seconds of a compiled step: each instruction takes what its slowest resource takes, and transfers run beside instructions.

The roofline of Williams et al. 2009, for every instruction: products at the rate of the matrix units, other arithmetic at that of the
vector units, bytes at that of main memory, whichever is slowest. Collectives take what `lm.plan.network` says, those that the compiler
made asynchronous beside what is scheduled between their start and their end.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from jax.sharding import Mesh

from lm.hlo.collectives import starts
from lm.hlo.text import Instruction, Module
from lm.hlo.walk import Executed, began, entered, executed
from lm.hlo.work import expected_cycles, work
from lm.plan.device import Device
from lm.plan.kernels import kernel_flops
from lm.plan.machine import Machine
from lm.plan.measured import processor
from lm.plan.network import Network
from lm.plan.overlap import Timeline
from lm.plan.products import products
from lm.plan.topology import Topology

CLASSES = ("products", "attention", "elementwise", "copies", "gathers", "collectives", "host")
_GATHERS = {"gather", "scatter", "sort"}
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ALGORITHM = "collective_algorithm_config"
# What waiting for a transfer of a class is bound by; memory for all others.
_BOUNDS = {"collectives": "network", "products": "compute", "attention": "compute"}


class Estimate(NamedTuple):
    """What a step takes, of one chip.

    `seconds` as estimated; `lower_bound` with all peaks reached at the same time; `compiler_seconds` by the compiler's own estimates of
    cycles, where it gives any, with the collectives of ours, which it leaves out. `bound` is what most of the time goes to: compute,
    memory or network. `flops` are those of products, `peak_flops` what there could be in a second, `bytes` those of main memory.
    `starting` are the seconds that instructions take to begin, beside other work or not. `by_class` has {"class", "count", "flops",
    "bytes", "seconds", "exposed_seconds"} for each of CLASSES that is there: the last without what runs beside other work.
    """

    seconds: float
    lower_bound: float
    compiler_seconds: float | None
    bound: str
    flops: float
    peak_flops: float
    bytes: float
    starting: float
    by_class: list[dict]


def estimate(module: Module, topology: Topology, mesh: Mesh) -> Estimate:
    """The time that a step compiled for a mesh of the devices of a topology takes; see `estimate_on`."""
    sizes = dict(mesh.shape)
    if topology.kind == "cpu":
        return estimate_on(processor(topology.chips), module, sizes)
    chip = topology.chip
    found = estimate_on(Device(chip, Network(mesh.devices, mesh.axis_names, chip)), module, sizes)
    several = chip.devices_per_chip
    rows = [row | {name: several * row[name] for name in ("count", "flops", "bytes")} for row in found.by_class]
    return found._replace(flops=several * found.flops, peak_flops=several * found.peak_flops, bytes=several * found.bytes, by_class=rows)


def estimate_on(machine: Machine, module: Module, mesh: dict[str, int]) -> Estimate:
    """The time that a compiled step takes on one of the devices of a mesh {axis: size}.

    LmError when a loop has no known length, PlanError when nothing is known of a kernel's work.
    """
    run = _Run(module, machine, mesh)
    for step in executed(module):
        run.step(step)
    rows = [run.rows[name] for name in CLASSES if name in run.rows]
    flops, moved = sum(row["flops"] for row in rows), sum(row["bytes"] for row in rows)
    lower = max(flops / machine.peak_flops, moved / machine.bandwidth, *run.network.values())
    network = run.rows.get("collectives", {}).get("exposed_seconds", 0.0)
    compiler = run.cycles / machine.clock_hz + network if run.cycles else None
    return Estimate(run.timeline.now, lower, compiler, max(run.by_bound, key=run.by_bound.get), flops, machine.peak_flops, moved,
                    run.starting, rows)


@dataclass
class _Marks:
    """The asynchronous collectives, by channel, that a fused computation starts and ends."""

    starts: str = ""
    ends: str = ""


class _Run:
    """The instructions of a step so far: their sums by class and by what bounds them, and the time."""

    def __init__(self, module, machine, mesh):
        self._module, self._machine, self._mesh = module, machine, mesh
        self.timeline, self.rows, self.cycles, self.starting = Timeline(), {}, 0, 0.0
        # Seconds of all collectives at full speed, by carrier: within slices and between them they run side by side.
        self.network = {"network": 0.0, "slices": 0.0}
        self.by_bound = dict.fromkeys(("compute", "memory", "network"), 0.0)
        self._marks = {name: _marks(instructions.values()) for name, instructions in module.computations.items()}
        # What a computation does that runs apart ends with the instruction that started it.
        self._apart: dict[str, str] = {}

    def step(self, step: Executed):
        """One instruction, all its executions."""
        instruction, times = step.instruction, step.times
        self.cycles += times * (expected_cycles(instruction) or 0)
        if instruction.opcode in ("async-start", "async-update"):
            key = began(self._module, step.computation, instruction.name)
            self._apart |= dict.fromkeys(entered(self._module, step.computation, instruction), key)
            return
        if (inner := entered(self._module, step.computation, instruction)) and step.computation in self._apart:
            self._apart |= dict.fromkeys(inner, self._apart[step.computation])
            return
        sends = starts(self._module, step, self._mesh)
        for collective in sends:
            self._send(step, collective)
        self._finish(step)
        apart = self._apart.get(step.computation, "")
        if sends and (instruction.opcode != "fusion" or apart):
            return
        done, multiplied = work(self._module, step), products(self._module, instruction, step.computation)
        if not done.known:
            done = done._replace(flops=kernel_flops(step))
        spent = self._machine.times(self._module, step, done, multiplied)
        if instruction.opcode.endswith("-start"):  # of a copy
            carrier, of_class = ("host", "host") if spent.host else ("memory", "copies")
            seconds = max(spent.host, spent.memory)
            self._add(of_class, times, seconds, 0.0, done)
            self.timeline.start(instruction.name, carrier, times, of_class, seconds)
        elif spent.seconds:
            self.starting += times * spent.fixed
            self._work(step, apart, spent, done, self._class_of(step, done, multiplied, spent))

    def _work(self, step, apart, spent, done, of_class):
        """What is no transfer takes its time here, or, `apart`, beside what else there is."""
        busy = {"compute": max(spent.products, spent.vector), "memory": spent.memory, "host": spent.host}
        if apart:
            self._add(of_class, step.times, spent.seconds, 0.0, done)
            self.timeline.start(apart, max(busy, key=busy.get), step.times, of_class, spent.seconds)
        else:
            self._add(of_class, step.times, spent.seconds, spent.seconds, done,
                      "memory" if max(spent.memory, spent.host) > busy["compute"] else "compute")
            self.timeline.run(step.times, spent.seconds, busy)

    def _send(self, step, collective):
        seconds = self._machine.network_seconds(collective, algorithm_of(self._module, step.instruction))
        carrier = "slices" if collective.between_slices else "network"
        self.network[carrier] += step.times * self._machine.network_seconds(collective, full=True)
        apart = self._apart.get(step.computation)
        if collective.asynchronous or apart:
            key = apart or self._marks_of(step).starts or step.instruction.name
            self._add("collectives", step.times, seconds, 0.0)
            self.timeline.start(key, carrier, step.times, "collectives", seconds)
        else:
            self._add("collectives", step.times, seconds, seconds, bound="network")
            self.timeline.run(step.times, seconds, {carrier: seconds})

    def _finish(self, step):
        ended = step.instruction.operands[:1] if step.instruction.opcode.endswith("-done") else ()
        ended = [began(self._module, step.computation, name) for name in ended]
        for key in (*ended, self._marks_of(step).ends):
            waited, of_class = self.timeline.finish(key)
            if waited:
                self.rows[of_class]["exposed_seconds"] += waited
                self.by_bound[_BOUNDS.get(of_class, "memory")] += waited

    def _add(self, of_class, times, seconds, exposed, done=None, bound=""):
        names = ("count", "flops", "bytes", "seconds", "exposed_seconds")
        row = self.rows.setdefault(of_class, {"class": of_class, **dict.fromkeys(names, 0)})
        moved = (done.flops, done.read + done.written) if done else (0, 0)
        for name, amount in zip(names, (1, *moved, seconds, exposed), strict=True):
            row[name] += times * amount
        if bound:
            self.by_bound[bound] += times * exposed

    def _marks_of(self, step) -> _Marks:
        return self._marks[step.instruction.called["calls"][0]] if step.instruction.opcode == "fusion" else _Marks()

    def _class_of(self, step, done, multiplied, spent) -> str:
        if multiplied or done.flops:
            # Only scores and what they weigh are products of a batch with a batch; of a kernel, attention is the one there is.
            batched = all(product.batch > 1 for product in multiplied)
            return "attention" if batched and "attention" in step.instruction.op_name else "products"
        if spent.host:
            return "host"
        instruction = step.instruction
        inside = self._module.computations[instruction.called["calls"][0]].values() if instruction.opcode == "fusion" else (instruction,)
        if any(one.opcode in _GATHERS for one in inside):
            return "gathers"
        return "elementwise" if done.elementwise or done.transcendentals else "copies"


def algorithm_of(module: Module, instruction: Instruction) -> str:
    """The attributes that name how a collective is done, of an instruction or of what it fuses."""
    if instruction.opcode != "fusion" or _ALGORITHM in instruction.attributes:
        return instruction.attributes
    inside = module.computations[instruction.called["calls"][0]].values()
    return next((one.attributes for one in inside if _ALGORITHM in one.attributes), "")


def _marks(instructions) -> _Marks:
    found = _Marks()
    channel = next((match[1] for one in instructions if (match := _CHANNEL.search(one.attributes))), "")
    for one in instructions:
        if one.opcode == "custom-call" and '"AsyncCollectiveStart"' in one.attributes:
            found.starts = f"channel {channel}"
        if one.opcode == "custom-call" and '"AsyncCollectiveDone"' in one.attributes:
            found.ends = f"channel {channel}"
    return found
