"""What is found wrong with a comparison before anything of it is trained: tokenizers that lose text, prompts that are too long."""

import dataclasses

import pytest

from lm.compare import ask as asks
from lm.compare import sweep
from lm.compare.ask import Ask
from lm.errors import ConfigError
from tests.compare.small_sweeps import write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    """A WordPiece vocabulary, which cannot give back white space."""
    letters = [chr(ord("a") + i) for i in range(26)]
    file = tmp_path_factory.mktemp("lossy") / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]))
    return file


@pytest.mark.parametrize("arms", ["{0}:gru,{0}:rnn[data.tokenizer={1}]", "{0}:rnn[data.tokenizer={1}],{0}:gru"])
def test_a_tokenizer_that_loses_text_is_not_compared_with_another(config, lossy, tmp_path, arms):
    asks.settle(tmp_path, Ask(asks.entries(arms.format(config, lossy)), tokens=12_800))
    with pytest.raises(ConfigError, match=r"tiny-rnn\S* has data\.tokenizer=\S*vocab\.txt, which cannot give back .* no bits per byte"):
        sweep.plan(tmp_path)
    assert not list(tmp_path.glob("arms/*/sized.json"))


def test_a_tokenizer_that_loses_text_may_be_that_of_all(config, lossy, tmp_path):
    asks.settle(tmp_path, Ask(asks.entries(f"{config}:gru,{config}:rnn", {"data.tokenizer": str(lossy)})))
    sweep.plan(tmp_path)
    assert len(list(tmp_path.glob("arms/*/sized.json"))) == 2


def test_prompts_that_an_arm_cannot_read_are_refused_before_anything_is_trained(config, tmp_path):
    arms = asks.entries(f"{config}:gru,{config}:transformer[model.heads=2]")
    ask = Ask(arms, seeds=(0,), tune_keys=None, prompts=("of", "we the people in"))  # 16 bytes, and the token that begins a document
    asks.settle(tmp_path, ask)
    with pytest.raises(ConfigError, match=r"--prompts='we the people in' has 17 tokens, and tiny-transformer reads 16 .*shorten it"):
        sweep.plan(tmp_path)
    assert not list(tmp_path.glob("arms/*/sized.json"))
    fits = dataclasses.replace(ask, prompts=("of", "we the people i"))
    asks.settle(tmp_path, fits)
    sweep.plan(tmp_path)
    with pytest.raises(ConfigError, match=r"--prompts='we the people in' has 17 tokens"):
        sweep.compare(ask, tmp_path)
    assert asks.read(tmp_path) == fits
    gru = Ask(arms[:1], seeds=(0,), tune_keys=None, prompts=ask.prompts)
    asks.settle(tmp_path / "gru", gru)
    sweep.plan(tmp_path / "gru")
