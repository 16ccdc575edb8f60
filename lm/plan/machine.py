"""What runs a compiled step: how long each instruction keeps which of its parts busy."""

from typing import NamedTuple, Protocol

from lm.hlo.collectives import Collective
from lm.hlo.text import Module
from lm.hlo.walk import Executed
from lm.hlo.work import Work
from lm.plan.products import Product


class Times(NamedTuple):
    """Seconds of one execution of an instruction, by what it keeps busy; `fixed` is what starting it takes, `waits` what goes by where its
    parts wait for each other."""

    products: float = 0.0
    vector: float = 0.0
    memory: float = 0.0
    host: float = 0.0
    fixed: float = 0.0
    waits: float = 0.0

    @property
    def seconds(self) -> float:
        """That the slowest needs."""
        return self.fixed + self.waits + max(self.products, self.vector, self.memory, self.host)


class Machine(Protocol):
    """One device: a part of a chip of the table, or this computer's processor as measured. FLOP/s of products, bytes/s, Hz."""

    peak_flops: float
    bandwidth: float
    clock_hz: float

    def times(self, module: Module, step: Executed, done: Work, multiplied: list[Product]) -> Times:
        """Of an instruction that is no collective."""

    def network_seconds(self, collective: Collective, algorithm: str = "", full: bool = False) -> float:
        """Of one execution of a collective, by the algorithm that the compiler's attributes name, or over all links there are
        and without delay (`full`)."""
