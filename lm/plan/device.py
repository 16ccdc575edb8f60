"""Seconds of instructions on one device of a TPU, from the table of chips."""

import re

from lm.hlo.collectives import Collective
from lm.hlo.text import Module
from lm.hlo.walk import Executed
from lm.hlo.work import Work, expected_cycles
from lm.plan.chips import Chip
from lm.plan.kernels import queries_of
from lm.plan.machine import Times
from lm.plan.network import Network
from lm.plan.products import Product

# The vector unit has one slot of four for exp, log, tanh and the like.
_TRANSCENDENTAL = 4
# Of the softmax in an attention kernel, for each score and two products: mask, scale, maximum, difference, exponential, sum, conversions.
_KERNEL_OPERATIONS = 12
_ROWS = 8  # of a register, and so of what a matrix unit takes in at a time
_HOST = 5
_GATHERS = re.compile(r'"emitter":"(\d)DAllGather')
_ALGORITHM = re.compile(r'"collective_algorithm_config":\{"emitter":"\w*","strategy":"(\w*)","debug":"\\n\w*\{colors:(\d+)')


class Device:
    """One device of a TPU; see `lm.plan.machine.Machine`."""

    def __init__(self, chip: Chip, network: Network):
        self._chip, self._network = chip, network
        several = chip.devices_per_chip
        self.peak_flops, self.bandwidth, self.clock_hz = chip.peak_flops["bf16"] / several, chip.hbm_bandwidth / several, chip.clock_hz
        self._vector, self._host = chip.vector_rate / several, chip.host_bandwidth / several

    def times(self, module: Module, step: Executed, done: Work, multiplied: list[Product]) -> Times:
        """Of an instruction that is no collective."""
        flops = sum(product.flops / fill(product, self._chip.tile) for product in multiplied)
        operations = done.elementwise + _TRANSCENDENTAL * done.transcendentals
        if done.flops and not multiplied:  # a kernel's
            flops = done.flops
            operations += done.flops / (4 * queries_of(step).dims[-1]) * _KERNEL_OPERATIONS
        moved = _through_host(step.operands + step.instruction.results, done)
        return Times(flops / (self.peak_flops * self._chip.product_share), operations / self._vector,
                     (done.read + done.written) / (self.bandwidth * self._chip.hbm_share), moved / self._host,
                     # The compiler expects less of what it does with a few moves of registers, and nothing of what only names arrays.
                     fixed=min(self._chip.start_cycles, expected_cycles(step.instruction) or 0) / self.clock_hz)

    def network_seconds(self, collective: Collective, algorithm: str = "", full: bool = False) -> float:
        """Of one execution of a collective, by the algorithm that the compiler's attributes name, or over all links there are
        and without delay (`full`)."""
        moved, several = collective.bytes / collective.count, self._chip.devices_per_chip
        if collective.between_slices:  # all devices of a chip share what it has of the data centre's network
            return self._network.between(collective.kind, collective.size, several * moved, latency=not full)
        links = None if full else self._links(collective, algorithm)
        one = self._network.seconds(collective.kind, collective.axis, collective.size, moved, links, latency=not full)
        return one * several  # which send at the same time, over the same links

    def _links(self, collective, algorithm) -> float | None:
        """How many links' worth an algorithm takes in: a strategy has as many rings as colors, each in both directions unless its name
        says otherwise. Of a gather the compiler names no strategy, but along how many sides of the torus it goes at once: around a single
        ring, unless it says more."""
        if named := _ALGORITHM.search(algorithm):
            return int(named[2]) * (1 if named[1].startswith("UniDirection") else 2)
        if collective.kind != "all-gather" or not collective.axis:
            return None
        sides, reach = _GATHERS.search(algorithm), self._network.reach(collective.axis)
        return reach.links_of(int(sides[1])) if sides and int(sides[1]) > 1 else reach.ring


def fill(product: Product, tile: int) -> float:
    """What a product fills of the tiles that it is done in: `tile` x `tile` of one operand stay in the unit while rows of the other pass
    by in eights; which of them stays is the compiler's choice."""
    rows, inner, columns = product.rows, product.inner, product.columns
    stays = max(_share(columns, tile) * _share(rows, _ROWS), _share(rows, tile) * _share(columns, _ROWS))
    return _share(inner, tile) * stays


def _share(size, unit) -> float:
    return size / (unit * -(-size // unit)) if size else 1.0


def _through_host(arrays, done: Work) -> int:
    """Bytes between the host's memory and a device: as many as are read or written on the device, of what may be a stack on the host."""
    there = max((array.bytes for array in arrays if array.space == _HOST), default=0)
    return min(there, max(done.read, done.written))
