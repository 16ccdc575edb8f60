"""Compares configs fairly: equal budgets, learning rates tuned for each, paired seeds, intervals on every difference, one report.

    python scripts/compare.py --configs=configs/lineage/lstm.py,configs/lineage/gru.py --budget=flops:1e13 --seeds=3 --workdir=runs/gated
    python scripts/compare.py --budget=tokens:6e5 --seeds=3 --workdir=runs/optimizers \\
        --configs='adamw=configs/quickstart.py[optim.name=adamw,optim.learning_rate=3e-3],muon=configs/quickstart.py'

A config is [NAME=]FILE[:ARG][[KEY=VALUE,...]]: overrides in brackets are its own, --config.a.b=v holds for all. The first is the baseline.
--budget (lm/compare/budgets.py) is what all have as much of: parameters, parameters.nonembedding, parameters.active, flops, tokens,
seconds, memory or inference; models are re-sized for it by the rule of their family, and lengths of runs follow. Without it, sizes are as
they are written.

The work directory is the sweep. After an end of any kind the same command goes on with what is there; more --seeds extend it. Several
machines that share it help: start `scripts/compare.py --workdir=W --worker` on each, or let --submit do so. The last line of standard
output is a JSON object with the paths of the report, the verdict, a row for each arm, the differences and what failed. The exit code is 1
where an arm has no score at all; what failed beside is listed, and --retry tries it again.
"""

import math
import pathlib
import shlex

from lm import cli
from lm.errors import ConfigError

# Flags of the ask; the rest is how it is worked on.
ASKED = ("configs", "references", "budget", "tokens", "sizes", "seeds", "tune", "factors", "shares", "prompts", "suites", "together")


