"""Seeds trained together are the runs that they are alone: weights, lines, evaluations, and the directory."""

import jax
import numpy as np
import pytest

from lm.checkpoint import Checkpoints
from lm.compare import together
from lm.errors import ConfigError
from lm.evaluate import evaluate_run
from lm.metrics.writers import read_lines
from lm.run import open_run
from lm.train import set_up, train
from tests.compare.small_runs import one_device, small, write_corpus

pytestmark = pytest.mark.usefixtures("programs")

SEEDS = (3, 0)
EQUAL = {"loss", "grad_norm", "param_norm", "update_norm", "learning_rate", "nats_per_token", "bits_per_byte"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("together"))


def state_of(workdir):
    """Every array of the last checkpoint, by name."""
    job = set_up(open_run(workdir).config, workdir)
    items = Checkpoints(workdir / "checkpoints", read_only=True).restore(job.items(job.abstract_state())).items
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(items)}


@pytest.mark.parametrize(("compared", "keys"), [
    (SEEDS, {"model__dropout": 0.1, "train__ema": 0.9, "optim__warmup": 2}),
    (SEEDS[:1], {"model__name": "lstm", "model__dropout": 0.1, "train__accumulate": 2, "eval__every": 3}),
], ids=["transformer", "lstm"])
def test_seeds_together_are_the_runs_that_they_are_alone(corpus, tmp_path, monkeypatch, compared, keys):
    one_device(monkeypatch)
    config = small(corpus, **keys)
    results = together.train_seeds(config, {seed: tmp_path / f"together{seed}" for seed in SEEDS}, jax.devices()[0])
    states = [state_of(tmp_path / f"together{seed}") for seed in SEEDS]
    for seed, result, state in zip(compared, results, states, strict=False):
        config.seed = seed
        alone = train(config, tmp_path / f"alone{seed}")
        here, there = (read_lines(tmp_path / f"{kind}{seed}" / "metrics.jsonl") for kind in ("together", "alone"))
        assert [(a["kind"], a["step"]) for a in here] == [(b["kind"], b["step"]) for b in there]
        for a, b in zip(here, there, strict=True):
            assert b.keys() - a.keys() == set() and (a["tokens"], a.get("documents")) == (b["tokens"], b.get("documents"))
            for name in b.keys() & EQUAL:
                assert a[name] == pytest.approx(b[name], rel=2e-5, abs=1e-7)
        assert (result["step"], result["tokens"], result["diverged"]) == (alone["step"], alone["tokens"], False)
        expected = state_of(tmp_path / f"alone{seed}")
        assert state.keys() == expected.keys() and len(expected) > 10
        for name, value in expected.items():
            np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=2e-5 * max(np.abs(value).max(), 1e-3), err_msg=name)
    assert any(np.abs(states[0][name] - states[1][name]).max() > 1e-3 for name in states[0]), "the seeds are to differ"


def test_what_comes_of_it_is_an_ordinary_run_that_is_done_once(corpus, tmp_path, monkeypatch):
    one_device(monkeypatch)
    config, folders = small(corpus, train__steps=2), {0: tmp_path / "0", 1: tmp_path / "1"}
    results = together.train_seeds(config, folders, jax.devices()[0])
    (last,) = [line for line in read_lines(tmp_path / "1" / "metrics.jsonl") if line["kind"] == "eval"]
    assert evaluate_run(tmp_path / "1")["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
    assert open_run(tmp_path / "1").config.seed == 1
    before = (tmp_path / "1" / "metrics.jsonl").read_bytes()
    # Of a group that was killed before a seed was saved, that seed alone is made again.
    for step in (tmp_path / "0" / "checkpoints").iterdir():
        step.rename(tmp_path / "0" / "lost")
    assert together.train_seeds(config, folders, jax.devices()[0])[1] == results[1]
    assert (tmp_path / "1" / "metrics.jsonl").read_bytes() == before
    assert [line["together"] for line in read_lines(tmp_path / "0" / "metrics.jsonl") if line["kind"] == "train"] == [1, 1]
    # The ordinary command finds it done, and goes on where more is asked for.
    config.seed = 1
    assert train(config, tmp_path / "1")["loss"] == results[1]["loss"]
    config.train.steps = 3
    assert train(config, tmp_path / "1")["step"] == 3
    config.optim.learning_rate = 0.5
    with pytest.raises(ConfigError, match="holds another run"):
        together.train_seeds(config, {1: tmp_path / "1"}, jax.devices()[0])


def test_a_seed_that_diverges_ends_alone(corpus, tmp_path, monkeypatch, capsys):
    one_device(monkeypatch)
    make = together.stacked_states

    def broken(jobs):
        return jax.tree.map(lambda leaf: leaf.at[1].set(np.nan) if leaf.dtype == np.float32 else leaf, make(jobs))

    monkeypatch.setattr(together, "stacked_states", broken)
    good, bad = together.train_seeds(small(corpus, train__steps=2), {0: tmp_path / "0", 1: tmp_path / "1"}, jax.devices()[0])
    assert (good["step"], good["diverged"]) == (2, False) and (bad["step"], bad["loss"], bad["diverged"]) == (0, None, True)
    assert "seed 1 ends at step 1" in capsys.readouterr().err
    assert not read_lines(tmp_path / "1" / "metrics.jsonl") and not open_run(tmp_path / "1").checkpoints.steps()


@pytest.mark.parametrize(("keys", "why"), [
    ({"model__name": "ngram"}, "model.name=ngram is counted"),
    ({"mesh__fsdp": 2}, "mesh.fsdp=2 is more than one device"),
    ({"model__attention_kernel": "splash"}, "set model.attention_kernel=xla"),
    ({"layout__offload": "optimizer"}, "layout.offload"),
])
def test_what_cannot_work_is_refused_by_name(corpus, tmp_path, keys, why):
    with pytest.raises(ConfigError, match=why):
        together.train_seeds(small(corpus, **keys), {0: tmp_path / "0"}, jax.devices()[0])
    with pytest.raises(ConfigError, match=why):
        together.faster(small(corpus, **keys), [0, 1], jax.devices()[0])
    assert not (tmp_path / "0").exists()


def test_several_devices_are_not_chosen_from(corpus, tmp_path):
    with pytest.raises(ConfigError, match="there are 8 devices"):
        together.train_seeds(small(corpus), {0: tmp_path / "0"})


def test_a_line_tells_the_speed_of_the_device_and_a_share_of_its_seconds(corpus, tmp_path, monkeypatch):
    one_device(monkeypatch)
    (tmp_path / "run").mkdir()
    member = together.Member(set_up(small(corpus), tmp_path / "run"), 4)
    for step in (1, 2):
        member.count(step, {"loss": 1.0, "targets": 50, "finite": True})
    member.log(2, 9.0, 2.0, 1e-3, {"step": 0.5})
    member.close()
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    # 4 seeds x 100 tokens in 2 seconds, of which half a second is its own.
    assert (line["tokens"], line["tokens_per_second"], line["mfu"], line["together"]) == (100, 200.0, pytest.approx(0.2), 4)
    assert line["tokens"] / line["time"]["step"] == line["tokens_per_second"]


def test_both_ways_are_timed(corpus, monkeypatch):
    one_device(monkeypatch)
    better, at_once, in_turn = together.faster(small(corpus), [0, 1], jax.devices()[0], steps=1, rounds=1)
    assert better == (at_once < in_turn) and at_once > 0 and in_turn > 0
