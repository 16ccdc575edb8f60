"""A comparison that is really trained: in this process, and in others that are killed at many moments."""

import dataclasses
import errno
import json
import math
import os
import pathlib
import signal
import socket
import time
import types

import numpy as np
import pytest

from lm import compare as room
from lm.compare import ask as asks
from lm.compare import sweep, tasks, tuning, worker
from lm.compare.ask import Ask
from lm.compare.worker import Interrupted
from lm.errors import CheckpointError, ConfigError, DataError, DiskError, NonFiniteError
from tests.compare.small_runs import compiled_once
from tests.compare.small_sweeps import attempts, compare, kill, scores, start, wait_until, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def asked(config):
    """Two arms, tuned by two factors, and a reference; the first arm has a rate that diverges beside one that does not."""
    return Ask(asks.entries(f"{config}:gru,{config}:rnn[optim.warmup=6]"), asks.entries(f"{config}:ngram"), seeds=(0, 1),
               grid=tuning.Grid((0.5, 1.0), (0.5,), 0), prompts=("we",))


@pytest.fixture(scope="module")
def swept(asked, tmp_path_factory):
    """(work directory, results, what was said)."""
    workdir, said = tmp_path_factory.mktemp("sweep"), []
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        return workdir, sweep.compare(asked, workdir, said.append), said


def test_every_run_is_there_and_has_what_was_tuned(swept):
    workdir, results, said = swept
    assert not results["missing"]
    assert [(arm["name"], len(arm["scores"]), arm["failed"]) for arm in results["arms"]] == [
        ("tiny-gru", 2, []), ("tiny-rnn", 2, []), ("tiny-ngram", 2, [])]
    for arm in results["arms"][:2]:
        tuned = arm["tuned"]
        (rung,) = tuned["rungs"]
        best = min(rung["trials"], key=lambda trial: trial["score"])
        assert tuned["best"] == {name: best[name] for name in ("factor", "values", "score")}
        assert tuned["edge"] == {0.5: "low", 1.0: "high"}[best["factor"]]
        for score in arm["scores"]:
            stored = json.loads((workdir / score["run"] / "config.json").read_text())["config"]
            assert stored["optim"]["learning_rate"] == best["values"]["optim.learning_rate"] and stored["seed"] == score["seed"]
            assert math.isfinite(score["bits_per_byte"]) and {row["prompt"] for row in score["samples"]} == {"we"}
        for trial in rung["trials"]:
            stored = json.loads((workdir / trial["run"] / "config.json").read_text())["config"]
            assert (stored["train"]["steps"], stored["seed"]) == (6, tuning.SEED)
            assert stored["optim"]["warmup"] == (3 if arm["name"] == "tiny-rnn" else 0)
            assert not (workdir / trial["run"] / "checkpoints").exists()
    assert len([line for line in said if "bits per byte in " in line]) == 10 and len([line for line in said if "is tuned" in line]) == 2


def test_seeds_are_measured_together_once_and_more_devices_than_one_are_no_place_for_it(swept):
    workdir, _, _ = swept
    for name in ("tiny-gru", "tiny-rnn"):
        found = json.loads((workdir / f"arms/{name}/together.json").read_text())
        assert found["together"] is False and "8 devices" in found["why"]
    assert not (workdir / "arms/tiny-ngram/together.json").exists()


def test_a_finished_comparison_does_nothing_and_more_seeds_only_what_is_new(asked, swept):
    workdir, results, _ = swept
    before, said = scores(workdir), []
    assert sweep.compare(asked, workdir, said.append)["arms"] == results["arms"] and said == []
    assert attempts(workdir) == dict.fromkeys(before, 1)
    planned = sweep.open_sweep(workdir)
    more = dataclasses.replace(planned, ask=dataclasses.replace(asked, seeds=(0, 1, 2)))
    assert [task.run for task in more.due(more.outcomes())] == [f"arms/tiny-{name}/seeds/2" for name in ("gru", "rnn", "ngram")]


