"""The processes of a job: starting together, barriers and values with time-outs, and ending together with one clear line.

In a single process all of this does nothing. `member` wraps a script's work; the other functions may be called anywhere.
"""

import contextlib
import ctypes
import faulthandler
import importlib.metadata
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

import jax

from lm import cli
from lm.config import SCHEMA
from lm.errors import ConfigError, LmError, ProcessError
from lm.parallel import channel as channels
from lm.parallel.launch import Launch

# JAX's own heartbeat ends a process by a C++ abort; ours, which says who is gone, comes first by this many seconds.
JAX_SLACK = 60
ABORT_SECONDS = 3.0
# Keys that may differ between machines.
OF_A_MACHINE = ("data.cache_dir", "data.workers")


class _Job:
    """What this process knows of its job."""

    channel: channels.Channel | None = None
    barrier_timeout: float = 600.0
    advice: Callable[[], str] | None = None
    ending = threading.Lock()


_job = _Job()


def index() -> int:
    """This process's index, from 0."""
    return _job.channel.index if _job.channel else 0


def count() -> int:
    """Number of processes of this job."""
    return _job.channel.count if _job.channel else 1


def is_first() -> bool:
    """True in process 0, the only one that writes a run's files and talks to the user."""
    return index() == 0


def name(of: int) -> str:
    """A process as messages call it, with host and pid."""
    return _job.channel.names[of] if _job.channel else f"process {of}"


def gather(what: str, value, timeout: float | None = 0.0) -> list:
    """The values (JSON) that all processes give under a name, by index. All call it with the same names in the same order.

    `timeout` in seconds: 0 is processes.barrier_timeout, None waits for as long as all are alive. ProcessError names the missing.
    """
    if _job.channel is None:
        return [value]
    return _job.channel.gather(what, value, _job.barrier_timeout if timeout == 0.0 else timeout)


def barrier(what: str, timeout: float | None = 0.0):
    """Returns once all processes are here; `timeout` and errors as `gather`."""
    gather(what, None, timeout)


def first(what: str, make: Callable, timeout: float | None = None):
    """The value (JSON) that `make` gives in process 0, in all processes. An error there is raised there and ends all."""
    if _job.channel is None:
        return make()
    return gather(what, make() if is_first() else None, timeout)[0]


def first_then_all(what: str, make: Callable):
    """`make` called in process 0, and when it is done there in the others: they find in a shared cache what it left."""
    result = make() if is_first() else None
    barrier(what, timeout=None)
    return result if is_first() else make()


def same(what: str, value, fix: str):
    """ConfigError that names a process whose value is not that of process 0."""
    values = gather(what, value)
    for other, theirs in enumerate(values):
        if theirs != values[0]:
            raise ConfigError(f"{name(other)} has another {what} than process 0: {fix}")


def stop_at(done: int, signal_name: str = "") -> bool:
    """Whether to stop after step `done`: where a signal (named in the process that got it) came to any of the processes.

    Every process calls it after each step; all of them stop at the same one.
    """
    return bool(signal_name) if _job.channel is None else _job.channel.stop_at(done, signal_name)


def stopped_by(signal_name: str) -> str:
    """Which signal stopped the job, and where, for a message."""
    stop = _job.channel.stop if _job.channel else None
    return f"{stop['signal']} in {stop['name']}" if stop else signal_name


def advise(advice: Callable[[], str]):
    """`advice` gives what the user can do when a process is lost or stuck, such as where the run goes on; it ends that message."""
    _job.advice = advice


def stuck(text: str):
    """Ends all processes because this one makes no progress; each shows its stacks. Never returns."""
    _job.ending.acquire()
    if _job.channel is not None:
        _job.channel.stuck(text)
    _exit(index(), text + _advice(), 1, stacks=True)


def check_shared(folder):
    """ConfigError that names the processes which do not see in `folder` what process 0 writes there."""
    unseen = blind(folder)
    if unseen:
        raise ConfigError(f"{', '.join(unseen)} cannot see {folder} of process 0: the work directory must be on a disk that all share")


def blind(folder) -> list[str]:
    """The processes that do not see in `folder` what process 0 writes there."""
    if _job.channel is None:
        return []
    token = first("work directory", lambda: _write_token(folder))
    file = folder / token
    until = time.monotonic() + 10.0  # network file systems remember for some seconds that a file is not there
    while not (seen := file.exists()) and time.monotonic() < until:
        time.sleep(0.2)
    unseen = [name(other) for other, sees in enumerate(gather("work directory seen", seen)) if not sees]
    if is_first():
        file.unlink(missing_ok=True)
    return unseen


def _write_token(folder) -> str:
    token = f".token-{os.getpid()}-{time.time_ns()}"
    (folder / token).touch()
    return token


@contextlib.contextmanager
def member(launch: Launch | None):
    """Runs a script's work as one process of a job; gives a function `start(config)` that meets the others and starts JAX.

    An error in one process ends all of them: each prints at most one line, those with the same error as process 0 none.
    """
    try:
        yield lambda config: _start(launch, config)
    except Exception as error:
        if launch is None:
            raise
        _end(launch, error)
    except KeyboardInterrupt as error:
        if _job.channel is None:
            raise
        _end(launch, error)
    else:
        _leave()


