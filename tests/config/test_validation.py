"""Validation: types, ranges, choices and every rule about keys together; a message names the key."""

import re

import pytest

from lm import config
from lm.config.schema import SCHEMA
from lm.config.validate import check_value
from lm.errors import ConfigError


def changed(**values):
    """The default config with changed keys; a__b stands for a.b."""
    made = config.default()
    for name, value in values.items():
        section, _, leaf = name.partition("__")
        (made[section] if leaf else made)[leaf or section] = value
    return config.validate(made)


def test_a_whole_number_becomes_a_float_where_one_is_meant():
    value = changed(optim__learning_rate=1).optim.learning_rate
    assert value == 1.0 and type(value) is float and type(check_value("optim.learning_rate", 1)) is float
    assert changed(data__source=("a", "b"), data__weights=(1, 2)).data.weights == (1.0, 2.0)


@pytest.mark.parametrize(("key", "value", "words"), [
    ("data.context", 2.0, "whole number"), ("data.context", True, "whole number"), ("data.context", "2", "whole number"),
    ("model.tie_embeddings", 1, "true/false"), ("model.tie_embeddings", "true", "true/false"),
    ("optim.learning_rate", True, "decimal number"), ("optim.learning_rate", "1e-3", "decimal number"),
    ("model.name", 3, "string"), ("data.weights", ("x",), "decimal number"), ("data.source", (3,), "string"), ("data.source", 3, "list"),
    ("data.context", None, "whole number"), ("train.steps", True, "duration"), ("train.steps", 1.5, "duration"),
])
def test_wrong_type_names_key_value_and_what_is_meant(key, value, words):
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}.*{words}"):
        check_value(key, value)


@pytest.mark.parametrize("name", [name for name, key in SCHEMA.items() if (key.minimum, key.maximum, key.above) != (None, None, None)])
def test_every_bound_holds_at_itself_and_not_beyond(name):
    key = SCHEMA[name]
    kind = type(key.default)
    step = kind(1)
    for bound, beyond, allowed in ((key.minimum, -step, True), (key.maximum, step, True), (key.above, -step, False)):
        if bound is None:
            continue
        if allowed:
            assert check_value(name, kind(bound)) == bound
        else:
            with pytest.raises(ConfigError, match=f"{name}=.*above"):
                check_value(name, kind(bound))
        with pytest.raises(ConfigError, match=f"{name}=.* must be "):
            check_value(name, kind(bound) + beyond)


@pytest.mark.parametrize("name", [name for name, key in SCHEMA.items() if key.choices])
def test_every_choice_is_taken_and_another_is_refused_with_the_list(name):
    choices = SCHEMA[name].choices
    assert [check_value(name, choice) for choice in choices] == list(choices)
    other = "neither" if isinstance(choices[0], str) else 99
    with pytest.raises(ConfigError, match=rf"{name}=.* is not allowed: use {re.escape(', '.join(map(str, choices)))}"):
        check_value(name, other)


