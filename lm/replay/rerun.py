"""A run's steps made again with the step that trained it, and held against what the run recorded."""

import dataclasses
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator

import jax

from lm.errors import CheckpointError, ConfigError
from lm.metrics.writers import read_lines
from lm.parallel import AXES, batch_sharding, make_mesh, mesh_sizes
from lm.run import Run, environment
from lm.train.job import Job, set_up
from lm.train.step import TrainState

CHECKED = ("loss", "grad_norm")
SAY_EVERY = 10.0
# What another mesh or library may change, in relative terms; more is another state than that of training.
ROUNDING = 1e-3


def say(text: str):
    """A line for a person, on standard error."""
    print(text, file=sys.stderr, flush=True)


def open_job(run: Run) -> Job:
    """The run's job on its own mesh, or one that fits the devices that are here; nothing is written into its work directory."""
    mesh = mesh_of(run.config, trained_on(run))
    job = set_up(run.config, run.workdir, progress=True, mesh=mesh)
    run.check_data(job.prepared.fingerprint, ", its batches cannot be made without it")
    return job


def trained_on(run: Run) -> dict:
    """environment.json of a run; {} when it is gone."""
    file = run.workdir / "environment.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def mesh_of(config, trained: dict) -> jax.sharding.Mesh:
    """The mesh of the run where there are as many devices here, else as many replicas as the devices and the batch allow."""
    here = jax.devices()
    sizes = mesh_sizes(config.mesh, len(trained.get("devices", here)))
    count = math.prod(sizes.values())
    if count > len(here):
        rows = config.data.global_batch // config.train.accumulate
        count = max(number for number in range(1, len(here) + 1) if rows % number == 0)
        sizes = dict.fromkeys(AXES, 1) | {"replica": count}
    return make_mesh(sizes, here[:count])


def starting_state(job: Job, checkpoints, done: int) -> tuple[TrainState, int]:
    """(state, its step) of the latest good checkpoint of at most `done` steps, or the initial state and 0."""
    steps = checkpoints.steps()
    for step in reversed([step for step in steps if step <= done]):
        try:
            return job.resumed_state(checkpoints.restore(job.items(job.abstract_state()), step)), step
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    kept = f"the checkpoints that remain are of steps {', '.join(map(str, steps))}" if steps else "the run has no checkpoint"
    if done:
        say(f"{kept}: training again from the initial state, {done} step{'s' * (done != 1)} up to the one asked for")
    return job.initial_state(), 0


@dataclasses.dataclass
class Rerun:
    """Steps made again: `start` is the step of the state that they began with, `checks` what they gave beside what was recorded."""

    job: Job
    checkpoints: object
    step: int
    start: int = 0
    checks: list[dict] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        lines = read_lines(self.job.workdir / "metrics.jsonl")
        self.recorded = {line["step"]: line for line in lines if line["kind"] == "train"}

    def __iter__(self) -> Iterator[tuple[int, TrainState, dict]]:
        """(steps done so far, state, batch) before each step up to `step`; the step itself is made when the next is asked for."""
        job = self.job
        state, self.start = starting_state(job, self.checkpoints, self.step - 1)
        advance, told = job.compile_step(), time.monotonic()
        for done in range(self.start, self.step):
            batch = job.batch(done)
            yield done, state, batch
            state, metrics = advance(state, jax.device_put(batch, batch_sharding(job.mesh)))
            self.checks.append(check(done + 1, jax.device_get(metrics), self.recorded.get(done + 1)))
            if time.monotonic() - told > SAY_EVERY:
                told = time.monotonic()
                say(f"re-ran step {done + 1} of {self.step}")


def check(step: int, metrics: dict, line: dict | None) -> dict:
    """What a step gave, what the run recorded (None: nothing), and the largest relative difference (None: nothing to compare)."""
    values = {name: metrics[name].item() for name in CHECKED}
    recorded = {name: line[name] for name in CHECKED} if line else None
    difference = max(_difference(values[name], recorded[name]) for name in CHECKED) if line else None
    return {"step": step, **values, "recorded": recorded, "difference": difference}


def _difference(value: float, recorded: float | None) -> float:
    """Relative; metrics.jsonl has null for what is not finite."""
    if recorded is None or not math.isfinite(value):
        return 0.0 if recorded is None and not math.isfinite(value) else math.inf
    return abs(value - recorded) / max(abs(recorded), 1e-30) if value != recorded else 0.0


def other_circumstances(run: Run, job: Job) -> list[str]:
    """What is not as it was in training, of all that exactness rests on."""
    then, now = trained_on(run), environment()
    if not then:
        return ["environment.json is gone"]
    sizes = mesh_sizes(run.config.mesh, len(then["devices"])), dict(job.mesh.shape)
    texts = [" x ".join(f"{axis}={size}" for axis, size in shape.items() if size > 1) or "1 device" for shape in sizes]
    notes = [f"the mesh was {texts[0]} and is {texts[1]} here"] if texts[0] != texts[1] else []
    kinds = [sorted(set(devices)) for devices in (then["devices"], now["devices"])]
    notes += [f"devices were {', '.join(kinds[0])} and are {', '.join(kinds[1])}"] if kinds[0] != kinds[1] else []
    for name, version in then["packages"].items():
        if now["packages"].get(name) != version:
            notes.append(f"{name} was {version} and is {now['packages'].get(name)}")
    if then.get("git") != now["git"]:
        notes.append(f"the code was at commit {then.get('git')} and is at {now['git']}")
    elif str(now["git"]).endswith("+"):
        notes.append("the code had and has changes that no commit holds")
    return notes


def check_step(run: Run, step: int):
    """ConfigError when the run has no such step."""
    if not 1 <= step <= run.config.train.steps:
        raise ConfigError(f"step={step} is not a step of {run.workdir}: its steps are 1 to {run.config.train.steps}")
