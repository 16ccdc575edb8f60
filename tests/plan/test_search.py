"""The search: against planning everything, with its means used up, with plans that fail, and with what it writes."""

import json
import time

import pytest

from lm import config as configs
from lm.errors import ConfigError, DiskError, PlanError
from lm.plan import cheapest, fit, layouts, planning, search, topology, worker
from lm.plan.analytic import Bound, account_of, limits_of
from lm.plan.best_first import Item, Outcome, Tried, best_first
from lm.plan.folders import check_writable
from tests.plan.tiny import made_up, tiny

V5E = topology.parse("v5e:2x2")


def quiet(_):
    """Takes progress."""


def planned(config, target=V5E):
    """What a plan might say of a config: more than its bound, for some meshes more than for others."""
    limits = limits_of(target, config.model.dtype)
    mine = layouts.own(config, limits.devices)
    memory, step = cost(account_of(config).bound(mine, limits, config.data.global_batch), mine)
    return {"fits": memory <= limits.memory, "hbm_bytes_per_chip": memory, "hbm_limit": limits.memory, "estimated_mfu": 0.5,
            "estimated_step_seconds": step if memory <= limits.memory else None, "config": configs.to_json(config),
            "topology": target.name} | made_up()


def cost(bound, candidate):
    """(bytes, seconds) that it says."""
    off = 1 + 0.02 * (candidate.sizes["tensor"] > 1) + 0.05 * (candidate.sizes["fsdp_outer"] > 1) + 0.01 * (candidate.remat == "names")
    return 1.3 * bound.likely, off * bound.seconds


def item(name, seconds, memory=1.0, **keys):
    return Item(name, lambda: name, V5E, Bound(memory, memory, seconds, seconds, {}, {}), 10.0, **keys)


def made(seconds, memory=1.0):
    return {"fits": memory <= 10, "hbm_bytes_per_chip": memory, "estimated_step_seconds": seconds}


def race(items, plans, **keys):
    options = {"most": 100, "seconds": 60, "workers": 1, "say": quiet} | keys
    return best_first(items, lambda item: plans[item.name], **options)


def test_it_ends_where_no_bound_is_under_the_best():
    plans = {"a": made(3.0), "b": made(2.0), "c": made(9.0), "d": made(9.0)}
    outcome = race([item("d", 2.5), item("c", 2.1), item("b", 1.5), item("a", 1.0)], plans)
    assert [each.item.name for each in outcome.tried] == ["a", "b"]
    assert outcome.best().item.name == "b" and outcome.stopped == "nothing else that looked promising can be better"


def test_what_cannot_fit_is_not_compiled_and_what_is_needed_always_is():
    plans = {"large": made(1.0), "own": made(9.0, 11.0), "small": made(2.0)}
    outcome = race([item("large", 0.5, memory=11.0), item("own", 8.0, memory=12.0, needed=True), item("small", 1.0)], plans)
    assert [each.item.name for each in outcome.tried] == ["own", "small"]
    assert outcome.best().item.name == "small"


def test_a_misfit_brings_in_the_next_leaner_one():
    lean = item("lean", 2.0)
    outcome = race([item("fast", 1.0, leaner=lambda: lean)], {"fast": made(None, 11.0), "lean": made(3.0)})
    assert [each.item.name for each in outcome.tried] == ["fast", "lean"] and outcome.best().item is lean


def test_what_one_plan_shows_is_expected_of_others_like_it():
    items = [item("a", 1.0, kinds=("x",)), item("b", 1.1, kinds=("x",)), item("c", 1.5, kinds=("y",))]
    outcome = race(items, {"a": made(3.0), "b": made(1.2), "c": made(1.6)}, most=2)
    assert [each.item.name for each in outcome.tried] == ["a", "b"]  # c is like nothing known: 1.5 times what a was off by
    others = [*items[:2], item("c", 1.05, kinds=("y",))]
    outcome = race(others, {"a": made(None, 30.0), "b": made(1.2), "c": made(1.6)}, most=2)
    assert [each.item.name for each in outcome.tried] == ["a", "c"]  # others like a are likely too large