def test_arms_are_those_of_the_plan_even_if_files_change(asked, swept, config):
    workdir, _, _ = swept
    text = config.read_text()
    try:
        config.write_text(text.replace("width = 8", "width = 16"))
        assert sweep.open_sweep(workdir).arms[0].config.model.width == 8
        with pytest.raises(ConfigError, match=r"has changed since .* model\.width was 8 and is 16"):
            sweep.plan(workdir)
    finally:
        config.write_text(text)


@pytest.fixture
def alone(config, tmp_path):
    """A planned sweep of an n-gram, whose runs take no time."""
    asks.settle(tmp_path, Ask(asks.entries(f"a={config}:ngram"), seeds=(0, 1), tune_keys=None))
    sweep.plan(tmp_path)
    return sweep.open_sweep(tmp_path)


def failing(error, at):
    """What trains runs, but for one that meets an error."""
    train = worker._train

    def failing(workdir, task):
        if task.run.endswith(at):
            raise error
        train(workdir, task)

    return failing


@pytest.mark.parametrize(("error", "tries"), [(NonFiniteError("inf"), 1), (ConfigError("wrong"), 1), (MemoryError("no more"), 2),
                                              (DataError("cannot be read"), 2), (CheckpointError("has no checkpoint yet"), 2)])
def test_what_fails_is_tried_again_where_that_may_help_and_the_rest_goes_on(alone, monkeypatch, error, tries):
    monkeypatch.setattr(worker, "_train", failing(error, "/1"))
    said = []
    alone.work(said.append)
    failed = alone.outcomes()["arms/a/seeds/1"].failed
    assert (failed["attempts"], failed["fatal"]) == (tries, True) and str(error) in failed["error"]
    assert failed["diverged"] is isinstance(error, NonFiniteError)
    assert attempts(alone.workdir) == {"arms/a/seeds/0": 1, "arms/a/seeds/1": tries} and not alone.due(alone.outcomes())
    assert [line.split(":")[1] for line in said if "seed 1" in line] == [" failed"]
    log = (alone.workdir / "arms/a/seeds/1/log.txt").read_text()
    assert str(error) in log and "Traceback" in log
    monkeypatch.undo()
    sweep.retry(alone.workdir)
    alone.work()
    assert set(scores(alone.workdir)) == {f"arms/a/seeds/{seed}" for seed in range(2)}


def test_trials_are_tried_again_only_while_no_seed_has_used_their_rate(tmp_path):
    for name, scored in (("open", False), ("settled", True)):
        for run in ("tune/0-1", "seeds/0", "seeds/1"):
            tasks.fail(tmp_path / "arms" / name / run, "x", fatal=True)
        (tmp_path / "arms" / name / "tuned.json").write_text("{}")
        if scored:
            (tmp_path / "arms" / name / "seeds/1/score.json").write_text("{}")
    sweep.retry(tmp_path)
    left = {path.relative_to(tmp_path / "arms").as_posix() for path in tmp_path.rglob("*.json")}
    assert left == {"settled/tune/0-1/failed.json", "settled/tuned.json", "settled/seeds/1/score.json"}


def test_seeds_that_began_with_a_rate_that_is_forgotten_begin_anew(tmp_path):
    """Their configs hold the old rate, and would be refused as other runs for ever."""
    for name in ("tuned", "other"):
        for file in ("tuned.json", "seeds/0/config.json", "seeds/0/checkpoints/6/seal", "tune/0-1/score.json"):
            (tmp_path / "arms" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "arms" / name / file).write_text("{}")
    tasks.fail(tmp_path / "arms/tuned/tune/0-2", "x", fatal=True)
    tasks.fail(tmp_path / "arms/other/seeds/1", "x", fatal=True)
    tasks.fail(tmp_path / "arms/other/tune/0-1", "once, and then it had a score", fatal=False)
    sweep.retry(tmp_path)
    assert {path.relative_to(tmp_path / "arms/tuned").as_posix() for path in tmp_path.glob("arms/tuned/**/*") if path.is_file()} == {
        "tune/0-1/score.json"}
    assert (tmp_path / "arms/other/tuned.json").exists() and (tmp_path / "arms/other/seeds/0/checkpoints/6/seal").exists()
    assert not (tmp_path / "arms/other/seeds/1/failed.json").exists()


