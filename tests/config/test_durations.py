"""Durations: the unit decides the number of steps, by closed forms; what is no duration is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import config
from lm.config import Facts
from lm.config.durations import parse, to_steps
from lm.errors import ConfigError

FACTS = Facts(tokens_per_step=1000, steps_per_epoch=12.5, flops_per_step=4e9)


@pytest.mark.parametrize(("text", "steps"), [
    (0, 0), (7, 7), ("7", 7), ("7 steps", 7), ("1 step", 1), ("1_000", 1000), ("1e3", 1000), ("1.5e3 steps", 1500),
    ("1e6 tokens", 1000), ("999 tokens", 1), ("1001 tokens", 2), ("0 tokens", 0), ("2 epochs", 25), ("1 epoch", 13), ("0.5EPOCHS", 7),
    ("4e9 flops", 1), ("1e12 flops", 250), ("4.1e9 FLOPs", 2), ("5%", 10), (" 5 % ", 10), ("0.6%", 2), ("100%", 200), ("7%", 14),
])
def test_steps_of_a_duration(text, steps):
    assert to_steps("optim.warmup", text, FACTS, total_steps=200) == steps


@pytest.mark.parametrize("value", [
    "", " ", "soon", "-1", -1, "-5%", "5 days", "1.5 steps", "1.5", "1..5e3 tokens", "e3", "5 %%", "tokens", "1e400", "1e400 tokens",
    "nan tokens", "inf tokens", None, True, 1.5, "1 2",
])
def test_what_is_no_duration_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"optim.warmup"):
        parse("optim.warmup", value)


def test_the_length_of_the_run_is_no_share_of_itself():
    with pytest.raises(ConfigError, match=r"train.steps cannot be a percentage"):
        parse("train.steps", "50%")


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_tokens_are_rounded_up_to_whole_steps(tokens, per_step):
    steps = to_steps("train.steps", f"{tokens} tokens", Facts(per_step, 1.0, 1.0))
    assert steps == -(-tokens // per_step) or math.isclose(steps * per_step, tokens, rel_tol=1e-5)


def test_resolve_turns_every_duration_into_steps_and_nothing_else():
    given = config.override(config.default(), {
        "train.steps": "2e5 tokens", "optim.warmup": "5%", "checkpoint.every": "1 epoch", "eval.every": "4e10 flops", "optim.decay": "3"})
    resolved = config.resolve(given, FACTS)
    assert (resolved.train.steps, resolved.optim.warmup, resolved.checkpoint.every) == (200, 10, 13)
    assert (resolved.eval.every, resolved.optim.decay, resolved.checkpoint.keep_every) == (10, 3, 0)
    before, after = config.flatten(given), config.flatten(resolved)
    durations = {name for name, key in config.SCHEMA.items() if key.kind == "duration"}
    assert {name for name in before if before[name] != after[name]} <= durations
    assert all(type(after[name]) is int for name in durations)
    assert config.resolve(resolved, FACTS) == resolved
    assert given.train.steps == "2e5 tokens"


@pytest.mark.parametrize(("overrides", "message"), [
    ({"train.steps": "0"}, "train.steps=0 is no step"),
    ({"train.steps": "0 tokens"}, "no step"),
    ({"train.steps": "10", "optim.warmup": "11"}, "optim.warmup is 11 steps, more than the 10 steps of train.steps"),
    ({"train.steps": "10", "optim.warmup": "3", "optim.decay": "80%", "optim.schedule": "wsd"}, "optim.warmup . optim.decay are 11"),
])
def test_durations_that_do_not_fit_into_the_run_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config.resolve(config.override(config.default(), overrides), FACTS)
