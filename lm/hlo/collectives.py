"""What the devices of a compiled program send each other."""

import math
import re
import typing

from lm.errors import LmError
from lm.hlo.groups import axes, groups
from lm.hlo.text import Array, Instruction, Module
from lm.hlo.walk import Executed, entered, executed

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
_START = 'custom_call_target="AsyncCollectiveStart"'
_FUSED = "async_collective_fusion_config"  # in a collective that began in another fusion, and whose steps this one takes part in
# What hands on the values of one array, in another shape, layout or type.
_PASSES = {"get-tuple-element", "bitcast", "convert", "copy", "reshape", "transpose"}
_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


class Collective(typing.NamedTuple):
    """One instruction that sends, in a step of one device.

    `size` is how many devices talk to each other, `bytes` what the results of all `count` executions hold, `sent` what the device sends
    for them along a ring. `between_slices`: through the hosts and the network of the data centre. `op_name` is what JAX calls it.
    """

    kind: str
    axis: str
    size: int
    count: int
    bytes: int
    sent: int
    asynchronous: bool
    source: str
    between_slices: bool = False
    op_name: str = ""


class _Sends(typing.NamedTuple):
    kind: str
    instruction: Instruction
    results: tuple[Array, ...]
    asynchronous: bool
    source: str
    op_name: str


def collectives(module: Module, mesh: dict[str, int]) -> list[Collective]:
    """The collectives of a program on a mesh {axis: size}, in order of execution; LmError when a loop around one has no known length.

    An axis is named as in the mesh ("fsdp", "replica+fsdp"), or "" where groups do not follow it. A collective that runs beside other
    work counts where it starts. An all-reduce of which a fusion keeps this device's part is a reduce-scatter. What a device hands to
    itself alone is left out.
    """
    return [one for _, one in with_steps(module, mesh)]


def with_steps(module: Module, mesh: dict[str, int]) -> list[tuple[Executed, Collective]]:
    """`collectives`, each after the executed instruction that starts it."""
    _check_reached(module)
    found = []
    apart: set[str] = set()
    for step in executed(module, lambda instruction: bool(_sends(module, "", instruction))):
        if step.instruction.opcode in ("async-start", "async-update") or step.computation in apart:
            apart |= set(entered(module, step.computation, step.instruction))
        found += [(step, one._replace(asynchronous=True) if step.computation in apart else one) for one in starts(module, step, mesh)]
    return found


def _check_reached(module: Module):
    """LmError where something sends that nothing runs, as far as we can read: what is estimated would leave it out."""
    reached, ahead = set(), [module.entry]
    while ahead:
        name = ahead.pop()
        reached.add(name)
        for one in module.computations[name].values():
            inside = one.called.get("calls", ()) if one.opcode == "fusion" else entered(module, name, one)
            ahead += [callee for callee in inside if callee not in reached]
    lost = [one.name for name in module.computations.keys() - reached for one in module.computations[name].values()
            if one.opcode.removesuffix("-start") in KINDS]
    if lost:
        raise LmError(f"{len(lost)} collectives of the program, %{min(lost)} among them, are run by nothing that is known: an estimate "
                      "would leave them out")


def starts(module: Module, step: Executed, mesh: dict[str, int]) -> list[Collective]:
    """The collectives that one executed instruction starts, those within a fusion among them; see `collectives`."""
    found = [_collective(module, sends, step.times, mesh) for sends in _sends(module, step.computation, step.instruction)]
    return [one for one in found if one.size > 1]


def summed(found: list[Collective]) -> list[dict]:
    """One {"kind", "axis", "count", "bytes", "sent"} for each kind and axis, in the order of KINDS."""
    rows: dict[tuple[str, str], dict] = {}
    for one in found:
        row = rows.setdefault((one.kind, one.axis), {"kind": one.kind, "axis": one.axis, "count": 0, "bytes": 0, "sent": 0})
        for name in ("count", "bytes", "sent"):
            row[name] += getattr(one, name)
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(rows.values(), key=lambda row: order.get(row["kind"], len(order)))


