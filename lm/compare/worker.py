"""A worker of a sweep: takes the first task that is due and free, does it, and looks again, until nothing is due.

    python -m lm.compare.worker WORKDIR

A task is locked by flock on a file of WORKDIR/locks, which is free again however its holder ends; the lock says who holds it. Workers on
several machines need a shared directory on which flock works across them: NFS 4, or NFS 3 with its lock manager (not mounted with nolock
or local_lock=flock), Lustre mounted with flock, CephFS, GPFS.
"""

import contextlib
import ctypes
import datetime
import fcntl
import functools
import gc
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping

from lm import cli
from lm.compare import tasks
from lm.compare.tasks import Task
from lm.data.files import write_json
from lm.errors import ConfigError, DataError, DiskError, NonFiniteError, writing

# Seconds between two looks, while all that is due is held by others.
POLL = 1.0
# Exit code of a worker that a signal ended after it saved (EX_TEMPFAIL: start it again).
STOPPED = 75
# Seconds of a step at the device's peak above which several seeds at once are not worth measuring: it is no dispatch that they would save.
LONG_STEP = 0.01
LOCKS, LOG = "locks", "log.txt"
# What would come again wherever a task is tried; all else may be of the machine, or of the moment.
OF_TASK = (ConfigError, NonFiniteError)


class Interrupted(BaseException):
    """A signal ended a run early, and saved it; like KeyboardInterrupt, no handler of errors should see it."""


def work(workdir, look: Callable[[Mapping], list[Task]], seen: Callable[[Mapping], None] = lambda outcomes: None):
    """Does tasks below a directory until none is due, which `look` says from the outcomes {run: outcome}; `seen` is told of them too.

    Raises Interrupted when a signal ended a run early.
    """
    workdir, outcomes = pathlib.Path(workdir), {}
    while True:
        outcomes = tasks.read_outcomes(workdir, outcomes)
        seen(outcomes)
        open_tasks = look(outcomes)
        if not open_tasks:
            return
        if not any(_take(workdir, task) for task in open_tasks):
            time.sleep(POLL)


def _take(workdir: pathlib.Path, task: Task) -> bool:
    """Does a task unless another process holds it or has done it by now; whether it did."""
    with locked(workdir, task) as mine:
        if not mine or is_done(workdir, task):
            return False
        perform(workdir, task)
        return True


def is_done(workdir: pathlib.Path, task: Task) -> bool:
    """Whether somebody has done a task since it was due."""
    if task.measure:
        return (workdir / task.run / tasks.TOGETHER).exists()
    return all(tasks.read_outcome(workdir / run).over for run in task.runs)


@contextlib.contextmanager
def locked(workdir: pathlib.Path, task: Task) -> Iterator[bool]:
    """Holds the lock of a task, which says host, pid, since when and what for; False where another process does."""
    path = workdir / LOCKS / task.lock_name
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 - not truncated before it is ours
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        with writing(path):
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "task": task.run,
                                   "runs": task.runs}))
            file.flush()
        try:
            yield True
        finally:
            file.truncate(0)


def blame(workdir: pathlib.Path, pid: int, why: str, began: float) -> str | None:
    """The task that a process of this machine held when it died, with a failed attempt more; None where it held none.

    `began` is when the process was started: what an earlier one of the same number left is not its own. Seeds that were trained together
    have not failed: each is trained apart.
    """
    for path in (pathlib.Path(workdir) / LOCKS).glob("*"):
        holder = json.loads(path.read_text() or "{}")
        if (holder.get("host"), holder.get("pid")) != (socket.gethostname(), pid) or holder["since"] < began:
            continue
        _clear(path)
        if len(holder["runs"]) == 1:
            tasks.fail(workdir / holder["runs"][0], why, fatal=False)
        else:
            _apart(workdir, holder["task"], why)
        return holder["task"]
    return None


def _clear(path: pathlib.Path):
    """Empties the lock of a process that is dead, unless another has taken it by now."""
    with writing(path), open(path, "a+") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)


def _apart(workdir: pathlib.Path, run: str, why: str):
    """Writes that the seeds of an arm are not trained together, of the folder that its task to do or to measure so has."""
    arm = pathlib.Path(workdir) / run.removesuffix("/seeds")
    write_json(arm / tasks.TOGETHER, {"together": False, "why": why})


def is_held(workdir: pathlib.Path, arm: str) -> bool:
    """Whether a process, of whatever machine, holds a task of an arm now."""
    for path in (pathlib.Path(workdir) / LOCKS).glob(f"arms+{arm}*"):
        if path.name != f"arms+{arm}" and not path.name.startswith(f"arms+{arm}+"):
            continue  # of an arm whose name begins so
        with writing(path), open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def at_work(workdir: pathlib.Path) -> int:
    """How many processes of this machine hold a task of a sweep now."""
    texts = [path.read_text() for path in (pathlib.Path(workdir) / LOCKS).glob("*")]
    holders = [json.loads(text) for text in texts if text.endswith("}")]
    return len({holder["pid"] for holder in holders if holder["host"] == socket.gethostname() and _lives(holder["pid"])})


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def perform(workdir: pathlib.Path, task: Task):
    """Trains and scores a task, or writes how it failed; what it says goes to log.txt of the run. Raises Interrupted, and what is no
    fault of the task's: DiskError, and DataError where this machine has not its text."""
    if task.measure:
        write_json(workdir / task.run / tasks.TOGETHER, measured(task))
        _forget()
        return
    start, train, workers = time.perf_counter(), _train_together if task.together else _train, at_work(workdir)
    with _log(workdir / task.run):
        if _attempt(workdir, task, task.runs, lambda: train(workdir, task)):
            workers = max(1, workers, at_work(workdir))
            for run in task.runs:
                told = {"seconds": round((time.perf_counter() - start) / len(task.runs), 3), "workers": workers}
                # Passages of the text are for one of them to go on with.
                prompts = task.prompts if run == task.runs[0] else task.prompts or ()
                _attempt(workdir, task, [run], functools.partial(_score, workdir / run, task, prompts, told))
        _forget()


