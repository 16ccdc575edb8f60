"""lm.compare.tasks: what is due is a function of what is finished, whoever finishes it and in whatever order."""

import dataclasses
import json
import math
import random

import pytest

from lm import config as configs
from lm.compare import ask as asks
from lm.compare import progress, tasks, tuning
from lm.compare.ask import Ask, Entry
from lm.compare.budgets import Budget
from lm.compare.tasks import Arm, Outcome
from lm.errors import ConfigError

BASE = {"optim.learning_rate": "0.01", "train.steps": "160", "optim.warmup": "5%"}
OPTIMA = {"a": 0.0, "b": 2.0}


def config_of(**overrides):
    values = BASE | {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return configs.validate(configs.override(configs.default(), values))


def ask_of(**options):
    entries = {"configs": (Entry("a", "a.py", {}), Entry("b", "b.py", {})), "references": (Entry("n", "n.py", {}),)}
    return Ask(**entries | {"together": "no"} | options)


ARMS = (Arm("a", config_of(), keys=("optim.learning_rate",), steps=160, flops=1e9),
        Arm("b", config_of(), keys=("optim.learning_rate",), steps=160, flops=3e9), Arm("n", config_of(), reference=True, steps=160))


def loss(task):
    """Of a run: a parabola in the log of its rate, with an optimum of its arm's own, lower for more steps."""
    name = task.run.split("/")[1]
    factor = math.log2(task.config.optim.learning_rate / 0.01)
    return 1.5 + 0.1 * (factor - OPTIMA.get(name, 0)) ** 2 + 10 / task.config.train.steps


def scored(task, **extra):
    return Outcome({"bits_per_byte": loss(task), "diverged": False, "train": {"tokens": 7}, "task": {"seconds": 2.0}} | extra)


def finish(ask, arms=ARMS, seed=0, outcomes=None, result=scored, at_once=1):
    """({run: outcome} once nothing is due, tasks in the order in which they were done): `at_once` tasks finish between two looks."""
    rng, outcomes, done = random.Random(seed), dict(outcomes or {}), []
    while now := tasks.due(ask, arms, outcomes):
        for task in rng.sample(now, min(at_once, len(now))):
            assert not any(outcomes.get(run, Outcome()).over for run in task.runs)
            done.append(task)
            outcomes |= {run: result(task) for run in task.runs}
    return outcomes, done


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_any_order_does_the_same_tasks_each_once(at_once):
    reference, done = finish(ask_of())
    trials = {"a": 10, "b": 11, "n": 0}  # b's optimum is at the edge of the grid: one factor more
    for name, number in trials.items():
        assert sum(task.run.startswith(f"arms/{name}/tune/") for task in done) == number
        seeds = {task.run for task in done if task.run.startswith(f"arms/{name}/seeds/")}
        assert seeds == {f"arms/{name}/seeds/{seed}" for seed in range(3)}
    for seed in range(5):
        outcomes, other = finish(ask_of(), seed=seed, at_once=at_once)
        assert outcomes == reference
        assert sorted(task.run for task in other) == sorted(task.run for task in done) and len({task.run for task in other}) == len(other)


def test_trials_come_first_and_then_a_seed_of_every_arm():
    order = [task.run for task in finish(ask_of())[1]]
    ask, outcomes, runs = ask_of(), {}, []
    while now := tasks.due(ask, ARMS, outcomes):
        runs.append(now[0].run)
        outcomes[now[0].run] = scored(now[0])
    assert sorted(runs) == sorted(order)
    kinds = [run.split("/")[2] for run in runs]
    assert kinds == sorted(kinds, reverse=True)
    assert runs[-9:] == [f"arms/{name}/seeds/{seed}" for seed in range(3) for name in "abn"]


def test_trials_share_their_batches_and_have_schedules_of_their_own_length():
    _, done = finish(ask_of())
    trials = [task for task in done if "/tune/" in task.run]
    assert {task.config.seed for task in trials} == {tuning.SEED} and not any(task.full for task in trials)
    for task in trials:
        rung, _, factor = task.run.rpartition("/")[2].partition("-")
        assert task.config.train.steps == (40, 80, 160)[int(rung)]
        assert task.config.optim.learning_rate == pytest.approx(0.01 * float(factor))
        assert task.config.optim.warmup == "5%" and task.config.eval.every == 0


def test_seeds_have_the_tuned_rate_the_whole_length_and_what_is_asked_of_the_report():
    ask = ask_of(prompts=("once",), suites=("choice:x.jsonl",))
    _, done = finish(ask)
    for task in [task for task in done if "/seeds/" in task.run]:
        _, name, _, seed = task.run.split("/")
        assert (task.config.seed, task.config.train.steps, task.full) == (int(seed), 160, True)
        assert (task.prompts, task.suites) == (("once",), ("choice:x.jsonl",))
        assert task.config.optim.learning_rate == {"a": 0.01, "b": 0.04, "n": 0.01}[name]


def test_where_no_prompts_are_asked_for_the_first_seed_goes_on_with_passages_of_the_text():
    _, done = finish(ask_of(seeds=(3, 1)))
    assert {task.run.rpartition("/")[2]: task.prompts for task in done if "/seeds/" in task.run} == {"3": None, "1": ()}


def test_more_seeds_extend_a_finished_sweep_and_nothing_else():
    outcomes, _ = finish(ask_of())
    _, more = finish(ask_of(seeds=(0, 1, 2, 3)), outcomes=outcomes)
    assert sorted(task.run for task in more) == [f"arms/{name}/seeds/3" for name in "abn"]


def test_without_tuning_seeds_are_due_at_once():
    arms = [dataclasses.replace(arm, keys=()) for arm in ARMS]
    assert [task.run for task in tasks.due(ask_of(seeds=(0,)), arms, {})] == [f"arms/{name}/seeds/0" for name in "abn"]


def test_a_failure_is_tried_again_until_it_is_fatal_and_the_other_arms_go_on():
    attempts = {}

    def result(task):
        if task.run.startswith("arms/a/seeds/1"):
            attempts[task.run] = attempts.get(task.run, 0) + 1
            return Outcome(None, {"error": "x", "attempts": attempts[task.run], "fatal": attempts[task.run] == 2})
        return scored(task)

    outcomes, _ = finish(ask_of(), result=result)
    assert attempts == {"arms/a/seeds/1": 2} and outcomes["arms/a/seeds/1"].over
    assert {run for run, outcome in outcomes.items() if outcome.score is None} == {"arms/a/seeds/1"}


def test_an_arm_whose_trials_all_fail_has_no_seeds_and_says_so(tmp_path):
    def result(task):
        return Outcome(None, {"error": "x", "attempts": 1, "fatal": True}) if task.run.startswith("arms/a/") else scored(task)

    ask = ask_of()
    outcomes, done = finish(ask, result=result)
    assert [len([task for task in done if task.run.startswith(f"arms/{name}/seeds")]) for name in "ab"] == [0, 3]
    tasks.settle(tmp_path, ask, ARMS, outcomes)
    assert json.loads((tmp_path / "arms/a/tuned.json").read_text())["best"] is None
    for seed in range(3):
        failed = json.loads((tmp_path / f"arms/a/seeds/{seed}/failed.json").read_text())
        assert failed["fatal"] and "no trial" in failed["error"]
    assert tasks.read_outcomes(tmp_path).keys() == {f"arms/a/seeds/{seed}" for seed in range(3)}


def test_where_the_longest_trials_fail_seeds_have_the_rate_of_the_shorter_ones_and_that_is_said(tmp_path):
    def result(task):
        failed = Outcome(None, {"error": "out of memory", "attempts": 2, "fatal": True})
        return failed if task.run.startswith("arms/a/tune/2-") else scored(task)

    ask = ask_of()
    outcomes, done = finish(ask, result=result)
    seeds = [task for task in done if task.run.startswith("arms/a/seeds/")]
    assert len(seeds) == 3 and {task.config.optim.learning_rate for task in seeds} == {0.01}
    tasks.settle(tmp_path, ask, ARMS, outcomes)
    found = json.loads((tmp_path / "arms/a/tuned.json").read_text())
    assert found["best"] == {"factor": 1.0, "values": {"optim.learning_rate": 0.01}, "score": pytest.approx(1.5 + 10 / 80)}
    assert found["text"].endswith("; by runs of 50% of the length, for of the 2 trials of 100% none has a score (2 failed: see the folder "
                                  "tune)")
    assert "of the length" not in json.loads((tmp_path / "arms/b/tuned.json").read_text())["text"]
    assert not list(tmp_path.glob("arms/*/seeds/*/failed.json"))


def test_what_tuning_found_is_written_once_it_is_over(tmp_path):
    ask, outcomes = ask_of(), {}
    while now := [task for task in tasks.due(ask, ARMS, outcomes) if "/tune/" in task.run]:
        tasks.settle(tmp_path, ask, ARMS[:1], outcomes)
        assert not (tmp_path / "arms/a/tuned.json").exists() or not any("/a/" in task.run for task in now)
        outcomes |= {task.run: scored(task) for task in now}
    tasks.settle(tmp_path, ask, ARMS, outcomes)
    found = {name: json.loads((tmp_path / f"arms/{name}/tuned.json").read_text()) for name in "ab"}
    assert found["a"]["best"]["factor"] == 1 and found["b"]["best"] == {"factor": 4.0, "values": {"optim.learning_rate": 0.04},
                                                                       "score": pytest.approx(1.5 + 10 / 160)}
    assert (found["b"]["edge"], found["b"]["extended"]) == (None, 1) and "grew by 1" in found["b"]["text"]
    assert [len(rung["trials"]) for rung in found["a"]["rungs"]] == [5, 3, 2] and found["a"]["rungs"][0]["tokens"] == 7
    assert found["a"]["curvature"] == pytest.approx(0.1) and found["a"]["rises"] == dict.fromkeys(("half", "double"), pytest.approx(0.1))
    assert found["a"]["rungs"][0]["trials"][0] == {"factor": 0.25, "values": {"optim.learning_rate": 0.0025}, "diverged": False,
                                                   "score": pytest.approx(1.5 + 0.4 + 10 / 40), "run": "arms/a/tune/0-0.25"}


def test_a_trial_that_diverged_or_has_no_number_is_the_worst():
    def result(task):
        return scored(task, diverged=True, bits_per_byte=None) if task.config.optim.learning_rate > 0.011 else scored(task)

    outcomes, _ = finish(ask_of(), result=result)
    assert tasks.search(ask_of(), ARMS[1], outcomes).best == 1.0
    assert tasks.trial_scores(ARMS[1], outcomes)[tuning.Trial(0, 2.0)] == tuning.DIVERGED


def test_a_score_without_bits_per_byte_says_nothing_of_a_factor_and_is_no_divergence():
    def result(task):
        return Outcome({"loss": 2.0, "diverged": False})

    outcomes, _ = finish(ask_of(), ARMS[:1], result=result)
    assert set(tasks.trial_scores(ARMS[0], outcomes).values()) == {None}
    assert not any(trial["diverged"] for trial in tasks.tuned(ask_of(), ARMS[0], tasks.search(ask_of(), ARMS[0], outcomes),
                                                              outcomes)["rungs"][0]["trials"])


@pytest.mark.parametrize(("curvature", "rises", "text"), [
    (0.1, {"half": None, "double": None}, "by a parabola a factor of 2 off costs about 0.100 bits per byte"),
    (0.1, {"half": 0.2, "double": 0.001}, "half of it +0.200 and double of it +0.001 bits per byte"),
    (-0.01, {"half": 0.02, "double": None}, "half of it +0.020 bits per byte"),
    (-0.01, {"half": 0.02, "double": 0.01}, "half of it +0.020 and double of it +0.010 bits per byte"),
    (None, {"half": None, "double": None}, "trials")])
def test_what_a_wrong_rate_costs_is_never_less_than_nothing(curvature, rises, text):
    best = {"factor": 1.0, "values": {"optim.learning_rate": 0.01}}
    value = {"best": best, "rungs": [{"trials": [1, 2]}], "edge": None, "extended": 0, "curvature": curvature, "rises": rises}
    said = tasks.tuned_text(value)
    assert said.endswith(text) and "about -" not in said


def test_seeds_together_are_one_task_with_one_lock_and_single_ones_have_the_same_lock():
    arms = [dataclasses.replace(arm, keys=(), together=True) for arm in ARMS[:1]]
    (task,) = tasks.due(ask_of(), arms, {})
    assert task.together == (0, 1, 2) and task.runs == [f"arms/a/seeds/{seed}" for seed in range(3)]
    (last,) = tasks.due(ask_of(), arms, {run: scored(task) for run in task.runs[:2]})
    assert last.runs == ["arms/a/seeds/2"] and last.lock_name == task.lock_name
    (asked,) = tasks.due(ask_of(), [dataclasses.replace(arms[0], together=None)], {})
    assert asked.measure and asked.runs == []


@pytest.mark.parametrize(("warmup", "steps", "share"), [("16", 160, 10.0), ("5%", 160, 5.0), ("0", 160, 0.0)])
def test_schedules_are_stretched_to_shares_of_their_length(warmup, steps, share):
    config = tasks.stretched(config_of(optim__warmup=warmup), steps)
    for length in (40, 160, 1000):
        resolved = configs.resolve(tasks.with_keys(config, {"train.steps": length}), configs.Facts(1.0, 1.0, 1.0))
        assert resolved.optim.warmup == math.ceil(share / 100 * length)


def test_durations_that_need_data_are_stretched_with_what_a_step_is_worth():
    config = config_of(optim__warmup="2000 tokens")
    with pytest.raises(ConfigError, match=r"optim\.warmup=2000 tokens"):
        tasks.stretched(config, 160)
    assert tasks.stretched(config, 160, configs.Facts(100.0, 1.0, 1.0)).optim.warmup == "12.5%"


def test_the_time_left_is_that_of_the_runs_to_come():
    ask = ask_of()
    final, done = finish(ask)
    assert progress.seconds_left(ask, ARMS, {}) == (0, 29, None)
    first = [task for task in done if task.run in ("arms/a/tune/0-1", "arms/n/seeds/0")]
    outcomes = {task.run: scored(task) for task in first}
    over, total, left = progress.seconds_left(ask, ARMS, outcomes)
    # A run of a takes 8 s, one of n 2 s, and b, of which nothing is known, 5 s for their mean of FLOPs, of which it has six times as many.
    shares = 5 * 0.25 + 3 * 0.5 + 2
    assert (over, total) == (2, 29) and left == pytest.approx(8 * (shares - 0.25 + 3) + 2 * 2 + 5 * 6 * (shares + 3))
    assert progress.seconds_left(ask, ARMS, final) == (30, 30, 0.0)


def test_outcomes_are_read_from_the_disk_and_what_is_over_is_not_read_again(tmp_path):
    for run, name, value in (("arms/a/seeds/0", "score.json", {"diverged": False}), ("arms/a/tune/0-1", "failed.json", {"fatal": False})):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / name).write_text(json.dumps(value))
    outcomes = tasks.read_outcomes(tmp_path)
    assert outcomes == {"arms/a/seeds/0": Outcome({"diverged": False}), "arms/a/tune/0-1": Outcome(None, {"fatal": False})}
    (tmp_path / "arms/a/seeds/0/score.json").write_text("torn")
    (tmp_path / "arms/a/tune/0-1/score.json").write_text('{"diverged": true}')
    assert tasks.read_outcomes(tmp_path, outcomes)["arms/a/tune/0-1"].score == {"diverged": True}


