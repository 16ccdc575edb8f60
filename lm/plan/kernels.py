"""The FLOPs of kernels, which the text of a program does not give: JAX's splash attention as `lm.layers.splash` calls it."""

import re

from lm.errors import PlanError
from lm.hlo.text import Array
from lm.hlo.walk import Executed

_SPLASH = re.compile(r"/splash_(\d+)_blocks_of_(\d+)/.*/splash_m[hq]a_(fwd|dq|dkv)_")
# Products for each pair of a query and a key; Dao et al. 2022, algorithms 1 and 4, the backward pass as two kernels.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def kernel_flops(step: Executed) -> float:
    """FLOPs of products in one execution of a kernel. PlanError for a kernel that is not known."""
    found = _SPLASH.search(step.instruction.op_name)
    if not found:
        raise PlanError(f"nothing is known of the work of the kernel %{step.instruction.name} ({step.instruction.op_name}): teach "
                        "lm/plan/kernels.py to count it, or set model.attention_kernel=xla")
    queries, blocks, block = queries_of(step), int(found[1]), int(found[2])
    heads = queries.size // (queries.dims[-1] * queries.dims[-2])  # of all rows
    return 2.0 * _PRODUCTS[found[3]] * heads * blocks * block**2 * queries.dims[-1]


def queries_of(step: Executed) -> Array:
    """The queries [..., positions, width of a head] of an attention kernel, the largest of what it is given."""
    return max(step.operands, key=lambda array: array.bytes)