def _attempt(workdir: pathlib.Path, task: Task, runs: list[str], action: Callable[[], None]) -> bool:
    """Whether an action went well; if not, the run of the task that it was for has failed, or where it was for several, they are done
    apart."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever a library raises, this task has failed and the others go on
        _check_machine(error, task)
        traceback.print_exception(error)
        if len(runs) > 1:  # a seed alone takes less memory, and all devices that this process has
            _apart(workdir, runs[0].rpartition("/")[0], cli.describe(error)[1])
        else:
            tasks.fail(workdir / runs[0], cli.describe(error)[1], isinstance(error, OF_TASK), isinstance(error, NonFiniteError))
        return False
    return True


def _check_machine(error: Exception, task: Task):
    """Raises an error that every task here would meet, and none elsewhere, which ends this worker and leaves its task to others: that a
    disk takes nothing, or that the text cannot be read or prepared."""
    from lm.data.prepare import prepare

    if isinstance(error, DiskError):
        raise error
    if isinstance(error, (DataError, OSError)):
        data = task.config.data
        prepare(data, data.tokenizer_seed)


@contextlib.contextmanager
def _log(folder: pathlib.Path):
    """Standard error goes to a file of the run, with a line for each attempt at it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOG, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    with file, contextlib.redirect_stderr(file):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        print(f"--- {now} process {os.getpid()} of {socket.gethostname()}", file=file)
        yield


def _train(workdir: pathlib.Path, task: Task):
    """Trains a run to its end, or a trial until its numbers stop being finite."""
    from lm.train import train

    folder = workdir / task.run
    try:
        result = train(task.config, folder)
    except NonFiniteError:
        if task.full:
            raise
        return
    if result["step"] < _last_step(folder):
        raise Interrupted(f"{folder} is saved at step {result['step']}: the same call goes on from there")


def _last_step(folder: pathlib.Path) -> int:
    """Of a run that has begun; of one that was stopped before, more than any."""
    from lm import config as configs

    return configs.of_run(folder).train.steps if (folder / "config.json").exists() else sys.maxsize


def _train_together(workdir: pathlib.Path, task: Task):
    """Trains several seeds at once; one that diverged has no last step."""
    from lm.compare import together

    together.train_seeds(task.config, {seed: workdir / run for seed, run in zip(task.together, task.runs, strict=True)})


def measured(task: Task) -> dict:
    """{"together": whether seeds train faster at once, "seconds" of a step of all so, "apart": one by one, "why" it was not measured}.

    Raises as `perform` does where it is for lack of a disk or of the text.
    """
    import jax

    from lm.compare import together
    from lm.compare.account import meter_of
    from lm.metrics import peak_flops

    try:
        meter = meter_of(task.config)
        least = meter.train_flops() * meter.tokens_per_step / (peak_flops()[0] * jax.device_count())
        if least > LONG_STEP:
            return {"together": False, "why": f"a step takes {least:.2g} s or more: the device is busy with one seed"}
        faster, seconds, apart = together.faster(task.config, task.together)
    except Exception as error:  # noqa: BLE001 - whatever it meets, memory above all, seeds one by one are still to be had
        _check_machine(error, task)
        return {"together": False, "why": cli.describe(error)[1]}
    return {"together": faster, "seconds": seconds, "apart": apart}


def _score(folder: pathlib.Path, task: Task, prompts: tuple[str, ...] | None, told: dict):
    """Writes the score of a run that is trained, with what is `told` of the whole task: the seconds that it took, and how many workers of
    this machine, itself among them, were at work when it began or when it had trained; and where."""
    from lm import config as configs
    from lm.compare import scores
    from lm.metrics.writers import read_lines

    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    whole = bool(lines) and lines[-1]["step"] >= configs.of_run(folder).train.steps
    if not whole and task.full:
        raise NonFiniteError(f"its numbers stopped being finite at step {lines[-1]['step'] if lines else 1}: see its {LOG}")
    found = scores.score(folder, full=task.full, prompts=prompts, suites=task.suites, diverged=not whole)
    write_json(folder / tasks.SCORE, found | {"task": told | {"host": socket.gethostname()}})
    if not task.full:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a trial's weights serve nobody


def _forget():
    """Lets go of what JAX keeps of a task: the next one's programs are others."""
    import jax

    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def die_with(parent: int):
    """Has this process get SIGTERM when its parent dies, so that it saves and ends; does so now where that has happened already."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, on Linux
    if os.getppid() != parent:
        raise Interrupted


def main(argv: list[str]) -> int:
    """Entry point; exit code STOPPED where a signal ended it before nothing was due."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", help="work directory of the sweep")
    parser.add_argument("--plan", action="store_true", help="size the arms, and do nothing else")
    parser.add_argument("--parent", type=int, metavar="PID", help="end, well, when this process does, which is the parent")
    arguments = parser.parse_args(argv)
    cli.keep_memory()
    cli.keep_compilations()
    from lm.compare import sweep

    try:
        if arguments.parent:
            die_with(arguments.parent)
        if arguments.plan:
            sweep.plan(arguments.workdir)
        else:
            sweep.open_sweep(arguments.workdir).work()
    except Interrupted:
        return STOPPED
    return 0


if __name__ == "__main__":
    from lm.compare import worker  # by its name, so that its Interrupted is the one that is raised

    cli.run(worker.main)
