"""scripts/launch/tpu.sh against a gcloud that plays states and runs what is sent to workers."""

import json
import re
import time

import pytest

SAME = ["--name=pod", "--project=p-1", "--zone=us-west4-a", "--poll=0.03"]
NEW = [*SAME, "--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]
AWKWARD = ["--config.train.steps=2e6 tokens", "it's", '"$HOME" `id` $(id) \\ &', "", "a  b\nc", "*"]


def tpu(cloud, action, *words):
    """(exit code, standard output, last line of standard error)."""
    done = cloud.call("scripts/launch/tpu.sh", action, *words)
    assert "unbound variable" not in done.stderr, done.stderr
    return done.returncode, done.stdout, (done.stderr.splitlines() or [""])[-1]


def train(cloud, **options):
    """The command of a run whose work directory all workers see."""
    return ["--", "scripts/train.py", f"--workdir={cloud.folder / 'run'}", *(f"--{name}={value}" for name, value in options.items())]


def actions(cloud):
    """What gcloud was asked to do, as one word each."""
    names = [next(word for word in call if word in ("describe", "create", "delete", "ssh", "scp")) for call in cloud.calls]
    lines = [next((word for word in call if word.startswith("--command=")), "") for call in cloud.calls]
    return [re.search(r"worker.sh (\w+)", line)[1] if "worker.sh" in line else name for name, line in zip(names, lines, strict=True)]


def wait_until(condition):
    """Waits for something that a process in the background does."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_create_requests_and_waits_until_active(cloud):
    cloud.states("NOT_FOUND", "WAITING_FOR_RESOURCES|||", "PROVISIONING|||", "ACTIVE|v5litepod-16||")
    assert tpu(cloud, "create", *NEW, "--spot", "--create-flag=--network=n") == (0, "", "pod is ACTIVE")
    assert actions(cloud) == ["describe", "create", *["describe"] * 3]
    assert cloud.calls[1] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod",
                              "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--network=n",
                              "--project=p-1", "--zone=us-west4-a"]


def test_create_finds_what_is_there_unless_it_is_of_another_type(cloud):
    cloud.states("ACTIVE|v5litepod-16||")
    assert tpu(cloud, "create", *NEW)[0] == 0
    cloud.states("ACTIVE|v5litepod-8||")
    code, _, error = tpu(cloud, "create", *NEW)
    assert code == 1 and "is a v5litepod-8, not a v5litepod-16" in error
    assert set(actions(cloud)) == {"describe"}


@pytest.mark.parametrize(("state", "words"), [
    ("FAILED||SERVICE|no such|quota", "FAILED (no such|quota)"), ("SUSPENDED||SERVICE|", "SUSPENDED (by SERVICE)"),
    ("DOWN", "connection refused"), ("WAITING_FOR_RESOURCES|||", "still WAITING_FOR_RESOURCES after 0 minutes")])
def test_create_says_why_there_is_no_tpu(cloud, state, words):
    cloud.states(state)
    code, _, error = tpu(cloud, "create", *NEW, "--wait=0")
    assert code == 1 and error.startswith("error: ") and words in error


def test_copy_brings_what_git_would_and_takes_away_what_is_gone(cloud):
    cloud.states("ACTIVE|v5litepod-16||")
    cloud.call("bash", "-c", "mkdir -p runs; touch runs/ignored 'new file' tracked gone; git add tracked gone; rm gone")
    for worker in ("worker-0", "worker-1"):
        (cloud.folder / "workers" / worker / "lm/runs").mkdir(parents=True)
        (cloud.folder / "workers" / worker / "lm/runs/mine").touch()
    assert tpu(cloud, "copy", *SAME)[0] == 0
    (cloud.repository / "new file").unlink()
    there = [cloud.folder / "workers" / worker / "lm" for worker in ("worker-0", "worker-1")]
    assert all((home / "new file").exists() and (home / "tracked").exists() for home in there)
    assert tpu(cloud, "copy", *SAME)[0] == 0
    for home in there:
        assert sorted(path.name for path in home.iterdir()) == [".gitignore", "runs", "scripts", "tracked"]
        assert [path.name for path in (home / "runs").iterdir()] == ["mine"]


def test_up_installs_and_runs_on_all_workers_and_arguments_arrive_as_given(cloud):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    assert tpu(cloud, "up", *NEW, "--setup=echo 'set up' >>~/setup", *train(cloud), *AWKWARD)[0] == 0
    assert actions(cloud) == ["describe", "create", "describe", "status", "scp", "ssh", "install", "start"]
    for worker in ("worker-0", "worker-1"):
        argv = cloud.folder / "run" / f"argv-{worker}"
        wait_until(lambda argv=argv: argv.exists() and argv.read_text())
        assert json.loads(argv.read_text())[1:] == AWKWARD
        assert (cloud.folder / "workers" / worker / "setup").read_text() == "set up\n"
    assert (cloud.folder / "installed").read_text().count("-m pip install --quiet --disable-pip-version-check -e .[tpu]") == 2


def test_a_second_run_is_refused_stop_saves_and_the_run_goes_on(cloud):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    assert tpu(cloud, "up", *NEW, *train(cloud, steps=100000))[0] == 0
    for action, words in (("run", train(cloud)), ("copy", []), ("up", train(cloud))):
        code, _, error = tpu(cloud, action, *(NEW if action == "up" else SAME), *words)
        assert code == 1 and "a run is going on" in error and "stop" in error
    assert "lm-worker worker-1: running" in tpu(cloud, "status", *SAME)[1]
    checkpoint = cloud.folder / "run/step-worker-0"
    wait_until(checkpoint.exists)
    assert tpu(cloud, "stop", *SAME)[0] == 0
    wait_until(lambda: tpu(cloud, "status", *SAME)[1].count(": stopped") == 2)
    step = int(checkpoint.read_text())
    code, _, error = tpu(cloud, "watch", *NEW, *train(cloud, steps=100000))
    assert code == 1 and "stopped by `stop`" in error
    assert tpu(cloud, "run", *SAME, *train(cloud, steps=step + 1))[0] == 0
    wait_until(lambda: tpu(cloud, "status", *SAME)[1].count(": finished") == 2)
    log = tpu(cloud, "logs", *SAME)[1]
    assert f"worker-0 from step {step}" in log and '{"step": ' + str(step + 1) in log and "worker-1" not in log
    assert "worker-1 from step" in tpu(cloud, "logs", *SAME, "--worker=1")[1]


def test_watch_outlives_a_preemption_and_ends_when_the_command_has_finished(cloud):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||", "ACTIVE|v5litepod-16||", "PREEMPT", "PROVISIONING|||", "ACTIVE|v5litepod-16||")
    code, _, said = tpu(cloud, "watch", *NEW, *train(cloud, steps=5, until=cloud.folder / "gone"))
    assert code == 0 and said.startswith("finished. ")
    seen = [action for action in actions(cloud) if action not in ("describe", "status")]
    deploy = ["scp", "ssh", "install", "start"]
    assert seen == ["create", *deploy, "delete", "create", *deploy]
    assert (cloud.folder / "run/step-worker-0").read_text() == "5"
    log = (cloud.folder / "workers/worker-0/lm-run/log").read_text()
    assert "from step" in log and "from step 0" not in log


def test_watch_starts_a_run_again_that_saved_and_stopped_before_its_end(cloud):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    # Workers whose peers have ended for five looks are started again: on a busy machine one may be seconds behind the other.
    assert tpu(cloud, "watch", *NEW, "--poll=0.5", *train(cloud, steps=6, term_at=3))[0] == 0
    assert actions(cloud).count("start") == 2 and actions(cloud).count("create") == 1
    assert "worker-0 from step 3" in tpu(cloud, "logs", *SAME)[1]


def test_watch_restarts_a_failing_run_so_many_times(cloud):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    code, _, error = tpu(cloud, "watch", *NEW, "--restarts=1", *train(cloud, fail=3))
    assert code == 1 and "failed 2 times" in error and "logs" in error
    assert actions(cloud).count("start") == 2
    assert "failed with exit code 3" in tpu(cloud, "status", *SAME)[1]


def test_watch_bears_a_connection_that_fails(cloud):
    cloud.states("DOWN", "NOT_FOUND", "ACTIVE|v5litepod-16||")
    (cloud.folder / "broken").write_text("x\n" * 3)
    assert tpu(cloud, "watch", *NEW, *train(cloud))[0] == 0
    assert (cloud.folder / "broken").read_text() == ""


def test_watch_does_not_take_the_answers_of_some_workers_for_those_of_all(cloud):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    # Worker 0 goes while it runs (its state was asked for), and gcloud answers for worker 1 alone, whose process has ended with 0.
    asked = f"sed '1,/worker.sh start/d' '{cloud.folder}/calls' | grep --quiet 'worker.sh status'"
    # At once: of a folder that is half deleted, a worker would say that it runs another command.
    away = f"mv '{cloud.folder}/workers/worker-0' '{cloud.folder}/worker-that-was'"
    gone = f"until {asked}; do sleep 0.05; done; {away}; touch '{cloud.folder}/gone'"
    code, _, error = tpu(cloud, "watch", *NEW, f"--setup=({gone}) >/dev/null 2>&1 &", *train(cloud, until=cloud.folder / "gone"))
    assert code == 1 and "did not answer" in error


def test_watch_gives_up_on_a_request_that_is_never_granted(cloud):
    cloud.states("FAILED||SERVICE|no quota")
    code, _, error = tpu(cloud, "watch", *NEW, *train(cloud))
    assert code == 1 and "no quota" in error
    assert actions(cloud).count("create") < 10


def test_several_slices_are_reached_through_their_queued_resource(cloud):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    assert tpu(cloud, "up", *NEW, "--slices=2", "--ssh-flag=--internal-ip", *train(cloud))[0] == 0
    assert cloud.calls[1][5:8] == ["pod", "--node-count=2", "--node-prefix=pod"]
    for call in cloud.calls[3:]:
        assert call[3] == "queued-resources" and call[-5:-2] == ["--node=all", "--worker=all", "--internal-ip"]


def test_delete_deletes_the_nodes_too(cloud):
    assert tpu(cloud, "delete", *SAME)[0] == 0
    assert cloud.calls == [["gcloud", "compute", "tpus", "queued-resources", "delete", "pod", "--force", "--quiet", "--project=p-1",
                            "--zone=us-west4-a"]]


@pytest.mark.parametrize(("words", "expected"), [
    ([], "is not an action"), (["fly"], "is not an action"), (["status"], "--name is missing"), (["status", "--name=A b"], "--name=A b"),
    (["status", *SAME, "--spto"], "unknown argument --spto"), (["create", *SAME], "--type is missing"),
    (["create", *SAME, "--type=v5litepod-16"], "--version is missing"), (["up", *NEW], "no command"), (["run", *SAME, "--"], "no command"),
    (["status", *SAME, "--slices=two"], "--slices=two")])
def test_a_wrong_command_line_exits_2_with_one_line_and_calls_nothing(cloud, words, expected):
    done = cloud.call("scripts/launch/tpu.sh", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and expected in done.stderr and done.stderr.count("\n") == 1
    assert cloud.calls == []
