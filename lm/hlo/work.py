"""The work of an instruction: FLOPs, and bytes read from and written to the main memory of a device."""

import collections
import dataclasses
import re
import typing

from lm.hlo.collectives import KINDS
from lm.hlo.products import product_flops
from lm.hlo.text import Array, Instruction, Module, bits
from lm.hlo.walk import Executed

_TRANSCENDENTAL = {"atan2", "cbrt", "cosine", "erf", "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "power",
                   "rsqrt", "sine", "sqrt", "tan", "tanh"}
_ARITHMETIC = {"abs", "add", "and", "ceil", "clamp", "compare", "convert", "divide", "floor", "is-finite", "maximum", "minimum", "multiply",
               "negate", "not", "or", "popcnt", "count-leading-zeros", "remainder", "round-nearest-afz", "round-nearest-even", "select",
               "shift-left", "shift-right-arithmetic", "shift-right-logical", "sign", "stochastic-convert", "subtract", "xor"}
# Each element of the result needs the elements at its place, or one element, of operands that have as many.
_POINTWISE = _TRANSCENDENTAL | _ARITHMETIC | {"bitcast-convert", "copy", "reduce-precision", "reshape", "reverse", "transpose"}
_FREE = {"add-dependency", "after-all", "async-start", "async-update", "bitcast", "call", "conditional", "constant", "domain",
         "get-dimension-size", "get-tuple-element", "infeed", "opt-barrier", "outfeed", "parameter", "partition-id", "replica-id", "tuple",
         "while"}
