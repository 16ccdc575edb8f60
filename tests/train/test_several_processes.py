"""Real jobs of several processes on this machine: the numbers of one process, checkpoints for any number, and every kind of end."""

import contextlib
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lm import config as configs
from lm import evaluate
from lm.errors import ConfigError
from lm.metrics.writers import read_lines
from lm.parallel import make_mesh
from lm.run import open_run
from lm.train import job as jobs
from lm.train import loop, set_up, train

WORKER = str(pathlib.Path(__file__).parent / "worker.py")
# Compiles in half the time; the numbers are compared with those of a process that optimizes.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
SAME = ("loss", "grad_norm", "param_norm", "update_norm", "tokens")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the jobs of this file and their corpus lie."""
    folder = tmp_path_factory.mktemp("processes")
    rng = random.Random(1)
    words = ["we", "the", "people", "of", "union", "in", "order", "to", "form", "a", "more", "perfect", "state"]
    (folder / "corpus.txt").write_text("".join(" ".join(rng.choices(words, k=rng.randint(3, 60))) + "\n" for _ in range(60)))
    return folder


def tiny(folder, **overrides):
    """A config that compiles in seconds; overrides with __ for the dot."""
    base = {
        "model.width": "16", "model.layers": "1", "model.heads": "2", "model.scan_layers": "false",
        "data.source": f"text:{folder}/corpus.txt", "data.documents": "line", "data.tokenizer": "bytes",
        "data.context": "24", "data.global_batch": "8", "data.workers": "1",
        "data.validation_fraction": "0.2", "train.steps": "6", "train.log_every": "1", "checkpoint.every": "3", "eval.every": "0",
        "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "processes.start_timeout": "60",
    }
    base |= {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return configs.validate(configs.override(configs.default(), base))


def start(folder, config, workdir, processes, devices, **variables):
    """A job under scripts/launch_local.py."""
    file = folder / f"{workdir.name}.py"
    file.write_text(f"from lm import config\ndef get_config():\n    return config.override(config.default(), {as_text(config)!r})\n")
    environment = os.environ | {"GLIBC_TUNABLES": "", "XLA_FLAGS": QUICK,
                                "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables
    command = [sys.executable, "scripts/launch_local.py", f"--processes={processes}", f"--devices={devices}", "--grace=5", "--",
               WORKER, f"--config={file}", f"--workdir={workdir}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def as_text(config):
    """{"a.b": "text"} of a config, as on a command line."""
    return {name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in configs.flatten(config).items()}


def finish(job, code=0):
    """(standard output, standard error) of a job that must end with an exit code."""
    out, err = job.communicate(timeout=300)
    assert job.returncode == code, err
    return out, err


def lines(workdir, kind="train"):
    """The lines of one kind in a run's metrics."""
    return [line for line in read_lines(workdir / "metrics.jsonl") if line["kind"] == kind]


def process(job, index):
    """Process id of one process of a job."""
    return int(pathlib.Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[index])


def wait_for(job, ready, what):
    """Returns once `ready()`; fails when the job ends before."""
    for _ in range(1200):
        if ready():
            return
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"no {what} within a minute")


def wait_for_step(job, workdir, step):
    """Returns once metrics.jsonl has a step."""
    wait_for(job, lambda: lines(workdir) and lines(workdir)[-1]["step"] >= step, f"step {step}")


def assert_same_numbers(some, others):
    """Losses and norms of train lines equal to 1e-6, and the same steps."""
    assert [line["step"] for line in some] == [line["step"] for line in others]
    numbers = [[[line[name] for name in SAME] for line in each] for each in (some, others)]
    np.testing.assert_allclose(*numbers, rtol=1e-6)


@pytest.fixture(scope="session")
def two(folder):
    """A finished run of 2 processes with 2 devices each: (work directory, standard output, standard error)."""
    (folder / "dump").mkdir()
    out, err = finish(start(folder, tiny(folder), folder / "two", 2, 2, DUMP=str(folder / "dump")))
    return folder / "two", out, err


