"""What the tests of faults share: a corpus, a config, processes that are started by `launcher.py`, and two runs compared bit for bit."""

import contextlib
import functools
import json
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import numpy as np

from lm import config as configs
from lm import launch_local
from lm.checkpoint import Checkpoints
from lm.metrics.writers import read_lines
from lm.parallel import make_mesh
from lm.train import set_up

EXACT = ("step", "loss", "grad_norm", "param_norm", "update_norm", "learning_rate", "tokens", "skipped")
# Compiles in half the time.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def write_corpus(path):
    """60 documents of unequal length, one a line."""
    rng = random.Random(2)
    words = ["we", "the", "people", "of", "union", "in", "order", "to", "form", "a", "more", "perfect", "state"]
    path.write_text("".join(" ".join(rng.choices(words, k=rng.randint(3, 60))) + "\n" for _ in range(60)))
    return path


def config_of(corpus, **overrides):
    """A config that compiles in a second, with everything that a checkpoint has to bring back; overrides with __ for the dot."""
    base = {
        "model.width": "16", "model.layers": "1", "model.heads": "2", "model.scan_layers": "false", "model.dropout": "0.1",
        "data.source": f"text:{corpus}", "data.documents": "line", "data.tokenizer": "bytes", "data.context": "16",
        "data.global_batch": "8", "data.workers": "1", "data.validation_fraction": "0", "train.steps": "40", "train.log_every": "1",
        "train.ema": "0.9", "optim.schedule": "cosine", "optim.warmup": "5", "checkpoint.every": "5", "checkpoint.keep": "3",
        "eval.split": "none", "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "processes.start_timeout": "60",
    }
    base |= {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return configs.validate(configs.override(configs.default(), base))


class Launched:
    """One running scripts/train.py."""

    def __init__(self, launcher, pid, out, err):
        self._launcher, self.pid, self._out, self._err = launcher, pid, out, err

    @property
    def err(self):
        """Standard error so far."""
        return self._err.read_text()

    def poll(self):
        """The exit code, or None."""
        return self._launcher.ask({"poll": self.pid})["code"]

    def send(self, number):
        """Sends a signal."""
        os.kill(self.pid, number)

    def wait_until(self, ready):
        """Returns once `ready()`; fails when the process ends before."""
        until = time.monotonic() + 300
        while not ready():
            assert self.poll() is None, f"ended with {self.poll()}: {self.err}"
            assert time.monotonic() < until, f"waited in vain: {self.err}"
            time.sleep(0.005)

    def finish(self, code=0):
        """(result, standard error) of a process that must end with an exit code; the result is None where none is printed."""
        until = time.monotonic() + 300
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert self.poll() == code, f"ended with {self.poll()}: {self.err}"
        last = self._out.read_text().splitlines()[-1:]
        return (json.loads(last[0]) if last and last[0].startswith("{") else None), self.err


class Launcher(contextlib.AbstractContextManager):
    """Starts processes; `folder` keeps configs, what they print and compiled programs."""

    def __init__(self, folder):
        self.folder, self._count = folder, 0
        environment = os.environ | {
            "GLIBC_TUNABLES": "", "XLA_FLAGS": QUICK,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1"}
        script = pathlib.Path(__file__).parent / "launcher.py"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, script], env=environment, **pipes)

    def ask(self, request):
        """The answer to a request."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, config, workdir, **variables):
        """A process that trains `config` in `workdir` with some variables."""
        self._count += 1
        file = self.folder / f"{self._count}.py"
        values = {name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                  for name, value in configs.flatten(config).items()}
        file.write_text(f"from lm import config\ndef get_config():\n    return config.override(config.default(), {values!r})\n")
        out, err = file.with_suffix(".out"), file.with_suffix(".err")
        err.touch()
        arguments = [f"--config={file}", f"--workdir={workdir}"]
        answer = self.ask({"start": {"arguments": arguments, "environment": variables, "output": str(out), "errors": str(err)}})
        return Launched(self, answer["pid"], out, err)

    def start_two(self, config, workdir, **variables):
        """The two processes of a job."""
        port = launch_local.free_port()
        return [self.start(config, workdir, LM_COORDINATOR=f"127.0.0.1:{port}", LM_PROCESSES="2", LM_PROCESS=str(index), **variables)
                for index in range(2)]

    def __exit__(self, *error):
        self._process.kill()
        self._process.communicate()


class Hold:
    """Lets processes stop before a step until they are released."""

    def __init__(self, folder, step):
        self._file = folder / f"hold-{time.monotonic_ns()}"
        self._file.touch()
        self.variable = {"HOLD": f"{step}:{self._file}"}

    def reached(self, index=0):
        """Whether a process waits there."""
        return self._file.with_suffix(f".{index}").exists()

    def release(self):
        """Lets them go on."""
        self._file.unlink()


def rows(workdir):
    """What must be equal in the train lines of two runs."""
    return [{name: line[name] for name in EXACT} for line in read_lines(workdir / "metrics.jsonl") if line["kind"] == "train"]


def saved_steps(workdir):
    """Steps of the checkpoints that are there."""
    return Checkpoints(workdir / "checkpoints", read_only=True).steps()


@functools.cache
def _job(corpus):
    config = config_of(corpus)
    return set_up(config, corpus.parent / "unused", mesh=make_mesh(config.mesh, jax.devices()[:1]))


def final(corpus, workdir):
    """Every array of the latest checkpoint, with its path."""
    job = _job(corpus)
    restored = Checkpoints(workdir / "checkpoints", read_only=True).restore(job.items(job.abstract_state()))
    return restored.step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(restored.items)}


def assert_same_run(corpus, workdir, twin):
    """The same steps, each once, with the same numbers, the same parameters and optimizer state bit for bit, and nothing left behind."""
    assert rows(workdir) == rows(twin)
    (step, arrays), (other_step, others) = final(corpus, workdir), final(corpus, twin)
    assert step == other_step and arrays.keys() == others.keys() and len(arrays) > 20
    for path, value in arrays.items():
        assert value.dtype == others[path].dtype and value.tobytes() == others[path].tobytes(), path
    left = {path.name for path in (workdir / "checkpoints").iterdir() if not path.name.startswith("damaged-")}
    assert left == {str(each) for each in saved_steps(twin)}, "the same checkpoints, and no remains of saves that were cut short"
