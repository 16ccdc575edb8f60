"""Arms re-sized to a budget: counted again by parameters that are really made, by another way to the FLOPs, and by hand."""

import functools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import config as configs
from lm import objectives
from lm.compare.account import Meter, meter_of
from lm.compare.budgets import TOLERANCE, Budget
from lm.compare.measured import step_memory, step_seconds
from lm.compare.rules import RULES, Shape
from lm.compare.sizing import solve
from lm.compare.solver import meet
from lm.config.model_keys import COUNTED, FAMILIES
from lm.data.prepare import prepare
from lm.errors import ConfigError, DataError
from lm.plan.absent import absent_data, job_of

# Small models of every family that has sizes, with 259 ids.
COMMON = {"data.tokenizer": "bytes", "data.context": "32", "data.global_batch": "8", "train.steps": "20"}
EM = {"optim.name": "em", "optim.learning_rate": "1.0", "optim.schedule": "constant", "optim.clip": "0.0"}
SMALL = {
    "transformer": {"model.layers": "2", "model.width": "64", "model.heads": "4", "model.tie_embeddings": "false"},
    "llama": {"model.width": "64", "model.kv_heads": "2", "model.activation": "swiglu", "model.layers": "3"},
    "learned": {"model.width": "48", "model.layers": "2", "model.positions": "learned", "model.bias": "true", "model.norm": "layernorm",
                "model.qk_norm": "true"},
    "rnn": {"model.name": "rnn", "model.width": "96", "model.layers": "2"},
    "lstm": {"model.name": "lstm", "model.width": "64", "model.layers": "2", "model.embedding_width": "32",
             "model.tie_embeddings": "false"},
    "gru": {"model.name": "gru", "model.width": "64", "model.layers": "2", "model.layer_norm": "true"},
    "nplm": {"model.name": "nplm", "model.width": "48", "model.embedding_width": "16"},
    "hmm": {"model.name": "hmm", "model.classes": "150", **EM},
    "encoder": {"model.name": "encoder", "model.layers": "2", "model.width": "64", "objective.name": "masked"},
    "electra": {"model.name": "electra", "model.layers": "2", "model.width": "64", "objective.name": "replaced"},
    "encoder_decoder": {"model.name": "encoder_decoder", "model.layers": "2", "model.width": "48", "model.positions": "relative",
                        "objective.name": "span", "objective.sentinels": "8"},
    "translator": {"model.name": "encoder_decoder", "model.layers": "2", "model.encoder_layers": "4", "model.width": "48",
                   "objective.name": "translation"},
    "seq2seq": {"model.name": "seq2seq", "model.layers": "1", "model.width": "48", "objective.name": "translation"},
    "vae": {"model.name": "vae", "model.layers": "1", "model.width": "48", "objective.name": "vae"},
}
LANGUAGE = ("transformer", "llama", "learned", "rnn", "lstm", "gru", "nplm", "hmm")


def config_of(name, **overrides):
    """(spec, overrides, config) of one of SMALL; further `overrides` have __ for the dot."""
    given = COMMON | SMALL[name] | {key.replace("__", "."): value for key, value in overrides.items()}
    return "small.py", given, configs.validate(configs.override(configs.default(), given))


def sized(*names, budget=None, **options):
    """`solve` of some of SMALL, whose text is not read."""
    asked = {name: config_of(name) for name in names} if names else options.pop("asked")
    return solve(asked, options.pop("references", {}), budget, prepare=lambda config: None, **options)


def again(arm):
    """The config of a sized arm, as its run loads it."""
    return configs.validate(configs.override(configs.default(), arm.overrides | {"train.steps": str(arm.steps)}))


def job(config):
    """A run of it, set up by planning's way."""
    return job_of(config, jax.devices()[:1])


@functools.cache
def own(name):
    """The account of one of SMALL as it is written."""
    return meter_of(config_of(name)[2]).account()


def model_of(config):
    """(objective, model) of a config, by their own doors."""
    text = absent_data(config)
    objective = objectives.make(config, text.tokenizer, text.source_tokenizer)
    return objective, objective.model(config)