def test_float16_is_refused_with_its_reason():
    with pytest.raises(ConfigError, match=r"model.dtype='float16'.*bfloat16.*overflows without loss scaling"):
        check_value("model.dtype", "float16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [name for name, key in SCHEMA.items() if type(key.default) is float] + ["data.weights"])
def test_floats_are_finite(name, value):
    with pytest.raises(ConfigError, match=name):
        check_value(name, (value,) if name == "data.weights" else value)


LONGROPE = {"model__rope_scaling": "longrope", "model__head_width": 2, "model__rope_short_factors": (1.0,)}
WRONG_TOGETHER = {
    "data.source is empty": {"data__source": ()},
    "data.source is empty: ": {"data__source": ("sotu", "")},
    "data.weights has 1 entries for 2": {"data__source": ("a", "b"), "data__weights": (1.0,)},
    "data.weights must all be above 0": {"data__source": ("a", "b"), "data__weights": (1.0, 0.0)},
    "data.global_batch=16 cannot be cut into train.accumulate=3": {"train__accumulate": 3},
    "train.loss_chunk=100 does not divide data.context=256": {"train__loss_chunk": 100},
    "eval.stride=257 is more than data.context=256": {"eval__stride": 257},
    "eval.pseudo_tokens=1000 is for objective.name=masked, and not for causal": {"eval__pseudo_tokens": 1000},
    "eval.stride=129 is more than eval.context=128": {"eval__stride": 129, "eval__context": 128},
    "train.loss_chunk=128 does not divide eval.context=500": {"train__loss_chunk": 128, "eval__context": 500},
    "eval.context=512 is more than the 256 tokens that the model can take":
        {"eval__context": 512, "model__positions": "learned"},
    "eval.context=512 is for objective.name=causal, infill, prefix, whose evaluation is a likelihood of rows of text, and not for masked":
        {"eval__context": 512, "model__name": "encoder", "objective__name": "masked"},
    "model.positions=relative is not for model.name=transformer: use rope, learned, sinusoidal, alibi, none":
        {"model__positions": "relative"},
    "model.positions=alibi is not for model.name=encoder: use learned, rope":
        {"model__positions": "alibi", "model__name": "encoder", "objective__name": "masked"},
    "model.positions=none is not for model.name=encoder_decoder: use rope, sinusoidal, relative":
        {"model__positions": "none", "model__name": "encoder_decoder", "objective__name": "translation"},
    "model.rope_share=0.5 is read by model.positions=rope alone, not by alibi": {"model__rope_share": 0.5, "model__positions": "alibi"},
    "model.mup_base_width is not read by model.name=nplm": {"model__name": "nplm", "model__mup_base_width": 64},
    "model.mup_base_width=64 has one rate for the embedding and another for the output matrix": {"model__mup_base_width": 64},
    "model.mup_base_width=64 knows the rates of optim.name=adamw, adam, lion, muon, not of sgd":
        {"model__mup_base_width": 64, "model__tie_embeddings": False, "optim__name": "sgd"},
    "model.embedding_width=32 stays while model.width grows from model.mup_base_width=64":
        {"model__mup_base_width": 64, "model__tie_embeddings": False, "model__name": "gru", "model__embedding_width": 32},
    "model.mup_base_width=64 sets how logits of attention are scaled":
        {"model__mup_base_width": 64, "model__tie_embeddings": False, "model__scale_attention": False},
    "eval.split=test needs data.test_fraction": {"eval__split": "test"},
    "mesh.replica=0": {"mesh__replica": 0},
    "mesh.fsdp=-2": {"mesh__fsdp": -2},
    "mesh.replica and mesh.fsdp are both -1": {"mesh__fsdp": -1},
    "model.heads is not read by model.name=lstm": {"model__name": "lstm", "model__heads": 2},
    "model.residual is not read by model.name=transformer": {"model__residual": True},
    "model.remat=dots is for transformers; model.name=gru": {"model__name": "gru", "model__remat": "dots"},
    "model.width=250 is not a multiple of model.heads=4": {"model__width": 250},
    "model.rope_share=0.5 is read by model.positions=rope alone, not by learned": {"model__rope_share": 0.5, "model__positions": "learned"},
    "model.rope_scaling=linear is read by model.positions=rope alone": {"model__rope_scaling": "linear", "model__positions": "learned"},
    "model.rope_factor=2.0 is read by model.rope_scaling=linear, dynamic, yarn, llama3, longrope alone, not by none":
        {"model__rope_factor": 2.0},
    "model.rope_beta_fast=16.0 is read by model.rope_scaling=yarn alone, not by llama3":
        {"model__rope_beta_fast": 16.0, "model__rope_scaling": "llama3"},
    "model.rope_share=0.11 of a head width of 64 is 7 units, but pairs are turned": {"model__rope_share": 0.11},
    "model.rope_share=0.01 of a head width of 64 is 0 units": {"model__rope_share": 0.01},
    "model.rope_scaling=dynamic stretches all wavelengths but the first": {"model__rope_scaling": "dynamic", "model__head_width": 2},
    "model.rope_scaling=longrope needs an original context of at least 2 tokens, not 1":
        {"model__rope_scaling": "longrope", "model__rope_original_context": 1},
    "model.rope_high_frequency=1.0 must be above model.rope_low_frequency=1.0":
        {"model__rope_scaling": "llama3", "model__rope_high_frequency": 1.0},
    "model.rope_beta_fast=0.5 must be at least model.rope_beta_slow=1.0": {"model__rope_scaling": "yarn", "model__rope_beta_fast": 0.5},
    "model.rope_short_factors has 0 entries for 32 wavelengths": {"model__rope_scaling": "longrope"},
    "model.rope_long_factors has 2 entries for 1 wavelengths":
        LONGROPE | {"model__rope_long_factors": (1.0, 2.0)},
    "model.rope_long_factors must all be above 0":
        LONGROPE | {"model__rope_long_factors": (0.0,)},
    "model.parallel_residual reads a normalised input, which model.norm_position=post has not":
        {"model__parallel_residual": True, "model__norm_position": "post"},
    "model.qk_norm_over=all is read with model.qk_norm=true alone": {"model__qk_norm_over": "all"},
    "model.window_from=1 is read with model.attention_window alone": {"model__window_from": 1},
    "model.window_from=4 leaves model.attention_window no layer of model.layers=4": {"model__window_from": 4, "model__attention_window": 8},
    "model.heads=4 is not a multiple of model.kv_heads=3": {"model__kv_heads": 3},
    "the head width is 33": {"model__head_width": 33},
    "model.positions=sinusoidal needs an even model.width, not 255": {"model__positions": "sinusoidal", "model__width": 255,
                                                                      "model__heads": 5},
}


@pytest.mark.parametrize("message", WRONG_TOGETHER)
def test_keys_that_are_wrong_together_are_named(message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        changed(**WRONG_TOGETHER[message])


@pytest.mark.parametrize("values", [
    {"train__accumulate": 4}, {"train__loss_chunk": 64}, {"eval__stride": 256}, {"eval__split": "test", "data__test_fraction": 0.1},
    {"eval__split": "test", "data__source": ("store:x",)}, {"mesh__replica": 1, "mesh__fsdp": -1}, {"model__kv_heads": 2},
    {"model__width": 250, "model__head_width": 64}, {"model__head_width": 33, "model__positions": "learned"},
    {"model__name": "gru", "model__remat": "full"}, {"data__source": ("a", "b"), "data__weights": (1.0, 2.0)},
    {"model__rope_share": 0.1}, {"model__rope_scaling": "dynamic", "model__rope_factor": 2.0, "model__head_width": 4},
    {"model__rope_scaling": "yarn", "model__rope_beta_fast": 1.0}, {"model__window_from": 3, "model__attention_window": 1},
    {"model__parallel_residual": True}, {"model__qk_norm": True, "model__qk_norm_over": "all"},
    LONGROPE | {"model__rope_long_factors": (3.0,)},
])
def test_neighbours_of_wrong_combinations_are_right(values):
    changed(**values)


@pytest.mark.parametrize("name", [name for name, key in SCHEMA.items() if key.families])
def test_keys_of_another_family_must_stay_at_their_default(name):
    key = SCHEMA[name]
    family = next(family for family in ("transformer", "lstm", "encoder", "ngram") if family not in key.families)
    if key.choices:
        other = next(choice for choice in key.choices if choice != key.default)
    elif isinstance(key.default, float):
        other = key.default / 2 or 0.5
    else:
        by_kind = {"strings": ("query",), "floats": (2.0,)}
        other = (not key.default) if isinstance(key.default, bool) else by_kind[key.kind] if key.kind in by_kind else key.default + 2
    with pytest.raises(ConfigError, match=f"{name} is not read by model.name={family}"):
        changed(model__name=family, **{name.replace(".", "__"): other})
