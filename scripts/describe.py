"""Explains a config before it runs: parameters with first values, sharding and decay, FLOPs and memory by component; or how two differ.

    python scripts/describe.py --config=configs/quickstart.py --config.model.width=512
    python scripts/describe.py --config=configs/quickstart.py --against=configs/lstm_quickstart.py
    python scripts/describe.py --config=configs/llama.py:7b --topology=v5e:16x16 --html=7b.html
    python scripts/describe.py --plan=plans/7b --html=7b.html --hlo=collectives.txt

With --topology or --devices, bytes are of one device of the mesh. With --plan (a folder of scripts/plan.py), or --hlo, which makes a plan
for the --topology, they are those of the compiled step; --hlo writes what it sends, with the lines that ask for it. The last line of
standard output is a JSON object: the totals, or the differences.
"""

import os
import pathlib
import sys

from lm import cli
from lm.errors import ConfigError, writing


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_config(required=False)
    parser.add_argument("--against", metavar="FILE[:ARG]", help="another config, to show what differs (overrides are for --config alone)")
    parser.add_argument("--topology", metavar="KIND:AxB", help="the chips of the mesh, such as v5e:16x16 or 2xv5p:4x4x4")
    parser.add_argument("--devices", type=int, default=0, metavar="N", help="devices of the mesh (default: as many as its axes name)")
    parser.add_argument("--plan", metavar="DIR", help="describe the config of a plan, with what its compiled step holds and sends")
    parser.add_argument("--html", metavar="FILE", help="write the page as HTML too, with bars and a picture of memory over time")
    parser.add_argument("--hlo", metavar="FILE", help="write every collective of the compiled step with the line of ours that asks for it")
    arguments, overrides = parser.parse_with_overrides(argv)
    _check(arguments, overrides)
    os.environ["JAX_PLATFORMS"] = "cpu"  # shapes alone are asked for: no accelerator is taken from a run
    from lm.plan import topology

    target = topology.asked_for(arguments.topology) if arguments.topology else None
    if arguments.against:
        _compare(arguments, overrides, target)
    else:
        _describe(arguments, overrides, target)


def _check(arguments, overrides):
    if bool(arguments.plan) == bool(arguments.config):
        raise ConfigError("give --config=FILE, or --plan=DIR, whose config is its own")
    if arguments.plan and (overrides or arguments.against or arguments.topology or arguments.devices):
        raise ConfigError("a plan has a config and a topology: leave out overrides, --against, --topology and --devices")
    if arguments.hlo and not (arguments.plan or arguments.topology):
        raise ConfigError("--hlo needs a compiled step: give --topology=KIND:AxB to compile one, or --plan=DIR")
    if arguments.hlo and arguments.against:
        raise ConfigError("--hlo is about one config: leave out --against")
    if arguments.topology and arguments.devices:
        raise ConfigError("--topology says how many devices there are: leave out --devices")
    if arguments.devices < 0:
        raise ConfigError(f"--devices={arguments.devices} must be at least 1")


def _describe(arguments, overrides, target):
    config = None if arguments.plan else cli.load_config(arguments, overrides)
    from lm import describe

    folder = arguments.plan or (_planned(config, arguments, overrides, target) if arguments.hlo else None)
    if folder:
        description = describe.describe_plan(folder)
    else:
        description = describe.describe(config, describe.place_of(config, target, arguments.devices), traced=True)
    page = describe.html_of(description) if arguments.html else ""
    print(describe.text_of(description))
    _write(arguments.html, page)
    if arguments.hlo:
        _write(arguments.hlo, describe.text_of_collectives(description["collectives"], description["note"]) + "\n")
    held = describe.bytes_per_device(description)
    cli.print_result(description["totals"] | {"devices": description["devices"], "bytes_per_device": held})


def _planned(config, arguments, overrides, target) -> str:
    from lm.plan import planning

    print(f"compiling for {target.name} ...", file=sys.stderr, flush=True)
    return planning.plan(config, target, source=arguments.config, overrides=overrides)["folder"]


def _compare(arguments, overrides, target):
    from lm import config as configs

    both = cli.load_config(arguments, overrides), configs.load(arguments.against)
    from lm import describe

    difference = describe.compare(*both, *(describe.place_of(config, target, arguments.devices) for config in both), traced=True)
    print(describe.text_of_difference(difference))
    _write(arguments.html, describe.html_of_difference(difference, (arguments.config, arguments.against)) if arguments.html else "")
    cli.print_result(difference)


def _write(path, text):
    if path:
        with writing(path):
            pathlib.Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
