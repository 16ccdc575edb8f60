"""This computer as a machine: interpolation, counts of operations, and the check of estimates against the clock."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import hlo
from lm.hlo.collectives import Collective
from lm.plan import check, measured
from lm.plan.measured import Processor, operations
from lm.plan.products import Product
from lm.plan.roofline import estimate_on

ROWS, INNER, COLUMNS = measured._ROWS, measured._INNER, measured._COLUMNS


def machine(**changes):
    """A processor of round numbers: 100 GFLOP/s, 10 GB/s, a nanosecond an element."""
    rates = np.full((2, len(ROWS), len(INNER), len(COLUMNS)), 1e11)
    moving = {threads: [threads * 5e9] * len(measured._MOVED) for threads in (1, 2)}
    values = {"peak_flops": 1e11, "threads": 2, "alone": rates, "batched": np.full((2, 3, 3, 3), 5e10),
              "costs": {"add": 1e-9, "tanh": 1e-8}, "moving": moving, "start": 0.0}
    return Processor(**(values | changes))


def test_rates_of_products_are_those_measured_and_between_them():
    rates = np.random.default_rng(0).uniform(1e10, 1e11, (2, len(ROWS), len(INNER), len(COLUMNS)))
    one = machine(alone=rates)
    for i, rows in enumerate(ROWS):
        product = Product(1, rows, INNER[1], COLUMNS[2], straight=False)
        assert one.product_seconds(product) == pytest.approx(product.flops / rates[0, i, 1, 2])
    between = Product(1, ROWS[1], INNER[0], round(math.sqrt(COLUMNS[0] * COLUMNS[1])))
    ends = rates[1, 1, 0, 0], rates[1, 1, 0, 1]
    assert between.flops / one.product_seconds(between) == pytest.approx(math.sqrt(ends[0] * ends[1]), rel=0.01)
    beyond = Product(1, 10**6, 10**6, 10**6)
    assert beyond.flops / one.product_seconds(beyond) == pytest.approx(rates[1, -1, -1, -1])


def compiled(function, *arguments):
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def counted(function, *arguments):
    """Operations of a function, compiled, all together."""
    module = compiled(function, *arguments)
    found = collections.Counter()
    for one in hlo.executed(module):
        found += operations(module, one.instruction, one.computation)
    return found


def test_operations_are_counted_by_kind():
    assert counted(lambda x: (jnp.tanh(x) * x + 1).sum(1), jnp.ones((8, 16))) == {
        "tanh": 128, "multiply": 128, "add": 128, "reduce rows": 128}
    assert counted(lambda x: x.sum(0), jnp.ones((8, 16))) == {"reduce columns": 128}


def test_an_estimate_adds_what_is_computed_and_what_is_moved():
    size = 1024
    found = estimate_on(machine(), compiled(lambda x, y: jnp.tanh(x @ y), *[jnp.ones((size, size))] * 2), {})
    rows = {row["class"]: row["seconds"] for row in found.by_class}
    assert found.flops == 2 * size**3
    assert rows["products"] == pytest.approx(2 * size**3 / 1e11 + 3 * 4 * size**2 / 1e10)
    serial = size**2 * 1e-8 + 2 * 4 * size**2 / 5e9
    assert rows["elementwise"] in (pytest.approx(serial), pytest.approx(serial / 2))  # as the compiler cuts it


def test_devices_that_share_a_processor_wait_for_each_other():
    module = compiled(lambda x, y: jnp.tanh(x @ y), *[jnp.ones((64, 64))] * 2)
    alone, shared = (estimate_on(machine(devices=devices, peak_flops=1e11 / devices), module, {}) for devices in (1, 4))
    assert shared.seconds == pytest.approx(4 * alone.seconds)
    assert shared.lower_bound == pytest.approx(4 * alone.lower_bound)


def test_loops_that_the_compiler_does_not_cut_have_one_core():
    text = """HloModule add
ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  ROOT %c = f32[1024]{0} add(%a, %a)PARTITIONS
}
"""
    whole = hlo.parse(text.replace("PARTITIONS", ', backend_config={"outer_dimension_partitions":["4"]}'))
    one = estimate_on(machine(), hlo.parse(text.replace("PARTITIONS", "")), {}).seconds
    assert one == pytest.approx(1024e-9 + 3 * 4096 / 5e9)
    assert estimate_on(machine(), whole, {}).seconds == pytest.approx(one / 2)
    # Four of eight threads: of bytes/s, what lies between one and all.
    eight = machine(threads=8, moving={1: [5e9] * len(measured._MOVED), 8: [12e9] * len(measured._MOVED)})
    assert estimate_on(eight, whole, {}).seconds == pytest.approx(1024e-9 / 4 + 3 * 4096 / 8e9)


def test_a_collective_moves_at_the_rate_of_one_of_its_executions():
    moved = measured._MOVED
    one = machine(moving={threads: [4e10, *[1e10] * (len(moved) - 1)] for threads in (1, 2)}, devices=2)
    sums = Collective("all-reduce", "fsdp", 2, count=1000, bytes=1000 * moved[0], sent=1000 * moved[0], asynchronous=False, source="")
    assert one.network_seconds(sums) == pytest.approx(2 * 2 * moved[0] / 4e10)


def test_the_grid_is_wide_and_every_config_in_it_is_one():
    assert len(check.GRID) >= 20
    assert {case.keys.get("model.name", "transformer") for case in check.GRID} >= {"transformer", "encoder", "lstm", "gru", "rnn", "nplm"}
    for case in check.GRID:
        config = check.config_of(case)
        assert all(config[key.split(".")[0]][key.split(".")[1]] == value for key, value in case.keys.items())
        assert config.data.context == case.context
        assert config.model.width == case.width


def test_the_check_compares_estimates_with_the_clock(monkeypatch):
    monkeypatch.setattr(check, "measure", machine)
    monkeypatch.setattr(check, "median_seconds", lambda call, least: call() and 1.0)
    lines = []
    found = check.check(lines.append, (check.Case("llama", 1, 64, 16, 2, 256, {}),))
    (row,) = found["cases"]
    assert row["measured_ms"] == 1000.0
    assert row["error"] == pytest.approx(row["estimated_ms"] / 1000 - 1)
    assert found["within"] == 0
    assert found["worst"] == found["median"] == abs(row["error"])
    assert "0 of 1 within 25%" in check.page(found)
    assert lines == ["compiled llama", "measured 1 of 3", "measured 2 of 3", "measured 3 of 3"]
    assert check.line(row) in check.page(found)


@pytest.mark.slow
def test_every_case_of_the_grid_is_within_a_quarter():
    assert check.check()["within"] == len(check.GRID)


@pytest.mark.slow
def test_small_programs_are_measured():
    one = measured.processor()
    assert (one.alone > 0).all()
    assert (one.batched > 0).all()
    assert one.alone[1, -1, -1, -1] > 5 * one.alone[1, 0, 0, 0]  # large products keep the processor busier than small ones
    assert one.costs["tanh"] > one.costs["add"] > 0
    assert 0 < one.start < 1e-4
    assert measured.processor(2).peak_flops == one.peak_flops / 2
