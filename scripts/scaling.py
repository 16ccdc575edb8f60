"""Scaling laws: how loss falls with size, text and compute, what size is best for a budget, and which family needs less compute.

    python scripts/scaling.py --points=runs.csv
    python scripts/scaling.py --runs='runs/scaling/arms/*/seeds/*' --measure=bits_per_byte
    python scripts/scaling.py --config=configs/lineage/gru.py --against=configs/lineage/lstm.py --workdir=runs/scaling \\
        --budgets=2e12,4e12,8e12,1.6e13 --sizes=0.25,0.5,1,2 --seeds=2

Points are rows of parameters, tokens and loss, with flops, family, seed and run where known (CSV or JSON); or runs; or a ladder of runs
that is trained: each config at multiples of its parameters beside embeddings, each size with each budget of training FLOPs. After an end
of any kind the same command goes on with the ladder; more sizes, budgets or seeds extend it. --config and --against take
[NAME=]FILE[:ARG][[KEY=VALUE,...]] as scripts/compare.py does, and --config.a.b=v holds for all.

Fitted are L(N, D) = E + A / N^alpha + B / D^beta, the isoFLOP parabolas and the frontier of each family (docs/scaling.md); the largest
budget is predicted from the others (--hold_out). The first family is compared with each other one. The page goes to standard output, and
points.csv, scaling.json and scaling.svg to --out, or to the folder scaling of --workdir. The last line is a JSON object: what was found.
"""

import json
import math
import os
import pathlib

from lm import cli
from lm.errors import ConfigError

# Flags that belong to a ladder.
LADDER = ("against", "budgets", "sizes", "seeds", "workers", "retry")


def parser_of() -> cli.Parser:
    """The flags."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--points", metavar="FILE", help="fit the points of a CSV or JSON file")
    add("--runs", metavar="GLOB", help="fit the runs in these folders")
    parser.add_config(required=False)
    add("--against", metavar="FILE[:ARG],...", help="other families, to compare the config's with")
    add("--budgets", metavar="C,...", help="training FLOPs of a run")
    add("--sizes", metavar="M,...", help="multiples of the configs' parameters beside embeddings (default: 0.25,0.5,1,2)")
    add("--seeds", type=int, metavar="N", help="runs of each size and budget, on seeds 0 to N - 1 (default: 1)")
    add("--workdir", help="work directory of the ladder")
    add("--workers", type=int, metavar="N", help="processes that train at once on this machine (default: 1)")
    add("--retry", action="store_true", default=None, help="try again what failed")
    add("--measure", choices=("nats_per_token", "bits_per_byte"), help="the loss of a run (default: nats_per_token)")
    add("--count", choices=("total", "nonembedding", "active"), help="the parameters of a run that N counts (default: total)")
    add("--hold_out", metavar="largest|none|FLOPS", default="largest", help="what is predicted from the rest (default: the largest budget)")
    add("--loss", type=float, metavar="L", help="compare families at this loss alone, not over all losses that both reach")
    add("--resamples", type=int, metavar="N", default=400, help="resamples behind each interval (default: 400)")
    add("--out", metavar="DIR", help="folder for points.csv, scaling.json and scaling.svg")
    return parser


def main(argv):
    """Entry point."""
    arguments, overrides = parser_of().parse_with_overrides(argv)
    check_flags(arguments, overrides)
    measure, count = arguments.measure or "nats_per_token", arguments.count or "total"
    # Fits are of a few numbers: threads of BLAS, which would help large matrices, make them ten times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    missing, notes = [], []
    if arguments.points:
        from lm.compare import points as files

        points = files.read(arguments.points)
    elif arguments.runs:
        from lm.compare import ladder

        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes alone are asked for
        points = ladder.of_runs([arguments.runs], measure, count)
    else:
        points, missing, notes = trained(arguments, overrides, measure, count)
        if points is None:
            return 0
    report(arguments, points, "loss" if arguments.points else measure.replace("_", " "), missing, notes)
    return 0


def check_flags(arguments, overrides):
    """ConfigError for flags that do not go together."""
    sources = [name for name in ("points", "runs", "workdir") if getattr(arguments, name) is not None]
    if len(sources) != 1:
        raise ConfigError("give one of --points=FILE, --runs=GLOB, or --workdir=DIR with --config and --budgets")
    if sources != ["workdir"]:
        for name in ("config", *LADDER):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name} is of a ladder that is trained, in --workdir: leave it out with --{sources[0]}")
        for name in ("measure", "count") if arguments.points else ():
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name} says what is read of runs, and points of a file are as they are: leave it out with --points")
    elif arguments.config and not arguments.budgets:
        raise ConfigError("--config needs --budgets: training FLOPs of a run, such as --budgets=1e11,3e11,1e12")
    if arguments.workdir and not arguments.config:
        for name in ("against", "budgets", "sizes", "seeds"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name} needs --config; without either, the ladder that is in --workdir goes on")
    if overrides and not arguments.config:
        raise ConfigError(f"--config.{next(iter(overrides))} changes configs, and there is no --config")
    for name in ("workers", "seeds", "resamples"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name}={getattr(arguments, name)} must be at least 1")
    if arguments.hold_out not in ("largest", "none") and not 0 < _number(arguments.hold_out) < math.inf:
        raise ConfigError(f"--hold_out={arguments.hold_out}: use largest, none, or FLOPs such as 1e18")
    if arguments.loss is not None and not 0 < arguments.loss < math.inf:
        raise ConfigError(f"--loss={arguments.loss:g}: use a loss above 0, such as 3.2")


def _number(text: str) -> float:
    """A number, NaN where the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def trained(arguments, overrides, measure: str, count: str):
    """(points of a ladder, what is missing, notes) after it is trained; (None, ..., ...) where a signal ended that before."""
    from lm.compare import ask as asks
    from lm.compare import ladder, sweep
    from lm.compare.budgets import check_one_text

    if arguments.config:
        entries = asks.entries(",".join(filter(None, (arguments.config, arguments.against))), overrides)
        for entry in entries:
            entry.config()  # a wrong one is said before anything is written
        asked = ladder.Ladder(entries, cli.numbers("sizes", arguments.sizes, (0.25, 0.5, 1, 2)),
                              cli.numbers("budgets", arguments.budgets, (1e11, 3e11)), arguments.seeds or 1)
        plan(arguments, asked)
    ladder.read(arguments.workdir)
    if arguments.retry:
        sweep.retry(arguments.workdir)
    planned = sweep.open_sweep(arguments.workdir)
    check_one_text({arm.name: arm.config for arm in planned.arms}, measure == "nats_per_token")  # before they are trained
    print(cli.table(sweep.table(arguments.workdir)), flush=True)
    with sweep.Supervisor(planned, arguments.workers or 1, lambda line: print(line, flush=True)) as supervisor:
        if not supervisor.run():
            cli.print_result({"sweep": arguments.workdir, "finished": False})
            return None, [], []
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    points, missing = ladder.gather(arguments.workdir, measure, count)
    return points, missing, notes_of(arguments.workdir)