def _collective(module, sends, times, mesh) -> Collective:
    size_in_bytes = sum(array.bytes for array in sends.results)
    attributes, source = sends.instruction.attributes, sends.source
    if sends.instruction.opcode == "recv":
        slices = math.prod(mesh.values()) // module.partitions
        moved = times * _sent(sends.kind, slices, size_in_bytes)
        return Collective(sends.kind, _slowest(mesh, slices), slices, times, times * size_in_bytes, moved, True, source, True,
                          sends.op_name)
    who = groups(attributes, module.partitions)
    size = max(map(len, who))
    moved = times * _sent(sends.kind, size, size_in_bytes)
    return Collective(sends.kind, axes(who, mesh), size, times, times * size_in_bytes, moved, sends.asynchronous, source,
                      op_name=sends.op_name)


def _slowest(mesh, slices) -> str:
    """The axes that a mesh cuts over slices, its first ones."""
    names, covered = [], 1
    for axis, size in mesh.items():
        if covered < slices and size > 1:
            names.append(axis)
            covered *= size
    return "+".join(names)


def _sent(kind: str, size: int, results: int) -> int:
    """Bytes that one of `size` devices sends along a ring for results of so many bytes (Thakur et al. 2005, section 4)."""
    if kind == "collective-permute":
        return results
    if kind == "reduce-scatter":
        return results * (size - 1)
    return (2 if kind == "all-reduce" else 1) * results * (size - 1) // size


def _sends(module, computation, instruction) -> list[_Sends]:
    """What an instruction sends; where it takes part in steps of a collective that began elsewhere, nothing."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
        results, given = instruction.results, len(instruction.operands)
        # These two also give back what they were given, and contexts.
        if instruction.opcode in ("all-gather-start", "collective-permute-start"):
            results = results[given:2 * given]
        asks = _asks(module.computations.get(computation, {}), instruction)
        return [_Sends(kind, instruction, results, kind != instruction.opcode, asks.source, asks.op_name)]
    if instruction.opcode == "recv":
        between = _SLICES.search(instruction.attributes)
        kind = between[1].lower().replace("_", "-").replace("one-to-one", "collective-permute") if between else ""
        return [_Sends(kind, instruction, instruction.results[:1], True, instruction.source, instruction.op_name)] if kind else []
    if instruction.opcode == "fusion":
        return [sends._replace(source=sends.source or instruction.source, op_name=sends.op_name or instruction.op_name)
                for sends in _fused(module, instruction)]
    return []


def _asks(body, instruction) -> Instruction:
    """Whose line and name a collective has: its own, or where the compiler made one of several, which it calls after the first, those of
    what makes the largest of its operands, as far as that is known."""
    if len(instruction.operands) < 2 or not body:
        return instruction
    made = body[max(instruction.operands, key=lambda name: sum(array.bytes for array in body[name].results))]
    while not made.source and made.opcode in _PASSES and made.operands:
        made = body[made.operands[0]]
    return made if made.source else instruction


def _fused(module, fusion) -> list[_Sends]:
    (inside,) = fusion.called["calls"]
    instructions = module.computations[inside].values()
    started = {operand for one in instructions if one.opcode == "custom-call" and _START in one.attributes for operand in one.operands}
    found = []
    for one in instructions:
        for sends in _sends(module, inside, one):
            if one.name in started:
                found.append(sends._replace(asynchronous=True))
            elif _FUSED in sends.instruction.attributes:
                continue
            elif sends.kind == "all-reduce" and (parts := _parts(module, inside, one)):
                found.append(sends._replace(kind="reduce-scatter", results=parts))
            else:
                found.append(sends)
    return found


def _parts(module, computation, whole) -> tuple[Array, ...]:
    """What is cut of the results of an instruction, in the type that it gives them; nothing where anything takes them whole."""
    found, types = [], {whole.name: whole.results[0].type}
    for one in module.computations[computation].values():
        taken = [operand for operand in one.operands if operand in types]
        if taken and one.opcode in _PASSES:
            types[one.name] = one.results[0].type if one.opcode == "get-tuple-element" else types[taken[0]]
        elif taken and one.opcode == "dynamic-slice" and one.operands[0] in types:
            found.append(one.results[0]._replace(type=types[one.operands[0]]))
        elif taken:
            return ()
    return () if module.roots[computation] in types else tuple(found)