# Calls of the TPU compiler's that say where arrays lie, or stand for a collective that runs beside the fusion.
_PLACES = {"AllocateBuffer", "AsyncCollectiveDone", "ConcatBitcast", "Sharding"}
_START = "AsyncCollectiveStart"
_KERNELS = {"tpu_custom_call"}
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ESTIMATE = re.compile(r'"(flops|transcendentals)":\s*"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_CYCLES = str(2**63 - 1)
_INDEX = re.compile(r"\bindex=(\d+)")


class Work(typing.NamedTuple):
    """What one execution does. `flops` are those of products of matrices, `type` that of their operands; bytes are those of HBM.

    `elementwise` counts other operations on elements, one each, and `transcendentals` those that XLA counts apart. `known` is false of
    a kernel whose text says nothing of its work: its FLOPs are then 0, and its bytes those of its operands and results.
    """

    flops: float
    transcendentals: float
    read: int
    written: int
    type: str = ""
    elementwise: float = 0.0
    known: bool = True


def expected_cycles(instruction: Instruction) -> int | None:
    """Cycles of one execution as the TPU compiler expects them, without collectives; None where it says nothing."""
    found = _CYCLES.search(instruction.attributes)
    return int(found[1]) if found and found[1] != _NO_CYCLES else None


class _Value(typing.NamedTuple):
    """A result of an operation within a fusion, or of none: an operand of the fusion itself."""

    operation: "_Operation | None"
    place: int
    array: Array


@dataclasses.dataclass(eq=False)
class _Operation:
    """An instruction within a fusion, with the arrays that it is given, and where these came from before they were only renamed."""

    instruction: Instruction
    operands: list[Array]
    given: list[_Value]

    @property
    def opcode(self) -> str:
        return self.instruction.opcode

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = _TARGET.search(self.instruction.attributes) if self.opcode == "custom-call" else None
        return found[1] if found else ""


def work(module: Module, executed: Executed) -> Work:
    """The work of one execution of an instruction, which a loop or a call leaves to what it enters.

    Of an array that a fusion only slices or gathers from, what it touches is read; of one that it updates in place, the update is
    written. A collective reads and writes its arrays; what it sends is in `lm.hlo.collectives`.
    """
    instruction = executed.instruction
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return Work(0.0, 0.0, 0, 0)
    if instruction.opcode.endswith("-start") or instruction.opcode in ("send", "recv"):
        return _started(instruction, executed.operands)
    operations, sources, roots = _inside(module, executed)
    read, written = _traffic(operations, sources, roots, instruction.results)
    flops: collections.Counter = collections.Counter()
    transcendentals, elementwise, known = 0.0, 0.0, True
    for one in operations:
        estimate = dict(_ESTIMATE.findall(one.instruction.attributes)) if one.target in _KERNELS else {}
        if products := product_flops(one.instruction, one.operands):
            # Of two types, the narrower one: the units that multiply round the other to it.
            flops[min((array.type for array in one.operands[:2]), key=bits)] += products
        if estimate:
            flops[max(one.operands, key=lambda array: array.size).type] += float(estimate.get("flops", 0))
        transcendentals += float(estimate.get("transcendentals", 0))
        known = known and (one.target not in _KERNELS or "flops" in estimate)
        size = one.instruction.results[0].size if one.instruction.results else 0
        if one.opcode in _TRANSCENDENTAL:
            transcendentals += size
        elif one.opcode in _ARITHMETIC:
            elementwise += size
        elif one.opcode in ("reduce", "reduce-window"):
            elementwise += max(0, sum(array.size for array in one.operands[:len(one.instruction.results)]) - size)
    total = sum(flops.values())
    return Work(float(total), transcendentals, read, written, max(flops, key=flops.get) if total else "", elementwise, known)


def _started(instruction, operands) -> Work:
    """Of what begins here and ends in an instruction of its own; a slice reads and writes what it cuts out or puts in."""
    opcode, results, given = instruction.opcode, instruction.results, len(operands)
    if opcode == "dynamic-update-slice-start":
        operands = target = operands[1:2]
    elif opcode in ("copy-start", "recv"):
        target = results[:1]  # (target, source, flag)
    elif opcode == "all-reduce-start":
        target = results
    elif opcode == "send":
        target = ()
    else:
        target = results[given:2 * given if opcode.removesuffix("-start") in KINDS else given + 1]  # (sources, targets, flags)
    read, written = (sum(array.stored for array in arrays if not array.space) for arrays in (operands, target))
    if opcode in ("slice-start", "dynamic-slice-start"):
        read = 0 if operands[0].space else _bytes(operands[0], target[0].size)
    return Work(0.0, 0.0, read, written)


def _inside(module, executed) -> tuple[list[_Operation], list[_Value], list[_Value]]:
    """(operations, what the instruction is given, what it gives), those of fusions within fusions among them."""
    instruction, instructions = executed.instruction, module.computations[executed.computation]
    bound, sources = [], []
    for operand in instruction.operands:
        bound.append([_Value(None, len(sources) + place, array) for place, array in enumerate(instructions[operand].results)])
        sources += bound[-1]
    if instruction.opcode != "fusion":
        one = _Operation(instruction, [value.array for value in sources], sources)
        return [one], sources, [_Value(one, place, array) for place, array in enumerate(instruction.results)]
    (inside,) = instruction.called["calls"]
    operations: list[_Operation] = []
    return operations, sources, _expanded(module, inside, bound, operations)


def _expanded(module, computation, bound, operations) -> list[_Value]:
    """The values that a computation gives for bound parameters; its operations are appended in order."""
    values: dict[str, list[_Value]] = {}
    instructions = module.computations[computation]
    for name, instruction in instructions.items():
        given = [value for operand in instruction.operands for value in values[operand]]
        if instruction.opcode == "parameter":
            values[name] = bound[int(instruction.literal)]
        elif instruction.opcode in ("tuple", "bitcast"):
            values[name] = given
        elif instruction.opcode == "get-tuple-element":
            place = int(_INDEX.search(instruction.attributes)[1])
            values[name] = given[place:place + 1]
        elif instruction.opcode == "fusion":
            (inside,) = instruction.called["calls"]
            values[name] = _expanded(module, inside, [values[operand] for operand in instruction.operands], operations)
        else:
            # A value may have been renamed by a bitcast: its shape is that of the operand.
            arrays = [array for operand in instruction.operands for array in instructions[operand].results]
            one = _Operation(instruction, arrays, given)
            operations.append(one)
            values[name] = [_Value(one, place, array) for place, array in enumerate(instruction.results)]
    return values[module.roots[computation]]


def _traffic(operations, sources, roots, results) -> tuple[int, int]:
    """Bytes read from and written to HBM: of each operand and result, the elements that are touched."""
    needed: dict[_Value, int] = collections.defaultdict(int)
    for value in roots:
        needed[value] = 0 if value.operation is None or _updates(value) is not None else value.array.size
    for one in reversed(operations):
        _need(one, needed)
    read = sum(_bytes(value.array, needed[value]) for value in sources if not value.array.space)
    written = 0
    for value, array in zip(roots, results, strict=False):
        update = _updates(value)
        if not array.space and value.operation is not None:
            written += _bytes(array, array.size if update is None else update)
    return read, written


def _bytes(array, elements) -> int:
    return -(-array.stored * min(elements, array.size) // array.size) if array.size else 0


def _need(one, needed) -> None:
    """Adds to what is needed of an operation's operands, from what is needed of its results."""
    if one.target in _PLACES or _continues(one):
        return
    if one.target == _START:
        needed |= {value: value.array.size for sent in one.given if sent.operation for value in sent.operation.given}
        return
    wanted = max((needed[_Value(one, place, array)] for place, array in enumerate(one.instruction.results)), default=0)
    update = _updates(_Value(one, 0, one.instruction.results[0])) if one.instruction.results else None
    for place, value in enumerate(one.given):
        size, first = one.operands[place].size, place == 0
        if update is not None:
            needed[value] += 0 if first and one.opcode == "dynamic-update-slice" else update if first else size
        elif not wanted:
            continue
        elif first and one.opcode in ("dynamic-slice", "slice", "gather"):
            needed[value] += wanted
        elif one.opcode in _POINTWISE and size == one.instruction.results[0].size:
            needed[value] = max(needed[value], wanted)
        else:
            needed[value] = size


def _updates(value) -> int | None:
    """Elements written where an operation updates an array in place, or only hands one on; None where it makes a new one."""
    one = value.operation
    if one is None or one.target in _PLACES or _continues(one):
        return 0
    if one.target == _START:
        return value.array.size if value.place == 1 else 0
    if one.opcode not in ("dynamic-update-slice", "scatter"):
        return None
    before = _updates(one.given[0])
    update = one.operands[1 if one.opcode == "dynamic-update-slice" else -1].size
    return None if before is None else before + update


def _continues(one) -> bool:
    """Whether this is a collective that is counted where it began."""
    return one.opcode in KINDS and "async_collective_fusion_config" in one.instruction.attributes
