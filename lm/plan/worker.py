"""Plans made in processes of their own, so that several compile at once and one that the system kills takes no other with it.

`python -m lm.plan.worker` reads a line of JSON {"config", "topology", "source", "overrides"} and answers with one: {"plan"} or
{"error", "code"}. What a process needs of memory (1.5 to 3 GB for small programs) goes back to the system when it ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading

from lm import cli
from lm import config as configs
from lm.errors import ConfigError, PlanError
from lm.plan.topology import Topology, parse

_COMMAND = ("-m", "lm.plan.worker")
_LAST_WORDS = 300


class Workers:
    """Makes plans in processes; `plan` may be called from several threads, `close` ends those that still run."""

    def __init__(self):
        self._running: set[subprocess.Popen] = set()
        self._lock, self._closed = threading.Lock(), False

    def plan(self, config, topology: Topology, source: str = "", overrides: dict | None = None) -> dict:
        """`lm.plan.planning.plan` without explanations of what does not fit; a plan that is in the cache is read there.

        ConfigError and PlanError as it raises them; PlanError also for a process that dies.
        """
        question = {"config": configs.to_json(config), "topology": topology.name, "source": source, "overrides": overrides or {}}
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            with self._lock:
                if self._closed:
                    raise PlanError("stopped")
                process = subprocess.Popen([sys.executable, *_COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                           text=True, env=_environment(topology))
                self._running.add(process)
            answer, _ = process.communicate(json.dumps(question) + "\n")
            with self._lock:
                self._running.discard(process)
            if not answer:
                raise PlanError(_death(process.returncode, log))
        found = json.loads(answer)
        if "error" in found:
            raise (ConfigError if found["code"] == 2 else PlanError)(found["error"])
        return found["plan"]

    def close(self):
        """Ends the processes that still run, and starts no others."""
        with self._lock:
            self._closed = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


def _environment(topology: Topology) -> dict[str, str]:
    """Of a process that plans: it has no accelerator, and for a topology of CPUs as many of them."""
    here = {"JAX_PLATFORMS": "cpu"} | ({"JAX_NUM_CPU_DEVICES": str(topology.chips)} if topology.kind == "cpu" else {})
    return os.environ | here


def _death(code: int, log) -> str:
    """Why a process has not answered, in a line."""
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (for want of memory? plan with fewer --workers)" if code == -signal.SIGKILL else ""
    log.seek(0)
    words = " ".join(log.read().split())[-_LAST_WORDS:]
    return f"the process that compiled {how}{hint}{': ' + words if words else ''}"


def answer(question: dict) -> dict:
    """What the process says to a question."""
    try:
        from lm.plan import planning

        config = configs.from_json(question["config"])
        return {"plan": planning.plan(config, parse(question["topology"]), None, False, question["source"], question["overrides"])}
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises, the one who asked gets a line and goes on
        code, text = cli.describe(error)
        return {"error": text, "code": code}


def _end_with_parent(parent: int):
    """Ends this process when the one that asked has gone, which cannot ask any more."""
    waiting = threading.Event()
    while not waiting.wait(1.0):
        if os.getppid() != parent:
            os._exit(1)


def main():
    """Answers each line of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a compiler prints is no answer
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
