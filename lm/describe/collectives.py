"""The collectives of a compiled program, each with the line of ours that asks for it."""

import linecache
import pathlib

import lm
from lm.hlo.collectives import with_steps
from lm.hlo.names import phase_and_module
from lm.hlo.text import Module
from lm.parallel import make_mesh
from lm.plan.device import Device
from lm.plan.network import Network
from lm.plan.page import seconds
from lm.plan.roofline import algorithm_of
from lm.plan.topology import Topology, devices

ROOT = pathlib.Path(lm.__file__).parents[1]


def device_of(sizes: dict[str, int], topology: Topology) -> Device | None:
    """One of the devices of a mesh, as a plan has it; None for CPUs. PlanError without the TPU compiler, which knows where they lie."""
    if topology.kind == "cpu":
        return None
    mesh = make_mesh(sizes, devices(topology))
    return Device(topology.chip, Network(mesh.devices, mesh.axis_names, topology.chip))


def annotated(module: Module, sizes: dict[str, int], device: Device | None = None) -> list[dict]:
    """[{"kind", "axis", "devices" (that talk with each other), "count" (a step), "bytes" (of all results on a device), "sent" (bytes by a
    device), "seconds" (as a plan has them; None without a device; they may pass beside other work), "asynchronous", "phase" and "module"
    (see `phase_and_module`), "source" ("lm/layers/dense.py:61"), "line" (its text today)}].

    Those alike are one; what sends the most comes first.
    """
    rows: dict[tuple, dict] = {}
    for step, one in with_steps(module, sizes):
        phase, part = phase_and_module(one.op_name)
        alike = one.kind, one.axis, one.size, one.asynchronous, phase, part, one.source
        row = rows.setdefault(alike, {"kind": one.kind, "axis": one.axis, "devices": one.size, "count": 0, "bytes": 0, "sent": 0,
                                      "seconds": 0.0 if device else None, "asynchronous": one.asynchronous,
                                      "phase": phase, "module": part, "source": one.source,
                                      "line": line_of(one.source)})
        for name in ("count", "bytes", "sent"):
            row[name] += getattr(one, name)
        if device:
            row["seconds"] += one.count * device.network_seconds(one, algorithm_of(module, step.instruction))
    return sorted(rows.values(), key=lambda row: -row["sent"])


def line_of(source: str) -> str:
    """The text of a line of this package's code, by `lm/layers/dense.py:61`; nothing where there is none."""
    path, _, number = source.rpartition(":")
    return linecache.getline(str(ROOT / path), int(number)).strip() if path else ""


def text_of_collectives(rows: list[dict], note: str = "") -> str:
    """The rows of `annotated` as text for people, two lines each, after a note."""
    lines = [note] if note else []
    for row in rows:
        axis = f" over {row['axis']}" if row["axis"] else ""
        time = "" if row["seconds"] is None else f", {seconds(row['seconds'])}"
        beside = ", beside other work" if row["asynchronous"] else ""
        where = " ".join(filter(None, (row["phase"], row["module"])))
        times = "once" if row["count"] == 1 else f"{row['count']:,} times"
        lines += [f"{row['kind']}{axis}, {row['devices']} devices: {times}, {row['bytes'] / 1e9:.4g} GB, "
                  f"{row['sent'] / 1e9:.4g} GB sent{time}{beside}{f'; {where}' if where else ''}",
                  f"    {row['source'] or 'no line of ours'}{'    ' if row['line'] else ''}{row['line']}"]
    return "\n".join(lines) if lines else "nothing is sent between devices"
