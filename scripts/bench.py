"""Measures this machine, this code on it, and what others do there in the same run.

    python scripts/bench.py                                       all benchmarks
    python scripts/bench.py train --shape=M --against=torch       our train step and PyTorch's in turns
    python scripts/bench.py --guard                               is any of our programs another than the record says?

matmul: the machine's practical peak by size and type, and its memory bandwidth. train: speed, MFU, first step and peak memory of
training. decode: prefill and later tokens against the bytes that they must read. data: preparation, the loader, waiting. checkpoint:
what a save costs the steps, and how soon it is on disk. startup: commands before JAX, first steps cold and warm. memory: peak memory
against context and vocabulary, and how time grows.

Sides run in processes of their own and take turns; --against says whom to compare with (pip install -e '.[bench]'). Tables go to
standard error, and each benchmark's result is one line of JSON on standard output; with --against it has `ours`, `peer` and `ratio`
(above 1: ours is better).
"""

from lm import cli
from lm.bench import guard
from lm.bench.command import BENCHMARKS, FAMILIES, NEEDS, Options, options_of, run_all
from lm.bench.shapes import SHAPES
from lm.errors import ConfigError


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--shape", choices=SHAPES, default=Options.shape_name, help="model and batch (default %(default)s)")
    parser.add_argument("--family", choices=FAMILIES, help="architecture of the shapes that are Transformers (default gpt2)")
    parser.add_argument("--against", choices=NEEDS, help="whom to compare with")
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="turns of each side (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="about how long a turn is (default %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="PNG that the benchmark memory draws")
    parser.add_argument("--json", metavar="FILE", help="where to keep all results, with sides and quartiles")
    parser.add_argument("--guard", action="store_true", help="only compare what our programs cost, compiled and not run, with a record")
    parser.add_argument("--refresh", action="store_true", help="with --guard: write the record anew")
    arguments = parser.parse_args(argv)
    if arguments.guard or arguments.refresh:
        if not {"--guard"} <= set(argv) <= {"--guard", "--refresh", "--debug"}:
            raise ConfigError("--guard has programs of its own: give it nothing but --refresh, which goes with --guard alone")
        return guard.run(arguments.refresh)
    options = options_of(arguments.shape, arguments.family, arguments.against, arguments.rounds, arguments.seconds, arguments.plot)
    run_all(arguments.names, options, arguments.json)


if __name__ == "__main__":
    cli.run(main)
