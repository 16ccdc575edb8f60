"""Trains a model: starts a run in a work directory, or goes on with the one that is there.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart --config.train.steps=200

The last line of standard output is a JSON object with step, loss, tokens, tokens_per_second, mfu and workdir.
"""

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_config()
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    arguments, overrides = parser.parse_with_overrides(argv)
    config = cli.load_config(arguments, overrides)
    cli.keep_memory()
    from lm.train import train

    cli.print_result(train(config, arguments.workdir))


if __name__ == "__main__":
    cli.run(main)