@pytest.fixture(scope="session")
def one(folder):
    """The same run in this process, on one device."""
    with some_devices(1):
        train(tiny(folder), folder / "one")
    return folder / "one"


@contextlib.contextmanager
def some_devices(count):
    """Leaves the first few of the simulated devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:count]))
        yield


def damaged(two, target):
    """A copy of the run whose last checkpoint, of step 6, is torn: the one of step 3 is good."""
    shutil.copytree(two[0], target)
    files = [path for path in (target / "checkpoints" / "6" / "params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])
    return target


def test_two_processes_have_the_losses_of_one_and_one_of_them_writes(two, one):
    workdir, out, err = two
    assert_same_numbers(lines(workdir), lines(one))
    for a, b in zip(lines(workdir, "eval"), lines(one, "eval"), strict=True):
        assert a["nats_per_token"] == pytest.approx(b["nats_per_token"], rel=1e-6) and a["tokens"] == b["tokens"]
    assert json.loads(out.splitlines()[-1])["step"] == 6
    assert err.count("step 6/6") == 1 and all(line.startswith("[0] ") for line in err.splitlines() if "step" in line)
    environment = json.loads((workdir / "environment.json").read_text())
    assert (environment["processes"], len(environment["devices"])) == (2, 4)
    assert not [path.name for path in workdir.iterdir() if path.name.startswith(".token")]


def test_two_processes_see_the_same_batches_bit_for_bit(folder, two):
    job = set_up(tiny(folder), folder / "unused")
    for step in range(6):
        assert_parts_of(job.batch(step), folder, step)


def assert_parts_of(whole, folder, step):
    """What the two processes had of a step's batch makes up, bit for bit, the whole one; each had a part."""
    rebuilt = {key: np.full_like(value, -7) for key, value in whole.items()}
    for index in range(2):
        with np.load(folder / "dump" / f"{step}-{index}.npz") as parts:
            assert 0 < sum(part.shape[0] for name, part in parts.items() if name.startswith("weights|")) < 8
            for name, part in parts.items():
                key, row, column = name.split("|")
                rebuilt[key][int(row):int(row) + part.shape[0], int(column):int(column) + part.shape[1]] = part
    for key, value in whole.items():
        assert value.dtype == rebuilt[key].dtype and value.tobytes() == rebuilt[key].tobytes(), (step, key)


def test_one_process_with_another_mesh_goes_on_from_a_checkpoint_of_two(folder, two, monkeypatch):
    workdir, seen = damaged(two, folder / "by one"), {}

    class Feed(loop.Feed):
        def __iter__(self):
            for step, batch in super().__iter__():
                seen[step] = jax.device_get(batch)
                yield step, batch

    monkeypatch.setattr(loop, "Feed", Feed)
    with some_devices(4), pytest.warns(UserWarning, match="6 is damaged"):
        train(tiny(folder, mesh__replica=1, mesh__fsdp=4), workdir)
    assert_same_numbers(lines(workdir), lines(two[0]))
    assert list(seen) == [3, 4, 5]
    for step, batch in seen.items():  # bit for bit what the two processes would have seen, and have the first time
        assert_parts_of(batch, folder, step)


def test_four_processes_with_another_mesh_go_on_from_a_checkpoint_of_two(folder, two):
    workdir = damaged(two, folder / "by_four")
    _, err = finish(start(folder, tiny(folder, mesh__replica=2, mesh__fsdp=2, eval__split="none"), workdir, 4, 1))
    assert err.count("6 is damaged") == 1 and "resuming at step 3 of 6" in err
    assert_same_numbers(lines(workdir), lines(two[0]))
    assert open_run(workdir).checkpoints.steps() == [3, 6] and (workdir / "checkpoints" / "damaged-6").is_dir()


