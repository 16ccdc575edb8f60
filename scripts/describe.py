"""Explains a config before it runs: parameters with shapes, sharding and decay, FLOPs and memory; or how two configs differ.

    python scripts/describe.py --config=configs/quickstart.py --config.model.width=512
    python scripts/describe.py --config=configs/quickstart.py --against=configs/lstm_quickstart.py

The last line of standard output is a JSON object: the totals, or the differences.
"""

import os

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_config()
    parser.add_argument("--against", metavar="FILE[:ARG]", help="another config, to show what differs (overrides are for --config alone)")
    arguments, overrides = parser.parse_with_overrides(argv)
    config = cli.load_config(arguments, overrides)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes alone are asked for: no accelerator is taken from a run
    from lm import config as configs
    from lm import describe

    if arguments.against:
        difference = describe.compare(config, configs.load(arguments.against))
        print(describe.text_of_difference(difference))
        cli.print_result(difference)
        return
    description = describe.describe(config)
    print(describe.text_of(description))
    cli.print_result(description["totals"])


if __name__ == "__main__":
    cli.run(main)
