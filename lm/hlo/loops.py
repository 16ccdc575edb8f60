"""How often a loop turns: written beside it, or from its counter, start and bound."""

import re
import typing

from lm.hlo.text import Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")
_SAME = ("bitcast", "convert", "copy", "copy-done", "copy-start", "reshape")  # gives the number that it was given


class _Linear(typing.NamedTuple):
    """A number: a constant plus multiples of what lies in the tuple of a loop, {place: factor}."""

    constant: int
    factors: dict[int, int]

    def plus(self, other, sign: int):
        factors = {place: self.factors.get(place, 0) + sign * other.factors.get(place, 0) for place in self.factors | other.factors}
        return _Linear(self.constant + sign * other.constant, {place: factor for place, factor in factors.items() if factor})


def trips(module: Module, loop: Instruction) -> int | None:
    """Turns of a while loop, or None where they are not known.

    XLA writes them beside loops of programs for CPUs and GPUs; on a TPU, they follow from a condition that compares numbers of the loop's
    tuple, where every turn adds a constant to them.
    """
    if known := _KNOWN.search(loop.attributes):
        return int(known[1])
    (condition,), (body,) = loop.called["condition"], loop.called["body"]
    direction, distance = _compared(module, condition, module.root(condition), None)
    if distance is None:
        return None
    home = next(name for name, instructions in module.computations.items() if instructions.get(loop.name) is loop)
    starts, steps = {}, {}
    for place in distance.factors:
        starts[place] = _start(module, home, loop, place)
        steps[place] = _step(module, body, place)
    if None in starts.values() or None in steps.values():
        return None
    first = distance.constant + sum(factor * starts[place] for place, factor in distance.factors.items())
    return _turns(direction, first, sum(factor * steps[place] for place, factor in distance.factors.items()))


def _compared(module, computation, test, given) -> tuple:
    """(LT, the left side minus the right one) of a condition that compares two numbers, (None, None) of others."""
    sides = [_linear(module, computation, name, given) for name in test.operands]
    if test.opcode == "fusion":
        (inside,) = test.called["calls"]
        return _compared(module, inside, module.root(inside), sides)
    if test.opcode != "compare" or None in sides:
        return None, None
    return _DIRECTION.search(test.attributes)[1], sides[0].plus(sides[1], -1)


def _turns(direction: str, distance: int, step: int) -> int | None:
    """How long `distance DIRECTION 0` holds while each turn adds a step to the distance; None for ever."""
    if direction in ("GT", "GE"):
        direction, distance, step = "LT" if direction == "GT" else "LE", -distance, -step
    if direction == "LE":
        direction, distance = "LT", distance - 1
    if direction == "LT":
        holds, turns = distance < 0, -(distance // step) if step > 0 else None
    elif direction == "NE":
        holds, turns = distance != 0, -distance // step if step and distance % step == 0 and distance * step < 0 else None
    else:
        holds, turns = distance == 0, 1 if step else None
    return turns if holds else 0


def _start(module, home, loop, place) -> int | None:
    """What lies at a place of a loop's tuple before its first turn."""
    given = module.computations[home][loop.operands[0]]
    number = _linear(module, home, given.operands[place], None) if given.opcode == "tuple" else None
    return number.constant if number and not number.factors else None


def _step(module, body, place) -> int | None:
    """What each turn adds to what lies at a place of a loop's tuple."""
    root = module.root(body)
    number = _linear(module, body, root.operands[place], None) if root.opcode == "tuple" else None
    return number.constant if number and number.factors == {place: 1} else None


def _linear(module, computation, name, given) -> _Linear | None:
    """An integer of a computation: of a fusion, whose parameters are given as numbers; or of a loop, whose parameter is its tuple."""
    instruction = module.computations[computation][name]
    opcode = instruction.opcode
    if opcode == "constant":
        return _Linear(int(instruction.literal), {}) if instruction.literal.lstrip("-").isdigit() else None
    if opcode == "parameter":
        return None if given is None else given[int(instruction.literal)]
    if opcode in _SAME:
        return _linear(module, computation, instruction.operands[0], given)
    if opcode in ("add", "subtract"):
        left, right = (_linear(module, computation, operand, given) for operand in instruction.operands)
        return left.plus(right, 1 if opcode == "add" else -1) if left and right else None
    if opcode == "fusion":
        return _fused(module, computation, instruction, None, given)
    if opcode == "get-tuple-element":
        place, source = int(_INDEX.search(instruction.attributes)[1]), module.computations[computation][instruction.operands[0]]
        if source.opcode == "parameter" and given is None:
            return _Linear(0, {place: 1})
        return _fused(module, computation, source, place, given) if source.opcode == "fusion" else None
    return None


def _fused(module, computation, fusion, place, given) -> _Linear | None:
    """What a fusion gives, or what it gives at a place of its tuple."""
    (inside,) = fusion.called["calls"]
    numbers = [_linear(module, computation, operand, given) for operand in fusion.operands]
    root = module.root(inside)
    if place is None:
        return _linear(module, inside, root.name, numbers)
    return _linear(module, inside, root.operands[place], numbers) if root.opcode == "tuple" else None
