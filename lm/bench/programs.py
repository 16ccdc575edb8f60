"""What XLA says of our compiled programs: work, memory and instructions, which nothing else on the machine disturbs."""

import collections

import jax

from lm import hlo, models
from lm.bench.ours import Training
from lm.bench.shapes import Shape, config_of
from lm.generate import Generator, Sampling

PROMPT, NEW = 128, 128  # tokens of the decoding program


class Step(Training):
    """Our train step, compiled as a run compiles it and never run; see `lm.bench.worker`."""

    def costs(self) -> dict[str, int]:
        """`costs` of the program."""
        with jax.set_mesh(self._mesh):
            (program,) = self._job().compile_step().values()
            return costs(program)


class Decoding:
    """The program that `lm.generate` compiles for one prompt of PROMPT tokens and NEW sampled ones; see `lm.bench.worker`."""

    # Ids that any vocabulary has, in the place of a tokenizer's.
    pad_id, bos_id, eos_id, stop_ids, prompt_bos = 0, 1, 2, (2,), True

    def __init__(self, shape: list):
        shape = Shape(*shape)
        self.vocab_size = shape.vocab_size
        model = models.build(config_of(shape).model, shape.vocab_size, shape.context)
        self._generator = Generator(model, jax.eval_shape(model.init, jax.random.key(0)), self)

    def costs(self) -> dict[str, int]:
        """`costs` of the program."""
        return costs(self._generator._compile((1, PROMPT), NEW, Sampling(), 0))


def costs(compiled) -> dict[str, int]:
    """FLOPs and bytes as XLA counts them, sizes in memory, known turns of all loops, and how many instructions of each kind there are.

    XLA counts the body of a loop once, so that FLOPs fall where a loop takes the place of what was unrolled: read them with the turns.
    """
    work, memory, module = compiled.cost_analysis(), compiled.memory_analysis(), hlo.parse(compiled.as_text())
    found = {name: round(work.get(name, 0)) for name in ("flops", "transcendentals", "bytes accessed")}  # XLA leaves zeros out
    found |= {f"{name} bytes": getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")}
    turns = sum(hlo.trips(module, loop) or 0 for loop in module.instructions() if loop.opcode == "while")
    found |= {"peak bytes": memory.peak_memory_in_bytes, "turns of loops": turns}
    kinds = opcodes(module)
    return found | {"instructions": sum(kinds.values())} | kinds


def opcodes(module: hlo.Module) -> dict[str, int]:
    """{opcode: how many}, by name, in all computations of a program; the body of a loop counts once."""
    return dict(sorted(collections.Counter(instruction.opcode for instruction in module.instructions()).items()))