def test_failures_are_not_forgotten_while_somebody_works_on_the_arm(alone):
    first, second = alone.due({})
    tasks.fail(alone.workdir / first.run, "x", fatal=True)
    for name in ("b", "a-b"):  # others whose names are alike
        (alone.workdir / "arms" / name).mkdir()
    with worker.locked(alone.workdir, dataclasses.replace(second, run="arms/a-b/seeds/1")):
        sweep.retry(alone.workdir)
    assert not alone.outcomes()
    tasks.fail(alone.workdir / first.run, "x", fatal=True)
    with worker.locked(alone.workdir, second), pytest.raises(ConfigError, match="--retry: a worker is at work on a: end the workers"):
        sweep.retry(alone.workdir)
    assert alone.outcomes()
    sweep.retry(alone.workdir)
    assert not alone.outcomes()


def test_a_full_disk_ends_the_worker_and_is_nobodys_failure(alone, monkeypatch):
    monkeypatch.setattr(worker, "_train", failing(DiskError("cannot write"), "/1"))
    with pytest.raises(DiskError):
        alone.work()
    assert set(alone.outcomes()) == {"arms/a/seeds/0"}


@pytest.mark.parametrize("measured", [False, True])
def test_a_machine_without_the_text_ends_its_worker_and_leaves_all_to_others(alone, config, monkeypatch, measured):
    (arm,) = alone.arms
    alone = dataclasses.replace(alone, arms=(dataclasses.replace(arm, together=None if measured else False),))
    corpus, meant = config.parent / "corpus.txt", {f"arms/a/seeds/{seed}" for seed in range(2)}

    def faster(config, seeds):
        raise DataError("corpus.txt does not exist")

    monkeypatch.setattr("lm.compare.together.faster", faster)
    corpus.rename(config.parent / "elsewhere")
    try:
        with pytest.raises(DataError, match=r"corpus\.txt"):
            alone.work()
    finally:
        (config.parent / "elsewhere").rename(corpus)
    assert not alone.outcomes() and not (alone.workdir / "arms/a/together.json").exists()
    alone.work()
    assert set(scores(alone.workdir)) == meant


@pytest.mark.parametrize("file", ["score.json", "documents.npz"])
def test_a_disk_that_is_full_when_a_score_is_written_is_no_failure_of_its_run(alone, monkeypatch, file):
    replace = os.replace

    def full(source, target):
        if pathlib.Path(target).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match=file):
        alone.work()
    assert not alone.outcomes()
    monkeypatch.undo()
    alone.work()
    assert set(scores(alone.workdir)) == {f"arms/a/seeds/{seed}" for seed in range(2)}


def test_a_task_that_another_holds_or_has_done_meanwhile_is_left(alone):
    first, second = alone.due({})
    with worker.locked(alone.workdir, first) as mine:
        assert mine
        with worker.locked(alone.workdir, first) as again:
            assert not again
        assert not worker._take(alone.workdir, first)
    tasks.fail(alone.workdir / second.run, "x", fatal=True)
    assert not worker._take(alone.workdir, second) and not attempts(alone.workdir)
    assert worker._take(alone.workdir, first) and attempts(alone.workdir) == {first.run: 1}


