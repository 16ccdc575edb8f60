"""What the memory of a compiled train step holds, and when, from the reports that the TPU compiler leaves beside it."""

import itertools
import math
import re
from typing import NamedTuple

import jax
import numpy as np

from lm.hlo.names import phase_and_module
from lm.hlo.text import Instruction, Module
from lm.train.step import TrainState

_RANGE = re.compile(r"^    (\S+?)\{([\d,]*)\}:(\d+)-(\d+)$", re.MULTILINE)
# An allocation, or one of the values in it.
_VALUE = re.compile(r"^(?:allocation (\d+):| value: <\d+ (\S+?)(?:\{([\d,]*)\})?( \(phi\))? @(\d+)> \(size=(\d+),offset=(\d+)\): (\S+))",
                    re.MULTILINE)
_INDEX = re.compile(r"\bindex=(\d+)")
_LAYER = re.compile(r"\blayer_\d+\b")
_HBM = "0"
# Instructions that give another's results a name, and those that put them elsewhere.
_NAMES = ("get-tuple-element", "bitcast")
_MOVES = (*_NAMES, "copy", "copy-start", "copy-done")
POINTS, LARGEST = 240, 5


class Buffer(NamedTuple):
    """An array in the main memory of a device: bytes, with the padding of its layout; the steps of the program between which it lives;
    its type and shape; where our code makes it; and what it is for: params, optimizer, activations or temporaries."""

    bytes: int
    start: int
    stop: int
    shape: str
    op_name: str
    source: str
    part: str


def state_bytes(state: TrainState) -> dict[str, int]:
    """Bytes of one device for {"params", "optimizer"} of an abstract state with shardings; a running mean of the weights counts as the
    optimizer's, and what lies in the memory of the host not at all."""

    def size(tree):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind in (None, "device")]
        return int(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves))

    return {"params": size(state.params), "optimizer": size((state.opt_state, state.ema))}


def buffers(module: Module, dumps: dict[str, str]) -> list[Buffer]:
    """The buffers of a compiled program, from the compiler's reports of live ranges and of buffer assignment.

    What lies where another value does, at the same time, is that value's, done in place: it counts once.
    """
    values, places = _values(dumps["after_optimizations-buffer-assignment"]), {}
    for name, index, start, stop in _RANGE.findall(dumps["after_optimizations-live-range"]):
        if (name, index) in values:
            value = values[name, index]
            places.setdefault(value.place, []).append((int(start), int(stop), name, value))
    homes = {name: computation for computation, body in module.computations.items() for name in body}
    return [_buffer(module, homes, *lived) for lives in places.values() for lived in _in_turn(sorted(lives))]


class _Value(NamedTuple):
    place: tuple[int, int, int]  # allocation, offset in it, bytes
    shape: str
    carried: bool  # a name that a loop gives to what it is given, and to what it gives


def _values(report: str) -> dict[tuple[str, str], _Value]:
    """The values in main memory by (name, index)."""
    found, allocation = {}, 0
    for number, name, index, carried, space, size, offset, shape in _VALUE.findall(report):
        if number:
            allocation = int(number)
        elif space == _HBM:
            found[name, index] = _Value((allocation, int(offset), int(size)), shape.partition("{")[0], bool(carried))
    return found


def _in_turn(lives: list[tuple]) -> list[tuple]:
    """(start, stop, name, value) of one place, without overlap; what a loop carries is of whoever was there before."""
    found = []
    for start, stop, name, value in lives:
        if not found or start > found[-1][1]:
            found.append((start, stop, name, value))
        elif stop > found[-1][1]:
            before = found.pop()
            if value.carried:
                found.append((before[0], stop, *before[2:]))
            else:
                found += [(before[0], start - 1, *before[2:]), (start, stop, name, value)]
    return found


def _buffer(module: Module, homes: dict[str, str], start: int, stop: int, name: str, value: _Value) -> Buffer:
    made = origin(module, homes[name], name) if name in homes else None
    op_name, source = (made.op_name, made.source) if made else ("", "")
    entry_parameter = made is not None and made.opcode == "parameter" and homes[name] == module.entry
    return Buffer(value.place[2], start, stop, value.shape, op_name, source, _part(op_name, entry_parameter))


def _part(op_name: str, parameter: bool) -> str:
    if parameter and op_name.startswith("state."):
        return "params" if op_name.startswith("state.params") else "optimizer"
    # What the forward pass makes; what it makes again for the backward pass is named after that.
    return "activations" if "jvp(" in op_name and "transpose(" not in op_name else "temporaries"


