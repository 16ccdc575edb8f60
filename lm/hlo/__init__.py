"""The text of a compiled program as numbers: what runs how often, with how much work, and what devices send each other."""

from lm.hlo.collectives import Collective, collectives, summed
from lm.hlo.loops import trips
from lm.hlo.text import Array, Instruction, Module, parse
from lm.hlo.walk import Executed, executed
from lm.hlo.work import Work, work

__all__ = ["Array", "Collective", "Executed", "Instruction", "Module", "Work", "collectives", "executed", "parse", "summed", "trips",
           "work"]
