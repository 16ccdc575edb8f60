"""What a program runs, in order, and how often."""

import typing
from collections.abc import Callable

from lm.errors import LmError
from lm.hlo.loops import trips
from lm.hlo.text import Array, Instruction, Module

# In the custom-call by which a program for the SparseCore stands in that of the others.
_OTHER_CORE = "xla_skip_custom_call_alias_shape_check"


class Executed(typing.NamedTuple):
    """An instruction as a program runs it: how many times, in which computation, and the arrays that it is given, flat."""

    instruction: Instruction
    computation: str
    times: int
    operands: tuple[Array, ...]


def executed(module: Module, wanted: Callable[[Instruction], bool] | None = None) -> list[Executed]:
    """Everything that a program runs, in order of execution: bodies of loops as often as they turn, calls and asynchronous calls entered,
    fusions not; what another core of the chip is given to do, where it is given its operands.

    Of the branches of a conditional, the one that writes the most bytes counts: a plan shall not be too low. What an instruction applies
    to single elements (a reduction's sum, a sort's order) is a part of it and not entered.

    With `wanted`, computations that hold no such instruction are left out, also within what they call. LmError names a loop that is
    entered and of which nobody knows how often it turns.
    """
    holding = _holding(module, wanted) if wanted else set(module.computations)
    return _walk(module, module.entry, 1, holding) if module.entry in holding else []


def entered(module: Module, computation: str, instruction: Instruction) -> tuple[str, ...]:
    """The computations that an instruction runs, of which a conditional runs only one."""
    called = instruction.called
    if instruction.opcode == "while":
        return called["condition"] + called["body"]
    if instruction.opcode == "conditional":
        return called["branches"]
    if instruction.opcode == "call" or (instruction.opcode == "async-start" and instruction.operands):
        return called.get("calls", ()) + called.get("to_apply", ())
    if instruction.opcode == "async-update":  # what begins without operands is woken first, and given them later
        began = module.computations[computation][instruction.operands[0]]
        return began.called.get("calls", ()) if began.opcode == "async-start" and not began.operands else ()
    if instruction.opcode == "custom-call" and _OTHER_CORE in instruction.attributes:
        return called.get("calls", ())
    return ()


def began(module: Module, computation: str, name: str) -> str:
    """The instruction that started what one of this name goes on with or ends."""
    instruction = module.computations[computation].get(name)
    while instruction is not None and instruction.opcode == "async-update":
        name = instruction.operands[0]
        instruction = module.computations[computation].get(name)
    return name


def _walk(module, computation, times, holding) -> list[Executed]:
    found = []
    instructions = module.computations[computation]
    for instruction in instructions.values():
        given = tuple(array for operand in instruction.operands for array in instructions[operand].results)
        found.append(Executed(instruction, computation, times, given))
        callees = [name for name in entered(module, computation, instruction) if name in holding]
        if not callees:
            continue
        turns = _turns(module, instruction) if instruction.opcode == "while" else 1
        walks = [_walk(module, name, times * turns, holding) for name in callees]
        if instruction.opcode == "conditional":
            walks = [max(walks, key=_written)]
        for walk in walks:
            found += walk
    return found


def _turns(module, loop) -> int:
    turns = trips(module, loop)
    if turns is None:
        raise LmError(f"a loop has no known number of turns: %{loop.name} ({loop.source or loop.op_name or 'of unknown source'})")
    return turns


def _written(walk) -> int:
    return sum(found.times * array.bytes for found in walk for array in found.instruction.results)


def _holding(module, wanted) -> set[str]:
    """The computations that run a wanted instruction, themselves or in what they enter."""
    known: dict[str, bool] = {}

    def holds(name) -> bool:
        if name not in known:
            known[name] = any(wanted(instruction) or any(map(holds, entered(module, name, instruction)))
                              for instruction in module.computations[name].values())
        return known[name]

    return {name for name in module.computations if holds(name)}
