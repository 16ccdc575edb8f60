"""What a sweep has found: numbers against scipy and closed forms, honest sentences, sweeps that are not over."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

import lm.compare
from lm.compare import published, results, statistics, verdict
from lm.errors import ConfigError
from tests.compare.sweeps import make_sweep, score_of, write


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results.gather(make_sweep(tmp_path_factory.mktemp("sweep"), references=("ngram",)))


def test_scores_and_differences_are_those_of_scipy(found):
    scores = np.array([[score_of(arm, seed) for seed in range(3)] for arm in range(3)])
    for arm, values in zip(found["arms"], scores, strict=False):
        summary = arm["summary"]["bits_per_byte"]
        low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
        assert (summary["mean"], summary["low"], summary["high"]) == pytest.approx((values.mean(), low, high))
    assert [(row["a"], row["b"]) for row in found["differences"]] == [("transformer", "lstm"), ("transformer", "gru")]
    for row, other in zip(found["differences"], (1, 2), strict=True):
        test = scipy.stats.ttest_rel(scores[other], scores[0])
        interval = test.confidence_interval(0.95)
        assert (row["mean"], row["low"], row["high"], row["p"]) == pytest.approx(
            ((scores[other] - scores[0]).mean(), interval.low, interval.high, test.pvalue))
        assert row["bootstrap"]["low"] <= row["mean"] <= row["bootstrap"]["high"]


def test_p_values_are_corrected_once_for_all_pairs_and_said_alike_everywhere(found):
    pairs = {(row["a"], row["b"]): row for row in found["pairs"]}
    assert len(pairs) == 3 and {row["tests"] for row in found["pairs"]} == {3}
    assert found["differences"] == [pairs["transformer", "lstm"], pairs["transformer", "gru"]]
    worst = max(found["pairs"], key=lambda row: row["p"])
    assert worst["p_holm"] == pytest.approx(max(worst["p"], *(row["p_holm"] for row in found["pairs"] if row is not worst)))
    assert not any(row["separated"] != (row["p_holm"] <= 0.05) for row in found["pairs"])


def test_references_are_shown_and_not_compared(found):
    assert [arm["name"] for arm in found["arms"] if arm["reference"]] == ["ngram"]
    assert not any("ngram" in (row["a"], row["b"]) for row in found["pairs"])


def test_a_reference_that_is_ahead_of_all_arms_is_told(tmp_path, found):
    assert "ngram" not in found["verdict"].split(" At equal")[0]
    assert found["verdict"].endswith("of sotu. Outside the budget ngram (1.4610 [1.4368, 1.4853]) has fewer than all of them.")
    behind = results.gather(make_sweep(tmp_path, references=("ngram",), score=lambda arm, seed: 1.5 + 0.01 * arm + 0.002 * seed))
    assert behind["verdict"].endswith("of sotu.") and "ngram" not in behind["verdict"]


def test_a_best_rate_at_an_edge_is_told(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru", "lstm"))
    for name, edge in (("gru", "low"), ("lstm", "high")):
        file = tmp_path / f"arms/{name}/tuned.json"
        write(file, json.loads(file.read_text()) | {"edge": edge})
    assert "The best rate of gru and lstm is still at an edge of the grid: " in results.gather(tmp_path)["verdict"]


def test_the_time_of_seeds_trained_together_is_one_measurement(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    for seed in range(3):
        file = tmp_path / f"arms/gru/seeds/{seed}/score.json"
        score = json.loads(file.read_text())
        alone = {"seconds": 90.5, "together": 1} if seed == 2 else {"seconds": 60.5, "together": 2}
        write(file, score | {"train": score["train"] | alone | {"tokens_per_second": 3000.0 + (seed == 2)}})
    apart, together = (arm["summary"] for arm in results.gather(tmp_path)["arms"])
    assert (apart["seconds"]["n"], apart["mfu"]["n"], together["seconds"]["n"], together["tokens_per_second"]["n"]) == (3, 3, 2, 2)
    assert together["seconds"]["mean"] == pytest.approx((60.5 + 90.5) / 2) and together["bits_per_byte"]["n"] == 3


def test_the_verdict_names_interval_budget_seeds_and_text(found):
    row = verdict.towards(next(row for row in found["pairs"] if {row["a"], row["b"]} == {"lstm", "gru"}), "gru")
    assert found["verdict"].startswith("gru has the fewest bits per byte, 1.5090 [")
    for part in (f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}] fewer than lstm", "Holm's correction for 3 pairs",
                 "equal training FLOPs (1e13)", "3 paired seeds", "598,019 bytes of the validation split of sotu"):
        assert part in found["verdict"]


def test_arms_that_took_other_seconds_than_the_budget_are_told():
    def arm(name, *seconds):
        return {"name": name, "scores": [{"train": {"seconds": each}} for each in seconds]}

    arms = [arm("a", 58.0, 62.0), arm("b", 60.0, 121.0), arm("c", 50.0), {"name": "d", "scores": [{"train": None}]}]
    assert [line.split(": its")[0] for line in verdict.off_budget({"kind": "seconds", "amount": 60.0}, arms)] == [
        "b is +101.7% off the budget of seconds", "c is -16.7% off the budget of seconds"]


def test_arms_that_took_other_memory_than_the_budget_are_told():
    def arm(name, *sizes):
        return {"name": name, "scores": [{"memory_bytes": size} for size in sizes]}

    arms = [arm("a", 1.005e9, 0.995e9), arm("b", 1e9, 1.3e9), arm("c", 0.7e9, None), arm("d")]
    assert [line.split(" budget")[0] for line in verdict.off_budget({"kind": "memory", "amount": 1e9}, arms)] == [
        "b is +30.0% off the", "c is -30.0% off the"]
    assert verdict.off_budget(None, arms) == verdict.off_budget({"kind": "flops", "amount": 1.0}, arms) == []


def test_what_is_not_separated_is_not_called_better(tmp_path):
    scores = [[1.50, 1.52, 1.55], [1.51, 1.50, 1.55]]
    found = results.gather(make_sweep(tmp_path, arms=("rnn", "gru"), score=lambda arm, seed: scores[arm][seed]))
    (row,) = found["differences"]
    assert row["low"] < 0 < row["high"] and not row["separated"] and row["seeds_needed"] > 3
    assert found["verdict"].startswith("Not separated: ")
    assert f"about {row['seeds_needed']:,} seeds would separate" in found["verdict"]
    assert f"[{row['low']:+.4f}, {row['high']:+.4f}]" in found["verdict"]


def test_of_two_the_better_is_the_subject_whichever_came_first(tmp_path):
    bits = {"rnn": 1.6, "gru": 1.5}

    def score(name, seed):
        return bits[name] + 0.01 * seed + 1e-4 * seed * (name == "gru")

    for names in (("rnn", "gru"), ("gru", "rnn")):
        found = results.gather(make_sweep(tmp_path / names[0], names, score=lambda arm, seed, names=names: score(names[arm], seed)))
        assert found["verdict"].startswith("gru has 0.") and "bits per byte fewer than rnn [" in found["verdict"]
        assert (found["differences"][0]["mean"] > 0) == (names[0] == "gru")


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    found = results.gather(make_sweep(tmp_path, arms=("rnn", "gru"), seeds=(0,), documents=0))
    (row,) = found["differences"]
    assert row["low"] is row["p"] is row["seeds_needed"] is None and not row["separated"]
    assert "1 seed, so without an interval over seeds: it may be chance" in found["verdict"] and "95 %" not in found["verdict"]


def test_one_seed_has_an_interval_over_documents_where_they_were_kept(tmp_path):
    (row,) = results.gather(make_sweep(tmp_path, arms=("rnn", "gru"), seeds=(0,)))["differences"]
    turned = verdict.towards(row, "gru")
    assert (turned["mean"], turned["bootstrap"]["low"]) == (-row["mean"], -row["bootstrap"]["high"])
    low, high = row["bootstrap"]["low"], row["bootstrap"]["high"]
    assert f"(over documents alone [{low:+.4f}, {high:+.4f}])" in row["text"] and "1 seed" in row["text"]


def test_a_verdict_over_many_arms_stays_a_sentence(tmp_path):
    names = [f"arm{number}" for number in range(12)]
    found = results.gather(make_sweep(tmp_path, arms=names, seeds=(0, 1), documents=0))
    assert "arm11 has the fewest" in found["verdict"] and " others" in found["verdict"] and "arm1 " not in found["verdict"]
    assert len(found["pairs"]) == 66


def test_an_unfinished_sweep_says_what_is_missing(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"), skip=[("gru", 1), ("gru", 2)])
    (tmp_path / "arms/rnn/tuned.json").unlink()
    found = results.gather(tmp_path)
    assert found["missing"] == ["gru: seeds 1, 2"] and found["verdict"].startswith("Unfinished: ")
    assert found["differences"][0]["n"] == 1
    for file in tmp_path.glob("arms/*/seeds/*/score.json"):
        file.unlink()
    for file in tmp_path.glob("arms/gru/*.json"):
        file.unlink()
    found = results.gather(tmp_path)
    assert found["missing"] == ["rnn: tuning, seeds 0, 1, 2", "gru: its size, tuning, seeds 0, 1, 2"]
    assert found["verdict"] == "Unfinished: no arm has a score yet." and found["environment"] is None


def test_failed_and_diverged_runs_are_told_and_in_no_mean(tmp_path):
    def score(arm, seed):
        return None if (arm, seed) == (0, 2) else score_of(arm, seed)

    found = results.gather(make_sweep(tmp_path, arms=("rnn", "gru"), score=score, failed=[("gru", 1)]))
    first, second = found["arms"]
    assert first["summary"]["bits_per_byte"]["n"] == 2 and second["failed"] == [
        {"run": "arms/gru/seeds/1", "error": "out of memory <here> & there", "diverged": False}]
    assert (found["differences"][0]["seeds"], found["missing"]) == ([0], [])


def test_a_score_that_diverged_counts_for_nothing_even_with_a_number(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    file = tmp_path / "arms/gru/seeds/1/score.json"
    write(file, json.loads(file.read_text()) | {"diverged": True, "bits_per_byte": 9.0})
    found = results.gather(tmp_path)
    assert found["arms"][1]["summary"]["bits_per_byte"]["n"] == 2 and found["differences"][0]["seeds"] == [0, 2]


def test_a_failure_that_will_be_tried_again_is_still_to_come(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"), failed=[("gru", 1)])
    write(tmp_path / "arms/gru/seeds/1/failed.json", {"error": "killed", "attempts": 1, "fatal": False})
    found = results.gather(tmp_path)
    assert found["missing"] == ["gru: seed 1"] and not found["arms"][1]["failed"]


@pytest.mark.parametrize(("diverged", "why"), [(5, "every trial diverged"), (2, "2 of 5 trials diverged and 3 failed"),
                                                (0, "0 of 5 trials diverged and 5 failed")])
def test_an_arm_whose_trials_have_no_score_has_failed(tmp_path, diverged, why):
    make_sweep(tmp_path, arms=("rnn", "gru"), skip=[("gru", seed) for seed in range(3)])
    file = tmp_path / "arms/gru/tuned.json"
    trials = [{"factor": 2.0**i, "score": None, "diverged": i < diverged, "run": f"arms/gru/tune/0-{2.0**i:g}"} for i in range(5)]
    write(file, json.loads(file.read_text()) | {"best": None, "rungs": [{"share": 0.25, "tokens": 9, "trials": trials}]})
    found = results.gather(tmp_path)
    assert not found["missing"] and found["arms"][1]["failed"][0]["error"] == f"{why}: no rate was found to train with"
    how = "diverged" if diverged == 5 else "failed"
    assert f"and no other arm a score; gru has no score ({how}). At" in found["verdict"]


def test_the_verdict_tells_of_arms_and_seeds_that_failed_or_diverged(tmp_path):
    def score(arm, seed):
        return None if arm == 3 or (arm, seed) == (0, 2) else score_of(arm, seed)

    names = ("rnn", "gru", "lstm", "mlp", "cnn")
    found = results.gather(make_sweep(tmp_path, names, score=score, failed=[("gru", 1), *(("cnn", seed) for seed in range(3))]))
    for part in ("; 1 of 3 seeds of rnn diverged;", "; 1 of 3 seeds of gru failed;", "; mlp has no score (diverged);",
                 "; cnn has no score (failed). At"):
        assert part in found["verdict"]
    assert "seeds of lstm" not in found["verdict"] and not found["missing"]


def test_the_verdict_keeps_to_the_seeds_in_common(tmp_path):
    scores = {("a", 0): 1.0, ("a", 1): 1.001, ("a", 2): 1.5, ("b", 0): 1.05, ("b", 1): 1.0516, ("c", 0): 1.2, ("c", 1): 1.2001}
    names = ("a", "b", "c")
    found = results.gather(make_sweep(tmp_path / "two", names[:2], score=lambda arm, seed: scores.get((names[arm], seed))))
    assert found["arms"][0]["summary"]["bits_per_byte"]["mean"] > found["arms"][1]["summary"]["bits_per_byte"]["mean"]
    assert "a has 0.0503 bits per byte fewer than b" in found["verdict"] and "(1.0005 against 1.0508)" in found["verdict"]
    assert "2 paired seeds" in found["verdict"]
    found = results.gather(make_sweep(tmp_path / "three", names, score=lambda arm, seed: scores.get((names[arm], seed))))
    assert found["verdict"].startswith("a has the fewest bits per byte") and "0.0503 [" in found["verdict"]
    apart = {(0, 0): 1.0, (1, 1): 1.1, (2, 2): 1.2}
    found = results.gather(make_sweep(tmp_path / "apart", names, score=lambda arm, seed: apart.get((arm, seed))))
    assert found["verdict"].startswith("none of a, b and c has fewer bits per byte than each other one over the seeds that both have; 2 of")


def test_no_arm_is_called_first_when_each_is_behind_another():
    arms = [{"name": name, "reference": False, "failed": [], "sized": None, "tuned": None,
             "scores": [{"seed": seed, "bits_per_byte": bits} for seed, bits in scores.items()]} for name, scores in {
            "a": {0: 1.0, 2: 1.2}, "b": {0: 1.1, 1: 1.0}, "c": {1: 1.1, 2: 1.0}}.items()]
    ask = {"budget": None, "tokens": 10, "seeds": [0, 1, 2], "configs": [{"name": "a"}]}
    found = results.summarise({"arms": arms, "ask": ask, "missing": []})
    assert found["verdict"].startswith("none of a, b and c has fewer")


def test_seeds_needed_are_of_the_level_that_is_tested_at(found):
    for rows in (found["pairs"], found["differences"]):
        for row in rows:
            assert row["seeds_needed"] == statistics.seeds_needed(row["mean"], row["sd"], level=1 - 0.05 / 3)
    assert statistics.seeds_needed(0.01, 0.02, level=1 - 0.05 / 3) > statistics.seeds_needed(0.01, 0.02)


def test_without_a_budget_arms_are_as_long_as_the_baseline(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    ask = json.loads((tmp_path / "compare.json").read_text())
    for tokens, shown in ((1000, "1,000"), (None, "655,360")):
        write(tmp_path / "compare.json", ask | {"budget": None, "tokens": tokens})
        found = results.gather(tmp_path)
        assert f"At sizes as they are written, all as long as rnn ({shown} tokens), 95 %" in found["verdict"]


def test_where_tokenizers_differ_arms_are_as_long_in_bytes_and_not_in_tokens(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"), budget={"kind": "tokens", "amount": 655360.0})
    assert "At equal tokens (655,360), 95 %" in results.gather(tmp_path)["verdict"]
    file = tmp_path / "arms/gru/sized.json"
    write(file, json.loads(file.read_text()) | {"tokens": 1_200_000})
    assert "At as many bytes of text as 655,360 tokens of rnn, 95 %" in results.gather(tmp_path)["verdict"]
    write(tmp_path / "compare.json", json.loads((tmp_path / "compare.json").read_text()) | {"budget": None, "tokens": None})
    assert "At sizes as they are written, all on as many bytes of text as rnn (655,360 tokens), 95 %" in results.gather(tmp_path)["verdict"]


def test_a_tokenizer_that_loses_text_is_told_beside_the_scores(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    assert "loses text" not in results.gather(tmp_path)["verdict"]
    for file in tmp_path.glob("arms/*/seeds/*/score.json"):
        write(file, json.loads(file.read_text()) | {"tokenizer_lossless": False})
    found = results.gather(tmp_path)
    assert found["verdict"].endswith("; the tokenizer of rnn and gru loses text, which costs no bits: such scores compare with one another "
                                     "alone.")
    assert published.keep([tmp_path])["sweeps"][0]["text"]["lossy"] == ["rnn", "gru"]


def test_one_config_has_no_other_arm(tmp_path):
    assert "no other arm" not in results.gather(make_sweep(tmp_path, arms=("rnn",)))["verdict"]


def test_curves_keep_their_ends_and_add_up_seconds_over_processes(tmp_path):
    make_sweep(tmp_path, arms=("rnn",), seeds=(0,), lines=160)
    path = tmp_path / "arms/rnn/seeds/0/metrics.jsonl"
    lines = [{"step": step, "kind": "train", "tokens": 10 * step, "seconds": 9.0, "loss": 1.0,
              "time": {"prepare": 1.0 + (step > 600), "step": float(step - 600 * (step > 600))}} for step in range(1, 1001)]
    lines.insert(501, {"step": 500, "kind": "eval", "bits_per_byte": 2.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = results.gather(tmp_path)["curves"]
    assert len(curve["points"]) <= results.MOST_POINTS + 1
    last = curve["points"][-1]
    assert (last["step"], last["seconds"]) == (1000, 1000.0)  # 600 of the first process, 400 of the second
    assert [point["bits_per_byte"] for point in curve["points"] if point["step"] == 500] == [2.0]
    assert last["flops"] == pytest.approx(1e13 / 655360 * last["tokens"])


def test_cost_counts_every_run_and_trial(found):
    assert (found["cost"]["runs"], found["cost"]["trials"]) == (12 + 24, 24)
    assert found["cost"]["flops"] == pytest.approx(9 * 1e13 + 24 * 1e11)


def test_cost_counts_runs_that_failed_too(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    before = results.gather(tmp_path)["cost"]
    run = tmp_path / "arms/gru/seeds/1"
    (run / "score.json").unlink()
    write(run / "failed.json", {"error": "out of memory", "attempts": 2, "fatal": True})
    after = results.gather(tmp_path)["cost"]
    last = json.loads(run.joinpath("metrics.jsonl").read_text().splitlines()[-2])
    assert after["runs"] == before["runs"]
    assert after["seconds"] == pytest.approx(before["seconds"] - 176.0 + last["time"]["step"])
    assert after["flops"] == pytest.approx(before["flops"] - 1e13 + (1.5e7 + 1) * last["tokens"])


def test_config_differences_are_those_keys_that_differ(found):
    assert {row["key"] for row in found["config_differences"]} == {"model.name", "model.width"}
    assert found["config_differences"][1] == {"key": "model.width", "transformer": 208, "lstm": 224, "gru": 240, "ngram": 256}


def test_results_are_json_and_follow_from_the_scores_alone(found):
    stored = json.loads(json.dumps(found, allow_nan=False))
    again = results.summarise({name: stored[name] for name in ("ask", "text", "missing", "bootstrap", "arms")})
    assert (again["verdict"], again["pairs"]) == (found["verdict"], found["pairs"])


def test_frames_are_tidy(found):
    curves = results.curve_frame(found)
    assert len(curves) == 12 * 40 and not curves["loss"].isna().any() and curves.groupby(["arm", "seed"]).ngroups == 12
    profile = results.profile_frame(found["arms"][0]["tuned"])
    assert profile["diverged"].tolist() == [False] * 4 + [True] + [False] * 3 and math.isnan(profile["score"][4])
    assert len(results.breakdown_frame(found, "position")) == 12 * 8


def test_a_folder_without_a_sweep_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"has no compare\.json"):
        results.gather(tmp_path)


def test_the_room_gives_its_functions_when_they_are_asked_for():
    assert lm.compare.gather is results.gather and "load_runs" in dir(lm.compare)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lm.compare.nothing
    assert pathlib.Path(lm.compare.load_run.__code__.co_filename).name == "runs.py"


def test_the_room_gives_its_modules_when_they_are_asked_for():
    probe = ("import sys, lm.compare\nassert not [name for name in sys.modules if name.startswith('lm.compare.')]\n"
             "print(lm.compare.plots.curves.__name__, lm.compare.laws.__name__, lm.compare.report.write.__name__)\n"
             "for name in ('statistics', 'isoflop', 'frontier', 'points'): getattr(lm.compare, name)")
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.stdout == "curves lm.compare.laws write\n" and not done.returncode, done.stderr


@pytest.mark.parametrize(("number", "text"), [(655360, "655,360"), (5.2e6, "5.2M"), (7e9, "7B"), (2e12, "2T"), (90, "90"), (0.5, "0.5"),
                                              (999_999_999, "1B"), (655360.5, "655,360"), (999_999, "1M"),
                                              (1.8e15, "1.8e15"), (1.25, "1.25")])
def test_amounts(number, text):
    assert verdict.amount(number) == text


@pytest.mark.parametrize(("number", "text"), [(1.8e13, "1.8e13"), (1e13, "1e13"), (9.999e12, "1e13"), (0, "0"), (123, "1.23e2")])
def test_flops(number, text):
    assert verdict.flops(number) == text
