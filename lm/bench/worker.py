"""One side of a benchmark, in a process of its own: it waits while another side runs, so that sides take turns on one machine.

`Side("lm.bench.ours:Training", {"shape": "M"})` starts the process and makes the object there; `side("steps", count=3)` calls
its method and returns the result, by lines of JSON over pipes. What the process prints otherwise goes to standard error.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback

from lm.cli import MEMORY_TUNABLES
from lm.errors import BenchError


class Side:
    """A process that holds one object; closed as a context manager. `environment` is added to this process's own."""

    def __init__(self, target: str, options: dict, environment: dict[str, str] | None = None):
        """`target` is MODULE:CLASS, called there with `options`. All sides get the allocator's settings that ours gets."""
        command = [sys.executable, "-m", "lm.bench.worker", target, json.dumps(options)]
        inherited = {**os.environ, "GLIBC_TUNABLES": MEMORY_TUNABLES, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.target = target
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         env={**inherited, **(environment or {})})
        self.info = self._answer()

    def __call__(self, method: str, **arguments):
        """The result of a method, as JSON carries it; BenchError with its error."""
        print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the process of {self.target} ended with exit code {self._process.wait()} (its log is above)")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.target}: {answer['error']}")
        return answer["result"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def peak_memory() -> int:
    """Most bytes that this process has held in memory at once so far (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def _serve(target: str, options: dict, requests, answers):
    """Makes the object, then answers one line after the other until the pipe closes."""

    def answer(call):
        try:
            result = {"result": call()}
        except Exception as error:  # noqa: BLE001 - whatever a side raises is for the other end to report
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)
        return "error" not in result

    made = []

    def make():
        module, name = target.split(":")
        made.append(getattr(importlib.import_module(module), name)(**options))
        return getattr(made[0], "info", None)

    if not answer(make):
        return
    for line in requests:
        method, arguments = json.loads(line)
        answer(lambda method=method, arguments=arguments: getattr(made[0], method)(**arguments))


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    _serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, channel)
