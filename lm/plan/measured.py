"""This computer's processor as a machine for the cost model: small programs measured one by one, none of them a model.

What is measured: products over a grid of shapes; arithmetic by operation; main memory and caches by how much is moved, by one core and by
all; sums, gathers and scatters; and what it takes to start an instruction.
"""

import collections
import dataclasses
import functools
import itertools
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lm.hlo.collectives import Collective
from lm.hlo.text import Instruction, Module, parse
from lm.hlo.walk import Executed, executed
from lm.hlo.work import Work
from lm.metrics.flops import measured_peak
from lm.plan.machine import Times
from lm.plan.products import Product

# A measurement is the median of calls that take so many seconds together, and at least so many.
_SECONDS, _CALLS = 0.03, 5
# Sizes of products, in each of their dimensions: alone, and of a batch.
_ROWS, _INNER, _COLUMNS = (4, 32, 256, 2048), (32, 256, 2048), (32, 256, 2048)
_BATCH, _BATCHED = 32, (32, 128, 512)
# Bytes moved: what fits the cache of a core, those that cores share, and none.
_MOVED = (2**18, 2**22, 2**25, 2**27)
_ELEMENTS, _CHAIN = 2**16, 8
_TURNS, _SMALL = 1000, 32
_ARITHMETIC = {
    "exponential": jnp.exp, "exponential-minus-one": jnp.expm1, "log": jnp.log, "log-plus-one": jnp.log1p, "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid, "rsqrt": jax.lax.rsqrt, "sqrt": jnp.sqrt, "cosine": jnp.cos, "sine": jnp.sin, "divide": lambda x: 1 / x,
    "power": lambda x: x**1.3, "erf": jax.lax.erf,
}
_FREE = {"parameter", "constant", "bitcast", "broadcast", "tuple", "get-tuple-element", "iota", "slice", "dynamic-slice", "reshape", "copy",
         "transpose", "concatenate", "pad", "dynamic-update-slice", "dot", "reverse"}
_PARTITIONS = re.compile(r'"outer_dimension_partitions":\[([^\]]*)\]')
_REDUCED = re.compile(r"\bdimensions=\{([\d,]*)\}")


