"""A plan as a whole: what it says adds up, is kept, and says what to change where a step does not fit."""

import gzip
import json
import types

import numpy as np
import pytest

from lm import config as configs
from lm.errors import ConfigError
from lm.hlo.text import parse
from lm.parallel import AXES
from lm.plan import layouts, memory, planning, roofline, topology
from lm.plan.advice import advice
from lm.plan.analytic import lower_bound
from lm.plan.machine import Times
from lm.plan.memory import Buffer
from lm.plan.page import page
from tests.plan.tiny import tiny

CONTRACT = {"topology", "chips", "fits", "hbm_bytes_per_chip", "hbm_limit", "peak_breakdown", "flops_per_chip", "bytes_accessed",
            "collectives", "estimated_step_seconds", "bound", "estimated_mfu", "tokens_per_second", "days_for_tokens",
            "compile_seconds", "executable"}


class Computer:
    """A machine whose every product runs at the peak, and of which nothing else takes time."""

    peak_flops, bandwidth, clock_hz = 1e9, 1e9, 1e9

    def times(self, module, step, done, multiplied):
        return Times(products=done.flops / self.peak_flops)

    def network_seconds(self, collective, algorithm="", full=False):
        return 0.0


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(roofline, "processor", lambda devices: Computer())


def test_a_plan_adds_up_and_is_made_once(machine, tmp_path, monkeypatch):
    config, target = tiny(), topology.parse("cpu:2")
    plan = planning.plan(config, target, tmp_path, source="tiny.py")
    assert plan.keys() >= CONTRACT and plan.items() >= json.loads((tmp_path / "plan.json").read_text()).items()
    assert plan["folder"] == str(tmp_path)
    assert plan["fits"] and sum(plan["peak_breakdown"].values()) == plan["hbm_bytes_per_chip"] < plan["hbm_limit"]
    assert plan["tokens_per_step"] == 8 * 256 and plan["train_tokens"] == 8 * 256 * config.train.steps
    seconds = plan["estimated_step_seconds"]
    assert seconds == pytest.approx(plan["flops_per_chip"] / 1e9) and plan["tokens_per_second"] == pytest.approx(8 * 256 / seconds)
    assert plan["estimated_mfu"] == pytest.approx(plan["model_flops_per_token"] * 8 * 256 / (seconds * 2 * 1e9))
    assert plan["days_for_tokens"] == pytest.approx(seconds * config.train.steps / 86400)
    assert {row["axis"] for row in plan["collectives"]} == {"fsdp"}
    assert parse(gzip.decompress((tmp_path / "program.hlo.gz").read_bytes()).decode()).entry
    assert (tmp_path / "page.txt").read_text().strip() == page(plan).strip()

    def never(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(planning, "compile_job", never)
    assert planning.plan(config, target, tmp_path, source="tiny.py") == plan
    with pytest.raises(AssertionError, match="compiled again"):
        planning.plan(tiny(data__global_batch=16), target, tmp_path)


def test_a_config_that_could_not_start_there_is_refused():
    with pytest.raises(ConfigError, match=r"data\.global_batch=9 is not a multiple"):
        planning.plan(tiny(data__global_batch=9), topology.parse("cpu:2"))


def test_a_run_of_epochs_has_no_known_length(machine, tmp_path):
    plan = planning.plan(tiny(train__steps="2 epochs"), topology.parse("cpu:1"), tmp_path)
    assert plan["days_for_tokens"] is None and plan["train_tokens"] is None and plan["tokens_per_second"] > 0
    assert "give train.steps='N tokens'" in (tmp_path / "page.txt").read_text()


def test_a_tokenizer_of_another_content_is_another_plan(tmp_path, monkeypatch):
    vocabulary, asked = tmp_path / "vocab.txt", []
    monkeypatch.setattr(planning, "json_digest", lambda parts: asked.append(parts) or "")
    for words in ("ab", "ab", "abc"):
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        with pytest.raises(ConfigError, match="does not use the 1 devices"):  # and it ends there
            planning.plan(tiny(data__tokenizer=vocabulary, mesh__fsdp=3), topology.parse("cpu:1"), tmp_path / "plan")
    assert asked[0] == asked[1] != asked[2]


def test_bytes_are_of_all_devices_of_a_chip(monkeypatch):
    held = [Buffer(100, 0, 5, "f32[25]", "", "", "activations"), Buffer(60, 3, 9, "f32[15]", "", "", "temporaries")]
    for name, value in (("state_bytes", {"params": 10, "optimizer": 20}), ("buffers", held)):
        monkeypatch.setattr(memory, name, lambda *_, value=value: value)
    monkeypatch.setattr(planning, "available", lambda _: 1000)
    job = types.SimpleNamespace(abstract_state=lambda: None, mesh=types.SimpleNamespace(devices=np.zeros(4)))
    program = types.SimpleNamespace(peak=400, wanted=None, module=None, dumps={"after_optimizations-live-range": ""},
                                    memory={"temp": 300, "host_temp": 7, "host_argument": 4})
    one, two = (planning._memory(job, topology.parse(name), program) for name in ("v5e:2x2", "tpu7x:2x2x1"))
    assert one["hbm_bytes_per_chip"] == 400 and one["temporary_bytes"] == 300 and one["host_bytes"] == 11 and one["hbm_limit"] == 1000
    for name in ("hbm_bytes_per_chip", "hbm_limit", "temporary_bytes", "host_bytes"):
        assert two[name] == 2 * one[name]
    assert two["peak_breakdown"] == {name: 2 * size for name, size in one["peak_breakdown"].items()}
    assert max(two["timeline"], key=lambda each: each[1]) == [max(one["timeline"], key=lambda each: each[1])[0], 320]
    assert [(row["bytes"], row["count"]) for row in two["largest_buffers"]] == [(200, 2), (120, 2)]
    program.memory = {}  # of a step that does not fit
    assert planning._memory(job, topology.parse("tpu7x:2x2x1"), program)["temporary_bytes"] is None


def misfit(config, target, **sizes):
    """A plan that does not fit, as far as advice needs it."""
    return {"config": configs.to_json(config), "topology": target, "mesh": dict.fromkeys(AXES, 1) | sizes,
            "peak_breakdown": {"params": 8 << 30, "optimizer": 16 << 30, "activations": 9 << 30, "temporaries": 1 << 30},
            "hbm_bytes_per_chip": 34 << 30, "hbm_limit": 16 << 30}


def test_advice_names_what_takes_most():
    config = tiny(model__remat="none", mesh__fsdp=1, mesh__replica=-1, data__context=1024)
    text = "\n".join(advice(misfit(config, "v5e:2x2", replica=4)))
    assert text.startswith("18.00 GiB a chip too much")
    wanted = ("mesh.fsdp=-1 mesh.replica=1", "model.remat=dots", "model.remat=full", "train.accumulate=2", "loss_chunk=512", "--search")
    assert all(key in text for key in wanted) and "layout." not in text


def test_advice_ends_with_what_should_be_enough_together_or_that_nothing_is():
    config = tiny(model__remat="none", mesh__fsdp=1, mesh__replica=-1, data__global_batch=8192)
    (told,) = [line for line in advice(misfit(config, "v5e:2x2", replica=4)) if line.startswith("enough together, at about ")]
    values = dict(flag.split("=") for flag in told.partition("GiB: ")[2].split())
    assert set(values) == {"train.loss_chunk", "train.accumulate"} and 2048 % int(values["train.accumulate"]) == 0
    there = [lower_bound(layouts.with_values(config, given), topology.parse("v5e:2x2")).likely for given in ({}, {
        name: int(value) for name, value in values.items()})]
    assert there[1] * 34 / 16 <= there[0]
    small = tiny(model__remat="none", mesh__fsdp=1, mesh__replica=-1, model__width=2048, model__layers=8, data__context=16)
    assert any(line.startswith("none of these is enough, nor are all together") for line in advice(misfit(small, "v5e:2x2", replica=4)))


@pytest.mark.parametrize(("keys", "target", "sizes", "said", "unsaid"), [
    ({"mesh__fsdp": 2, "mesh__replica": 4}, "2xv5e:2x2", {"replica": 4, "fsdp": 2}, ["mesh.fsdp=-1 mesh.replica=2"], ["mesh.replica=1"]),
    ({"mesh__fsdp": 4, "mesh__replica": 2}, "2xv5e:2x2", {"replica": 2, "fsdp": 4}, ["a larger slice"], ["mesh.replica"]),
    ({"layout__zero": 1}, "v5e:2x2", {"fsdp": 4}, ["layout.zero=3"], ["a larger slice"]),
    ({"model__remat": "names", "model__remat_save": "query"}, "v5e:2x2", {"fsdp": 4}, ["model.remat=full model.remat_save="], ["dots"]),
    ({"data__context": 256}, "v5e:2x2", {"fsdp": 4}, ["train.loss_chunk=128"], ["train.loss_chunk=512"]),
    ({"data__global_batch": 12}, "v5e:2x2", {"fsdp": 4}, ["3 rows at once: train.accumulate=3 leaves 1"], ["accumulate=2"]),
    ({"layout__offload": "optimizer"}, "v5e:2x2", {"fsdp": 4}, ["a larger slice"], ["layout.offload"]),
])
def test_advice_is_what_the_config_can_take(keys, target, sizes, said, unsaid):
    text = "\n".join(advice(misfit(tiny(**keys), target, **sizes)))
    assert all(key in text for key in said) and not any(key in text for key in unsaid), text


@pytest.mark.parametrize(("name", "said", "unsaid"), [
    ("rnn", "model.remat=full", "dots"), ("lstm", "model.remat=full", "dots"), ("nplm", "--search", "remat"), ("hmm", "--search", "remat"),
])
def test_advice_for_other_families_is_what_they_can_take(name, said, unsaid):
    values = {"model.name": name, "data.tokenizer": "bytes", "data.context": "64", "data.global_batch": "8"}
    if name == "hmm":
        values |= {"optim.name": "em", "optim.learning_rate": "1.0", "optim.schedule": "constant", "optim.clip": "0"}
    config = configs.validate(configs.override(configs.default(), values))
    text = "\n".join(advice(misfit(config, "v5e:2x2", replica=4)))
    assert said in text and unsaid not in text and ("loss_chunk" in text) == (name != "hmm"), text


def test_a_step_for_chips_that_are_not_here_and_one_that_does_not_fit(tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    target = topology.parse("v5e:2x2")
    plan = planning.plan(tiny(), target, tmp_path / "fits")
    assert plan["fits"] and plan["hbm_limit"] == 15.75 * 2**30 and (tmp_path / "fits/executable").exists()
    assert 0 < plan["lower_bound_seconds"] <= plan["estimated_step_seconds"] and plan["timeline"]
    gathered = next(row for row in plan["collectives"] if row["kind"] == "all-gather")
    # The layers in bfloat16, once forward and once backward; the embedding comes on top.
    assert gathered["axis"] == "fsdp" and gathered["bytes"] >= 2 * 2 * 0.99 * (plan["parameters"] - 2048 * 256)
    large = planning.plan(tiny(data__global_batch=32768, model__layers=1), target, tmp_path / "large")
    assert not large["fits"] and large["executable"] is None and large["estimated_step_seconds"] is None
    assert large["hbm_bytes_per_chip"] > large["hbm_limit"] and len(large["largest_buffers"]) == 5
    text = page(large)
    assert "does not fit" in text and "to change" in text and "lm/" in text
