"""Flags of scripts/plan.py: each belongs to a mode."""

import pytest

from lm.errors import ConfigError, PlanError
from lm.plan import topology
from scripts import plan

PLAN = ["--config=configs/llama.py:7b", "--topology=v5e:2x2"]
CHEAPEST = ["--config=configs/llama.py:7b", "--cheapest", "--tokens=1e9"]


@pytest.mark.parametrize(("flags", "why"), [
    ([*PLAN, "--compile=3"], "--compile is not for a plan alone: it goes with --search or --fit or --cheapest"),
    ([*PLAN, "--fit=batch", "--workers=2"], "--workers is not for --fit"), ([*PLAN, "--search", "--days=2"], "--days is not for --search"),
    ([*PLAN, "--tokens=1e9"], "--tokens is not for a plan alone"), ([*CHEAPEST, "--topology=v5e:2x2"], "--topology is not for --cheapest"),
    (["--check", "--out=there"], "--out is not for --check"), (["--published", "--config.model.layers=2"], "--published takes none"),
    ([*PLAN, "--search", "--workers=0"], "--workers=0 must be above 0"), ([*PLAN, "--fit=batch", "--compile=-1"], "--compile=-1 must"),
    ([*CHEAPEST, "--tokens=0"], "--tokens=0 must"), ([*CHEAPEST, "--budget_seconds=nan"], "--budget_seconds=nan must"),
    (["--config=configs/llama.py:7b"], "required: --topology"), ([*CHEAPEST[:2]], "required: --tokens"),
])
def test_flags_that_do_not_belong_are_refused(flags, why):
    with pytest.raises(ConfigError, match=why):
        plan.main(flags)


@pytest.mark.parametrize("flags", [PLAN, [*PLAN, "--search"], CHEAPEST, ["--published"]])
def test_a_missing_compiler_is_told_first(flags, monkeypatch):
    def missing():
        raise PlanError("the TPU compiler is not installed")

    monkeypatch.setattr(topology, "compiler_version", missing)
    for name in ("planned", "report"):
        monkeypatch.setattr(plan, name, lambda *_: pytest.fail("went on"))
    with pytest.raises(PlanError, match="is not installed"):
        plan.main(flags)


@pytest.mark.parametrize("flags", [[*PLAN, "--search", "--workers=1", "--compile=2", "--out=there"], [*PLAN, "--fit=context"],
                                   [*CHEAPEST, "--days=3", "--prices=file"], ["--published", "--out=there"], ["--check"], PLAN])
def test_flags_that_belong_are_taken(flags):
    plan.check_flags(*plan.parser_of().parse_with_overrides(flags))
