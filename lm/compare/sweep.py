"""A comparison from its ask to its report: arms are planned, workers do what is due, and what they have found is reported.

`compare` is the whole of it for notebooks; scripts/compare.py is the command. Processes that work are children of this one, which itself
loads no JAX: it starts another where one is killed, and says what is finished and how long the rest will take.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from lm import config as configs
from lm.compare import ask as asks
from lm.compare import checks, progress, tasks, tuning, worker
from lm.compare.ask import Ask
from lm.compare.tasks import Arm, Task
from lm.config import durations
from lm.config.model_keys import COUNTED
from lm.data.files import read_json, write_json
from lm.errors import ConfigError, ProcessError, writing

SIZED, ARM = "sized.json", checks.ARM
# Seconds between two looks of the process that starts the workers.
POLL = 0.5
# Seconds that a worker has to save its run when it is told to end.
SAVING = 300.0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A planned comparison in its work directory."""

    workdir: pathlib.Path
    ask: Ask
    arms: tuple[Arm, ...]

    def due(self, outcomes) -> list[Task]:
        """The tasks that can be done now, from {run: outcome}; what follows from the outcomes is written."""
        arms = [self._decided(arm) for arm in self.arms]
        tasks.settle(self.workdir, self.ask, arms, outcomes)
        return tasks.due(self.ask, arms, outcomes)

    def _decided(self, arm: Arm) -> Arm:
        """The arm, with what was measured of its seeds together, if it was."""
        file = self.workdir / "arms" / arm.name / tasks.TOGETHER
        undecided = arm.together is not False  # also where it was asked for: a process may have found that it cannot be
        return dataclasses.replace(arm, together=read_json(file)["together"]) if undecided and file.exists() else arm

    def outcomes(self) -> dict[str, tasks.Outcome]:
        """What is on disk of every run."""
        return tasks.read_outcomes(self.workdir)

    def work(self, say: Callable[[str], None] | None = None):
        """Does what is due in this process, beside any others that do, until nothing is; `say` is told what finishes."""
        told = progress.Progress(self, say) if say else lambda outcomes: None
        worker.work(self.workdir, self.due, told)


def compare(ask: Ask, workdir, say: Callable[[str], None] = print) -> dict:
    """Runs a comparison in this process, or goes on with one; the content of results.json (`lm.compare.gather`)."""
    from lm.compare import gather

    checks.check_new_prompts(workdir, ask)
    asks.settle(workdir, ask)
    plan(workdir)
    open_sweep(workdir).work(say)
    return gather(workdir)


def plan(workdir):
    """Writes sized.json and arm.json of every arm of a sweep that has none yet. ConfigError where a config has changed since.

    What was sized once stays: a budget of seconds is measured, and no two measurements are alike.
    """
    workdir = pathlib.Path(workdir)
    ask = asks.read(workdir)
    if is_planned(workdir, ask):
        check_unchanged(workdir, ask)
        return
    from lm.compare.sizing import solve

    given = {entry.name: (entry.spec, entry.overrides, entry.config()) for entry, _ in ask.entries}
    shown = {entry.name for entry in ask.references}
    sized = solve({name: three for name, three in given.items() if name not in shown},
                  {name: three for name, three in given.items() if name in shown}, ask.budget, ask.tokens, ask.sizes)
    lengthened = {arm.name: _lengthened(arm, given[arm.name][2]) for arm in sized}
    room = checks.check(ask, lengthened)
    for name, config in lengthened.items():
        write_json(workdir / "arms" / name / ARM, {"written": configs.to_json(given[name][2]), "config": configs.to_json(config),
                                                   "room": room[name]})
    for arm in sized:  # last: they say that the plan is whole
        write_json(workdir / "arms" / arm.name / SIZED, arm.to_json())


def _lengthened(arm, written):
    """The config of a sized arm: with its sizes and length, and its schedule stretched from the length for which it was written."""
    from lm.compare.account import meter_of, prepared_text

    config = configs.load(arm.spec, arm.overrides)
    if config.model.name not in COUNTED:
        facts = meter_of(written, prepared_text(written)).facts()
        config = tasks.stretched(config, durations.to_steps("train.steps", written.train.steps, facts), facts)
    return tasks.with_keys(config, {"train.steps": arm.steps})


def is_planned(workdir, ask: Ask) -> bool:
    """Whether every arm is sized."""
    return all((pathlib.Path(workdir) / "arms" / entry.name / SIZED).exists() for entry, _ in ask.entries)