def test_failures_are_told_and_the_rest_goes_on():
    def plan(each):
        if each.name == "a":
            raise PlanError("the process that compiled was ended by SIGKILL")
        return made(2.0)

    outcome = best_first([item("a", 1.0), item("b", 1.5)], plan, most=9, seconds=60, workers=2, say=quiet)
    assert {each.item.name: each.error for each in outcome.tried} == {"a": "the process that compiled was ended by SIGKILL", "b": ""}
    assert outcome.best().item.name == "b"


def test_the_time_ends_what_still_runs():
    ended = []
    outcome = best_first([item("a", 1.0)], lambda each: time.sleep(0.6) or made(1.0), most=9, seconds=0.2, workers=1,
                         close=lambda: ended.append(True), say=quiet)
    assert outcome.tried == [] and ended == [True] and "time was used up" in outcome.stopped


def test_an_interrupt_ends_the_workers():
    ended = []

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race([item("a", 1.0)], {"a": made(1.0)}, close=lambda: ended.append(True), say=interrupted)
    assert ended == [True]


def test_the_winner_is_that_of_planning_everything(tmp_path):
    config = tiny(mesh__fsdp=1, mesh__replica=-1)
    found = search.search(config, V5E, tmp_path, most=10**6, seconds=600, plan=planned, say=quiet)
    families, _ = layouts.enumerate_layouts(config, 4, sides=V5E.shape)
    account, limits = account_of(config), limits_of(V5E, "bfloat16")
    all_of_them = [cost(account.bound(each, limits, config.data.global_batch), each) for family in families for each in family]
    assert found["estimated_step_seconds"] == min(seconds for memory, seconds in all_of_them if memory <= limits.memory)
    assert found["search"]["stopped"] == "nothing else that looked promising can be better"
    assert found["search"]["candidates"] == sum(map(len, families))


def test_the_folder_has_flags_that_make_the_winner(tmp_path):
    config = tiny(mesh__fsdp=1, mesh__replica=-1)
    found = search.search(config, V5E, tmp_path, most=3, plan=planned, say=quiet, overrides={"data.context": "256"})
    flags = (tmp_path / search.OVERRIDES).read_text().split()
    given = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
    assert given == found["overrides"] and given["data.context"] == "256"
    assert planned(configs.validate(configs.override(config, given)))["estimated_step_seconds"] == found["estimated_step_seconds"]
    assert json.loads((tmp_path / "plan.json").read_text())["overrides"] == given
    assert (tmp_path / "page.txt").read_text() == "a page" and found["folder"] == str(tmp_path)
    rows = found["search"]["compiled"]
    assert len(rows) == 4 and sum(row["own"] for row in rows) == 1
    assert found["estimated_step_seconds"] == rows[0]["seconds"] <= next(row["seconds"] for row in rows if row["own"])
    text = search.page(found)
    assert "as the config says" in text and (tmp_path / search.OVERRIDES).read_text().strip() in text


def test_the_front_is_what_nothing_beats():
    rows = [{"fits": True, "seconds": s, "bytes": b} for s, b in ((1, 9), (2, 9), (2, 5), (3, 5), (4, 1))] + [{"fits": False}]
    assert [(row["seconds"], row["bytes"]) for row in search.pareto(rows)] == [(1, 9), (2, 5), (4, 1)]


def test_nothing_fits_says_how_much_is_missing(tmp_path):
    huge = tiny(model__width=65536, model__ff_width=262144, model__heads=512)
    with pytest.raises(PlanError, match=r"no layout .*fits: the leanest .* needs at least [\d.]+ of 16.00 GiB"):
        search.search(huge, V5E, tmp_path, most=1, plan=planned, say=quiet)


def test_an_own_layout_that_cannot_be_is_told(tmp_path):
    found = search.search(tiny(mesh__fsdp=3), V5E, tmp_path, most=1, plan=planned, say=quiet)
    assert "mesh" in found["search"]["own"]["error"] and found["fits"]


def test_an_own_layout_that_cuts_too_little_is_told():
    config = tiny(model__width=260, model__ff_width=684, data__vocab_size=2044)  # none of which eight devices can cut
    items, looked = search.items_of(config, topology.parse("v5e:2x4"))
    assert "mesh.fsdp=8 leaves" in looked.own and items and not any(each.needed for each in items)


