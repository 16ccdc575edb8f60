"""One side of a benchmark, in a process of its own: it waits while another side runs, so that sides take turns on one machine.

`Side("lm.bench.ours:Training", {"shape": shape})` starts the process and makes the object there; `side("steps", count=3)` calls
its method and returns the result, by lines of JSON over pipes. What the process prints otherwise goes to a log of its own.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback

from lm.cli import MEMORY_TUNABLES
from lm.errors import BenchError

# For every side alike: the allocator's settings that ours gets from its launcher, nothing compiled before, nothing fetched.
SETTINGS = {"GLIBC_TUNABLES": MEMORY_TUNABLES, "JAX_ENABLE_COMPILATION_CACHE": "false", "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1"}
TIMEOUT = 1800.0
ENDING_SECONDS = 10.0


class Side:
    """A process that holds one object; closed as a context manager."""

    def __init__(self, target: str, options: dict, environment: dict[str, str] | None = None, timeout: float = TIMEOUT):
        """`target` is MODULE:CLASS, called there with `options`; `info` is the object's attribute of this name, or None.

        `environment` is added to this process's and SETTINGS; an answer must come within `timeout` seconds. BenchError says what went
        wrong, `--debug` on the command line shows all that the process prints.
        """
        self.target, self._timeout = target, timeout
        self._log = None if "--debug" in sys.argv else tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by _end
        command = [sys.executable, "-m", "lm.bench.worker", target, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
                                         env={**os.environ, **SETTINGS, **(environment or {})})
        try:
            self.info = self._answer()
        except BaseException:
            self._end(0.0)
            raise

    def __call__(self, method: str, **arguments):
        """The result of a method, as JSON carries it; BenchError with its error."""
        with contextlib.suppress(BrokenPipeError):  # a process that is gone is named when it does not answer
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        if not select.select([self._process.stdout], [], [], self._timeout)[0]:
            self._end(0.0)
            raise BenchError(f"{self.target} did not answer within {self._timeout:g} seconds: give it less to do, or a quieter machine")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise BenchError(f"the process of {self.target} {how}{self._last_words()} (--debug shows what it printed)")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.target}: {answer['error']} (--debug shows where)")
        return answer["result"]

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f": {lines[-1]}" if lines else ""

    def _end(self, patience: float):
        """Closes the pipe, which the process takes as its end, and kills it when it has not gone by then."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        if self._log:
            self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, kind=None, *_):
        self._end(0.0 if kind else ENDING_SECONDS)


def peak_memory() -> int:
    """Most bytes that this process has held in memory at once so far (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def _serve(target: str, options: dict, requests, answers):
    """Makes the object, then answers one line after the other until the pipe closes."""

    def answer(call):
        try:
            text = json.dumps({"result": call()})
        except Exception as error:  # noqa: BLE001 - whatever a side raises is for the other end to report
            traceback.print_exc()
            text = json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        print(text, file=answers, flush=True)

    made = []

    def make():
        module, name = target.split(":")
        made.append(getattr(importlib.import_module(module), name)(**options))
        return getattr(made[0], "info", None)

    answer(make)
    for line in requests if made else ():
        method, arguments = json.loads(line)
        answer(lambda method=method, arguments=arguments: getattr(made[0], method)(**arguments))


if __name__ == "__main__":
    # Ctrl-C is for the process that reads the answers, which then closes the pipe or kills this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    _serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, channel)