def check_unchanged(workdir, ask: Ask):
    """ConfigError where a config file no longer says what it said when the sweep began."""
    for entry, _ in ask.entries:
        written = read_json(pathlib.Path(workdir) / "arms" / entry.name / ARM)["written"]
        then, now = configs.flatten(configs.from_json(written)), configs.flatten(entry.config())
        changed = "; ".join(f"{key} was {then[key]!r} and is {now[key]!r}" for key in now if then[key] != now[key])
        if changed:
            raise ConfigError(f"{entry.spec} has changed since {workdir} began: {changed}. Restore it, or use another --workdir")


def open_sweep(workdir) -> Sweep:
    """The planned sweep in a work directory, whose configs are those of its arms and not today's files. ConfigError where there is none."""
    workdir = pathlib.Path(workdir)
    ask = asks.read(workdir)
    if not is_planned(workdir, ask):
        raise ConfigError(f"{workdir} is not planned yet: run scripts/compare.py with --configs there first")
    return Sweep(workdir, ask, tuple(_arm(workdir, ask, entry, reference) for entry, reference in ask.entries))


def _arm(workdir, ask, entry, reference) -> Arm:
    folder = workdir / "arms" / entry.name
    config, sized = configs.from_json(read_json(folder / ARM)["config"]), read_json(folder / SIZED)
    keys = () if reference or ask.tune_keys is None else tuning.keys_of(config, ask.tune_keys)
    # Seconds of a budget are a run's own: seeds at once would have a share of them each.
    alone = config.model.name in COUNTED or (ask.budget is not None and ask.budget.kind == "seconds")
    together = {"auto": None, "yes": True, "no": False}["no" if alone else ask.together]
    return Arm(entry.name, config, reference, keys, sized["steps"], sized["flops"], together)


def table(workdir) -> list[dict]:
    """What the solver chose, a row an arm."""
    ask, rows = asks.read(workdir), []
    for entry, reference in ask.entries:
        sized = read_json(pathlib.Path(workdir) / "arms" / entry.name / SIZED)
        chosen = ", ".join(f"{key.partition('.')[2]} {new}" for key, (_, new) in sized["chosen"].items())
        met = (sized["budget"] or {}).get("error")
        rows.append({"arm": entry.name, "sizes": "reference" if reference else chosen or "as written", "parameters": sized["parameters"],
                     "steps": sized["steps"], "tokens": sized["tokens"], "training FLOPs": float(sized["flops"]),
                     "off budget": "" if met is None else f"{met:+.2%}"})
    return rows


def retry(workdir):
    """Forgets the failures of a sweep, so that what failed is tried again; but not trials of an arm with a score, whose rate is settled.

    Where trials are, what was tuned is forgotten too, and the seeds that have begun with it. ConfigError while somebody works on an arm
    that has failed.
    """
    failed = {arm: found for arm in sorted(pathlib.Path(workdir).glob("arms/*")) if (found := _failures(arm))}
    held = [arm.name for arm, found in failed.items() if any(map(_open, found)) and worker.is_held(workdir, arm.name)]
    if held:
        raise ConfigError(f"--retry: a worker is at work on {', '.join(held)}: end the workers of {workdir} first, or wait for them")
    for arm, found in failed.items():
        with writing(arm):
            if any(file.parent.parent.name == "tune" and _open(file) for file in found):
                for seed in [path for path in arm.glob("seeds/*") if path.is_dir()]:
                    shutil.rmtree(seed)
                (arm / tasks.TUNED).unlink(missing_ok=True)
            for file in found:  # last: while they are there, the same call forgets the rest
                file.unlink(missing_ok=True)


def _failures(arm: pathlib.Path) -> list[pathlib.Path]:
    """What says that runs of an arm have failed which may be tried again."""
    settled = any(arm.glob(f"seeds/*/{tasks.SCORE}"))
    return sorted(arm.glob(f"{'seeds' if settled else '*'}/*/{tasks.FAILED}"))


def _open(failed: pathlib.Path) -> bool:
    """Whether a run that has failed had no score after that."""
    return not (failed.parent / tasks.SCORE).exists()


class Supervisor(contextlib.AbstractContextManager):
    """Worker processes on this machine: those that die are replaced, and SIGTERM or Ctrl-C here ends them all well."""

    def __init__(self, sweep: Sweep, workers: int, say: Callable[[str], None]):
        self.sweep, self._wanted, self._say = sweep, workers, say
        self._children: list[tuple[int, subprocess.Popen]] = []
        self._began: dict[int, float] = {}
        self._before = {}
        self.stopped = False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        self._end()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self) -> bool:
        """Works until the sweep is over; False where a signal stopped it before. ProcessError where a worker cannot work."""
        told, outcomes = progress.Progress(self.sweep, self._say, self._wanted), {}
        self._children = [(index, self._start(index)) for index in range(self._wanted)]
        while self._children:
            time.sleep(POLL)
            outcomes = tasks.read_outcomes(self.sweep.workdir, outcomes)
            told(outcomes)
            looked = [(index, self._look(index, child)) for index, child in self._children]
            self._children = [(index, child) for index, child in looked if child is not None]
        told(tasks.read_outcomes(self.sweep.workdir, outcomes))
        return not self.stopped

    def _start(self, index: int) -> subprocess.Popen:
        now = time.time()
        child = start(["-m", "lm.compare.worker", str(self.sweep.workdir)], share_of(index, self._wanted, gpus()))
        self._began[child.pid] = now
        return child

    def _look(self, index: int, child: subprocess.Popen) -> subprocess.Popen | None:
        """The child, one in its place where it was killed, or None where it has ended."""
        code = child.poll()
        if code is None:
            return child
        if code == worker.STOPPED or -code in (signal.SIGTERM, signal.SIGINT) or (self.stopped and code):
            self._stop()
            return None
        if code > 0:
            raise ProcessError(f"a worker of {self.sweep.workdir} cannot go on: its message is above")
        return self._replaced(index, child.pid, -code) if code else None

    def _replaced(self, index: int, pid: int, number: int) -> subprocess.Popen:
        """Another worker, after the task that the dead one held has a failed attempt more."""
        why = f"its process {killed(number)}"
        task = worker.blame(self.sweep.workdir, pid, why, self._began.pop(pid))
        if task is None:
            raise ProcessError(f"a worker of {self.sweep.workdir}: {why} before it took a task; see what the system says of its memory")
        self._say(f"{task}: {why}; another one goes on")
        return self._start(index)

    def _stop(self, *_):
        self.stopped = True
        for _, child in self._children:
            if child.poll() is None:
                child.terminate()

    def _end(self):
        """All children have ended, killed if they do not by themselves."""
        self._stop()
        for _, child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=SAVING)
            child.kill()
            child.wait()


def killed(number: int) -> str:
    """That a signal of this number ended a process, in words."""
    return f"was killed by {signal.Signals(number).name}" + (", maybe because memory ran out" if number == signal.SIGKILL else "")


def size_apart(command: Sequence[str], what: str, otherwise: str, debug: bool, workers: int):
    """Sizes arms in a process of its own, which gives the devices back when it ends, and ends this one with its exit code where it fails.

    It has the devices that each of the `workers` of this machine will have: memory, and whether seeds can be trained together, are by
    device. ProcessError where it is killed: `what` it sizes, and what to do `otherwise`.
    """
    code = start([*command, *(["--debug"] if debug else [])], share_of(0, workers, gpus())).wait()
    if code < 0:
        raise ProcessError(f"the process that sizes {what} {killed(-code)}: run the same command again, or {otherwise}")
    if code:
        sys.exit(code)  # it has said why


def start(command: Sequence[str], variables: Mapping[str, str] | None = None) -> subprocess.Popen:
    """A Python of its own session, whose standard output is our standard error: a terminal's Ctrl-C comes to it through us."""
    return subprocess.Popen([sys.executable, *command, f"--parent={os.getpid()}"], stdout=sys.stderr.fileno(), start_new_session=True,
                            env=os.environ | (variables or {}))


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs of this machine, or of those that a variable has chosen among them, as Slurm's does for a job."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number in range(len(list(pathlib.Path("/dev").glob("nvidia[0-9]*"))))]
    names = [name.strip() for name in chosen.split(",")]
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # CUDA too reads no further


def share_of(index: int, workers: int, devices: Sequence[str]) -> dict[str, str]:
    """Variables that give one of several workers one of the GPUs, or where there are fewer, its part of the memory of one."""
    if workers == 1 or not devices:
        return {}
    shared = {} if workers <= len(devices) else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / -(-workers // len(devices)):.2f}"}
    return {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)], **shared}