@dataclass
class Processor:
    """One of the `devices` that this computer's processor is cut into, and all share; see `lm.plan.machine.Machine`.

    Rates of products, of float32, are interpolated between those of the measured shapes: FLOP/s [left operand crossed or straight, rows,
    inner, columns], `alone` and `batched`. `costs`: seconds of one core for an element, by operation;
    `moving`: {threads: [bytes/s for each of _MOVED]} of one and of all, between which rates are taken to grow evenly; `start`: seconds of
    an instruction that does next to nothing.
    """

    peak_flops: float
    threads: int
    alone: np.ndarray
    batched: np.ndarray
    costs: dict[str, float]
    moving: dict[int, list[float]]
    start: float
    devices: int = 1
    clock_hz: float = 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes/s of main memory."""
        return self.moving[self.threads][-1] / self.devices

    def times(self, module: Module, step: Executed, done: Work, multiplied: list[Product]) -> Times:
        """Of an instruction that is no collective."""
        moved = done.read + done.written
        counted = operations(module, step.instruction, step.computation)
        if not (moved or multiplied or counted):
            return Times()
        threads = _threads(step.instruction, self.threads)
        several = self.devices  # which run at the same time
        vector = several * sum(self.costs.get(name, self.costs["add"]) * count for name, count in counted.items()) / threads
        multiplying, memory = several * sum(map(self.product_seconds, multiplied)), several * moved / self._rate(threads, moved)
        # What was measured had its data in caches; fetching them comes on top (Stengel et al. 2015, the execution-cache-memory model).
        return Times(multiplying, vector, memory, fixed=self.start, waits=min(memory, max(multiplying, vector)))

    def network_seconds(self, collective: Collective, algorithm: str = "", full: bool = False) -> float:
        """Of one execution of a collective between simulated devices: what each sends is written and read again, in the same memory."""
        sent = collective.sent / collective.count
        return self.devices * 2 * sent / self._rate(self.threads, sent)

    def product_seconds(self, product: Product) -> float:
        """Of one product."""
        size = (product.rows, product.inner, product.columns)
        if product.batch == 1:
            rate = _interpolated(self.alone[int(product.straight)], (_ROWS, _INNER, _COLUMNS), size)
        else:
            rate = _interpolated(self.batched[int(product.straight)], (_BATCHED,) * 3, size)
        return product.flops / rate

    def _rate(self, threads, moved) -> float:
        """Bytes/s of so many bytes."""
        few, many = (math.exp(np.interp(math.log(max(moved, 1)), np.log(_MOVED), np.log(self.moving[each]))) for each in (1, self.threads))
        return float(np.interp(threads, (1, self.threads), (few, many)))


def _interpolated(rates: np.ndarray, axes: Sequence[Sequence[int]], point: Sequence[int]) -> float:
    """The rate at a point of a grid, linear in the logarithms of both; beyond its ends, that of its ends."""
    values = np.log(rates)
    for sizes, at in zip(axes, point, strict=True):
        place = float(np.interp(math.log(max(at, 1)), np.log(sizes), np.arange(len(sizes))))
        low = min(int(place), len(sizes) - 2)
        values = values[low] + (place - low) * (values[low + 1] - values[low])
    return math.exp(values)


def _threads(instruction: Instruction, threads: int) -> int:
    """How many threads an instruction is cut into: products and sums are by their library, loops as the compiler says, all else is not."""
    if instruction.opcode in ("dot", "convolution") or "__ynn_fusion" in instruction.attributes:
        return threads
    found = _PARTITIONS.search(instruction.attributes)
    return min(threads, math.prod(int(part.strip(' "')) for part in found[1].split(",") if part.strip())) if found else 1


def operations(module: Module, instruction: Instruction, computation: str) -> collections.Counter:
    """{operation: elements} of an instruction of a computation, those within a fusion among them; "reduce rows" are sums along the last
    dimension, whose parts no vector unit adds at once, and "reduce columns" the others."""
    if instruction.opcode == "fusion":
        (inside,) = instruction.called["calls"]
        return sum((operations(module, one, inside) for one in module.computations[inside].values()), collections.Counter())
    if instruction.opcode in _FREE or not instruction.results:
        return collections.Counter()
    if instruction.opcode != "reduce":
        return collections.Counter({instruction.opcode: instruction.results[0].size})
    (given,) = module.computations[computation][instruction.operands[0]].results
    last = str(len(given.dims) - 1) in _REDUCED.search(instruction.attributes)[1].split(",")
    return collections.Counter({"reduce rows" if last else "reduce columns": given.size})


@functools.cache
def processor(devices: int = 1) -> Processor:
    """This computer's processor, cut into so many devices that share it; measured once."""
    whole = measure() if devices == 1 else processor()
    peak = max(whole.peak_flops, float(np.max(whole.alone)), float(np.max(whole.batched)))  # of several measurements
    return dataclasses.replace(whole, devices=devices, peak_flops=peak / devices)


def measure() -> Processor:
    """This computer's processor as it is now, which takes about a quarter of a minute where nothing else runs."""
    threads = len(os.sched_getaffinity(0))
    moving = {1: _moving(_write_in_place), threads: _moving(_add_one)}
    return Processor(measured_peak(jax.devices("cpu")[0]), threads, _products(1), _products(_BATCH), _costs(), moving, _start())


def median_seconds(call: Callable[[], object], least: float = _SECONDS) -> float:
    """Median seconds of a call that gives arrays, of several that take `least` seconds together."""
    jax.block_until_ready(call())
    taken: list[float] = []
    while len(taken) < _CALLS or sum(taken) < least:
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _program(function: Callable, *arguments: jax.Array):
    return jax.jit(function).lower(*arguments).compile()


def _seconds(function: Callable, *arguments: jax.Array) -> float:
    """Of a compiled function, without those that any call takes."""
    return _net(median_seconds(functools.partial(_program(function, *arguments), *arguments)))


def _net(seconds: float) -> float:
    """Of what a compiled function took, without those that any call takes."""
    return max(seconds - _call(), seconds / 4)


