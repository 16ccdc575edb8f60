"""scripts/compare.py in processes: workers that share a sweep, die and are replaced; asks that differ; what it prints. Arms are n-grams."""

import contextlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import types

import pytest

from lm.compare import ask as asks
from lm.compare import gather, sweep
from lm.compare.budgets import Budget
from lm.errors import ConfigError, ProcessError
from tests.compare.small_sweeps import ROOT, attempts, children, compare, kill, scores, start, wait_until, write_config
from tests.compare.sweeps import make_sweep

ORDERS = (2, 3, 4)


def asked(config, seeds):
    arms = [f"order{order}={config}:ngram[model.order={order}]" for order in ORDERS]
    broken = f"broken={config}:rnn[train.init=nowhere]"
    return [f"--configs={','.join([*arms, broken])}", "--budget=tokens:1536", f"--seeds={seeds}", "--tune=none"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
    """(work directory, result, output) of two workers, of which an arm fails."""
    workdir = tmp_path_factory.mktemp("sweeps") / "sweep"
    result, out, _ = compare(workdir, *asked(config, 3), "--workers=2", code=1)
    return workdir, result, out


def test_two_workers_do_each_task_once_and_an_arm_that_fails_leaves_the_rest(swept):
    workdir, result, _ = swept
    assert attempts(workdir) == {f"arms/{name}/seeds/{seed}": 1 for name in ("order2", "order3", "order4", "broken") for seed in range(3)}
    assert list(scores(workdir)) == [f"arms/order{order}/seeds/{seed}" for order in ORDERS for seed in range(3)]
    assert [(row["arm"], row["seeds"]) for row in result["table"]] == [*((f"order{order}", 3) for order in ORDERS), ("broken", 0)]
    assert {(row["arm"], row["run"]) for row in result["failed"]} == {("broken", f"arms/broken/seeds/{seed}") for seed in range(3)}
    assert all("nowhere" in row["error"] for row in result["failed"])
    assert all(json.loads((workdir / row["run"] / "failed.json").read_text())["fatal"] for row in result["failed"])


def test_arms_continue_the_same_passages_of_the_text_where_no_prompts_are_given(swept):
    workdir, result, _ = swept
    said = {run: [sample["prompt"] for sample in score["samples"]] for run, score in scores(workdir).items()}
    assert {tuple(prompts) for run, prompts in said.items() if not run.endswith("/0")} == {()}
    (passages,) = {tuple(prompts) for run, prompts in said.items() if run.endswith("/0")}
    page = pathlib.Path(result["report"]["markdown"]).read_text()
    assert passages and all(passage in page for passage in passages)


def test_what_it_prints_has_the_choices_a_line_for_each_run_and_the_report(swept):
    _, result, out = swept
    lines = out.splitlines()
    assert lines[0].split() == ["arm", "sizes", "parameters", "steps", "tokens", "training", "FLOPs", "off", "budget"]
    assert [line.split()[0] for line in lines[1:5]] == [row["arm"] for row in result["table"]]
    assert len([line for line in lines if " bits per byte in " in line]) == 9 and len([line for line in lines if ": failed: " in line]) == 3
    assert "(12 of 12 runs)" in out and lines[-2] == result["verdict"]
    assert [row["b"] for row in result["differences"]] == ["order3", "order4", "broken"]
    for path in result["report"].values():
        assert pathlib.Path(path).stat().st_size > 100


def test_another_ask_is_refused_by_what_differs_and_the_same_goes_on(swept, config):
    workdir, _, _ = swept
    before = scores(workdir)
    for change, text in (("--budget=tokens:3072", "budget was"), ("--tune=rates", "tune was"), ("--config.data.context=32", "configs was")):
        _, _, err = compare(workdir, *asked(config, 3), change, code=2)
        assert len(err.splitlines()) == 1 and text in err and "holds another comparison" in err
    _, _, err = compare(workdir, *asked(config, 2), code=2)
    assert "seeds was" in err
    text = config.read_text()
    try:
        config.write_text(text.replace("log_every = 1", "log_every = 2"))
        _, _, err = compare(workdir, *asked(config, 3), code=2)
        assert "has changed since" in err and "train.log_every was 1 and is 2" in err
    finally:
        config.write_text(text)
    assert scores(workdir) == before


def test_only_the_report_is_made_again(swept):
    workdir, result, _ = swept
    page = pathlib.Path(result["report"]["html"])
    page.unlink()
    again, _, _ = compare(workdir, "--report", code=1)
    assert again == result and page.exists()


def test_submitting_prints_a_script_and_needs_no_more_than_the_plan(swept):
    workdir, _, _ = swept
    result, out, _ = compare(workdir, "--submit=slurm", "--launch=--time=1:00:00")
    assert result["commands"] == ["scripts/launch/slurm.sh --nodes=1 --per=node --name=compare-sweep --sbatch=--array=1-4 --time=1:00:00 "
                                  f"-- scripts/compare.py --workdir={workdir} --worker"]
    assert out.startswith("#!/usr/bin/env bash") and result["commands"][0] in out and not result["sent"]


def held(workdir):
    """(pid, run) of a task that a worker has taken."""
    for path in (workdir / "locks").glob("*") if (workdir / "locks").exists() else ():
        text = path.read_text()
        if text:
            holder = json.loads(text)
            return holder["pid"], holder["runs"][0]
    return None


@pytest.mark.slow
def test_more_seeds_extend_it_though_a_worker_is_killed_and_the_whole_call_is(swept, config):
    workdir, _, _ = swept
    before, log = scores(workdir), pathlib.Path(f"{workdir}.out")
    process = start(workdir, *asked(config, 6))
    try:
        pid, run = wait_until(lambda: held(workdir), process)
        assert pid in children(process.pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "another one goes on" in log.read_text(), process)
        failed = json.loads((workdir / run / "failed.json").read_text())
        assert (failed["attempts"], failed["fatal"]) == (1, False) and "SIGKILL" in failed["error"]
        wait_until(lambda: held(workdir), process)
    finally:
        kill(process)
    result, _, _ = compare(workdir, *asked(config, 6), code=1)
    after = scores(workdir)
    assert [row["seeds"] for row in result["table"]] == [6, 6, 6, 0] and before.items() <= after.items() and len(after) == 18
    assert max(attempts(workdir).values()) <= 3 and attempts(workdir)[run] > 1


def test_workers_die_with_the_process_that_started_them_and_sigterm_ends_it_well(config, tmp_path):
    workdir = tmp_path / "sweep"
    process = start(workdir, *asked(config, 2), "--workers=1")
    wait_until(lambda: held(workdir), process)
    (worker,) = children(process.pid)
    process.terminate()
    assert process.wait(timeout=120) == 0
    assert not pathlib.Path(f"/proc/{worker}").exists()
    result = json.loads(pathlib.Path(f"{workdir}.out").read_text().splitlines()[-1])
    assert result["sweep"] == str(workdir) and not result["finished"] and result["due"] > 0
    finished = subprocess.run([sys.executable, "scripts/launch/finished.py", f"{workdir}.out"], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 75, finished
    process = start(workdir, "--worker")
    try:
        (worker,) = wait_until(lambda: children(process.pid), process)
        wait_until(lambda: held(workdir), process)
        process.kill()
        process.wait()
        for _ in range(2000):
            if not pathlib.Path(f"/proc/{worker}").exists() or "Z" in pathlib.Path(f"/proc/{worker}/stat").read_text().split()[2]:
                break
            signal.sigtimedwait([], 0.01)
        else:
            raise AssertionError("the worker lives on")
    finally:
        kill(process)


# Flags.

SCRIPT = runpy.run_path(str(ROOT / "scripts/compare.py"))


@pytest.mark.parametrize(("flags", "text"), [
    (["--budget=flops:1e13"], "--configs"), (["--config.seed=3"], "there is no --configs"), (["--worker", "--seeds=3"], "--worker"),
    (["--report", "--config.seed=3"], "--report"), (["--send"], "--submit"), (["--workers=0"], "at least 1"),
    (["--configs=missing.py"], "no config file"), (["--configs=x.py", "--factors=a"], "list of numbers"), (["--worker"], "compare.json"),
    (["--configs=x.py", "--budget=flops"], "KIND:AMOUNT"), (["--configs=x.py", "--tune=optim.rate"], "unknown config key"),
    (["--configs=x.py", "--seeds=0"], "at least 1 seed"), (["--report"], "compare.json"),
    (["--report", "--retry"], "leave one out"), (["--submit=slurm", "--worker"], "leave one out"),
    (["--configs=x.py", "--tokens=nan"], "not a number of tokens"), (["--configs=x.py", "--tokens=inf"], "not a number of tokens"),
    (["--configs=x.py", "--suites=chioce:x.jsonl"], "is not known"), (["--configs=x.py", "--suites=choice:x.jsonl"], "no file x.jsonl")])
def test_flags_that_cannot_be_are_one_line_before_anything_is_written(flags, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        SCRIPT["main"]([f"--workdir={tmp_path / 'sweep'}", *flags])
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("words", [["--workers=2"], ["--submit=slurm"], ["--worker"]])
def test_nobody_shares_the_seconds_of_a_budget(words, tmp_path):
    arguments = SCRIPT["parser_of"]().parse_args([f"--workdir={tmp_path}", *words])
    with pytest.raises(ConfigError, match="seconds"):
        SCRIPT["check_machine"](arguments, Budget("seconds", 60))
    SCRIPT["check_machine"](arguments, Budget("flops", 60))


@pytest.mark.parametrize("words", [["--submit=slurm"], ["--worker"]])
def test_a_budget_of_memory_is_of_the_machine_that_sized(words, tmp_path):
    arguments = SCRIPT["parser_of"]().parse_args([f"--workdir={tmp_path}", *words])
    with pytest.raises(ConfigError, match=f"a budget of memory is measured on the machine .* without {words[0].partition('=')[0]}"):
        SCRIPT["check_machine"](arguments, Budget("memory", 1e6))
    SCRIPT["check_machine"](SCRIPT["parser_of"]().parse_args([f"--workdir={tmp_path}", "--workers=2"]), Budget("memory", 1e6))


def test_new_prompts_of_a_sweep_that_is_planned_are_checked_before_they_are_asked(config, tmp_path):
    words = [f"--workdir={tmp_path}", f"--configs={config}:ngram", "--seeds=1"]
    arguments = SCRIPT["parser_of"]().parse_args(words)
    asks.settle(tmp_path, SCRIPT["ask_of"](arguments, {}))
    sweep.plan(tmp_path)
    file = tmp_path / "arms/tiny-ngram/arm.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"room": 8}))
    for prompt, told in (("we the people", "has 14 tokens, and tiny-ngram reads 8"), ("we the", "")):
        arguments = SCRIPT["parser_of"]().parse_args([*words, f"--prompts={prompt}"])
        with pytest.raises(ConfigError, match=told) if told else contextlib.nullcontext():
            SCRIPT["prepare"](arguments, {})
        assert asks.read(tmp_path).prompts == (() if told else (prompt,))


@pytest.mark.parametrize(("code", "error", "text"), [(-9, ProcessError, "SIGKILL, maybe because memory ran out"), (2, SystemExit, "2")])
def test_planning_that_is_killed_is_said(code, error, text, config, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "start", lambda command, variables: types.SimpleNamespace(wait=lambda: code))
    arguments = SCRIPT["parser_of"]().parse_args([f"--workdir={tmp_path / 'sweep'}", f"--configs={config}:ngram"])
    with pytest.raises(error, match=text):
        SCRIPT["prepare"](arguments, {})


def test_the_row_of_an_arm_says_the_edge_of_its_grid_how_sharp_its_rate_is_and_both_intervals(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"), references=("ngram",))
    file = tmp_path / "arms/rnn/tuned.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"edge": "low", "rises": {"half": 0.02, "double": None}}))
    arms = gather(tmp_path)["arms"]
    first, _, last = map(SCRIPT["row_of"], arms)
    assert (first["edge"], first["sharpness"]) == ("low", {"curvature": 0.03, "half": 0.02, "double": None})
    assert first["bootstrap"] == arms[0]["bootstrap"] and first["bootstrap"]["low"] < first["bits_per_byte"]["mean"]
    assert (last["tuned"], last["edge"], last["sharpness"]) == (None, None, None)


def test_an_arm_of_diverged_runs_alone_has_no_score(monkeypatch, tmp_path):
    summary = {"mean": None}
    arm = {"name": "a", "reference": False, "failed": [], "sized": None, "tuned": None, "summary": {"bits_per_byte": summary}}
    for score, code in (({"diverged": True, "bits_per_byte": None}, 1), ({"diverged": False, "bits_per_byte": 2.0}, 0)):
        results = {"ask": {"budget": None}, "verdict": "", "differences": [], "arms": [arm | {"scores": [score]}]}
        monkeypatch.setattr("lm.compare.report.write", lambda workdir, results=results: {"results": results})
        assert SCRIPT["report"](tmp_path) == code
