"""A ladder for scaling laws: configs at several sizes, each trained with several budgets of FLOPs.

It is a sweep (`lm.compare.sweep`) with an arm for each size and budget, so that it is resumed, shared by workers and scored as one.

    python -m lm.compare.ladder WORKDIR LADDER      sizes the arms of a ladder (JSON as ladder.json), and does nothing else

Sizes are multiples of a config's parameters beside embeddings, by the rule of its family (`lm.compare.rules`); the length of a run is its
budget over the FLOPs of a step, and its schedule is as long. Learning rates are the config's own at every size.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from lm import cli
from lm import config as configs
from lm.compare import ask as asks
from lm.compare import sweep, tasks
from lm.compare.ask import Ask, Entry
from lm.compare.budgets import Budget, check_one_text, check_same_data
from lm.compare.points import Points, of_rows
from lm.config import durations
from lm.config.model_keys import COUNTED
from lm.data.files import read_json, write_json
from lm.errors import ConfigError, DataError

FILE = "ladder.json"
# How far from its budget a run may be, as a share: all of a budget are then within the 10 % that make them one.
MOST_OFF = 0.04
MEASURES = {"nats_per_token": "nats per token", "bits_per_byte": "bits per byte"}
# What N counts: all parameters, those without tables of tokens and positions, or those used for a token.
COUNTS = {"total": "parameters", "nonembedding": "nonembedding", "active": "active"}


@dataclasses.dataclass(frozen=True)
class Ladder:
    """What is trained: every entry at every multiple of its size with every budget in FLOPs, on `seeds` seeds."""

    entries: tuple[Entry, ...]
    sizes: tuple[float, ...]
    budgets: tuple[float, ...]
    seeds: int = 1

    def __post_init__(self):
        for flag, values in (("sizes", self.sizes), ("budgets", self.budgets)):
            if not values or len(set(values)) < len(values) or not all(0 < value < float("inf") for value in values):
                raise ConfigError(f"--{flag}: use different numbers above 0")

    @property
    def rungs(self) -> dict[str, tuple[Entry, float, float]]:
        """{name of the arm: (entry, size, budget)}, the cheapest first."""
        return {f"{entry.name}-{size:g}x-{f'{budget:.4g}'.replace('+', '')}": (entry, size, budget)
                for budget in sorted(self.budgets) for size in sorted(self.sizes) for entry in self.entries}

    @property
    def ask(self) -> Ask:
        """What the sweep is asked: arms as they are sized, nothing tuned."""
        arms = tuple(Entry(name, entry.spec, entry.overrides) for name, (entry, _, _) in self.rungs.items())
        return Ask(arms, sizes="keep", seeds=tuple(range(self.seeds)), tune_keys=None, together="no")

    def to_json(self) -> dict:
        """The content of ladder.json."""
        return {"version": 1, "configs": [dataclasses.asdict(entry) for entry in self.entries], "sizes": list(self.sizes),
                "budgets": list(self.budgets), "seeds": self.seeds}


def read(workdir) -> Ladder:
    """The ladder in a work directory. ConfigError where there is none."""
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        raise ConfigError(f"{workdir} has no {FILE}: it is not the work directory of scripts/scaling.py; give --config and --budgets")
    return of_json(read_json(path))


def of_json(value: dict) -> Ladder:
    """The ladder of which this is the content of ladder.json."""
    entries = tuple(Entry(**entry) for entry in value["configs"])
    return Ladder(entries, tuple(value["sizes"]), tuple(value["budgets"]), value["seeds"])


def plan(workdir, ladder: Ladder):
    """Makes a ladder the sweep of a work directory: a new one, or one with more rungs or seeds than the one that is trained there.

    ConfigError for a config or budget that cannot be, and names what the ladder leaves out of the one there. Nothing is written before
    every arm is sized: what is refused, or stopped, leaves the work directory as it was.
    """
    workdir = pathlib.Path(workdir)
    kept = _there(workdir, ladder)
    loaded = {entry.name: entry.config() for entry in ladder.entries}
    _check_configs(loaded)
    planned: dict[tuple, object] = {}
    files: dict[pathlib.Path, dict] = {}
    for name, (entry, size, budget) in ladder.rungs.items():
        if name in kept:
            continue
        if (entry.name, size) not in planned:
            planned[entry.name, size] = _sized(entry, loaded[entry.name], size)
        arm, config, epochs = _lengthened(name, planned[entry.name, size], loaded[entry.name], budget)
        written = configs.to_json(loaded[entry.name])
        files[workdir / "arms" / name / sweep.ARM] = {"written": written, "config": configs.to_json(config), "epochs": epochs}
        files[workdir / "arms" / name / sweep.SIZED] = arm.to_json()
    # The ask comes last: it makes what is there a sweep.
    for path, value in (files | {workdir / FILE: ladder.to_json(), workdir / asks.FILE: ladder.ask.to_json()}).items():
        write_json(path, value)


def _there(workdir: pathlib.Path, ladder: Ladder) -> set[str]:
    """Names of the arms of the sweep that is there. ConfigError where it is not a part of this ladder."""
    if not (workdir / asks.FILE).exists():
        return set()
    if not (workdir / FILE).exists():
        raise ConfigError(f"{workdir} holds a comparison: use another --workdir")
    there = asks.read(workdir)
    gone = [entry.name for entry in there.configs if entry not in ladder.ask.configs]
    gone += [f"seed {seed}" for seed in there.seeds if seed >= ladder.seeds]
    if gone:
        raise ConfigError(f"{workdir} holds a ladder with {', '.join(gone)}, which this one has not, or with other overrides: ask for "
                          "what is there and more, or use another --workdir")
    sweep.check_unchanged(workdir, there)
    return {entry.name for entry in there.configs}


def _check_configs(loaded: Mapping[str, object]):
    """ConfigError for configs of which no ladder can be."""
    check_same_data(loaded)
    for name, config in loaded.items():
        if config.model.name in COUNTED:
            raise ConfigError(f"{name} (model.name={config.model.name}) has no sizes and takes no FLOPs: a ladder is of models that do")
        if config.eval.split == "none":
            raise ConfigError(f"{name} has eval.split=none, and laws are of an evaluation: set --config.eval.split=validation")


def _sized(entry: Entry, config, size: float):
    """A config at a multiple of its size, for one step."""
    from lm.compare import sizing
    from lm.compare.account import meter_of, prepared_text

    own = meter_of(config, prepared_text(config)).counts().nonembedding
    try:
        (arm,) = sizing.solve({entry.name: (entry.spec, entry.overrides, config)}, budget=Budget("parameters.nonembedding", size * own),
                              tokens=1)
    except ConfigError as error:
        raise ConfigError(f"--sizes={size:g}: {error}") from error
    return arm


def _lengthened(name: str, arm, written, budget: float):
    """(the arm `name` with as many steps as the budget is, its config, how often it sees the text)."""
    from lm.compare.account import meter_of, prepared_text

    meter = meter_of(written, prepared_text(written))
    steps = max(1, round(budget / arm.flops))
    met = Budget("flops", budget)
    if abs(met.error(steps * arm.flops)) > MOST_OFF:
        raise ConfigError(f"--budgets={budget:g} is {budget / arm.flops:.2f} steps of {name}: use budgets of {12.5 * arm.flops:.3g} FLOPs "
                          "and more, smaller sizes, or a smaller data.global_batch")
    facts = meter.facts()
    own_steps = durations.to_steps("train.steps", written.train.steps, facts)
    sized = configs.load(arm.spec, arm.overrides)
    config = tasks.with_keys(tasks.stretched(sized, own_steps, facts), tasks.OF_TRIALS | {"train.steps": str(steps)})
    arm = dataclasses.replace(
        arm, name=name, steps=steps, tokens=round(steps * meter.tokens_per_step), flops=steps * arm.flops,
        budget=met.to_json() | {"met": steps * arm.flops, "error": met.error(steps * arm.flops)},
        text=f"{name}: {arm.nonembedding:,} parameters beside embeddings, {steps:,} steps of {meter.tokens_per_step:,.6g} tokens")
    return arm, config, steps / meter.steps_per_epoch


def epochs(workdir) -> float:
    """How often the run that sees most text sees it."""
    return max(read_json(pathlib.Path(workdir) / "arms" / name / sweep.ARM)["epochs"] for name in read(workdir).rungs)


def gather(workdir, measure: str = "nats_per_token", count: str = "total") -> tuple[Points, list[str]]:
    """(points of the runs of a ladder that have a score, what is said of those that have none); families are its configs' names."""
    workdir, ladder = pathlib.Path(workdir), read(workdir)
    rungs, families, missing = ladder.rungs, {}, []
    for run, outcome in tasks.read_outcomes(workdir).items():
        arm = run.split("/")[1]
        if outcome.score is None:
            missing.append(f"{run}: {outcome.failed['error']}")
        elif outcome.score["diverged"]:
            missing.append(f"{run}: diverged")
        elif arm in rungs:
            families[os.path.normpath(workdir / run)] = rungs[arm][0].name
    if not families:
        why = missing[0] if missing else "none was trained"
        raise DataError(f"no run of {workdir} has a score ({why}): see log.txt of the runs, and try again with --retry")
    return of_runs(list(families), measure, count, families), missing


