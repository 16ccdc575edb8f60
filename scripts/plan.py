"""Plans a run for hardware that is not here: compiles its train step for a topology, and says whether it fits and how fast it should go.

    python scripts/plan.py --config=configs/llama.py:7b --topology=v5e:16x16
    python scripts/plan.py --config=configs/llama.py:7b --topology=v5e:16x16 --search        the fastest layout that fits
    python scripts/plan.py --config=configs/llama.py:7b --topology=v5e:16x16 --fit=batch     the largest batch, context or model
    python scripts/plan.py --config=configs/llama.py:7b --cheapest --tokens=1e12             the chips that get there at least cost
    python scripts/plan.py --check          the estimates against this machine's own steps
    python scripts/plan.py --published      the estimates against published speeds

Topologies: v5e:16x16 and v6e:8x8, v4:4x4x8, v5p:8x8x8 and tpu7x:4x4x4, 2xv5e:16x16 (two slices), cpu:8 (devices of this machine). TPUs
need the extra `plan` (pip install -e '.[plan]'). The page goes to standard output and its last line is the plan as JSON; a step that
does not fit is an answer too (fits is false). scripts/train.py and the launchers take the folder of a plan with --plan=DIR.
"""

import os
import pathlib

from lm import cli
from lm.errors import ConfigError

# What each flag but the modes belongs to; "" is planning alone.
MODES = ("search", "fit", "cheapest", "check", "published")
BELONGS = {
    "config": ("", "search", "fit", "cheapest"), "topology": ("", "search", "fit"), "out": ("", "search", "fit", "cheapest", "published"),
    "compile": ("search", "fit", "cheapest"), "budget_seconds": ("search", "fit", "cheapest"), "workers": ("search", "cheapest"),
    "tokens": ("cheapest",), "topologies": ("cheapest",), "prices": ("cheapest",), "days": ("cheapest",),
}
NEEDED = {"": ("config", "topology"), "search": ("config", "topology"), "fit": ("config", "topology"), "cheapest": ("config", "tokens")}
POSITIVE = ("compile", "budget_seconds", "workers", "tokens", "days")
QUIET = ("timeline", "config", "launch")  # of plan.json, what the last line leaves out


def parser_of() -> cli.Parser:
    """The flags."""
    parser = cli.Parser(description=__doc__)
    parser.add_config(required=False)
    parser.add_argument("--topology", help="such as v5e:16x16, v5p:8x8x8, 2xv5e:16x16 or cpu:8")
    parser.add_argument("--out", metavar="DIR", help="folder for the plan; by default one of the cache")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--search", action="store_true", help="find the fastest layout that fits")
    modes.add_argument("--fit", choices=("batch", "context", "model"), help="find the largest one that fits")
    modes.add_argument("--cheapest", action="store_true", help="find the topology that trains on --tokens at the least cost")
    modes.add_argument("--check", action="store_true", help="time small configs on this machine and compare with the estimates")
    modes.add_argument("--published", action="store_true", help="plan published runs and compare with their speeds")
    parser.add_argument("--compile", type=int, metavar="N", help="with --search, --fit or --cheapest: most plans that are compiled")
    parser.add_argument("--budget_seconds", type=float, metavar="S", help="with the same: seconds after which no more are started")
    parser.add_argument("--workers", type=int, metavar="N", help="with --search or --cheapest: processes that compile at once")
    parser.add_argument("--tokens", type=float, metavar="N", help="with --cheapest: tokens to train on")
    parser.add_argument("--topologies", metavar="A,B", help="with --cheapest: what to choose from; by default many slices of each kind")
    parser.add_argument("--prices", metavar="FILE", help="with --cheapest: JSON of USD per chip-hour by kind, instead of list prices")
    parser.add_argument("--days", type=float, metavar="N", help="with --cheapest: leave out what takes longer")
    return parser


def main(argv):
    """Entry point."""
    arguments, overrides = parser_of().parse_with_overrides(argv)
    check_flags(arguments, overrides)
    config = cli.load_config(arguments, overrides) if arguments.config else None
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is run elsewhere: no accelerator is taken
    from lm.plan import topology

    target = topology.asked_for(arguments.topology) if arguments.topology else None
    if (target and target.kind != "cpu") or arguments.cheapest or arguments.published:
        topology.compiler_version()  # where there is none, it is said before anything is looked at
    if arguments.check or arguments.published:
        report(arguments)
        return
    text, plan = planned(arguments, config, overrides, target)
    print(text)
    cli.print_result({name: value for name, value in plan.items() if name not in QUIET})


def check_flags(arguments, overrides):
    """ConfigError for flags that are missing, belong to another mode, or are not above 0."""
    mode = next((name for name in MODES if getattr(arguments, name)), "")
    given = {name: getattr(arguments, name) for name in BELONGS if getattr(arguments, name) is not None}
    for name in NEEDED.get(mode, ()):
        if name not in given:
            raise ConfigError(f"the following arguments are required: --{name}")
    for name in given:
        if mode not in BELONGS[name]:
            others = " or ".join(f"--{other}" if other else "a plan alone" for other in BELONGS[name])
            raise ConfigError(f"--{name} is not for {f'--{mode}' if mode else 'a plan alone'}: it goes with {others}")
    if overrides and "config" not in given:
        raise ConfigError(f"--config.{next(iter(overrides))} changes a config, and --{mode} takes none")
    for name in POSITIVE:
        if name in given and not 0 < given[name] < float("inf"):
            raise ConfigError(f"--{name}={given[name]:g} must be above 0")


def report(arguments):
    """Prints how good the estimates are."""
    from lm.plan.best_first import tell

    if arguments.check:
        from lm.plan import check as room

        result = room.check(tell)
        print(room.page(result))
    else:
        from lm.plan import published as room

        rows = room.compare(pathlib.Path(arguments.out or cli.cache_folder() / "plans" / "published"), say=tell)
        print(room.page(rows))
        result = {"runs": rows}
    cli.print_result(result)


def planned(arguments, config, overrides, target) -> tuple[str, dict]:
    """(what to print, the plan) of one of the ways to plan, for the topology `target`."""
    from lm.plan import cheapest, fit, page, planning, search
    from lm.plan.best_first import tell

    common = {"source": arguments.config, "overrides": overrides}
    limits = {name: value for name, value in (("most", arguments.compile), ("seconds", arguments.budget_seconds)) if value is not None}
    workers = {} if arguments.workers is None else {"workers": arguments.workers}
    if arguments.cheapest:
        names = tuple(filter(None, (arguments.topologies or "").split(",")))
        plan = cheapest.cheapest(config, arguments.tokens, arguments.out, topologies=names, prices=arguments.prices, days=arguments.days,
                                 **common, **limits, **workers)
        return f"{cheapest.page(plan)}\n\n{page.page(plan)}", plan
    if arguments.search:
        plan = search.search(config, target, arguments.out, **common, **limits, **workers)
        return f"{search.page(plan)}\n\n{page.page(plan)}", plan
    if arguments.fit:
        plan = fit.fit(config, target, arguments.fit, arguments.out, **common, **limits)
        return f"{fit.page(plan)}\n\n{page.page(plan)}", plan
    tell(f"compiling for {target.name} ...")
    plan = planning.plan(config, target, arguments.out, **common)
    return page.page(plan), plan


if __name__ == "__main__":
    cli.run(main)