def origin(module: Module, computation: str, name: str) -> Instruction:
    """The instruction that says what an array is: itself, or what it is a copy of; or where XLA only made room, what a loop writes into
    it, or a user of it."""
    body = module.computations[computation]
    made = body[name]
    if made.source or made.opcode == "parameter":
        return _sourced(module, computation, name)
    if made.opcode in _MOVES and (copied := _sourced(module, computation, name)).source:
        return copied
    for user in body.values():
        if name not in user.operands:
            continue
        for loop in body.values() if user.opcode == "tuple" else ():
            if loop.opcode == "while" and user.name in loop.operands:
                inside = loop.called["body"][0]
                written = module.root(inside).operands[user.operands.index(name)]
                return _sourced(module, inside, written)
        if user.source:
            return user
    return made


def _sourced(module: Module, computation: str, name: str) -> Instruction:
    """The instruction that makes what a loop stacks up as `name`: the slice that is written, not the writing itself; along first operands
    where a source line is missing."""
    body, seen = module.computations[computation], set()
    while name not in seen:
        seen.add(name)
        made = body[name]
        if made.opcode in _NAMES and made.operands:
            name = made.operands[0]
            if body[name].opcode == "while" and (index := _INDEX.search(made.attributes)):
                inside = body[name].called["body"][0]
                return _sourced(module, inside, module.root(inside).operands[int(index[1])])
            continue
        if made.op_name.endswith("/dynamic_update_slice"):
            written = (body[other] for other in made.operands)
            written = [other for other in written if other.source and not other.op_name.endswith(("/dynamic_update_slice", "while/body"))]
            return max(written, key=lambda other: sum(array.bytes for array in other.results), default=made)
        if made.source or not made.operands:
            return made
        name = made.operands[0]
    return made


def timeline(held: list[Buffer]) -> list[list[float]]:
    """[[share of the program's text, most bytes held in that stretch], ...] over POINTS stretches; a loop's body counts once."""
    totals = _totals(held)
    edges = np.linspace(0, len(totals), min(POINTS, len(totals)) + 1).astype(int)
    return [[start / len(totals), int(totals[start:stop].max())] for start, stop in itertools.pairwise(edges.tolist())]


def at_peak(held: list[Buffer]) -> list[Buffer]:
    """The buffers that live when most bytes are held, the largest first."""
    peak = int(np.argmax(_totals(held)))
    return sorted((buffer for buffer in held if buffer.start <= peak <= buffer.stop), reverse=True)


def _totals(held: list[Buffer]) -> np.ndarray:
    """Bytes held at each step of the program."""
    changes = np.zeros(max(buffer.stop for buffer in held) + 2, np.int64)
    np.add.at(changes, [buffer.start for buffer in held], [buffer.bytes for buffer in held])
    np.subtract.at(changes, [buffer.stop + 1 for buffer in held], [buffer.bytes for buffer in held])
    return np.cumsum(changes)[:-1]


def breakdown(peak: int, state: dict[str, int], held: list[Buffer]) -> dict[str, int]:
    """{"params", "optimizer", "activations", "temporaries"} of the bytes at the peak: the first two as `state_bytes` has them, activations
    what the forward pass made of what lives then, temporaries all the rest."""
    activations = sum(buffer.bytes for buffer in at_peak(held) if buffer.part == "activations") if held else 0
    activations = min(activations, max(0, peak - sum(state.values())))
    return state | {"activations": activations, "temporaries": max(0, peak - sum(state.values()) - activations)}


def largest(held: list[Buffer]) -> list[dict]:
    """The LARGEST kinds of buffers at the peak: those of one shape from one line of ours, for one module of any layer, are one, with their
    number."""
    groups: dict[tuple, list[Buffer]] = {}
    for buffer in at_peak(held):
        module = _LAYER.sub("layer_N", "/".join(phase_and_module(buffer.op_name)))
        groups.setdefault((buffer.shape, buffer.source, buffer.part, module), []).append(buffer)
    rows = [{"bytes": sum(buffer.bytes for buffer in group), "count": len(group), "shape": shape, "part": part, "source": source,
             "op_name": _LAYER.sub("layer_N", group[0].op_name) if len(group) > 1 else group[0].op_name}
            for (shape, source, part, _), group in groups.items()]
    return sorted(rows, key=lambda row: -row["bytes"])[:LARGEST]
