"""Budgets as they are written, and what arms must share."""

import pytest

from lm import config as configs
from lm.compare import budgets
from lm.errors import ConfigError


@pytest.mark.parametrize(("text", "kind", "amount"), [
    ("flops:1e13", "flops", 1e13), ("parameters:5_000_000", "parameters", 5e6), ("parameters.active:300000", "parameters.active", 3e5),
    ("seconds:90", "seconds", 90.0), ("memory:1.5e9", "memory", 1.5e9)])
def test_a_budget_is_a_kind_and_an_amount(text, kind, amount):
    budget = budgets.parse(text)
    assert (budget.kind, budget.amount) == (kind, amount)
    assert budgets.parse(str(budget)) == budget
    assert budget.to_json() == {"kind": kind, "amount": amount}
    assert budget.error(1.02 * amount) == pytest.approx(0.02) and budget.error(0.5 * amount) == pytest.approx(-0.5)


@pytest.mark.parametrize("text", ["flops", "1e13", "flop:1e13", "parameters.:3", ":4", ""])
def test_a_kind_that_there_is_not_is_answered_with_those_that_there_are(text):
    with pytest.raises(ConfigError, match=r"KIND:AMOUNT .* parameters, parameters.nonembedding, parameters.active, flops, tokens, seconds"):
        budgets.parse(text)


@pytest.mark.parametrize("amount", ["", "many", "-1", "0", "nan", "inf", "1e13 flops"])
def test_an_amount_is_a_number_above_zero(amount):
    with pytest.raises(ConfigError, match="is not an amount of training FLOPs: use a number above 0"):
        budgets.parse(f"flops:{amount}")


def altered(**overrides):
    """The default config with some keys of the data changed."""
    return configs.override(configs.default(), {f"data.{key}": value for key, value in overrides.items()})


@pytest.mark.parametrize(("key", "value"), [("context", "128"), ("global_batch", "8"), ("source", "text:x"), ("validation_fraction", "0.1"),
                                            ("documents", "line")])
def test_arms_share_what_their_batches_are_made_of(key, value):
    with pytest.raises(ConfigError, match=rf"a has data\.{key}=.* and b data\.{key}=.*the same batches"):
        budgets.check_same_data({"a": altered(), "c": altered(), "b": altered(**{key: value})})


@pytest.mark.parametrize(("key", "value"), [("split", "train"), ("max_tokens", "5000"), ("context", "512"), ("stride", "16")])
def test_arms_are_scored_on_the_same_text_in_the_same_way(key, value):
    other = configs.override(configs.default(), {f"eval.{key}": value})
    with pytest.raises(ConfigError, match=rf"a has eval\.{key}=.* and b eval\.{key}={value}: .*the same text in the same way"):
        budgets.check_same_data({"a": configs.default(), "b": other})


def test_how_often_and_in_which_batches_arms_are_evaluated_is_their_own():
    other = configs.override(configs.default(), {"eval.every": "7", "eval.batch": "3"})
    assert budgets.check_same_data({"a": configs.default(), "b": other}) == []


def test_a_tokenizer_may_be_what_is_compared_and_where_text_is_cached_is_nobodys_business():
    assert budgets.check_same_data({"a": altered(), "b": altered(tokenizer="bytes", cache_dir="x", prefetch="3", workers="1")}) == \
        ["data.tokenizer"]
    assert budgets.check_same_data({"a": altered(), "b": altered()}) == []
