"""Cost: closed forms of dollars, the price table that a user edits, and the choice against every topology's own."""

import json

import pytest

from lm import config as configs
from lm.errors import ConfigError, PlanError
from lm.plan import cheapest, layouts, topology
from lm.plan.analytic import account_of, limits_of
from lm.plan.chips import CHIPS
from tests.plan.tiny import made_up, tiny

NAMES = ("v5e:2x2", "v6e:2x2", "2xv5e:2x2")
TOKENS = 1e9


def planned(config, target):
    """What a plan might say: its bound, but for v6e, which is three times as slow."""
    limits = limits_of(target, config.model.dtype)
    bound = account_of(config).bound(layouts.own(config, limits.devices), limits, config.data.global_batch)
    return {"fits": True, "hbm_bytes_per_chip": bound.likely, "hbm_limit": limits.memory, "estimated_mfu": 0.5, "topology": target.name,
            "estimated_step_seconds": bound.serial * (3 if target.kind == "v6e" else 1), "config": configs.to_json(config)} | made_up()


def quiet(_):
    """Takes progress."""


def looked(**options):
    return cheapest.cheapest(tiny(), TOKENS, topologies=NAMES, plan=planned, say=quiet, workers=1, **options)


def test_dollars_are_seconds_times_chips_times_price():
    found = looked(most=20)
    steps = TOKENS / (8 * 256)
    assert found["cheapest"]["steps"] == steps
    compiled = [row for row in found["cheapest"]["topologies"] if row["by"] == "compiled"]
    for row in compiled:
        target = topology.parse(row["topology"])
        config = configs.validate(configs.override(tiny(), row["overrides"]))
        seconds = planned(config, target)["estimated_step_seconds"] * steps
        assert row["days"] == pytest.approx(seconds / 86_400)
        assert row["dollars"] == pytest.approx(seconds / 3600 * target.chips * CHIPS[target.kind].price_per_hour)
    assert found["topology"] == compiled[0]["topology"] == min(compiled, key=lambda row: row["dollars"])["topology"]
    assert "lower bounds" in cheapest.page(found) and found["topology"] in cheapest.page(found)


def test_what_is_not_compiled_cannot_be_cheaper():
    found = looked(most=20)["cheapest"]["topologies"]
    least = found[0]["dollars"]
    assert all(row["dollars"] >= least for row in found if row["by"] == "bound")


def test_lower_bounds_are_those_of_all_layouts():
    found = looked(most=1)["cheapest"]["topologies"]
    assert {row["by"] for row in found} == {"compiled", "bound"}
    for row in (row for row in found if row["by"] == "bound"):
        target, config = topology.parse(row["topology"]), tiny()
        limits = limits_of(target, "bfloat16")
        families, _ = layouts.enumerate_layouts(config, limits.devices, limits.slices, limits.sides, offload=True)
        seconds = min(account_of(config).bound(each, limits, config.data.global_batch).seconds for family in families for each in family)
        dollars = seconds * TOKENS / (8 * 256) / 3600 * target.chips * CHIPS[target.kind].price_per_hour
        assert row["dollars"] == pytest.approx(dollars)


def test_the_folder_has_the_winner(tmp_path):
    found = looked(most=20, out=tmp_path)
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert found["folder"] == str(tmp_path) and stored["overrides"] == found["overrides"] and stored["cheapest"] == found["cheapest"]
    assert (tmp_path / "overrides.txt").read_text().strip() == found["cheapest"]["flags"]


def test_prices_are_the_users(tmp_path):
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"v6e": 0.001}))
    found = looked(most=20, prices=file)
    assert found["topology"] == "v6e:2x2" and found["cheapest"]["prices"] == {"v5e": 1.2, "v6e": 0.001}
    assert str(file) in found["cheapest"]["prices_from"] and cheapest.PRICES in found["cheapest"]["prices_from"]
    assert looked(most=20)["cheapest"]["prices_from"] == cheapest.PRICES


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"v9": 1}', '{"v5e": -1}', '{"v5e": "1"}', '{"v5e": true}'])
def test_bad_prices_are_told(tmp_path, text):
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="write JSON such as"):
        cheapest.prices_of(file)


def test_days_leave_out_what_is_slow():
    rows = {row["topology"]: row for row in looked(most=20)["cheapest"]["topologies"]}
    quickest = min(row["days"] for row in rows.values())
    found = looked(most=20, days=1.01 * quickest)
    assert found["estimated_step_seconds"] * found["cheapest"]["steps"] / 86_400 <= 1.01 * quickest
    with pytest.raises(PlanError, match=r"within .* days \(v5e:2x2: takes at least"):
        looked(days=quickest / 1e3)


def test_a_topology_without_a_layout_says_why():
    config = tiny(data__global_batch=1, model__layers=1, model__heads=1, model__attention_window=16)
    found = cheapest.cheapest(config, TOKENS, topologies=("v5e:1x1", "v5e:2x2"), plan=planned, say=quiet)
    rows = {row["topology"]: row for row in found["cheapest"]["topologies"]}
    assert found["topology"] == "v5e:1x1" and "windows" in rows["v5e:2x2"]["why"] and rows["v5e:2x2"]["dollars"] is None
    with pytest.raises(ConfigError, match="no price of cpu"):
        cheapest.cheapest(tiny(), TOKENS, topologies=("cpu:2",), plan=planned, say=quiet)


def test_the_topologies_that_are_looked_at_by_default_are_there():
    assert {topology.parse(name).kind for name in cheapest.TOPOLOGIES} == set(CHIPS)
