"""What a sweep can do next: a pure function from what was asked and what is finished to the runs that are due.

A sweep is its directory. A run of it is a task; the presence of RUN/score.json says that it is done, RUN/failed.json that it was tried. No
process remembers anything else, so whoever comes, after whatever end of whoever was there, goes on.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lm import config as configs
from lm.compare import tuning
from lm.compare.ask import Ask
from lm.config import durations
from lm.data.files import read_json, write_json
from lm.errors import ConfigError

SCORE, FAILED, TUNED, TOGETHER = "score.json", "failed.json", "tuned.json", "together.json"
# Most attempts at a task whose process died, or met what may not come again.
ATTEMPTS = 2
# Every run of a sweep can be cut off: what is lost is at most a quarter of one.
OF_RUNS = {"checkpoint.every": "25%", "checkpoint.keep": "1"}
# A trial is known by its last evaluation alone.
OF_TRIALS = {"eval.every": "0", "metrics.tensorboard": "false"}
# Durations of the schedule, which a shorter run has a share of.
STRETCHED = ("optim.warmup", "optim.decay")


@dataclasses.dataclass(frozen=True)
class Task:
    """A run: its folder below the sweep's, its config as a `base` with other values, and what of it is scored.

    `together` are seeds that are trained at once, each in RUN/SEED.

    With `measure` it is no run, but the question whether they are faster so. `lock` names what must not be done twice at a time.
    """

    run: str
    base: ConfigDict
    values: Mapping[str, object]
    full: bool
    prompts: tuple[str, ...] | None = ()
    suites: tuple[str, ...] = ()
    together: tuple[int, ...] = ()
    measure: bool = False
    lock: str = ""

    @property
    def config(self) -> ConfigDict:
        """The validated config."""
        return with_keys(self.base, self.values)

    @property
    def lock_name(self) -> str:
        """The name of its lock file."""
        return (self.lock or self.run).replace("/", "+")

    @property
    def runs(self) -> list[str]:
        """The runs that it makes: one, or those of seeds together; none to measure something."""
        return [] if self.measure else [f"{self.run}/{seed}" for seed in self.together] or [self.run]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A config of the comparison after re-sizing: its length is in `config`, the durations of its schedule are in per cent of that, and
    `keys` are what is tuned (none of references).

    `together` says whether its seeds are trained at once; None, that it is to be measured which is faster.
    """

    name: str
    config: ConfigDict
    reference: bool = False
    keys: tuple[str, ...] = ()
    steps: int = 1
    flops: float = 0.0
    together: bool | None = False

    def trial_run(self, trial: tuning.Trial) -> str:
        """Where a trial goes."""
        return f"arms/{self.name}/tune/{trial.name}"

    def seed_run(self, seed: int) -> str:
        """Where a seed goes."""
        return f"arms/{self.name}/seeds/{seed}"


class Outcome(NamedTuple):
    """What is on disk of a run: its score, or how it failed."""

    score: dict | None = None
    failed: dict | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is done about it."""
        return self.score is not None or bool(self.failed and self.failed["fatal"])


def due(ask: Ask, arms: Sequence[Arm], outcomes: Mapping[str, Outcome]) -> list[Task]:
    """The tasks that can be done now, the next one first: trials before seeds, a seed of every arm before the next seed of any.

    Empty, the sweep is over.
    """
    tasks = [(rank, place, task) for place, arm in enumerate(arms) for rank, task in _due_of_arm(ask, arm, outcomes)]
    return [task for _, _, task in sorted(tasks, key=lambda entry: entry[:2])]


def _due_of_arm(ask: Ask, arm: Arm, outcomes) -> list[tuple[int, Task]]:
    """(rank, task) of what an arm can do now."""
    values: dict[str, float] = {}
    if arm.keys:
        found = search(ask, arm, outcomes)
        if not isinstance(found, tuning.Found):
            return [(-1, trial_task(ask, arm, trial)) for trial in found]
        if found.best is None:
            return []
        values = tuning.values_of(arm.config, arm.keys, found.best)
    left = [seed for seed in ask.seeds if not outcomes.get(arm.seed_run(seed), Outcome()).over]
    if arm.together is None and len(left) > 1:
        return [(0, Task(f"arms/{arm.name}", arm.config, values, full=False, together=tuple(left), measure=True))]
    if arm.together and len(left) > 1:
        return [(0, dataclasses.replace(seed_task(ask, arm, left[0], values), run=f"arms/{arm.name}/seeds", together=tuple(left)))]
    return [(ask.seeds.index(seed), seed_task(ask, arm, seed, values)) for seed in left]


def search(ask: Ask, arm: Arm, outcomes: Mapping[str, Outcome]) -> list[tuning.Trial] | tuning.Found:
    """The trials that an arm still needs, or what its tuning found."""
    return tuning.due_trials(ask.grid, trial_scores(arm, outcomes))


def trial_scores(arm: Arm, outcomes: Mapping[str, Outcome]) -> dict[tuning.Trial, float | None]:
    """{trial: score} of an arm's trials that are over, as `lm.compare.tuning` takes them."""
    scores, folder = {}, f"arms/{arm.name}/tune/"
    for run, outcome in outcomes.items():
        if run.startswith(folder) and outcome.over:
            rung, _, factor = run.removeprefix(folder).partition("-")
            scores[tuning.Trial(int(rung), float(factor))] = _loss(outcome.score)
    return scores


