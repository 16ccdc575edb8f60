"""The shapes of the matrix products in an instruction: how well they fill the units that multiply depends on them."""

import math
import re
from typing import NamedTuple

from lm.hlo.products import product_flops
from lm.hlo.text import Array, Instruction, Module

_DIMS = re.compile(r"\b(lhs|rhs)_(batch|contracting)_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")


class Product(NamedTuple):
    """`batch` products [rows, inner] x [inner, columns]; `straight` when the left operand is multiplied along its last dimension, as memory
    has it."""

    batch: int
    rows: int
    inner: int
    columns: int
    straight: bool = True

    @property
    def flops(self) -> float:
        """Two for each multiply-add."""
        return 2.0 * self.batch * self.rows * self.inner * self.columns


def products(module: Module, instruction: Instruction, computation: str) -> list[Product]:
    """Of an instruction of a computation, those within a fusion among them; a kernel's are not in the text."""
    if instruction.opcode == "fusion":
        (inside,) = instruction.called["calls"]
        return [product for one in module.computations[inside].values() for product in products(module, one, inside)]
    if instruction.opcode not in ("dot", "convolution"):
        return []
    instructions = module.computations[computation]
    operands = [array for name in instruction.operands for array in instructions[name].results]
    make = _of_dot if instruction.opcode == "dot" else _of_convolution
    return [make(instruction, operands)]


def _of_dot(instruction: Instruction, operands: list[Array]) -> Product:
    left, right = operands[:2]
    named = {(side, what): [int(dim) for dim in dims.split(",") if dim] for side, what, dims in _DIMS.findall(instruction.attributes)}
    batched, met = named.get(("lhs", "batch"), []), named.get(("lhs", "contracting"), [])
    batch, inner = math.prod(left.dims[dim] for dim in batched), math.prod(left.dims[dim] for dim in met)
    straight = met == [len(left.dims) - 1]
    return Product(batch, left.size // (batch * inner), inner, right.size // (batch * inner), straight)


def _of_convolution(instruction: Instruction, operands: list[Array]) -> Product:
    """Of the forms that the TPU compiler gives products: a window over dimensions of which it meets one element of both operands at each
    step is a batch, one over what the kernel alone has are columns, one that leaves a single result is a part of what is multiplied, and
    one of size 1 are rows."""
    result, labels = instruction.results[0], _LABELS.search(instruction.attributes).groups()
    given, kernel, made = (dict(zip(names, array.dims, strict=True)) for names, array in zip(labels, (*operands[:2], result), strict=True))
    windows = [label for label in made if label.isdigit() and made[label] > 1 and kernel[label] > 1]
    batch = math.prod(made[label] for label in windows if given[label] > 1)
    columns = kernel["o"] * math.prod(made[label] for label in windows if given[label] == 1)
    inner = round(product_flops(instruction, operands) / 2 / max(1, result.size))
    return Product(batch, result.size // (batch * columns), inner, columns)