def plan(arguments, asked):
    """Makes the ladder a sweep, in a process of its own, which gives the devices back when it ends. ProcessError where it is killed."""
    from lm.compare import sweep

    sweep.size_apart(["-m", "lm.compare.ladder", arguments.workdir, json.dumps(asked.to_json())], "the ladder",
                     "with fewer or smaller --sizes", arguments.debug, arguments.workers or 1)


def notes_of(workdir) -> list[str]:
    """What a reader must know of a ladder."""
    from lm.compare import ladder, scaling

    often = ladder.epochs(workdir)
    notes = ["learning rates are the configs' own at every size: tune them at the ends of the ladder before a close call is believed"]
    if often > 1:
        worth = "worth less than new text" if often > scaling.MOST_EPOCHS else "worth nearly as much as new text"
        notes.append(f"the longest run reads its text {often:.2g} times, and the law counts each as new (so often it is {worth}, "
                     "Muennighoff et al. 2023)")
    return notes


def report(arguments, points, unit: str, missing: list[str], notes: list[str]):
    """Fits the points, whose loss is in a unit, prints the page and writes the files."""
    from lm.compare import points as files
    from lm.compare import scaling
    from lm.data.files import atomic_file, write_json

    result = scaling.analyse(points, arguments.hold_out, arguments.resamples, loss=arguments.loss)
    result |= {"measure": unit, "missing": missing, "notes": notes}
    parts = [scaling.page(result, unit), *(f"note: {note}" for note in notes)]
    parts += ["runs without a score\n" + "\n".join(f"  {each}" for each in missing)] if missing else []
    print("\n\n" + "\n\n".join(parts))
    folder = arguments.out or (arguments.workdir and pathlib.Path(arguments.workdir) / "scaling")
    if folder:
        from lm.compare import scaling_plots

        result["files"] = {name: str(pathlib.Path(folder) / name) for name in ("points.csv", "scaling.json", "scaling.svg")}
        files.write(result["files"]["points.csv"], points)
        with atomic_file(result["files"]["scaling.svg"]) as file:
            scaling_plots.figure(points, arguments.hold_out, unit).savefig(file, format="svg")
        write_json(result["files"]["scaling.json"], result)
        print("\n" + "\n".join(result["files"].values()))
    pairs = [{name: value for name, value in pair.items() if name != "ratios"} for pair in result["comparisons"]]
    cli.print_result(result | {"comparisons": pairs})


if __name__ == "__main__":
    cli.run(main)