def parser_of() -> cli.Parser:
    """The flags."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="work directory of the sweep")
    add("--configs", metavar="A,B,...", help="the configs; commas in brackets do not split")
    add("--budget", metavar="KIND:AMOUNT", help="what all get as much of, such as flops:1e13")
    add("--seeds", type=int, metavar="N", help="runs of each config, on seeds 0 to N - 1 (default: 3)")
    add("--references", metavar="A,...", help="configs shown beside, outside the budget and not tuned, such as configs/lineage/ngram.py:5")
    add("--tokens", type=float, metavar="N", help="tokens of each run, where the budget leaves that open (default: what the first config "
        "needs for a budget of FLOPs, else its own length)")
    add("--sizes", choices=("solve", "keep"), help="re-size for the budget (default), or keep the sizes as written")
    add("--tune", metavar="rates|none|KEY,...", help="what is tuned: the learning rates (default), nothing, or keys, which move together")
    add("--factors", metavar="F,...", help="the grid, times the config's values (default: 0.25,0.5,1,2,4)")
    add("--shares", metavar="S,...", help="shares of a run's length that the rungs of tuning train (default: 0.25,0.5,1)")
    add("--prompts", metavar="TEXT", action="append",
        help="text that each model continues for the report (default: passages of the text); may be repeated")
    add("--suites", metavar="NAME:FILE,...", help="evaluations of scripts/eval.py --suite for each model")
    add("--together", choices=("auto", "yes", "no"), help="train the seeds of an arm at once on one device (default: where that is faster)")
    add("--workers", type=int, metavar="N", help="processes that work at once on this machine (default: 1), or jobs that --submit starts "
        "(default: one for each config)")
    add("--submit", metavar="slurm|tpu", help="print what starts workers on a cluster: one array job, or a queued resource each")
    add("--launch", metavar="FLAGS", default="", help="with --submit: flags of scripts/launch/slurm.sh or tpu.sh, in quotes")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--send", action="store_true", help="with --submit: run it")
    modes.add_argument("--worker", action="store_true", help="only work on the sweep that is there; no report")
    modes.add_argument("--report", action="store_true", help="only make the report again, of what there is")
    add("--retry", action="store_true", help="try again what failed")
    return parser


def main(argv):
    """Entry point."""
    arguments, overrides = parser_of().parse_with_overrides(argv)
    asked = [name for name in ASKED if getattr(arguments, name) is not None]
    check_flags(arguments, asked, overrides)
    from lm.compare import ask as asks

    if arguments.report:
        asks.read(arguments.workdir)
        return report(arguments.workdir)
    if asked:
        prepare(arguments, overrides)
    from lm.compare import sweep

    if arguments.retry:
        sweep.retry(arguments.workdir)
    planned = sweep.open_sweep(arguments.workdir)
    check_machine(arguments, planned.ask.budget)
    if arguments.submit:
        return submit(arguments, planned)
    if not arguments.worker:
        print(cli.table(sweep.table(arguments.workdir)), flush=True)
    finished = not planned.due(planned.outcomes())
    if not finished:
        with sweep.Supervisor(planned, arguments.workers or 1, lambda line: print(line, flush=True)) as supervisor:
            finished = supervisor.run()
    if arguments.worker or not finished:
        left = 0 if finished else len(planned.due(planned.outcomes()))
        cli.print_result({"sweep": arguments.workdir, "finished": finished, "due": left})
        return 0
    return report(arguments.workdir)


def check_flags(arguments, asked: list[str], overrides):
    """ConfigError for flags that do not go together."""
    if (arguments.worker or arguments.report) and (asked or overrides):
        flag = f"--{asked[0]}" if asked else f"--config.{next(iter(overrides))}"
        raise ConfigError(f"{flag} is not for --{'worker' if arguments.worker else 'report'}, which takes what is asked from --workdir")
    if asked and "configs" not in asked:
        raise ConfigError(f"--{asked[0]} needs --configs; without either, the sweep that is in --workdir goes on")
    if overrides and not asked:
        raise ConfigError(f"--config.{next(iter(overrides))} changes configs, and there is no --configs")
    if (arguments.send or arguments.launch) and not arguments.submit:
        raise ConfigError(f"--{'send' if arguments.send else 'launch'} goes with --submit")
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers={arguments.workers} must be at least 1")
    for one, other in (("report", "retry"), ("report", "submit"), ("report", "workers"), ("submit", "worker")):
        if getattr(arguments, one) and getattr(arguments, other):
            raise ConfigError(f"--{one} and --{other} are different things to do: leave one out")


def check_machine(arguments, budget):
    """ConfigError for what would share the seconds of a budget, or what another machine than this one would measure."""
    if not budget or budget.kind not in ("seconds", "memory"):
        return
    if budget.kind == "seconds" and (arguments.workers or 1) > 1 and not arguments.submit:
        raise ConfigError(f"--workers={arguments.workers} would share the seconds of this machine: a budget of seconds needs --workers=1")
    if arguments.submit or arguments.worker:
        raise ConfigError(f"a budget of {budget.kind} is measured on the machine that trains, alone: start the command there, without "
                          f"--{'submit' if arguments.submit else 'worker'}")


def prepare(arguments, overrides):
    """Writes what is asked and, in a process of its own, which gives the devices back when it ends, what the solver chooses."""
    from lm.compare import ask as asks
    from lm.compare import checks, sweep

    asked = ask_of(arguments, overrides)
    for entry, _ in asked.entries:
        entry.config()  # a wrong one is said before anything is written
    check_machine(arguments, asked.budget)
    checks.check_new_prompts(arguments.workdir, asked)
    asks.settle(arguments.workdir, asked)
    if sweep.is_planned(arguments.workdir, asked):
        return sweep.check_unchanged(arguments.workdir, asked)
    sweep.size_apart(["-m", "lm.compare.worker", arguments.workdir, "--plan"], f"the arms of {arguments.workdir}",
                     "make the configs smaller", arguments.debug, 1 if arguments.submit else arguments.workers or 1)


def ask_of(arguments, overrides):
    """What the flags ask."""
    from lm.compare import ask as asks
    from lm.compare import budgets, tuning

    entries = asks.entries(arguments.configs, overrides)
    references = asks.entries(arguments.references or "", overrides, tuple(entry.name for entry in entries))
    tune = arguments.tune or "rates"
    keys = {"none": None, "rates": "rates"}.get(tune) if tune in ("none", "rates") else tuning.check_keys(tuple(asks.split(tune)))
    usual = tuning.Grid()
    grid = tuning.check(tuning.Grid(cli.numbers("factors", arguments.factors, usual.factors),
                                    cli.numbers("shares", arguments.shares, usual.shares)))
    return asks.Ask(entries, references, budgets.parse(arguments.budget) if arguments.budget else None,
                    tokens_of(arguments.tokens), arguments.sizes or "solve",
                    tuple(range(3 if arguments.seeds is None else arguments.seeds)), keys, grid, tuple(arguments.prompts or ()),
                    suites_of(arguments.suites), arguments.together or "auto")


def tokens_of(tokens: float | None) -> int | None:
    """A length in tokens."""
    if tokens is not None and not math.isfinite(tokens):
        raise ConfigError(f"--tokens={tokens} is not a number of tokens: use one above 0, such as 1e6")
    return None if tokens is None else int(tokens)


def suites_of(text: str | None) -> tuple[str, ...]:
    """The evaluations of a list, whose files are there: what is wrong with one is not to be found out after training."""
    if not text:
        return ()
    from lm.evaluate import suite

    entries = suite.parse(text)
    for entry in entries:
        if entry.suite != suite.HARNESS and not pathlib.Path(entry.argument).is_file():
            raise ConfigError(f"--suites={text}: there is no file {entry.argument}")
    return tuple(map(str, entries))


def submit(arguments, planned):
    """Prints the script that starts workers elsewhere, or runs it."""
    from lm.compare import submit as room

    calls = room.commands(arguments.submit, arguments.workdir, arguments.workers or len(planned.ask.configs), arguments.launch)
    if arguments.send:
        room.send(calls)
    else:
        print(room.script(calls, arguments.workdir), end="")
    cli.print_result({"sweep": arguments.workdir, "sent": arguments.send, "commands": [shlex.join(call) for call in calls]})


def report(workdir) -> int:
    """Makes the report and prints the result; exit code 1 where an arm has no score."""
    from lm.compare import report as room
    from lm.compare.results import usable

    paths = room.write(workdir)
    results = paths.pop("results")
    print(results["verdict"])
    failed = [{"arm": arm["name"], **failure} for arm in results["arms"] for failure in arm["failed"]]
    cli.print_result({"report": paths, "verdict": results["verdict"], "table": [row_of(arm) for arm in results["arms"]],
                      "differences": results["differences"], "failed": failed})
    return int(any(not usable(arm["scores"]) for arm in results["arms"]))


def row_of(arm: dict) -> dict:
    """An arm in numbers: what was chosen for it, where its best rate is in the grid and how sharp that is, and what was measured."""
    from lm.compare.report.tables import sharpness

    sized, tuned = arm["sized"] or {}, arm["tuned"] or {}
    row = {"arm": arm["name"], "reference": arm["reference"], "seeds": len(arm["scores"])}
    row |= {name: sized.get(name) for name in ("parameters", "steps", "tokens", "flops", "chosen")}
    row |= {"tuned": (tuned.get("best") or {}).get("values"), "edge": tuned.get("edge"), "sharpness": sharpness(tuned) if tuned else None,
            "bootstrap": arm.get("bootstrap")}
    return row | arm["summary"]


if __name__ == "__main__":
    cli.run(main)