def test_the_second_failure_is_the_last(tmp_path):
    for attempts, fatal in ((1, False), (2, True)):
        tasks.fail(tmp_path / "run", "out of memory", fatal=False)
        assert tasks.read_outcome(tmp_path / "run").failed == {
            "error": "out of memory", "attempts": attempts, "fatal": fatal, "diverged": False}
    tasks.fail(tmp_path / "other", "wrong", fatal=True)
    assert tasks.read_outcome(tmp_path / "other").over


@pytest.mark.parametrize(("diverges", "said"), [(True, True), (False, False)])
def test_seeds_of_an_arm_whose_trials_all_diverged_have_diverged(tmp_path, diverges, said):
    def result(task):
        return scored(task, diverged=True, bits_per_byte=None) if diverges else Outcome(None, {"error": "x", "attempts": 2, "fatal": True})

    outcomes, _ = finish(ask_of(), ARMS[:1], result=result)
    tasks.settle(tmp_path, ask_of(), ARMS[:1], outcomes)
    assert tasks.read_outcome(tmp_path / "arms/a/seeds/0").failed["diverged"] is said


# What is asked.


def test_entries_are_read_with_names_and_overrides_of_their_own():
    text = "configs/x.py,muon=configs/y.py:7b[optim.name=muon,data.source=a,b,optim.eps=1e-9],configs/x.py[optim.name=sgd], configs/x.py"
    found = asks.entries(text, {"seed": "3", "optim.name": "adam"})
    assert [entry.name for entry in found] == ["x", "muon", "x-sgd", "x-2"]
    assert found[1] == Entry("muon", "configs/y.py:7b", {"seed": "3", "optim.name": "muon", "data.source": "a,b", "optim.eps": "1e-9"})
    assert found[0].overrides == {"seed": "3", "optim.name": "adam"}
    assert asks.entries("configs/x.py:7b")[0].name == "x-7b"
    assert [entry.name for entry in asks.entries("x.py,y.py", taken=("x",))] == ["x-2", "y"]


