"""Trains a model: starts a run in a work directory, or goes on with the one that is there.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart --config.train.steps=200

In a job of several processes each runs this same command. Who they are follows from Cloud TPU, Slurm, Kubernetes or Open MPI, or
from --coordinator, --processes and --process; scripts/launch_local.py starts several on one machine. The last line of standard
output (of process 0) is a JSON object with step, loss, tokens, tokens_per_second, mfu and workdir.
"""

import os

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_config()
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_processes()
    arguments, overrides = parser.parse_with_overrides(argv)
    # Alone, a wrong config is seen before JAX is loaded; several processes meet first, so that it is said once.
    config = cli.load_config(arguments, overrides) if cli.alone(arguments) else None
    cli.keep_memory()
    if cli.alone(arguments):
        cli.keep_compilations()
    from lm.parallel import launch, processes

    with processes.member(launch.detect(os.environ, arguments)) as start:
        config = config or cli.load_config(arguments, overrides)
        start(config)
        from lm.train import train

        result = train(config, arguments.workdir)
        if processes.is_first():
            cli.print_result(result)


if __name__ == "__main__":
    cli.run(main)
