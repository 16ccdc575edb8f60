"""Checks an installation, and a cluster: versions, devices, sums over each mesh axis, work directory, clocks.

    python scripts/doctor.py --workdir=runs/try --config.mesh.fsdp=-1 --config.mesh.replica=1

Run it as the training would run, with the same launcher, --config and mesh. It prints a table on standard error and one JSON object on
the last line of standard output; the exit code is 1 when a check failed.
"""

import os
import sys

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_config(required=False)
    parser.add_argument("--workdir", help="folder to which runs will write")
    parser.add_processes()
    arguments, overrides = parser.parse_with_overrides(argv)

    def load():
        from lm import config as configs

        if arguments.config:
            return cli.load_config(arguments, overrides)
        return configs.validate(configs.override(configs.default(), overrides))

    config = load() if cli.alone(arguments) else None
    if cli.alone(arguments):
        cli.keep_compilations()
    from lm.parallel import launch, processes

    with processes.member(launch.detect(os.environ, arguments)) as start:
        config = config or load()
        start(config)
        from lm import doctor

        report = doctor.examine(config, arguments.workdir)
        failed = [finding for finding in report["findings"] if finding["state"] == "failed"]
        if processes.is_first():
            print(doctor.table(report), file=sys.stderr)
            if failed:
                print(f"error: {failed[0]['name']}: {failed[0]['text']}: {failed[0]['fix']}", file=sys.stderr)
            cli.print_result(report)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
