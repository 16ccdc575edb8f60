"""Several processes on one machine: starts them, passes signals on, gathers what they print, ends them together."""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from lm.config import planned
from lm.errors import ConfigError

POLL = 0.05
# After SIGTERM at the end of the grace period, a process has this long before it is killed.
KILL_AFTER = 10.0
# What JAX's CPU collectives print on standard output at every connection; threads mix their lines.
NOISE = (b"[Gloo]", b"peer ranks")


def run(command: list[str], processes: int, devices: int, port: int = 0, grace: float = 30.0) -> int:
    """Runs `python COMMAND` as `processes` processes with `devices` CPU devices each; the first exit code that is not 0, or 0.

    A process that a signal ended counts as 128 + its number.
    """
    if processes < 1 or devices < 1:
        raise ConfigError(f"--processes={processes} --devices={devices}: both must be at least 1")
    port = port or free_port()
    children, threads = [], []
    with _forwarded(children):
        for index in range(processes):
            child = subprocess.Popen([sys.executable, *command], env=environment(index, processes, devices, port), stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_die_with_parent)
            children.append(child)
            threads += [_copy(child.stdout, sys.stdout if index == 0 else sys.stderr, "" if index == 0 else f"[{index}] "),
                        _copy(child.stderr, sys.stderr, f"[{index}] ")]
        try:
            code = _wait(children, grace)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
    for thread in threads:
        thread.join(timeout=5)
    return code


def devices_of_plan(folder: str, processes: int, asked: int | None = None) -> int:
    """How many devices each of `processes` gets of those that the plan in a folder is for; ConfigError where that is not what is asked."""
    plan = planned.read(folder)
    topology, chips = str(plan.topology), plan.values.get("chips")
    if not topology.startswith("cpu:") or not chips or processes < 1 or chips % processes:
        raise ConfigError(f"the plan {folder} is for {topology}, and asked for are {processes} processes of CPU devices of this machine: "
                          "plan for cpu:N, of which each process gets as many")
    if asked not in (None, chips // processes):
        raise ConfigError(f"the plan {folder} is for {topology}: --devices={chips // processes} for each of {processes} processes, not "
                          f"{asked}; leave it out")
    return chips // processes


def _die_with_parent():
    """In a child before it starts: it is killed when this launcher is. (A session of its own: a terminal's Ctrl-C comes through us.)"""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, on Linux


def environment(index: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """The variables of one process, on top of this one's."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")).strip()
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1",
        "LM_COORDINATOR": f"127.0.0.1:{port}", "LM_PROCESSES": str(processes), "LM_PROCESS": str(index),
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _wait(children, grace) -> int:
    """The exit code of the job, once all have ended or the grace after a failure is over."""
    code, until = 0, None
    while any(child.poll() is None for child in children):
        code = code or _first_code(children)
        if code and until is None:
            until = time.monotonic() + grace
        if until is not None and time.monotonic() > until:
            print(f"launch_local: ending the processes that still run {grace:g} s after one failed", file=sys.stderr)
            _end(children)
        time.sleep(POLL)
    return code or _first_code(children)


def _first_code(children) -> int:
    """An exit code of those that failed, 0 if none has; of several the one of a signal, which the others' errors follow from."""
    code = min((code for child in children if (code := child.poll())), default=0)
    return code if code >= 0 else 128 - code


def _end(children):
    for stop in ("terminate", "kill"):
        for child in children:
            if child.poll() is None:
                getattr(child, stop)()
        until = time.monotonic() + KILL_AFTER
        while any(child.poll() is None for child in children) and time.monotonic() < until:
            time.sleep(POLL)


@contextlib.contextmanager
def _forwarded(children):
    """SIGTERM and SIGINT go to all children, as often as they come."""

    def forward(number, _):
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copy(source, target, prefix) -> threading.Thread:
    """A thread that copies lines, whole, with a prefix."""

    def copy():
        for line in iter(source.readline, b""):
            if any(noise in line for noise in NOISE):
                continue
            target.write(prefix + line.decode(errors="replace"))
            target.flush()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread
