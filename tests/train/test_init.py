"""Runs that start from the weights of another: train.init and configs/continued.py."""

import jax
import numpy as np
import pytest

from lm import config as configs
from lm.errors import CheckpointError, ConfigError
from lm.metrics.writers import read_lines
from lm.run import open_run
from lm.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty short documents, one a line."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(f"the union of state {i} and state {i + 1} is strong\n" for i in range(40)))
    return path


def config_of(corpus, **overrides):
    """A tiny config; overrides with __ for the dot."""
    base = {"model.width": "16", "model.layers": "1", "model.heads": "2", "model.scan_layers": "false", "data.source": f"text:{corpus}",
            "data.documents": "line", "data.tokenizer": "bytes", "data.context": "16", "data.global_batch": "8", "train.steps": "3",
            "train.log_every": "1", "data.validation_fraction": "0.2", "metrics.tensorboard": "false", "metrics.peak_flops": "1e9",
            "checkpoint.every": "0", "eval.every": "0", "data.workers": "1"}
    base |= {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return configs.validate(configs.override(configs.default(), base))


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory):
    """A trained run."""
    workdir = tmp_path_factory.mktemp("first")
    train(config_of(corpus), workdir)
    return workdir


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_starts_from_the_weights_of_another(corpus, first, tmp_path, ema):
    train(config_of(corpus, train__init=first, train__steps=1, optim__learning_rate=1e-30, optim__weight_decay=0, seed=7,
                    train__ema=ema), tmp_path)
    before, after = (open_run(workdir).parameters()[0] for workdir in (first, tmp_path))
    # A running mean of two equal numbers is off by a rounding.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6 if ema else 0), before, after)


def test_without_it_weights_are_drawn(corpus, first, tmp_path):
    train(config_of(corpus, train__steps=1, optim__learning_rate=1e-30, seed=7), tmp_path)
    before, after = (jax.tree.leaves(open_run(workdir).parameters()[0]) for workdir in (first, tmp_path))
    assert any(not np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_a_killed_continuation_resumes_from_its_own_checkpoint(corpus, first, tmp_path):
    going = {"train__init": first, "optim__schedule": "constant"}
    train(config_of(corpus, **going, train__steps=2), tmp_path / "whole")
    train(config_of(corpus, **going, train__steps=1), tmp_path / "parts")
    train(config_of(corpus, **going, train__steps=2), tmp_path / "parts")
    whole, parts = ([line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl") if line["kind"] == "train"]
                    for name in ("whole", "parts"))
    assert whole == parts
    trees = (open_run(tmp_path / name).parameters()[0] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_the_config_that_goes_on_is_the_runs_own(first):
    config = configs.load(f"configs/continued.py:{first}")
    assert config.train.init == str(first) and config.data.tokenizer == f"{first}/tokenizer" and config.model.width == 16
    with pytest.raises(ConfigError, match=r"name the work directory to go on from"):
        configs.load("configs/continued.py")


def test_what_does_not_fit_is_said(corpus, first, tmp_path):
    with pytest.raises(ConfigError, match=r"has another tokenizer than this run: set data\.tokenizer="):
        train(config_of(corpus, train__init=first, data__tokenizer="bpe", data__vocab_size=300), tmp_path / "a")
    with pytest.raises(CheckpointError, match="16"):
        train(config_of(corpus, train__init=first, model__width=32), tmp_path / "b")
    with pytest.raises(ConfigError, match="is not the work directory of a run"):
        train(config_of(corpus, train__init=tmp_path / "nothing"), tmp_path / "c")
    with pytest.raises(ConfigError, match=r"train\.init is not read by model\.name=ngram"):
        config_of(corpus, train__init=first, model__name="ngram", model__width=256, model__layers=4, model__heads=4,
                  model__scan_layers="true")
