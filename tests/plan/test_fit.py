"""The largest that fits: against trying every size, and with sizes that are what they are said to be."""

import json
import shlex

import pytest

from lm import cli
from lm import config as configs
from lm.errors import ConfigError, PlanError
from lm.plan import fit, layouts, topology
from lm.plan.analytic import Bound, limits_of, lower_bound
from tests.plan.tiny import made_up, tiny

V5E = topology.parse("v5e:2x2")
LIMIT = limits_of(V5E, "bfloat16").memory


class Squares(fit.Sizes):
    """Sizes of which the bound takes the square of their number; every third is none."""

    def __init__(self):
        super().__init__(None, V5E, lambda number: {"data.context": number}, "test")

    def bound(self, number):
        return None if number % 3 == 0 else Bound(number**2, number**2, 1.0, 1.0, {}, {})


def planned(config, larger=1.37):
    """What a plan might say of a config: more than its bound."""
    bound = lower_bound(config, V5E)
    memory = bound.likely * larger + 1e8
    return {"fits": memory <= LIMIT, "hbm_bytes_per_chip": memory, "hbm_limit": LIMIT, "estimated_step_seconds": bound.serial,
            "estimated_mfu": 0.5, "config": configs.to_json(config), "topology": V5E.name} | made_up()


def quiet(_):
    """Takes progress."""


@pytest.mark.parametrize("truth", [1, 2, 7, 100, 1000, 1720])
def test_guesses_find_the_largest_that_fits(truth):
    sizes, tried = Squares(), {}
    low, high = sizes.span(2**24, lambda bound: bound.memory <= 3e6)
    assert low <= 1732 < high <= 1.03 * low
    top = sizes.valid(high - 1, 0)
    assert top % 3
    for number in fit.guesses(sizes, 0, top, 3e6, tried):
        fits = number <= truth
        tried[number] = {"fits": fits, "error": "", "hbm_bytes_per_chip": 2.9e6 * (number / truth) ** 2, "hbm_limit": 3e6}
    best, misfit = max((n for n in tried if tried[n]["fits"]), default=0), min(n for n in tried if not tried[n]["fits"])
    assert truth * 0.97 - 1 <= best <= truth < misfit
    assert len(tried) <= 12


def test_the_largest_batch_is_that_of_a_scan_over_all(monkeypatch):
    monkeypatch.setattr(fit, "NEAR", 0.0)
    found = fit.fit(tiny(train__accumulate=2), V5E, "batch", plan=planned, say=quiet, most=30)
    answer = found["fit"]
    assert answer["value"] % 8 == 0  # four devices, two micro-batches
    assert planned(layouts.with_values(tiny(train__accumulate=2), {"data.global_batch": answer["value"]}))["fits"]
    assert not planned(layouts.with_values(tiny(train__accumulate=2), {"data.global_batch": answer["value"] + 8}))["fits"]
    assert answer["least_that_does_not_fit"] == answer["value"] + 8 and answer["decided_by"] == "compiled"
    assert found["overrides"] == {"data.global_batch": str(answer["value"])} and str(answer["value"]) in fit.page(found).replace(",", "")


def test_a_plan_below_its_bound_shows_that_the_bound_rules_nothing_out():
    def lean(config):
        found = planned(config)
        memory = 0.6 * lower_bound(config, V5E).memory
        return found | {"hbm_bytes_per_chip": memory, "fits": memory <= LIMIT}

    found = fit.fit(tiny(), V5E, "batch", plan=lean, say=quiet, most=30)["fit"]
    assert lower_bound(layouts.with_values(tiny(), {"data.global_batch": found["value"]}), V5E).memory > 1.5 * LIMIT
    largest = max(row["bytes"] for row in found["compiled"] if row["fits"])
    assert 0.95 * LIMIT < largest <= LIMIT and found["decided_by"] in ("compiled", "bound")


def test_contexts_are_what_the_mesh_can_cut():
    sizes = fit.sizes_of(tiny(mesh__context=4, mesh__fsdp=1), V5E, "context")
    contexts = [sizes.values(number)["data.context"] for number in range(1, 9)]
    assert contexts == [16, 32, 64, 128, 256, 512, 1024, 2048]
    chunked = fit.sizes_of(tiny(train__loss_chunk=256), V5E, "context")
    assert [chunked.values(number)["data.context"] for number in range(1, 5)] == [256, 512, 1024, 2048]


def test_models_grow_in_width_and_depth_alike():
    config = tiny(model__heads=8, model__kv_heads=2, model__width=1024, model__ff_width=2816, model__layers=8)
    sizes = fit.sizes_of(config, V5E, "model")
    assert "4 heads of 128" in sizes.name
    for number in (1, 2, 3, 5):
        keys = sizes.config(number).model
        assert keys.width == 512 * number and keys.heads == 4 * number and keys.kv_heads == number
        assert keys.layers == 4 * number and keys.ff_width == pytest.approx(1408 * number, abs=64)
    assert configs.to_json(sizes.config(2)) == configs.to_json(config)


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_widths_that_the_mesh_cuts_into_whole_parts_stay_so(name):
    large = topology.parse("v5e:16x16")
    heads = {"model.heads": "32", "model.ff_width": "11008"} if name == "transformer" else {}
    given = {"model.name": name, "model.width": "4096", "model.layers": "32", "data.context": "64", "data.global_batch": "256",
             "mesh.replica": "1", "mesh.fsdp": "16", "mesh.fsdp_outer": "16"} | heads
    config = configs.validate(configs.override(configs.default(), given))
    sizes = fit.sizes_of(config, large, "model")
    models = [sizes.config(number).model for number in range(1, 25)]
    assert [model.width for model in models] == list(range(256, 256 * 25, 256))
    assert all(model.ff_width % 256 == 0 for model in models) and all(model.heads * 128 == model.width for model in models if heads)