def _start(launch: Launch | None, config):
    settings = config.processes
    if launch is not None:
        flat = {f"config {key}": _value(config, key) for key in SCHEMA if key not in OF_A_MACHINE}
        _join(launch, _versions() | flat, settings.start_timeout, settings.heartbeat_timeout)
        _job.barrier_timeout = settings.barrier_timeout
        _job.channel.meet(settings.start_timeout)
        jax.config.update("jax_enable_preemption_service", False)  # `stop_at` does its work, for Ctrl-C too
        jax.distributed.initialize(
            launch.coordinator, launch.count, launch.index, launch.local_device_ids, cluster_detection_method="deactivate",
            initialization_timeout=int(settings.start_timeout), heartbeat_timeout_seconds=int(settings.heartbeat_timeout) + JAX_SLACK)
        _outlive_abort()
        jax.devices()  # the processes tell each other their devices, all at once: later one might wait for the other elsewhere
    check_accelerator(settings.require_accelerator)


def _outlive_abort():
    """When process 0 is lost, JAX aborts the others from a thread of C++; this lets our own line, which says so, come first."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def wait(_):
        time.sleep(ABORT_SECONDS)  # the channel's thread prints and ends the process meanwhile
        libc.signal(signal.SIGABRT, None)
        os.abort()

    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, wait)
    _job.on_abort = wait  # must not be collected


def _join(launch, facts, start_timeout, heartbeat_timeout):
    _job.channel = channels.join(launch, facts, start_timeout, heartbeat_timeout)
    _job.channel.on_verdict = _obey
    if _job.channel.verdict:
        _obey(_job.channel.verdict)


def _value(config, key):
    for part in key.split("."):
        config = config[part]
    return list(config) if isinstance(config, tuple) else config


def _versions() -> dict:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {package: importlib.metadata.version(package) for package in packages}


def check_accelerator(required: str):
    """ConfigError when the devices of all processes together are not those of processes.require_accelerator."""
    kind, _, number = required.partition(":")
    if not required:
        return
    devices = jax.devices()
    found = {"cuda": "gpu", "rocm": "gpu"}.get(devices[0].platform, devices[0].platform)
    if found != kind or (number and len(devices) != int(number)):
        processes = f" in {count()} processes" if count() > 1 else ""
        raise ConfigError(f"processes.require_accelerator={required}, but JAX found {len(devices)} {found} "
                          f"device{'s' * (len(devices) != 1)}{processes} ({devices[0].device_kind}): mend the installation or the job, "
                          "or change the key")


def _leave():
    """Ends a job that went well: JAX's service last, when nobody needs it."""
    if _job.channel is None:
        return
    barrier("end")
    jax.distributed.shutdown()
    _job.channel.leave()
    if is_first():  # the others have said all that they had to say
        _job.channel.close()
    _job.channel = None


def _end(launch, error):
    """Ends this process because of an error, together with all others; never returns."""
    _job.ending.acquire()  # never given back: one thread ends the process
    code, text = cli.describe(error)
    known = isinstance(error, (LmError, OSError, KeyboardInterrupt))
    if _job.channel is None and known and not isinstance(error, ProcessError):  # before the start, such as a wrong config: all hear it
        with contextlib.suppress(ProcessError):
            _join(launch, {}, *(SCHEMA[f"processes.{key}"].default for key in ("start_timeout", "heartbeat_timeout")))
    verdict = _job.channel and (_job.channel.verdict or _job.channel.fail(text, code, known))
    if verdict is None:
        _exit(launch.index, text, code, error)
    # What a process only meets because another has ended is no news.
    echo = isinstance(error, ProcessError) or not known
    if verdict["index"] == launch.index or (verdict["kind"] == "failed" and text != verdict["text"] and not echo):
        _exit(launch.index, text, verdict["code"], error)
    _exit(launch.index, _line(verdict), verdict["code"])


def _obey(verdict):
    """Ends this process from the channel's thread; its main thread may be waiting for a process that will never answer."""
    if _job.ending.acquire(blocking=False):
        _exit(_job.channel.index, _line(verdict), verdict["code"], stacks=verdict["kind"] == "stuck")


def _line(verdict) -> str:
    """What this process prints about a verdict; "" where another process does."""
    if verdict["kind"] == "failed":
        return f"{verdict['name']} failed: {verdict['text']}" if is_first() and verdict["index"] != 0 else ""
    return verdict["text"] + (_advice() if verdict["kind"] in ("gone", "stuck") else "")


def _advice() -> str:
    with contextlib.suppress(Exception):  # it may look at a disk that is gone
        return f"; {_job.advice()}" if _job.advice else ""
    return ""


def _exit(own_index, text, code, error=None, stacks=False):
    """Prints, flushes and ends at once: destructors of JAX would wait for the others, or abort."""
    with contextlib.suppress(Exception):
        if error is not None and "--debug" in sys.argv:
            traceback.print_exception(error)
        if text:
            where = f" (process {own_index})" if own_index else ""
            print(f"error{where}:", " ".join(text.splitlines()), file=sys.stderr)
        if stacks:
            faulthandler.dump_traceback(all_threads=True)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
