"""A plan as a whole: what it says adds up, is kept, and says what to change where a step does not fit."""

import gzip
import json

import pytest

from lm.errors import ConfigError
from lm.hlo.text import parse
from lm.plan import planning, roofline, topology
from lm.plan.machine import Times
from lm.plan.page import advice, page
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


def test_advice_names_what_takes_most():
    plan = {"config": {"model": {"remat": "none"}, "train": {"accumulate": 1, "loss_chunk": 0}, "data": {"global_batch": 64}},
            "peak_breakdown": {"params": 8 << 30, "optimizer": 16 << 30, "activations": 9 << 30, "temporaries": 1 << 30},
            "mesh": {"replica": 4, "fsdp": 1, "fsdp_outer": 1, "expert": 1}, "hbm_bytes_per_chip": 34 << 30, "hbm_limit": 16 << 30}
    text = "\n".join(advice(plan))
    assert text.startswith("18.00 GiB a chip too much")
    assert all(key in text for key in ("mesh.fsdp=-1", "model.remat=full", "train.accumulate=2", "train.loss_chunk=512", "--search"))


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
