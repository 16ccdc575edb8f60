"""scripts/scaling.py: what it says of points, the ladder it trains, and what it refuses."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from lm import cli, objectives
from lm import config as configs
from lm.compare import ask as asks
from lm.compare import budgets, ladder, laws, points, scaling, scaling_plots, sweep
from lm.data.prepare import prepare
from lm.errors import ConfigError, DataError, ProcessError
from lm.train import train
from tests.compare.ladders import BESIROGLU, joined
from tests.compare.ladders import ladder as synthetic
from tests.compare.small_runs import one_device, write_corpus

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "scaling.py"
CONFIG = '''"""Small."""
from lm.config import default


def get_config(name="gru"):
    """The config."""
    config = default()
    config.model.name, config.model.layers, config.model.width = name, 1, 32
    config.data.source, config.data.documents, config.data.tokenizer = "text:{corpus}", "line", "bytes"
    config.data.context, config.data.global_batch, config.data.validation_fraction, config.data.workers = 16, 8, 0.2, 1
    config.train.steps, config.optim.warmup = 100, "10%"
    config.metrics.tensorboard = False
    return config
'''


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("scaling_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "small.py").write_text(CONFIG.replace("{corpus}", str(write_corpus(folder))))
    return folder / "small.py"


@pytest.fixture(scope="module")
def two():
    """Two families, of which the second needs half the compute."""
    return joined(synthetic(noise=0.002, family="lstm"), synthetic(noise=0.002, seed=1, family="gru", compute=0.5))


def test_all_that_is_found_is_told(two):
    found = scaling.analyse(two, resamples=20)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    lstm = found["families"]["lstm"]
    assert lstm["law"]["constants"]["alpha"]["value"] == pytest.approx(BESIROGLU[2], abs=0.03)
    assert len(lstm["isoflop"]["minima"]) == 5 and lstm["held_out"]["fitted"] == 20 and len(lstm["held_out"]["runs"]) == 5
    assert lstm["law"]["best_for"][1]["flops"] == pytest.approx(1e21)
    (pair,) = found["comparisons"]
    assert (pair["a"], pair["b"]) == ("lstm", "gru") and pair["ratio"]["low"] < 0.5 < pair["ratio"]["high"]
    page = scaling.page(found, "nats per token")
    for said in ("lstm: 25 points", "gru: 25 points", "E + A / N^alpha", "isoFLOP parabolas", "held out", pair["text"],
                 f"{lstm['law']['constants']['alpha']['value']:.4g}"):
        assert said in page


def test_what_points_do_not_allow_is_said_and_the_rest_is_done():
    one = synthetic(budgets=(1e18,))
    found = scaling.analyse(one, resamples=5)["families"]["a"]
    assert "5 distinct points" in found["law"]["error"] and "a curve needs 3" in found["frontier"]["error"]
    assert "all points are of the largest budget" in found["held_out"]["error"] and found["isoflop"]["minima"][0]["where"] == "inside"
    page = scaling.page(scaling.analyse(one, resamples=5), "loss")
    assert "no law: " in page and "nothing is predicted: " in page and "no power law" in page
    with pytest.raises(DataError, match="nothing can be fitted to 2 points"):
        scaling.analyse(synthetic(budgets=(1e18,), sizes=(1, 2)))
    law = scaling.law_of(laws.fit(dataclasses.replace(synthetic(), loss=np.full(25, 3.0)), resamples=1))
    assert law["undetermined"] and not law["best_for"] and law["exponents"] is None


def test_families_that_do_not_meet_are_not_compared(two):
    far = dataclasses.replace(two, loss=np.where(two.family == "gru", two.loss + 5, two.loss))
    (pair,) = scaling.analyse(far, resamples=5)["comparisons"]
    assert "none in common" in pair["error"]


def test_what_was_trained_is_told_though_it_cannot_be_compared_or_held_out_as_asked(two):
    found = scaling.analyse(two, hold_out="1e30", resamples=5, loss=1.0)
    assert "is not reached by both" in found["comparisons"][0]["error"]
    for each in found["families"].values():
        assert "constants" in each["law"] and "holds out 0 of 25 points" in each["held_out"]["error"]
    page = scaling.page(found, "loss")
    assert "nothing is predicted: hold_out=1e30 holds out" in page and "lstm and gru cannot be compared: a loss of 1 is not reached" in page


def test_figures_are_of_each_family_and_say_what_is_missing(two):
    figure = scaling_plots.figure(two, resamples=3)
    first = figure.axes[0]
    assert len(figure.axes) == 6 and first.get_xscale() == "log" and first.get_xlabel() == "parameters" and "lstm" in first.get_title()
    np.testing.assert_allclose(first.lines[1].get_ydata(), two.of("lstm").loss[:5])
    few = scaling_plots.figure(synthetic(budgets=(1e18,)), resamples=3)
    assert "largest budget" in few.axes[1].texts[0].get_text()


def test_the_command_fits_a_file(two, tmp_path):
    points.write(tmp_path / "points.csv", two)
    done = subprocess.run([sys.executable, SCRIPT, f"--points={tmp_path}/points.csv", f"--out={tmp_path}/out", "--resamples=5"],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    kept = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert result["comparisons"][0]["ratio"] == kept["comparisons"][0]["ratio"] and len(kept["comparisons"][0]["ratios"]) == 21
    assert (tmp_path / "out" / "scaling.svg").read_text().startswith("<?xml") and len(points.read(tmp_path / "out" / "points.csv")) == 50
    assert "gru needs 0." in done.stdout and not done.stderr


@pytest.mark.parametrize("flags, message", [
    ([], "give one of --points=FILE"), (["--points=a.csv", "--runs=b"], "give one of"),
    (["--points=a.csv", "--seeds=2"], "--seeds is of a ladder"), (["--points=a.csv", "--measure=bits_per_byte"], "--measure says what"),
    (["--points=a.csv", "--count=total"], "--count says what is read of runs"),
    (["--workdir=w", "--config=c.py"], "--config needs --budgets"), (["--workdir=w", "--budgets=1e9"], "--budgets needs --config"),
    (["--workdir=w", "--config.seed=1"], "there is no --config"), (["--points=a.csv", "--resamples=0"], "at least 1"),
    (["--points=a.csv", "--hold_out=most"], "--hold_out=most: use largest, none"), (["--points=a.csv", "--hold_out=nan"], "--hold_out=nan"),
    (["--points=a.csv", "--loss=nan"], "--loss=nan: use a loss above 0"), (["--points=a.csv", "--loss=-1"], "--loss=-1"),
    (["--workdir=w", "--config=c.py", "--budgets=1e9", "--workers=0"], "at least 1")])
def test_flags_that_do_not_go_together_are_refused(script, flags, message):
    arguments, overrides = script.parser_of().parse_with_overrides(flags)
    with pytest.raises(ConfigError, match=message):
        script.check_flags(arguments, overrides)


def test_lists_are_numbers():
    assert cli.numbers("sizes", "0.5,1e3", (1,)) == (0.5, 1000) and cli.numbers("sizes", None, (1, 2)) == (1, 2)
    with pytest.raises(ConfigError, match=r"--sizes=1,x is not a list of numbers, such as 0\.5,1"):
        cli.numbers("sizes", "1,x", (0.5, 1))
    for sizes in ((), (1, 1), (0,), (float("nan"),)):
        with pytest.raises(ConfigError, match="different numbers above 0"):
            ladder.Ladder(asks.entries("c.py"), sizes, (1e9,))


def small_ladder(config_file, sizes=(0.5, 1), budgets=(4e8, 8e8), seeds=1):
    return ladder.Ladder(asks.entries(f"{config_file}:gru,{config_file}:lstm"), sizes, budgets, seeds)


def test_a_ladder_has_each_size_with_each_budget(config_file, tmp_path):
    asked = small_ladder(config_file, (0.5, 1, 2))
    ladder.plan(tmp_path, asked)
    assert ladder.read(tmp_path) == asked
    opened, data = sweep.open_sweep(tmp_path), {}
    assert [arm.name for arm in opened.arms][:2] == ["small-gru-0.5x-4e08", "small-lstm-0.5x-4e08"] and len(opened.arms) == 12
    own = {}
    for arm in opened.arms:
        sized = json.loads((tmp_path / "arms" / arm.name / "sized.json").read_text())
        prepared = data.setdefault(0, prepare(arm.config.data, arm.config.data.tokenizer_seed))
        objective = objectives.make(arm.config, prepared.tokenizer, prepared.source_tokenizer)
        model = objective.model(arm.config)
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
        counted = sum(leaf.size for path, leaf in leaves if "embedding" not in jax.tree_util.keystr(path))
        entry, size, budget = asked.rungs[arm.name]
        own |= {entry.name: counted} if size == 1 else {}
        assert sized["nonembedding"] == counted
        flops = objective.train_flops(model) * 16 * 8 * arm.config.train.steps
        assert flops == pytest.approx(budget, rel=ladder.MOST_OFF) and flops == pytest.approx(sized["flops"])
        assert arm.config.eval.every == 0 and arm.config.optim.warmup == "10%"
    for name, (entry, size, _) in asked.rungs.items():
        sized = json.loads((tmp_path / "arms" / name / "sized.json").read_text())
        assert sized["nonembedding"] == pytest.approx(size * own[entry.name], rel=0.01)
    assert len(opened.due({})) == 12 and ladder.epochs(tmp_path) > 0


def test_a_ladder_grows_and_does_not_shrink(config_file, tmp_path):
    ladder.plan(tmp_path, small_ladder(config_file))
    before = (tmp_path / "arms" / "small-gru-1x-8e08" / "sized.json").stat().st_mtime_ns
    there = sorted(tmp_path.rglob("*")), ladder.read(tmp_path)
    with pytest.raises(ConfigError, match=r"of small-gru-0.5x-1e05: use budgets of"):
        ladder.plan(tmp_path, small_ladder(config_file, budgets=(1.6e9, 4e8, 8e8, 1e5)))
    assert (sorted(tmp_path.rglob("*")), ladder.read(tmp_path)) == there, "what is refused leaves nothing"
    ladder.plan(tmp_path, small_ladder(config_file, (0.5, 1, 2), (4e8, 8e8, 1.6e9), 2))
    assert (tmp_path / "arms" / "small-gru-1x-8e08" / "sized.json").stat().st_mtime_ns == before
    assert len(sweep.open_sweep(tmp_path).due({})) == 2 * 3 * 3 * 2
    with pytest.raises(ConfigError, match=r"holds a ladder with small-gru-0.5x-4e08, .*seed 1, which this one has not"):
        ladder.plan(tmp_path, small_ladder(config_file, (1, 2)))


@pytest.mark.parametrize("spec, budget, message", [
    ("{file}:gru", 1e5, r"is 0.\d+ steps of small-gru-1x-1e05: use budgets of"),
    ("configs/lineage/ngram.py:2", 1e8, "has no sizes and takes no"),
    ("{file}:gru[eval.split=none]", 1e8, "laws are of an evaluation"),
    ("{file}:gru,{file}:lstm[data.context=8]", 1e8, "see the same batches")])
def test_what_cannot_be_a_ladder_is_refused(config_file, tmp_path, spec, budget, message):
    with pytest.raises(ConfigError, match=message):
        ladder.plan(tmp_path, ladder.Ladder(asks.entries(spec.format(file=config_file)), (1.0,), (budget,)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="is not the work directory"):
        ladder.read(tmp_path)


def test_a_ladder_that_was_stopped_while_it_was_written_is_sized_again(config_file, tmp_path):
    """What another one left there, before it was a sweep, is not taken for its own."""
    stale = tmp_path / "arms" / "g-1x-4e08" / "sized.json"
    stale.parent.mkdir(parents=True)
    stale.write_text('{"stale": true}')
    ladder.plan(tmp_path, ladder.Ladder(asks.entries(f"g={config_file}"), (1.0,), (4e8,)))
    assert json.loads(stale.read_text())["name"] == "g-1x-4e08"


def test_schedules_in_any_unit_are_stretched(config_file, tmp_path):
    """100 steps of 128 tokens are written, and a tenth of them as tokens."""
    ladder.plan(tmp_path, ladder.Ladder(asks.entries(f"g={config_file}[optim.warmup=1280 tokens]"), (1.0,), (4e8,)))
    (arm,) = sweep.open_sweep(tmp_path).arms
    assert arm.config.optim.warmup == "10.0%" and arm.config.train.steps != 100


@pytest.mark.parametrize("code, error, message", [
    (-9, ProcessError, "killed by SIGKILL, maybe because memory ran out"), (2, SystemExit, "2")])
def test_a_planning_process_that_ends_badly_is_told(script, config_file, tmp_path, monkeypatch, code, error, message):
    started = []
    monkeypatch.setattr(sweep, "start", lambda command, variables: started.append(command) or types.SimpleNamespace(wait=lambda: code))
    arguments, _ = script.parser_of().parse_with_overrides([f"--workdir={tmp_path}", "--debug"])
    asked = small_ladder(config_file)
    with pytest.raises(error, match=message):
        script.plan(arguments, asked)
    (command,) = started
    assert command[-1] == "--debug" and ladder.of_json(json.loads(command[3])) == asked


def test_points_of_a_ladder_are_of_its_runs(config_file, tmp_path, monkeypatch):
    one_device(monkeypatch)
    ladder.plan(tmp_path, ladder.Ladder(asks.entries(f"g={config_file}"), (1.0,), (2e8,)))
    with pytest.raises(DataError, match="has a score"):
        ladder.gather(tmp_path)
    sweep.open_sweep(tmp_path).work()
    found, missing = ladder.gather(tmp_path)
    (run,) = found.run
    score = json.loads((pathlib.Path(run) / "score.json").read_text())
    assert missing == [] and found.families == ["g"] and len(found) == 1
    assert found.loss[0] == score["nats_per_token"] and found.flops[0] == pytest.approx(2e8, rel=ladder.MOST_OFF)
    assert found.parameters[0] == score["train"]["parameters"] and found.tokens[0] == configs.of_run(run).train.steps * 16 * 8
    counted = ladder.of_runs([run], "bits_per_byte", "nonembedding")
    assert counted.parameters[0] < found.parameters[0] and counted.loss[0] == score["bits_per_byte"] and counted.families == ["gru"]
    (pathlib.Path(run) / "score.json").write_text(json.dumps(score | {"diverged": True}))
    with pytest.raises(DataError, match="has a score"):
        ladder.gather(tmp_path)


@pytest.mark.parametrize("own, measure, message", [
    ("data.tokenizer=bpe", "nats_per_token", "nats of different tokens are no one loss; use --measure=bits_per_byte"),
    ("data.tokenizer=unigram,data.vocab_size=300", "nats_per_token", r"a has data\.tokenizer=bytes and b data\.tokenizer=unigram"),
    ("data.tokenizer=bpe", "bits_per_byte", None), ("data.global_batch=16", "nats_per_token", None),
    ("data.validation_fraction=0.1", "bits_per_byte", r"data\.validation_fraction=0\.1: laws are of one text"),
    ("data.source=text:other.txt", "bits_per_byte", "laws are of one text"),
    ("eval.split=none", "bits_per_byte", r"eval\.split=none: laws are of one text and one evaluation"),
    ("eval.max_tokens=100", "nats_per_token", r"eval\.max_tokens=100"), ("seed=3,train.steps=7", "nats_per_token", None)])
def test_what_is_not_of_one_text_in_one_unit_is_no_law(config_file, own, measure, message):
    loaded = {entry.name: entry.config() for entry in asks.entries(f"a={config_file}:gru,b={config_file}:lstm[{own}]")}
    if message is None:
        assert budgets.check_one_text(loaded, measure == "nats_per_token") == (["data.tokenizer"] if "tokenizer" in own else [])
    else:
        with pytest.raises(ConfigError, match=message):
            budgets.check_one_text(loaded, measure == "nats_per_token")


def test_tokenizers_that_differ_are_refused_before_a_ladder_is_trained(script, config_file, tmp_path, monkeypatch):
    families = asks.entries(f"a={config_file}:gru,b={config_file}:gru[data.tokenizer=bpe,data.vocab_size=300]")
    ladder.plan(tmp_path, ladder.Ladder(families, (1.0,), (4e8,)))
    monkeypatch.setattr(sweep.Supervisor, "run", lambda self: pytest.fail("it trains"))
    with pytest.raises(ConfigError, match="use --measure=bits_per_byte"):
        script.main([f"--workdir={tmp_path}"])


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    """A folder with two finished runs of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        for seed in range(2):
            config = configs.load(f"{config_file}:gru", {"train.steps": "2", "seed": str(seed)})
            train(config, folder / str(seed))
    return folder


