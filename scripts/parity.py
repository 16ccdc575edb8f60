"""Compares our models with those of the transformers library: small ones with random weights, in float32, into a run and out again.

    python scripts/parity.py
    python scripts/parity.py llama gpt2
    python scripts/parity.py --into=docs/interop.md --name=parity

Needs the extra parity. The table has, for each family, the largest difference of outputs over its cases, and whether every tensor of every
case came back bit for bit. The last line of standard output is a JSON object with the results; the exit code is 1 where a difference is
above 1e-4 or a tensor has changed.
"""

import pathlib
import tempfile

from lm import cli
from lm.errors import ConfigError, DataError

MOST = 1e-4


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="NAME", help="cases whose names begin so (default: all)")
    parser.add_argument("--into", metavar="FILE", help="Markdown file whose table is to be replaced")
    parser.add_argument("--name", default="parity", help="of the place in that file")
    arguments = parser.parse_args(argv)
    from lm.interop import parity

    parity.torch_and_transformers()
    names = tuple(arguments.families)
    cases = [case for case in parity.cases() if not names or case.name.startswith(names)]
    if not cases:
        raise ConfigError(f"no case begins with {' or '.join(names)}: there are {', '.join(case.name for case in parity.cases())}")
    found = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            found.append(parity.check(case, pathlib.Path(folder)))
        print(f"{case.name}: largest difference {found[-1]['max_abs_diff']:.1e}, "
              f"{'bit for bit there and back' if found[-1]['round_trip'] else 'CHANGED on the way back'}", flush=True)
    table = parity.table(found)
    print(table)
    if arguments.into:
        from lm.compare.report import markdown

        markdown.put(arguments.into, arguments.name, table)
    cli.print_result({"cases": found})
    wrong = [one["case"] for one in found if one["max_abs_diff"] > MOST or not one["round_trip"]]
    if wrong:
        raise DataError(f"{', '.join(wrong)}: not what transformers computes or saves")


if __name__ == "__main__":
    cli.run(main)