def test_recurrent_models_grow_by_units():
    values = {"model.name": "lstm", "model.width": "256", "model.layers": "2"}
    config = configs.validate(configs.override(configs.default(), values))
    sizes = fit.sizes_of(config, V5E, "model")
    assert sizes.config(4).model.width == 512 and sizes.config(4).model.layers == 4


def test_nothing_fits_and_nothing_to_scale_are_told():
    with pytest.raises(PlanError, match="not even the smallest fits"):
        fit.fit(tiny(model__width=65536, model__ff_width=262144, model__heads=512), V5E, "batch", plan=planned, say=quiet)
    with pytest.raises(ConfigError, match="use batch, context, model"):
        fit.sizes_of(tiny(), V5E, "chips")
    small = {"model.name": "nplm", "data.context": "64"}
    with pytest.raises(ConfigError, match=r"model\.name=nplm has not"):
        fit.sizes_of(configs.validate(configs.override(configs.default(), small)), V5E, "model")


def test_the_count_of_compilations_is_kept():
    found = fit.fit(tiny(), V5E, "batch", plan=planned, say=quiet, most=2)
    assert len(found["fit"]["compiled"]) == 2
    assert {row["fits"] for row in found["fit"]["compiled"]} == {True, False} and found["fit"]["decided_by"] == "compilations used up"
    with pytest.raises(PlanError, match="compile more"):
        fit.fit(tiny(), V5E, "batch", plan=planned, say=quiet, most=1)


def test_the_folder_has_the_largest(tmp_path):
    given = {"model.remat": "full", "train.steps": "3 epochs", "data.global_batch": "4"}
    found = fit.fit(tiny(), V5E, "batch", tmp_path, plan=planned, say=quiet, overrides=given)
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert found["folder"] == str(tmp_path) and found["fit"] == stored["fit"] == json.loads((tmp_path / "fit.json").read_text())
    assert stored["overrides"] == given | {"data.global_batch": str(found["fit"]["value"])}
    text = (tmp_path / "overrides.txt").read_text()
    assert text.strip() == found["fit"]["flags"] and text.strip() in fit.page(found)
    assert cli.Parser().parse_with_overrides(shlex.split(text))[1] == stored["overrides"]


def test_bytes_and_their_bound_are_both_of_a_chip(monkeypatch):
    target = topology.parse("tpu7x:2x2x1")
    monkeypatch.setattr(fit, "NEAR", 0.5)

    def plan(config):
        bound = lower_bound(config, target)
        limit = 2 * limits_of(target, "bfloat16").memory
        return planned(config) | {"fits": 2 * bound.likely <= limit, "hbm_bytes_per_chip": 2 * bound.memory, "hbm_limit": limit}

    for row in fit.fit(tiny(), target, "batch", plan=plan, say=quiet)["fit"]["compiled"]:
        assert row["bound_bytes"] == round(row["bytes"])


@pytest.mark.parametrize(("keys", "why"), [
    ({"mesh__tensor": 4, "mesh__fsdp": 1}, "heads=2 is not a multiple of mesh.tensor = 4"),
    ({"mesh__stage": 2, "mesh__fsdp": 2, "model__scan_layers": "false"}, "needs the layers in one stack"),
])
def test_a_config_that_no_size_mends_is_told(keys, why):
    with pytest.raises(ConfigError, match=why):
        fit.fit(tiny(**keys), V5E, "batch", plan=planned, say=quiet)


def test_a_plan_that_fails_is_no_end():
    def failing(config):
        found = planned(config)
        if not found["fits"]:
            raise PlanError("the process that compiled was ended by SIGKILL")
        return found

    found, whole = (fit.fit(tiny(), V5E, "batch", plan=plan, say=quiet, most=30) for plan in (failing, planned))
    assert found["fit"]["decided_by"] == "a failure" and found["fit"]["value"] == pytest.approx(whole["fit"]["value"], rel=0.03)
    assert "could not be compiled" in fit.page(found)


def test_plans_that_all_fail_end_soon():
    asked = []

    def failing(config):
        asked.append(config)
        raise PlanError("the TPU compiler is not installed")

    with pytest.raises(PlanError, match="the TPU compiler is not installed"):
        fit.fit(tiny(), V5E, "batch", plan=failing, say=quiet)
    assert len(asked) == 3


def test_a_cpu_has_its_share_of_the_memory_of_the_machine():
    one, four = (limits_of(topology.Topology("cpu", (devices,)), "float32").memory for devices in (1, 4))
    assert four == one / 4 < 2**50