def test_one_device_evaluates_a_checkpoint_of_two_processes(two, monkeypatch):
    monkeypatch.setattr(evaluate, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    result = evaluate.evaluate_run(two[0])
    assert result["step"] == 6
    assert result["nats_per_token"] == pytest.approx(lines(two[0], "eval")[-1]["nats_per_token"], rel=1e-6)


def endless(folder, **overrides):
    """A config that trains until something ends it."""
    return tiny(folder, train__steps=100000, checkpoint__every=20, eval__split="none", optim__schedule="constant",
                **{"checkpoint__keep": 3} | overrides)


@pytest.mark.slow  # tests/train/test_faults.py is faster and compares bit for bit; this goes through the launcher
def test_sigterm_to_one_of_two_saves_one_step_and_a_kill_ends_both(folder):
    workdir, config = folder / "signals", endless(folder)
    job = start(folder, config, workdir, 2, 1)
    wait_for_step(job, workdir, 25)
    os.kill(process(job, 1), signal.SIGTERM)
    out, err = finish(job)
    steps = open_run(workdir).checkpoints.steps()
    assert "SIGTERM in process 1 (" in err and f"saved step {steps[-1]}; the same command goes on from there" in err
    assert json.loads(out.splitlines()[-1])["step"] == steps[-1] == lines(workdir)[-1]["step"]

    job = start(folder, config, workdir, 2, 1)
    wait_for_step(job, workdir, steps[-1] + 25)
    with pytest.raises(ConfigError, match="another process is training in"):
        train(config, workdir)
    os.kill(process(job, 1), signal.SIGKILL)
    started = time.monotonic()
    out, err = finish(job, 128 + signal.SIGKILL)
    assert time.monotonic() - started < 20
    [line] = [line for line in err.splitlines() if "error" in line]
    saved = open_run(workdir).checkpoints.steps()[-1]
    assert line.startswith("[0] error: process 1 (") and " is gone: " in line
    assert line.endswith(f"start the same command again to go on from step {saved}")

    before = {each["step"]: each["loss"] for each in lines(workdir)}
    with some_devices(1):
        train(configs.validate(configs.override(config, {"train.steps": str(saved + 2), "checkpoint.every": "0"})), workdir)
    after = {each["step"]: each["loss"] for each in lines(workdir)}
    assert list(after) == list(range(1, saved + 3))
    for step in set(before) & set(after):
        assert after[step] == pytest.approx(before[step], rel=1e-5)


@pytest.mark.slow
def test_the_loss_of_process_0_ends_the_others_with_a_line(folder):
    workdir = folder / "first"
    job = start(folder, endless(folder), workdir, 2, 1)
    wait_for_step(job, workdir, 3)
    os.kill(process(job, 0), signal.SIGKILL)
    started = time.monotonic()
    _, err = finish(job, 128 + signal.SIGKILL)
    assert time.monotonic() - started < 20
    assert [line for line in err.splitlines() if line.startswith("[1] error (process 1): process 0 (") and "is gone" in line]


def test_a_stuck_process_ends_all_with_stacks(folder):
    job = start(folder, endless(folder, processes__step_timeout=6), folder / "stuck", 2, 1, STUCK="1:4")
    _, err = finish(job, 1)
    assert "processes.step_timeout=6) since step" in err
    assert [line for line in err.splitlines() if line.startswith("[1] ") and "in stuck_here" in line]
    assert [line for line in err.splitlines() if line.startswith("[0] ") and "lm/train/loop.py" in line and "in run" in line]


def test_what_is_wrong_with_the_data_is_said_once_and_ends_all(folder):
    started = time.monotonic()
    _, err = finish(start(folder, tiny(folder, data__source="text:/nowhere/*.txt"), folder / "wrong", 2, 1), 1)
    assert err.splitlines() == ["[0] error: text:/nowhere/*.txt: no file matches"]
    assert time.monotonic() - started < 60