def change(trained, folder, of_lines=lambda line: [line], of_config=lambda stored: None):
    """The two runs again, the second with other lines or another config.json; their pattern."""
    if folder != trained:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
    lines = [json.loads(line) for line in (folder / "1" / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(changed) + "\n" for line in lines for changed in of_lines(line)]
    (folder / "1" / "metrics.jsonl").write_text("".join(lines))
    stored = json.loads((folder / "1" / "config.json").read_text())
    of_config(stored)
    (folder / "1" / "config.json").write_text(json.dumps(stored))
    return f"{folder}/*"


def test_runs_that_have_ended_are_points(trained, tmp_path):
    found = ladder.of_runs([change(trained, tmp_path)])
    assert len(found) == 2 and found.tokens.tolist() == [2 * 8 * 16] * 2
    with_batch = ladder.of_runs([change(trained, tmp_path, of_config=lambda stored: stored["config"]["data"].update(global_batch=4))])
    assert len(with_batch) == 2


@pytest.mark.parametrize("of_lines, of_config, message", [
    (lambda line: [line] if line["step"] < 2 else [], lambda stored: None, "1 is at step 1 of 2: train it to its end, or leave it out"),
    (lambda line: [], lambda stored: None, "1 is at step 0 of 2"),
    (lambda line: [line], lambda stored: stored["config"]["train"].update(steps=5), "1 is at step 2 of 5"),
    (lambda line: [line | {"step": 1}] if line["kind"] == "eval" else [line], lambda stored: None, "1 was last evaluated at step 1 of 2"),
    (lambda line: [line], lambda stored: stored.update(data="another"), "0 and .*1 were trained on different text"),
])
def test_runs_that_have_not_ended_or_are_of_other_text_are_named(trained, tmp_path, of_lines, of_config, message):
    with pytest.raises(DataError, match=message):
        ladder.of_runs([change(trained, tmp_path, of_lines, of_config)])


def test_runs_of_other_text_or_tokens_are_refused_in_a_line(trained, tmp_path):
    pattern = change(trained, tmp_path, of_config=lambda stored: stored["config"]["data"].update(tokenizer="bpe"))
    with pytest.raises(ConfigError, match=r"1 data\.tokenizer=bpe: nats of different tokens are no one loss; use"):
        ladder.of_runs([pattern])
    assert len(ladder.of_runs([pattern], "bits_per_byte")) == 2
    change(tmp_path, tmp_path, of_config=lambda stored: stored["config"]["data"].update(validation_fraction=0.1))
    with pytest.raises(ConfigError, match=r"data\.validation_fraction=0\.1: laws are of one text"):
        ladder.of_runs([pattern], "bits_per_byte")


@pytest.mark.slow
def test_the_command_trains_a_ladder_and_goes_on_with_it(config_file, tmp_path):
    def scale(*flags):
        command = [sys.executable, SCRIPT, f"--workdir={tmp_path}/w", "--resamples=20", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)

    asked = [f"--config={config_file}:gru", "--sizes=0.5,1,2", "--seeds=1", "--config.seed=0"]
    first = scale(*asked, "--budgets=4e8")
    assert first.returncode == 0, first.stderr
    assert "no law: " in first.stdout and json.loads(first.stdout.splitlines()[-1])["points"] == 3
    second = scale(*asked, "--budgets=4e8,8e8", "--workers=2")
    assert second.returncode == 0, second.stderr
    result = json.loads(second.stdout.splitlines()[-1])
    assert result["points"] == 6 and result["missing"] == [] and pathlib.Path(result["files"]["scaling.svg"]).exists()
    assert second.stdout.count(" seed 0: ") == 3, "what was trained is not trained again"
    refused = scale(*asked, "--budgets=8e8")
    assert refused.returncode == 2 and "holds a ladder with small-gru-0.5x-4e08" in refused.stderr