def of_runs(paths: Sequence[str], measure: str = "nats_per_token", count: str = "total",
            families: Mapping[str, str] | None = None) -> Points:
    """Points of run directories: what they cost, and `measure` of their score or last evaluation. A family is model.name, unless
    {path: name} says otherwise. DataError names a run that lacks something, or has not come to its end; ConfigError as of
    `check_one_text`."""
    from lm.compare import account
    from lm.compare.runs import load_run, load_runs

    rows, table = [], load_runs(paths).to_dict("records")
    runs = {found["path"]: load_run(found["path"]) for found in table}
    _check_texts(runs, check_one_text({path: run.config for path, run in runs.items()}, measure == "nats_per_token"))
    for found in table:
        run = runs[found["path"]]
        _check_ended(run)
        if run.result.get(measure) is None:
            raise DataError(f"{found['path']} has no {measure}: only likelihoods can be fitted; train it to its end, or leave it out")
        counts = found["parameters"] if count == "total" else getattr(account.count(run.model), COUNTS[count])
        rows.append({"parameters": counts, "tokens": found["tokens"], "flops": found["flops"], "loss": run.result[measure],
                     "family": (families or {}).get(found["path"], found["family"]), "seed": found["seed"], "run": found["path"]})
    return of_rows(rows, "the runs")