def _loss(score: dict | None) -> float | None:
    if score is None:
        return None
    if not score["diverged"] and "bits_per_byte" not in score:
        return None  # an evaluation that measures something else says nothing of a factor
    loss = score["bits_per_byte"] if not score["diverged"] else None
    return tuning.DIVERGED if loss is None or not math.isfinite(loss) else loss


def trial_task(ask: Ask, arm: Arm, trial: tuning.Trial) -> Task:
    """The run of a trial: a share of the arm's length, its schedule as long."""
    share = ask.grid.shares[trial.rung]
    steps = max(1, round(share * arm.steps))
    values = tuning.values_of(arm.config, arm.keys, trial.factor)
    values = OF_RUNS | OF_TRIALS | values | {"train.steps": steps, "seed": tuning.SEED}
    return Task(arm.trial_run(trial), arm.config, values, full=False)


def seed_task(ask: Ask, arm: Arm, seed: int, values: Mapping[str, float]) -> Task:
    """The run of a seed, with the tuned values."""
    values = OF_RUNS | dict(values) | {"seed": seed}
    # A report shows what one seed writes: of passages of the text, where no prompts are asked for.
    prompts = ask.prompts or (None if seed == ask.seeds[0] else ())
    return Task(arm.seed_run(seed), arm.config, values, full=True, prompts=prompts, suites=ask.suites,
                lock="" if arm.together is False else f"arms/{arm.name}/seeds")


def with_keys(config: ConfigDict, values: Mapping[str, object]) -> ConfigDict:
    """The config with other values, validated."""
    texts = {key: value if isinstance(value, str) else repr(value) for key, value in values.items()}
    return configs.validate(configs.override(config, texts))


def stretched(config: ConfigDict, steps: int, facts: durations.Facts | None = None) -> ConfigDict:
    """The config with the durations of its schedule as shares of the length for which it was written, `steps`: those of any length.

    `facts` say what a step is worth; ConfigError without them, for a duration that is neither in steps nor in per cent.
    """
    shares = {}
    for key in STRETCHED:
        value = configs.flatten(config)[key]
        amount, unit = durations.parse(key, value)
        if unit not in ("steps", "%") and not facts:
            raise ConfigError(f"{key}={value} cannot be stretched to another length of the run: write it in steps or per cent")
        if unit != "%" and amount:
            shares[key] = f"{100 * durations.to_steps(key, value, facts) / steps!r}%" if facts else f"{100 * amount / steps!r}%"
    return configs.override(config, shares)


def read_outcomes(workdir, known: Mapping[str, Outcome] | None = None) -> dict[str, Outcome]:
    """{run: outcome} of every run of a sweep that is done or was tried; what is `known` to be over is not read again."""
    workdir, found = pathlib.Path(workdir), {run: outcome for run, outcome in (known or {}).items() if outcome.over}
    for name in (SCORE, FAILED):
        for file in sorted(workdir.glob(f"arms/*/*/*/{name}")):
            run = file.parent.relative_to(workdir).as_posix()
            if not found.get(run, Outcome()).over:
                found[run] = read_outcome(file.parent)
    return found


def read_outcome(run: pathlib.Path) -> Outcome:
    """What is on disk of one run."""
    return Outcome(*(read_json(run / name) if (run / name).exists() else None for name in (SCORE, FAILED)))