def made(config):
    """Parameters that are really drawn."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.jit(model_of(config)[1].init)(jax.random.key(0))))


def test_every_family_that_is_not_counted_has_a_rule():
    assert set(RULES) == set(FAMILIES) - set(COUNTED)


@pytest.mark.parametrize("name", list(SMALL))
def test_parameters_that_are_really_made_meet_the_budget(name):
    budget = Budget("parameters", round(2.7 * own(name).parameters))
    (arm,) = sized(name, budget=budget)
    count = made(again(arm))
    assert abs(count / budget.amount - 1) <= TOLERANCE
    assert count == arm.parameters == arm.budget["met"]
    assert arm.steps == 20 and arm.budget["error"] == pytest.approx(count / budget.amount - 1)


@pytest.mark.parametrize("name", list(SMALL))
@given(factor=st.floats(0.5, 30.0))
@settings(max_examples=8)
def test_training_takes_the_flops_of_the_budget(name, factor):
    account, steps = own(name), 20
    budget = Budget("flops", factor * account.train_flops_per_token * account.tokens_per_step * steps)
    found, near = meet(meter_of(config_of(name)[2]), budget._replace(amount=factor * account.train_flops_per_token))
    values = {f"model.{leaf}": str(value) for leaf, value in found.sizes.items()}
    objective, model = model_of(configs.validate(configs.override(config_of(name)[2], values)))
    total = objective.train_flops(model) * account.tokens_per_step * steps
    assert near and abs(total / budget.amount - 1) <= TOLERANCE


@pytest.mark.parametrize("kind", ["parameters", "parameters.nonembedding", "parameters.active", "inference"])
@pytest.mark.parametrize("name", ["llama", "lstm", "nplm"])
def test_more_of_a_budget_is_a_larger_model_and_every_one_meets_it(name, kind):
    field = {"parameters": "parameters", "parameters.nonembedding": "nonembedding", "parameters.active": "active",
             "inference": "inference_flops_per_token"}[kind]
    start, before = getattr(own(name), field), 0.0
    for factor in (0.6, 1.3, 6.0):
        (arm,) = sized(name, budget=Budget(kind, factor * start))
        met = getattr(arm, field)
        assert met == arm.budget["met"] > before and abs(met / (factor * start) - 1) <= TOLERANCE
        before = met


@pytest.mark.parametrize("name", list(SMALL))
def test_what_meets_its_budget_stays_as_it_is_written(name):
    (arm,) = sized(name, budget=Budget("parameters", own(name).parameters))
    assert arm.chosen == {} and arm.overrides == config_of(name)[1] and arm.budget["error"] == 0 and "as written" in arm.text


def test_all_arms_have_equal_tokens_and_flops():
    arms = sized(*LANGUAGE, budget=Budget("flops", 20 * 256 * own("transformer").train_flops_per_token))
    assert arms[0].chosen == {} and [arm.name for arm in arms] == list(LANGUAGE)
    assert {(arm.steps, arm.tokens) for arm in arms} == {(20, 5120)}
    assert all(abs(arm.flops / arms[0].flops - 1) <= TOLERANCE for arm in arms)
    for arm in arms:
        json.dumps(arm.to_json())
        written = config_of(arm.name)[2]
        assert {key: before for key, (before, _) in arm.chosen.items()} == {key: configs.flatten(written)[key] for key in arm.chosen}
        assert {key: arm.overrides[key] for key in arm.chosen} == {key: str(after) for key, (_, after) in arm.chosen.items()}


def test_the_first_config_says_how_many_steps_the_flops_are():
    per_step = 256 * own("lstm").train_flops_per_token
    arms = sized("lstm", "transformer", budget=Budget("flops", 300.4 * per_step))
    assert [arm.steps for arm in arms] == [300, 300] and arms[0].chosen == {} and arms[0].budget["met"] == pytest.approx(300 * per_step)
    with pytest.raises(ConfigError, match=r"is 3\.50 steps of lstm: ask for flops:"):
        sized("lstm", budget=Budget("flops", 3.5 * per_step))


def test_kept_sizes_give_each_its_own_length():
    amount = 400 * 256 * own("lstm").train_flops_per_token
    arms = sized("lstm", "hmm", budget=Budget("flops", amount), sizes="keep")
    assert arms[0].steps == 400 and arms[1].steps == round(amount / (256 * own("hmm").train_flops_per_token)) != 400
    assert not any(arm.chosen for arm in arms) and "not the 102,400 of lstm" in arms[1].text


def test_a_budget_of_tokens_leaves_sizes_alone_and_counted_models_may_have_it():
    ngram = "ngram.py", {}, configs.override(configs.default(), COMMON | {"model.name": "ngram"})
    arms = sized(asked={"lstm": config_of("lstm"), "ngram": ngram}, budget=Budget("tokens", 25_600))
    assert [(arm.steps, arm.tokens, arm.chosen) for arm in arms] == [(100, 25_600, {})] * 2
    assert arms[1].parameters is None and arms[1].flops == 0
    for kind in ("flops", "parameters", "seconds"):
        with pytest.raises(ConfigError, match=rf"ngram \(model.name=ngram\) cannot meet a budget of {kind}: .*--references"):
            sized(asked={"ngram": ngram}, budget=Budget(kind, 1e9), sizes="solve")
    shown = sized("lstm", budget=Budget("parameters", 50_000), references={"ngram": ngram})[1]
    assert shown.reference and shown.budget is None and shown.tokens == 20 * 256


def test_seconds_follow_from_each_arms_own_step():
    asked = []

    def seconds(config, prepared):
        asked.append(config.model.name)
        return {"lstm": 0.5, "gru": 0.125}[config.model.name]

    arms = sized("lstm", "gru", budget=Budget("seconds", 90), seconds=seconds)
    assert asked == ["lstm", "gru"] and [(arm.steps, arm.step_seconds) for arm in arms] == [(180, 0.5), (720, 0.125)]
    assert [arm.budget["met"] for arm in arms] == [90, 90] and not any(arm.chosen for arm in arms)


def test_few_steps_of_seconds_are_refused_with_a_number_that_is_enough():
    def seconds(config, prepared):
        return {"lstm": 0.5, "gru": 0.125}[config.model.name]

    with pytest.raises(ConfigError, match=r"--budget=seconds:4 is 8 steps of lstm, .* ask for seconds:6 or more"):
        sized("gru", "lstm", budget=Budget("seconds", 4), seconds=seconds)
    assert [arm.steps for arm in sized("gru", "lstm", budget=Budget("seconds", 6), seconds=seconds)] == [48, 12]


@pytest.mark.parametrize("name", ["transformer", "lstm", "nplm"])
@pytest.mark.parametrize("factor", [0.7, 3.0, 9.0])
def test_memory_is_met_in_few_compilations(name, factor):
    asked = []

    def memory(config, prepared):
        """State, and what a batch makes, with the jumps that a compiler has."""
        asked.append(config)
        count = meter_of(config).account().parameters
        return int(16 * count + 3e5 + 5e4 * config.model.layers + 900 * count**0.5) // 512 * 512

    start = memory(config_of(name)[2], None)
    asked.clear()
    (arm,) = sized(name, budget=Budget("memory", factor * start), memory=memory)
    assert len(asked) <= 6 and arm.memory_bytes == memory(again(arm), None) == arm.budget["met"]
    assert abs(arm.memory_bytes / (factor * start) - 1) <= TOLERANCE


def test_memory_and_seconds_are_those_of_the_compiled_step():
    _, _, config = config_of("lstm", mesh__replica="1")
    text = absent_data(config)
    run = job_of(config, jax.devices()[:1])
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.abstract_state()))
    bare = configs.override(config, {"mesh.replica": "-1"})
    first = step_memory(bare, text)
    assert first == step_memory(bare, text) > state
    assert 0 < step_seconds(bare, text) < 10


def test_counts_by_hand():
    # A decoder: tables of 259 ids twice, four matrices of attention, two of the feed-forward layer, norms.
    account, d, layers = own("transformer"), 64, 2
    matrices, norms, table = layers * 12 * d * d, (2 * layers + 1) * d, 259 * d
    assert account.nonembedding == matrices + norms and account.parameters == matrices + norms + 2 * table
    assert account.active == matrices + norms + table + d
    seen = (32 + 1) / 2
    assert account.inference_flops_per_token == 2 * (matrices + table) + layers * 4 * d * seen
    assert account.train_flops_per_token == 3 * account.inference_flops_per_token
    tied, width = own("learned"), 48  # its one table is read as a whole by the output, that of positions is not
    assert tied.parameters - tied.active == (32 - 1) * width and tied.parameters - tied.nonembedding == (259 + 32) * width
    hmm, k = own("hmm"), 150  # rows of `start` are looked up, the output reads all that classes emit
    assert (hmm.parameters, hmm.nonembedding, hmm.active) == (k * k + 2 * k * 259, k * k, k * k + k * 259 + k)
    assert (hmm.train_flops_per_token, hmm.inference_flops_per_token) == (6 * k * k, 2 * k * k + 2 * k * 259)
    lstm, w, e = own("lstm"), 64, 32
    cells = 4 * w * (e + w) + 4 * w * (w + w) + 2 * 4 * w
    assert lstm.nonembedding == cells and lstm.active == cells + 259 * w + e


@given(width=st.integers(8, 600), layers=st.integers(1, 12))
@settings(max_examples=60)
def test_heads_and_ratios_are_kept(width, layers):
    _, _, config = config_of("llama")
    sizes = Shape(config).at(width, layers)
    if sizes is None:
        return
    head_width, extra = divmod(width, sizes["heads"])
    assert extra == 0 and head_width % 2 == 0 and sizes["heads"] == 2 * sizes["kv_heads"] and sizes["layers"] == layers
    assert head_width <= 1.5 * 16 and head_width >= 16 / 1.5
    new = configs.override(config, {f"model.{leaf}": str(value) for leaf, value in sizes.items()})
    model_of(configs.validate(new))


def test_depth_stays_for_small_changes_and_follows_the_width_beyond():
    per_layer = own("llama").nonembedding
    (small,) = sized("llama", budget=Budget("parameters.nonembedding", 1.8 * per_layer))
    assert "model.layers" not in small.chosen
    (large,) = sized("llama", budget=Budget("parameters.nonembedding", 40 * per_layer))
    layers, width = large.chosen["model.layers"][1], large.chosen["model.width"][1]
    assert 0.85 < (width / 64) / (layers / 3) < 1.15
    (recurrent,) = sized("lstm", budget=Budget("parameters.nonembedding", 40 * own("lstm").nonembedding))
    assert "model.layers" not in recurrent.chosen
    (translator,) = sized("translator", budget=Budget("parameters.nonembedding", 40 * own("translator").nonembedding))
    assert translator.chosen["model.encoder_layers"][1] == 2 * translator.chosen["model.layers"][1]


def test_widths_are_in_steps_that_devices_like_where_the_budget_allows():
    (arm,) = sized("transformer", budget=Budget("parameters", 20_000_000))
    assert arm.chosen["model.width"][1] % 64 == 0 and arm.chosen["model.ff_width"][1] % 32 == 0


def test_where_no_size_is_near_enough_the_nearest_is_named():
    small = config_of("hmm", model__classes="9")
    counts = {k: k * k + 2 * k * 259 for k in range(1, 40)}
    amount = (counts[9] + counts[10]) / 2
    nearest = min(counts.values(), key=lambda count: abs(count / amount - 1))
    with pytest.raises(ConfigError, match=rf"hmm .*has no model.classes with .* within 1%: the nearest has {nearest:,} .*:{nearest}$"):
        sized(asked={"hmm": small}, budget=Budget("parameters", amount))
    with pytest.raises(ConfigError, match=r"lower data\.vocab_size or write it with fewer layers"):
        sized("transformer", budget=Budget("parameters", 300))


@pytest.mark.parametrize(("options", "message"), [
    ({"budget": Budget("parameters", 1e5), "sizes": "keep"}, "--sizes=keep cannot meet a budget of parameters"),
    ({"budget": Budget("tokens", 1e5), "tokens": 1e5}, "are both lengths"),
    ({"budget": Budget("flops", 1e5), "tokens": 1e5, "sizes": "keep"}, "are both lengths"),
    ({"budget": Budget("tokens", 256e30)}, "that is 1e[+]30 steps of lstm, and a run has at most 2,147,483,647: ask for less"),
    ({"tokens": 0}, "--tokens=0"), ({"tokens": math.inf}, "--tokens=inf"), ({"sizes": "large"}, "use solve or keep"),
    ({"asked": {}}, "there is no config"),
    ({"asked": {"a": config_of("lstm"), "b": config_of("lstm", data__context="64")}}, "a has data.context=32 and b data.context=64"),
    ({"asked": {"encoder": config_of("encoder")}, "budget": Budget("inference", 1e6)}, "does not decode"),
])
def test_what_cannot_be_asked_is_refused_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        sized(**({"asked": {"lstm": config_of("lstm")}} | options))
    assert "\n" not in str(caught.value)


def test_without_a_budget_sizes_and_the_first_length_stand():
    arms = sized("lstm", "gru", tokens=2_560)
    assert [(arm.steps, arm.chosen, arm.budget) for arm in arms] == [(10, {}, None)] * 2
    epochs = {name: config_of(name, train__steps="1 epochs") for name in ("gru", "lstm")}
    text = absent_data(epochs["gru"][2])
    assert [arm.steps for arm in sized(asked=epochs)] == [text.sources[0]["train"].num_tokens // 256] * 2


def test_an_evaluation_without_text_is_said_before_anything_is_trained(tmp_path):
    (tmp_path / "a.txt").write_text("one text, which goes to one split, and that is not the one for validation " * 40)
    asked = config_of("lstm", data__source=f"text:{tmp_path}/a.txt", data__documents="file", data__cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"the validation split is empty: use data\.documents=line"):
        solve({"lstm": asked}, {}, Budget("tokens", 51_200))


@pytest.mark.parametrize(("family", "objective", "tables"), [("word2vec", "skipgram", 0), ("glove", "glove", 2)])
def test_word_vectors_are_two_tables(tmp_path, family, objective, tables):
    (tmp_path / "a.txt").write_text("\n".join(" ".join(f"w{n % 7}x" for n in range(i, i + 40)) for i in range(60)))
    _, given, config = config_of("rnn", data__source=f"text:{tmp_path}/a.txt", data__documents="line", data__tokenizer="words",
                                 data__cache_dir=str(tmp_path / "cache"), model__layers="4", model__name=family, objective__name=objective,
                                 model__width="100", eval__split="none")
    (arm,) = solve({"a": ("a.py", given, config)}, {}, Budget("parameters", 100_000))
    ids = prepare(config.data, 0).tokenizer.vocab_size
    assert arm.parameters == 2 * ids * int(arm.overrides["model.width"]) + tables * ids and abs(arm.parameters / 1e5 - 1) <= TOLERANCE


def test_where_tokenizers_differ_all_see_as_many_bytes(tmp_path):
    words = ["".join("bdgklmnprst"[n // 5] + "aeiou"[n % 5] for n in word) for word in np.random.default_rng(0).integers(0, 55, (9000, 3))]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, 9000, 9)))
    source = {"data__source": f"text:{tmp_path}/a.txt", "data__documents": "line", "data__cache_dir": str(tmp_path / "cache")}
    asked = {"bytes": config_of("lstm", **source), "bpe": config_of("lstm", **source, data__tokenizer="bpe", data__vocab_size="300")}
    arms = solve(asked, {}, Budget("parameters", 60_000), tokens=51_200)
    seen = []
    for (_, _, config), arm in zip(asked.values(), arms, strict=True):
        split = prepare(config.data, 0).manifests[0]["splits"]["train"]
        seen.append(arm.tokens * split["bytes"] / split["tokens"])
        assert "batches differ by data.tokenizer, data.vocab_size" in arm.text and "as many bytes" in arm.text
    assert arms[0].steps == 200 != arms[1].steps and seen[1] == pytest.approx(seen[0], rel=0.01)
    assert made(again(arms[1])) == arms[1].parameters and abs(arms[1].budget["error"]) <= TOLERANCE
    arms = solve(asked, {}, Budget("tokens", 51_200))
    assert [arm.tokens == 51_200 for arm in arms] == [True, False] and "tokens of bytes (" in arms[1].text
    assert all(arm.budget["met"] == pytest.approx(51_200, rel=TOLERANCE) and abs(arm.budget["error"]) <= TOLERANCE for arm in arms)
    few = next(steps for steps in range(5, 60) if abs(round(x := steps * arms[1].steps / 200) / x - 1) > 2 * TOLERANCE)
    with pytest.raises(ConfigError, match=r"bpe sees as many bytes of text as bytes in \d+\.\d\d steps, and \d+ miss that .*such as \d+ "):
        solve(asked, {}, tokens=few * 256)
    assert solve({"bytes": asked["bytes"]}, {"bpe": asked["bpe"]}, tokens=few * 256)[1].reference
    assert Meter(asked["bpe"][2], prepare(asked["bpe"][2].data, 0)).objective.vocab_size == 300


def test_mup_keeps_the_number_of_heads():
    def heads(**overrides):
        return Shape(config_of("transformer", **overrides)[2]).at(256, 2)["heads"]

    assert (heads(), heads(model__mup_base_width="64")) == (16, 4)