def test_a_trial_that_diverges_is_a_score_and_a_seed_that_does_is_a_failure(config, tmp_path):
    # A rate so high that the loss is no number after a few steps.
    arms = asks.entries(f"{config}:rnn[optim.name=sgd,optim.clip=0,optim.learning_rate=1e30]")
    ask = Ask(arms, seeds=(0,), grid=tuning.Grid((1.0,), (1.0,), 0))
    asks.settle(tmp_path, ask)
    sweep.plan(tmp_path)
    (trial,) = (planned := sweep.open_sweep(tmp_path)).due({})
    worker.perform(tmp_path, trial)
    score = tasks.read_outcome(tmp_path / trial.run).score
    assert score["diverged"] and score["bits_per_byte"] is None
    worker.perform(tmp_path, tasks.seed_task(ask, planned.arms[0], 0, {}))
    failed = tasks.read_outcome(tmp_path / "arms/tiny-rnn/seeds/0").failed
    assert failed["fatal"] and "loss" in failed["error"]


def test_only_what_a_process_took_since_it_began_is_its_failure(alone):
    first, second = alone.due({})
    pid, began = os.getpid(), time.time()
    with pytest.raises(Interrupted), worker.locked(alone.workdir, first):
        assert worker.at_work(alone.workdir) == 1
        raise Interrupted
    assert worker.blame(alone.workdir, pid, "why", began) is None  # it has let go
    path = alone.workdir / "locks" / second.lock_name
    for since, task in ((began - 60, None), (began + 1, second.run), (began + 1, None)):
        if since < began or task:
            path.write_text(json.dumps({"host": socket.gethostname(), "pid": pid, "since": since, "task": second.run, "runs": second.runs}))
        assert worker.blame(alone.workdir, pid, "why", began) == task
    assert path.read_text() == "" and tasks.read_outcome(alone.workdir / second.run).failed["attempts"] == 1


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("error", [MemoryError("no more"), ConfigError("there are 4 devices, which each seed would use alone")])
def test_seeds_that_cannot_be_trained_together_are_trained_apart_and_have_not_failed(alone, monkeypatch, error, killed):
    (arm,), meant = alone.arms, {"arms/a/seeds/0", "arms/a/seeds/1"}
    alone = dataclasses.replace(alone, arms=(dataclasses.replace(arm, together=True),))
    (task,) = alone.due({})
    assert set(task.runs) == meant
    if killed:
        path = alone.workdir / "locks" / task.lock_name
        path.parent.mkdir()
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": 7, "since": 2.0, "task": task.run, "runs": task.runs}))
        assert worker.blame(alone.workdir, 7, "SIGKILL", 1.0) == task.run
    else:
        monkeypatch.setattr(worker, "_train_together", failing(error, "seeds"))
        worker.perform(alone.workdir, task)
    assert not alone.outcomes() and [task.runs for task in alone.due({})] == [["arms/a/seeds/0"], ["arms/a/seeds/1"]]
    alone.work()
    assert set(scores(alone.workdir)) == meant
    assert json.loads((alone.workdir / "arms/a/seeds/0/score.json").read_text())["task"]["workers"] == 1