def settle(workdir, ask: Ask, arms: Sequence[Arm], outcomes: Mapping[str, Outcome]):
    """Writes what follows from the outcomes: tuned.json of an arm whose tuning is over, and that its seeds failed where none could be
    trained. Several processes may do so at once: they write the same."""
    for arm in arms:
        root = pathlib.Path(workdir) / "arms" / arm.name
        found = search(ask, arm, outcomes) if arm.keys else []
        if not isinstance(found, tuning.Found):
            continue
        if found.best is None:
            diverged = set(trial_scores(arm, outcomes).values()) == {tuning.DIVERGED}
            for run in [arm.seed_run(seed) for seed in ask.seeds]:
                if not outcomes.get(run, Outcome()).over:
                    fail(pathlib.Path(workdir) / run, "no trial of its tuning has a score: see those in its folder tune", True, diverged)
        if not (root / TUNED).exists():
            write_json(root / TUNED, tuned(ask, arm, found, outcomes))


def fail(run: pathlib.Path, error: str, fatal: bool, diverged: bool = False):
    """Writes that an attempt at a run failed, or `diverged`; after ATTEMPTS of them, or at once where trying again is no use, it is not
    tried again."""
    attempts = (read_outcome(run).failed or {"attempts": 0})["attempts"] + 1
    write_json(run / FAILED, {"error": error, "attempts": attempts, "fatal": fatal or attempts >= ATTEMPTS, "diverged": diverged})


def tuned(ask: Ask, arm: Arm, found: tuning.Found, outcomes: Mapping[str, Outcome]) -> dict:
    """The content of tuned.json."""
    scores = trial_scores(arm, outcomes)
    by_rung = [{factor: scores[rung, factor] for factor in factors} for rung, factors in enumerate(found.rungs)]
    rungs = [_rung(ask, arm, rung, factors, outcomes) for rung, factors in enumerate(by_rung)]
    curves = [tuning.curvature(rung) for rung in by_rung]
    best = None
    if found.best is not None:
        best = {"factor": found.best, "values": tuning.values_of(arm.config, arm.keys, found.best),
                "score": by_rung[found.rung][found.best]}
    value = {"keys": list(arm.keys), "rungs": rungs, "best": best, "edge": found.edge, "extended": found.extended,
             "curvature": next((curve for curve in reversed(curves) if curve is not None), None),
             "rises": tuning.rises(found.best, by_rung) if best else {"half": None, "double": None}}
    return value | {"text": tuned_text(value) + _judged(rungs, found)}


def _judged(rungs: list[dict], found: tuning.Found) -> str:
    """Which rung has decided, where it is not the last one."""
    if found.best is None or found.rung == len(rungs) - 1:
        return ""
    lost = rungs[-1]
    diverged = sum(trial["diverged"] for trial in lost["trials"])
    why = f"{len(lost['trials']) - diverged} failed" + (f" and {diverged} diverged" if diverged else "")
    return (f"; by runs of {rungs[found.rung]['share']:.0%} of the length, for of the {len(lost['trials'])} trials of {lost['share']:.0%} "
            f"none has a score ({why}: see the folder tune)")


def _rung(ask, arm, rung, factors, outcomes) -> dict:
    trials = []
    for factor, loss in factors.items():
        run = arm.trial_run(tuning.Trial(rung, factor))
        trials.append({"factor": factor, "values": tuning.values_of(arm.config, arm.keys, factor), "diverged": loss == tuning.DIVERGED,
                       "score": loss if loss is not None and math.isfinite(loss) else None, "run": run})
    done = [(outcomes[trial["run"]].score or {}).get("train") or {} for trial in trials]
    return {"share": ask.grid.shares[rung], "tokens": max((train.get("tokens") or 0 for train in done), default=0) or None,
            "trials": trials}


def tuned_text(value: dict) -> str:
    """One sentence of what tuning came to."""
    trials = sum(len(rung["trials"]) for rung in value["rungs"])
    if value["best"] is None:
        return f"none of {trials} trials has a score"
    values = ", ".join(f"{key}={number:g}" for key, number in value["best"]["values"].items())
    text = f"{values} ({value['best']['factor']:g} x the config's) is the best of {trials} trials"
    if value["edge"]:
        text += f", still at the {'lowest' if value['edge'] == 'low' else 'highest'} edge of the grid after {value['extended']} extensions"
    elif value["extended"]:
        text += f", after the grid grew by {value['extended']}"
    return text + _steepness(value)


def _steepness(value: dict) -> str:
    """What a rate that is off costs, as it was measured; where neither half nor double of it has a score by the parabola, which says
    nothing of a best value at an edge."""
    rises = [f"{name} of it {rise:+.3f}" for name, rise in value["rises"].items() if rise is not None]
    if rises:
        return f"; {' and '.join(rises)} bits per byte"
    if value["edge"] is None and (value["curvature"] or 0) > 0:
        return f"; by a parabola a factor of 2 off costs about {value['curvature']:.3f} bits per byte"
    return ""
