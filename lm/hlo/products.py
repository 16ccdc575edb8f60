"""The multiply-adds of a product of matrices: HLO's dot, and the convolutions that TPUs' compiler writes for it."""

import functools
import math
import re

from lm.hlo.text import Array, Instruction

_CONTRACTED = re.compile(r"\blhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")


def product_flops(instruction: Instruction, operands: list[Array]) -> float:
    """FLOPs (two for each multiply-add) of a dot or convolution; 0 of anything else."""
    if instruction.opcode == "dot":
        contracted = _CONTRACTED.search(instruction.attributes)
        dims = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2.0 * instruction.results[0].size * math.prod(operands[0].dims[axis] for axis in dims)
    if instruction.opcode == "convolution":
        return 2.0 * _convolved(instruction, *operands[:2])
    return 0.0


def _convolved(instruction, image, kernel) -> int:
    """Multiply-adds of a convolution that meet an element of the image, not padding and not what dilation puts between its elements.

    XLA's TPU compiler writes a batched product as a convolution over the batch that is dilated by its size: each step of the window
    then meets one element, and all others are holes.
    """
    image_labels, kernel_labels, result_labels = _LABELS.search(instruction.attributes).groups()
    result, window = instruction.results[0], _window(instruction.attributes)
    total = kernel.dims[kernel_labels.index("i")]
    for label, size in zip(result_labels, result.dims, strict=True):
        if not label.isdigit():
            total *= size
            continue
        at = int(label)
        total *= _met(size, kernel.dims[kernel_labels.index(label)], image.dims[image_labels.index(label)],
                      *(window[key][at] if key in window else default for key, default in
                        (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))))
    return total


def _window(attributes) -> dict[str, list[int]]:
    """{"size": [3, 3], "pad": [1, 1]} of window={size=3x3 pad=1_1x1_1}: of padding, the low side."""
    found = _WINDOW.search(attributes)
    fields = (field.split("=") for field in found[1].split()) if found else ()
    return {key: [int(part.split("_")[0]) for part in value.split("x")] for key, value in fields}


@functools.cache
def _met(results, window, image, stride, low, dilation, window_dilation) -> int:
    """Pairs of a result and a step of the window, along one axis, that meet an element of the image."""
    common = math.gcd(stride, dilation)
    period, total = dilation // common, 0
    inverse = pow(stride // common, -1, period) if period > 1 else 0
    for step in range(window):
        start = step * window_dilation - low  # where the first result reads; the next one `stride` further
        first = max(0, -(start // stride))  # results before it read in front of the image
        last = min(results - 1, ((image - 1) * dilation - start) // stride)
        if start % common or last < first:
            continue
        hit = -start // common * inverse % period if period > 1 else 0  # results read an element at hit, hit + period, ...
        total += (last - hit) // period - (first - 1 - hit) // period
    return total