def test_workers_share_the_gpus_of_a_machine():
    assert sweep.share_of(0, 1, list("01234567")) == sweep.share_of(1, 2, []) == {}
    assert [sweep.share_of(index, 3, list("0123"))["CUDA_VISIBLE_DEVICES"] for index in range(3)] == ["0", "1", "2"]
    shares = [sweep.share_of(index, 4, list("01")) for index in range(4)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0", "1"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares} == {"0.45"}


@pytest.mark.parametrize(("chosen", "found"), [
    ("2,3, 5,7", ["2", "3", "5", "7"]), ("GPU-8932f937,MIG-1234", ["GPU-8932f937", "MIG-1234"]), ("", []), ("-1", []), ("1,-1,2", ["1"])])
def test_workers_share_the_gpus_of_a_job_and_no_others(alone, monkeypatch, chosen, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert sweep.gpus() == found
    started = []
    child = types.SimpleNamespace(pid=0, wait=lambda: 0)
    monkeypatch.setattr(sweep, "start", lambda command, variables: started.append(variables) or child)
    supervisor = sweep.Supervisor(alone, 2, print)
    for index in range(2):
        supervisor._start(index)
    assert [variables.get("CUDA_VISIBLE_DEVICES") for variables in started] == ([*found, *found][:2] if found else [None, None])
    fraction = {"0.45"} if len(found) == 1 else {None}
    assert {variables.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for variables in started} == fraction
    sweep.size_apart(["-c", ""], "arms", "wait", debug=False, workers=2)
    assert started[2] == started[0], "sizes are of the devices of a worker"
    sweep.size_apart(["-c", ""], "arms", "wait", debug=False, workers=1)
    assert started[3] == {}


def test_configs_that_cannot_be_compared_are_refused_before_they_are_trained(config, tmp_path):
    for own, text in (("eval.split=none", "eval.split=none"), ("data.context=32", "data.context"),
                      ("eval.split=train", "eval.split"), ("eval.stride=8", "eval.stride"),
                      ("model.name=encoder,model.heads=2,objective.name=masked", "no bits per byte")):
        asks.settle(tmp_path, Ask(asks.entries(f"{config}:gru,{config}:rnn[{own}]")))
        with pytest.raises(ConfigError, match=text):
            sweep.plan(tmp_path)
        assert not list(tmp_path.glob("arms/*/sized.json"))
    with pytest.raises(ConfigError, match="not planned"):
        sweep.open_sweep(tmp_path)


FLAGS = ("--seeds=2", "--factors=0.5,1,2", "--shares=0.5,1", "--together=no")


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_many_moments_ends_bit_for_bit_like_one_that_is_not(config, tmp_path):
    flags = (f"--configs={config}:gru,{config}:rnn", "--budget=tokens:5120", *FLAGS)
    result, _, _ = compare(tmp_path / "whole", *flags)
    assert [row["seeds"] for row in result["table"]] == [2, 2] and result["failed"] == []
    whole, killed = scores(tmp_path / "whole"), tmp_path / "killed"

    def finished():
        return len(list(killed.glob("arms/*/*/*/score.json")))

    def stepped():
        """Whether a run is on its way."""
        return any(not (path.parent / "score.json").exists() for path in killed.glob("arms/*/*/*/metrics.jsonl"))

    for done in (0, 1, 3, 6, 10, len(whole) - 2):
        process = start(killed, *flags)
        try:
            wait_until(lambda done=done: finished() >= done and stepped(), process)
            if done == 3:  # and once it is asked to end
                process.terminate()
                assert process.wait() == 0
        finally:
            kill(process, signal.SIGKILL)
    compare(killed, *flags, "--workers=2")
    assert scores(killed) == whole and max(attempts(killed).values()) > 1
    for run in whole:
        if "/seeds/" in run:
            kept = [np.load(folder / run / "scores/documents.npz")["nats"] for folder in (tmp_path / "whole", killed)]
            np.testing.assert_array_equal(*kept)
    for name in ("gru", "rnn"):
        texts = [(folder / f"arms/tiny-{name}/tuned.json").read_text() for folder in (tmp_path / "whole", killed)]
        assert texts[0] == texts[1]


@pytest.mark.slow
def test_seeds_together_score_as_seeds_apart(config, tmp_path):
    flags = (f"--configs={config}:gru", "--seeds=3", "--tune=none")
    for together in ("yes", "no", "auto"):
        compare(tmp_path / together, *flags, f"--together={together}")
    apart = scores(tmp_path / "no")
    for together in ("yes", "auto"):
        found = scores(tmp_path / together)
        assert found.keys() == apart.keys()
        for run, score in found.items():
            assert score["bits_per_byte"] == pytest.approx(apart[run]["bits_per_byte"], rel=1e-4)
    found = json.loads((tmp_path / "auto/arms/tiny-gru/together.json").read_text())
    assert found["together"] == (found["seconds"] < found["apart"])
    assert len(list((tmp_path / "yes").glob("arms/*/seeds/log.txt"))) == 1


def test_what_a_comparison_found_is_gathered_by_the_room(swept):
    workdir, results, _ = swept
    assert room.gather(workdir)["arms"] == results["arms"] and pathlib.Path(workdir / "compare.json").exists()