def test_a_search_that_has_compiled_nothing_says_why():
    _, looked = search.items_of(tiny(), V5E)
    with pytest.raises(PlanError, match=r"the time was used up.*nothing was compiled: give more --budget_seconds"):
        search.search(tiny(), V5E, plan=lambda config: time.sleep(0.3), say=quiet, seconds=0.01)
    outcome = Outcome([Tried(item("a", 1.0), made(1.0, 11.0))], "1 were chosen", 1.0)
    assert "none of the 1 compiled layouts fits" in search.nothing_fits(looked, 2**34, outcome)


def test_bytes_and_their_bound_are_both_of_a_chip():
    target = topology.parse("tpu7x:2x2x1")
    of_seven = Item("a", lambda: "a", target, Bound(7.0, 7.0, 1.0, 1.0, {}, {}), 10.0)
    (row,) = search.rows(tiny(), [Tried(of_seven, made(1.0, 16.0) | {"config": configs.to_json(tiny())})])
    assert (row["bytes"], row["bound_bytes"]) == (16.0, 14)


def test_the_executable_of_an_older_winner_goes(tmp_path):
    config = tiny(mesh__fsdp=1, mesh__replica=-1)
    (tmp_path / "executable").write_text("of another program")
    found = search.search(config, V5E, tmp_path, most=1, plan=planned, say=quiet)
    assert found["executable"] is None and not (tmp_path / "executable").exists()


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_compiled(tmp_path):
    (tmp_path / "file").write_text("")
    ways = (lambda out: search.search(tiny(), V5E, out, plan=pytest.fail, say=quiet),
            lambda out: fit.fit(tiny(), V5E, "batch", out, plan=pytest.fail, say=quiet),
            lambda out: cheapest.cheapest(tiny(), 1e9, out, topologies=("v5e:2x2",), plan=pytest.fail, say=quiet))
    for way in ways:
        with pytest.raises(DiskError, match=r"cannot write .*file/plan \(not a directory\)"):
            way(tmp_path / "file" / "plan")
    check_writable(tmp_path / "new" / "plan")
    assert not (tmp_path / "new").exists()


def test_a_model_that_is_counted_has_nothing_to_plan():
    config = configs.validate(configs.override(configs.default(), {"model.name": "ngram", "data.tokenizer": "bytes"}))
    ways = (lambda: search.search(config, V5E, plan=pytest.fail, say=quiet), lambda: planning.plan(config, topology.parse("cpu:1")),
            lambda: fit.fit(config, V5E, "batch", plan=pytest.fail, say=quiet),
            lambda: cheapest.cheapest(config, 1e9, topologies=("v5e:2x2",), plan=pytest.fail, say=quiet))
    for way in ways:
        with pytest.raises(ConfigError, match=r"model\.name=ngram is made by counting: there is no train step to plan"):
            way()


def test_a_process_that_dies_is_told(monkeypatch):
    dying = "import os, sys; sys.stdin.readline(); print('no room', file=sys.stderr); os.abort()"
    monkeypatch.setattr(worker, "_COMMAND", ("-c", dying))
    with pytest.raises(PlanError, match="ended by SIGABRT: no room"):
        worker.Workers().plan(tiny(), V5E)


def test_a_process_answers_with_the_error_of_a_config():
    with pytest.raises(ConfigError, match="does not use the 2 devices"):
        worker.Workers().plan(tiny(mesh__fsdp=3), topology.parse("cpu:2"))


def test_closed_workers_start_nothing():
    workers = worker.Workers()
    workers.close()
    with pytest.raises(PlanError, match="stopped"):
        workers.plan(tiny(), V5E)


@pytest.mark.slow
def test_a_search_compiles_for_tpus_and_goes_on_from_the_cache(tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    config = tiny(mesh__fsdp=1, mesh__replica=-1)
    found = search.search(config, V5E, tmp_path / "first", most=1, say=quiet)
    assert found["fits"] and len(found["search"]["compiled"]) == 2
    assert found["estimated_step_seconds"] == min(row["seconds"] for row in found["search"]["compiled"])
    assert (tmp_path / "first" / "executable").exists()
    start = time.monotonic()
    again = search.search(config, V5E, tmp_path / "second", most=1, say=quiet)
    assert again["key"] == found["key"] and time.monotonic() - start < 0.5 * found["search"]["seconds"]
    assert planning.plan(configs.from_json(found["launch"]["config"]), V5E, explain=False)["key"] == found["key"]
