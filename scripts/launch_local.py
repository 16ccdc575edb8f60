"""Runs a script as a job of several processes on this machine, on simulated CPU devices, as a cluster would.

    python scripts/launch_local.py --processes=2 --devices=4 -- scripts/train.py --config=configs/quickstart.py --workdir=runs/two

With --plan=DIR, of scripts/plan.py for cpu:N, each process gets its share of the N devices, and the script gets --plan=DIR too.

Standard output is that of process 0; everything else goes to standard error, each line after the index of its process. SIGTERM and
Ctrl-C reach all processes, once. When a process fails the others get --grace seconds to end too. The exit code is that of the first
process that failed.
"""

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument("--devices", type=int, help="simulated CPU devices of each process (default: 1, or as many as the plan's)")
    parser.add_argument("--plan", metavar="DIR", help="launch a plan for cpu:N: the command gets it as --plan")
    parser.add_argument("--coordinator-port", type=int, default=0, help="port on which process 0 listens; 0 takes a free one")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that the others have to end after one has failed")
    parser.add_argument("command", nargs="+", metavar="-- SCRIPT ARGUMENTS", help="the script and its arguments")
    arguments = parser.parse_args(argv)
    from lm import launch_local

    devices, command = arguments.devices, arguments.command
    if arguments.plan:
        devices = launch_local.devices_of_plan(arguments.plan, arguments.processes, devices)
        command = [*command, f"--plan={arguments.plan}"]
    return launch_local.run(command, arguments.processes, 1 if devices is None else devices, arguments.coordinator_port, arguments.grace)


if __name__ == "__main__":
    cli.run(main)