@functools.cache
def _call() -> float:
    """Seconds of calling a compiled function that does next to nothing."""
    small = jnp.ones(8)
    return median_seconds(functools.partial(_program(jnp.negative, small), small))


def _start() -> float:
    """Seconds of an instruction on next to nothing, one of many in a loop: sums, which the compiler fuses no further."""
    x = jnp.ones((_SMALL, _SMALL))
    program = _program(lambda x: jax.lax.fori_loop(0, _TURNS, lambda _, x: jnp.tile(x.sum(0) + x.sum(1), (_SMALL, 1)) * 0.01, x), x)
    count = sum(step.times for step in executed(parse(program.as_text())) if step.instruction.opcode in ("fusion", "reduce"))
    return median_seconds(functools.partial(program, x)) / count


def _products(batch: int) -> np.ndarray:
    """FLOP/s of products [left operand crossed or straight, rows, inner, columns], the better of two rounds: what a shared computer
    does besides disturbs neighbours in one round together."""
    axes = (_ROWS, _INNER, _COLUMNS) if batch == 1 else (_BATCHED,) * 3
    shapes = list(itertools.product((0, 1), *axes))
    calls = [_product(batch, *shape) for shape in shapes]
    seconds = [min(pair) for pair in zip(*([_net(median_seconds(call)) for call in calls] for _ in range(2)), strict=True)]
    flops = [2 * batch * rows * inner * columns for _, rows, inner, columns in shapes]
    return (np.array(flops) / seconds).reshape(2, *map(len, axes))


def _product(batch, straight, rows, inner, columns) -> Callable[[], jax.Array]:
    """A compiled product with its operands."""
    many = () if batch == 1 else (batch,)
    left, right = jnp.ones((*many, *((rows, inner) if straight else (inner, rows)))), jnp.ones((*many, inner, columns))
    dims = (((len(many) + straight,), (len(many),)), ((0,), (0,)) if many else ((), ()))
    program = _program(functools.partial(jax.lax.dot_general, dimension_numbers=dims), left, right)
    return functools.partial(program, left, right)


def _costs() -> dict[str, float]:
    """Seconds of one core for an element, by operation."""
    x = jnp.linspace(0.5, 1.5, _ELEMENTS).reshape(64, -1)
    add = _cost(lambda x: functools.reduce(lambda y, k: (y + k) * x, range(_CHAIN), x), x) / (2 * _CHAIN)
    costs = {"add": add} | {name: _cost(function, x) for name, function in _ARITHMETIC.items()}
    costs |= {"reduce rows": _cost(lambda x: jnp.sum(x, 1), x), "reduce columns": _cost(lambda x: jnp.sum(x, 0), x)}
    rows = jnp.arange(_ELEMENTS // 64) * 7 % 64
    costs["gather"] = _cost(lambda x: x[rows[:64]], x)
    return costs | {"scatter": _cost(lambda x: x.at[rows[:64]].add(x), x)}


def _cost(function, x) -> float:
    """Seconds of one core for an element of a function's argument."""
    program = _program(function, x)
    threads = max(_threads(step.instruction, len(os.sched_getaffinity(0))) for step in executed(parse(program.as_text())))
    return _seconds(function, x) * threads / x.size


def _moving(make: Callable) -> list[float]:
    """Bytes/s of an operation that reads and writes arrays, for each of _MOVED."""
    return [moved / make(moved) for moved in _MOVED]


def _add_one(moved: int) -> float:
    """Seconds of a loop that all cores share, which reads half of so many bytes and writes the other half."""
    return _seconds(lambda x: x + 1, jnp.ones((64, moved // 512)))


def _write_in_place(moved: int) -> float:
    """Seconds of a loop that one core does: half of so many bytes written into a larger array."""
    x, part = jnp.ones((2, moved // 8)), jnp.ones(moved // 8)
    program = jax.jit(lambda x, part: jax.lax.dynamic_update_index_in_dim(x, part, 0, 0), donate_argnums=0).lower(x, part).compile()
    kept = [x]

    def call():
        kept[0] = program(kept[0], part)
        return kept[0]

    return _net(median_seconds(call))