def test_names_that_files_do_not_give_are_made_up_and_all_are_allowed():
    names = [entry.name for entry in asks.entries("configs/é.py,configs/_x.py,configs/ñ.py,configs/key.py,configs/é.py[optim.name=sgd]")]
    assert names == ["arm-1", "x", "arm-3", "key-2", "arm-5"] and all(map(asks._NAME.fullmatch, names))


@pytest.mark.parametrize("text", ["suite=x.py", "a=x.py,a=y.py", "a b=x.py", "x.py[lost]", "x.py[a=1"])
def test_entries_of_another_form_are_refused(text):
    with pytest.raises(ConfigError):
        asks.entries(text)


def test_an_ask_is_read_as_it_was_written_and_only_more_seeds_change_it(tmp_path):
    ask = ask_of(budget=Budget("flops", 1e13), tokens=100, prompts=("a, b",), tune_keys=("optim.learning_rate",),
                 grid=tuning.Grid((0.5, 1.0), (1.0,), 1))
    asks.settle(tmp_path, ask)
    assert asks.read(tmp_path) == ask
    (tmp_path / "arms/a").mkdir(parents=True)
    (tmp_path / "arms/a/sized.json").touch()
    more = dataclasses.replace(ask, seeds=(0, 1, 2, 3))
    asks.settle(tmp_path, more)
    assert asks.read(tmp_path) == more
    other = dataclasses.replace(more, prompts=("c",), suites=("choice:x.jsonl",))
    asks.settle(tmp_path, other)
    assert asks.read(tmp_path) == other
    asks.settle(tmp_path, more)
    for change in ({"seeds": (0, 1)}, {"tokens": 200}, {"tune_keys": None}, {"budget": None}, {"configs": ask.configs[:1]}):
        with pytest.raises(ConfigError, match=f"{next(iter(change)).removesuffix('_keys')} was"):
            asks.settle(tmp_path, dataclasses.replace(more, **change))
    assert asks.read(tmp_path) == more


@pytest.mark.parametrize("wrong", [{"configs": ()}, {"seeds": ()}, {"seeds": (1000,)}, {"tokens": 0}, {"sizes": "big"}, {"together": "x"},
                                   {"budget": Budget("seconds", 60), "together": "yes"}])
def test_an_ask_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        ask_of(**wrong)
