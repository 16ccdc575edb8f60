"""scripts/launch/worker.sh and finished.py: what a run came to, and what a signal does to it."""

import json
import os
import signal
import subprocess
import time
import types

import pytest

from lm import config as configs
from lm import run as runs


def worker(cloud, *words):
    """(exit code, standard output without the name of the worker, standard error) of worker.sh on a worker."""
    home = cloud.folder / "workers/worker-0"
    home.mkdir(parents=True, exist_ok=True)
    done = cloud.call("scripts/launch/worker.sh", *words, HOME=str(home))
    return done.returncode, done.stdout.removeprefix("lm-worker worker-0: ").strip(), done.stderr


def train(cloud, **options):
    return ["--", "scripts/train.py", f"--workdir={cloud.folder / 'run'}", *(f"--{name}={value}" for name, value in options.items())]


def in_background(cloud, *words):
    """worker.sh run, as the first process of a container; returns when the command has begun."""
    home = cloud.folder / "workers/worker-0"
    home.mkdir(parents=True)
    process = subprocess.Popen(["scripts/launch/worker.sh", "run", *words], cwd=cloud.repository, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=cloud.environment | {"HOME": str(home)}, start_new_session=True)
    end = time.monotonic() + 20
    while not any(cloud.folder.glob("begun")) and not any(cloud.folder.glob("run/step-*")):
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


def wait_for(cloud, state, *words):
    """Waits until status says so."""
    end = time.monotonic() + 20
    while (found := worker(cloud, "status", *words)[1]) != state:
        assert time.monotonic() < end, found


@pytest.mark.parametrize(("options", "code", "state"), [
    ({}, 0, "finished"), ({"term_at": 2}, 75, "interrupted"), ({"fail": 3}, 3, "failed with exit code 3")])
def test_what_a_run_came_to(cloud, options, code, state):
    assert worker(cloud, "status")[1] == "none"
    assert worker(cloud, "start", *train(cloud, **options))[1] == "started"
    wait_for(cloud, state)
    wait_for(cloud, "none", *train(cloud, steps=99))  # no run of that command
    log = worker(cloud, "logs")[1]
    assert f"--- exit code {code}" in log and ("a line of standard output" in log) == (code != 3)
    (cloud.folder / "workers/worker-0/lm-run/exit").unlink()  # as after a reboot in mid-run
    assert worker(cloud, "status")[1] == "lost"


def test_run_ends_as_its_command(cloud):
    assert worker(cloud, "run", *train(cloud))[0] == 0
    assert worker(cloud, "run", *train(cloud, fail=3))[0] == 3
    assert worker(cloud, "run", *train(cloud, steps=9, term_at=5))[0] == 75


def test_a_run_of_another_command_is_busy_and_end_kills_what_does_not_stop(cloud):
    stubborn = ["--", "bash", "-c", "trap '' TERM; touch \"$FAKE/begun\"; while true; do sleep 0.05; done"]
    assert worker(cloud, "start", *stubborn)[0] == 0
    assert worker(cloud, "status", *stubborn)[1] == "running"
    assert worker(cloud, "status", *train(cloud))[1] == "busy"
    code, _, error = worker(cloud, "start", *train(cloud))
    assert code == 1 and "a run is going on" in error
    while not (cloud.folder / "begun").exists():
        time.sleep(0.01)
    assert worker(cloud, "end", "0")[0] == 0
    assert worker(cloud, "status")[1] == "lost"


def test_the_first_sigterm_is_passed_on_and_no_other(cloud):
    process = in_background(cloud, "--", "bash", "-c", 'n=0; trap "n=\\$((n + 1))" TERM; touch "$FAKE/begun"; '
                                                        "for i in {1..30}; do sleep 0.02; done; echo $n")
    for _ in range(3):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "1\n")


def test_sigterm_makes_a_run_save_and_ends_with_75(cloud):
    process = in_background(cloud, *train(cloud, steps=1000))
    os.kill(process.pid, signal.SIGTERM)
    out, errors = process.communicate(timeout=10)
    assert process.returncode == 75 and "stopped before its last step (1000)" in errors
    assert json.loads(out.splitlines()[-1])["step"] == int((cloud.folder / "run/step-worker-0").read_text())


def test_sigterm_before_the_run_can_save_is_no_failure(cloud):
    process = in_background(cloud, "--", "bash", "-c", 'touch "$FAKE/begun"; exec sleep 10')
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 75


def test_install_brings_a_python_where_there_is_none_that_is_new_enough(cloud):
    for name in ("python3.13", "python3.12", "python3.11"):
        cloud.tool(name, "#!/bin/sh\nexit 1\n")
    cloud.tool("python3", '#!/bin/sh\nif [ "$1" = -m ]; then echo "$*" >>"$FAKE/installed"; else exit 1; fi\n')
    uv = cloud.folder / "workers/worker-0/.local/bin/uv"
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/bin/sh\necho "uv $*" >>"$FAKE/installed"\n[ "$2" != find ] || echo /of/uv\n')
    uv.chmod(0o755)
    assert worker(cloud, "install", "cuda")[:2] == (0, "installed")
    assert (cloud.folder / "installed").read_text().splitlines() == [
        "-m pip install --quiet --user uv", "uv python install --quiet 3.12", "uv python find 3.12", "install with /of/uv",
        "-m pip install --quiet --disable-pip-version-check -e .[cuda]"]


def finished(cloud, text):
    """(exit code, standard error) of finished.py on a standard output."""
    (cloud.folder / "out").write_text(text)
    done = cloud.call("python3", "scripts/launch/finished.py", str(cloud.folder / "out"))
    return done.returncode, done.stderr


def test_finished_reads_the_work_directory_as_a_run_writes_it(cloud, tmp_path, eight_devices):
    config = configs.load("configs/quickstart.py", {"train.steps": "50"})
    workdir = tmp_path / "run"
    workdir.mkdir()
    prepared = types.SimpleNamespace(fingerprint="data", tokenizer=types.SimpleNamespace(save=lambda folder: None), source_tokenizer=None)
    runs.start(workdir, config, config, prepared)
    line = {"workdir": str(workdir), "loss": None}
    assert finished(cloud, json.dumps(line | {"step": 50})) == (0, "")
    assert finished(cloud, json.dumps(line | {"step": 49}) + "\na line of another process\n")[0] == 75
    (workdir / "config.json").unlink()
    code, error = finished(cloud, json.dumps(line | {"step": 50}))
    assert code == 1 and error.startswith("error: cannot tell") and error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "no JSON\n", '{"perplexity": 3}\n', "{broken\n"])
def test_a_command_without_such_a_result_has_finished(cloud, text):
    assert finished(cloud, text) == (0, "")
