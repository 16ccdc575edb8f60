"""Trains a model: starts a run in a work directory, or goes on with the one that is there.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart --config.train.steps=200

With --plan=DIR it launches what scripts/plan.py planned, on the devices that this is for: with the plan's overrides of --config (or with
its config alone) and its compiled step, and it says how fast the first steps are beside what was planned.

In a job of several processes each runs this same command. Who they are follows from Cloud TPU, Slurm, Kubernetes or Open MPI, or
from --coordinator, --processes and --process; scripts/launch_local.py starts several on one machine. The last line of standard
output (of process 0) is a JSON object with step, loss, tokens, tokens_per_second, mfu and workdir.
"""

import os

from lm import cli
from lm.errors import ConfigError


def _load(arguments, overrides):
    """(the config that a command line asks for, the plan to launch or None)."""
    if not arguments.plan:
        if not arguments.config:
            raise ConfigError("the following arguments are required: --config, or --plan of a plan that has one")
        return cli.load_config(arguments, overrides), None
    from lm.config import planned

    plan = planned.read(arguments.plan)
    return planned.load(plan, arguments.config, overrides), plan


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_config(required=False)
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_argument("--plan", metavar="DIR", help="launch what scripts/plan.py planned, on the devices that it is for: with its "
                        "overrides of --config (or its own config, without --config) and its executable")
    parser.add_processes()
    arguments, overrides = parser.parse_with_overrides(argv)
    # Alone, a wrong config is seen before JAX is loaded; several processes meet first, so that it is said once.
    config, plan = _load(arguments, overrides) if cli.alone(arguments) else (None, None)
    cli.keep_memory()
    if cli.alone(arguments):
        cli.keep_compilations()
    from lm.parallel import launch, processes

    with processes.member(launch.detect(os.environ, arguments)) as start:
        if config is None:
            config, plan = _load(arguments, overrides)
        start(config)
        from lm.train import train

        result = train(config, arguments.workdir, plan)
        if processes.is_first():
            cli.print_result(result)


if __name__ == "__main__":
    cli.run(main)