def _check_texts(runs: Mapping[str, object], tokenizers: Sequence[str]):
    """DataError where runs {path: run} of one config of the data were trained on other text, as far as they know theirs."""
    prints = {path: read_json(run.workdir / "config.json")["data"] for path, run in runs.items()}
    (first, own), *others = [entry for entry in prints.items() if entry[1] is not None] or [("", None)]
    for other, fingerprint in others:
        if fingerprint != own and not tokenizers:  # they are part of it
            raise DataError(f"{first} and {other} were trained on different text: data.source has changed in between; fit such runs apart")


def _check_ended(run):
    """DataError where a run has not come to its last step, where its schedule ends, or is measured at another."""
    steps, done = run.config.train.steps, int(run.metrics["step"].max()) if len(run.metrics) else 0
    if done < steps:
        raise DataError(f"{run.workdir} is at step {done} of {steps}: train it to its end, or leave it out")
    if run.result and run.result["step"] != steps:
        raise DataError(f"{run.workdir} was last evaluated at step {int(run.result['step'])} of {steps}: laws are of the loss at the end; "
                        "leave it out")


def main(argv: list[str]) -> int:
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", help="work directory of the ladder")
    parser.add_argument("ladder", metavar="LADDER", help="what is trained, as the JSON of ladder.json")
    parser.add_argument("--parent", type=int, metavar="PID", help="end, well, when this process does, which is the parent")
    arguments = parser.parse_args(argv)
    cli.keep_compilations()
    from lm.compare import worker

    try:
        if arguments.parent:
            worker.die_with(arguments.parent)
        plan(arguments.workdir, of_json(json.loads(arguments.ladder)))
    except worker.Interrupted:
        return worker.STOPPED
    return 0


if __name__ == "__main__":
    cli.run(main)
