"""Transfers beside instructions: what is left when they are waited for."""

import pytest

from lm.plan.overlap import Timeline


def test_what_runs_meanwhile_hides_a_transfer():
    timeline = Timeline()
    timeline.start("a", "network", 1, "collectives", 5.0)
    timeline.run(1, 3.0, {})
    assert timeline.finish("a") == (2.0, "collectives")
    assert timeline.now == 5.0
    timeline.start("b", "network", 1, "collectives", 1.0)
    timeline.run(1, 3.0, {})
    assert timeline.finish("b") == (0.0, "collectives")
    assert timeline.now == 8.0
    assert timeline.finish("never began") == (0.0, "")


def test_transfers_of_a_carrier_go_one_after_the_other_and_others_beside_them():
    timeline = Timeline()
    timeline.start("a", "network", 1, "collectives", 2.0)
    timeline.start("b", "network", 1, "collectives", 2.0)
    timeline.start("c", "memory", 1, "copies", 2.0)
    timeline.run(1, 3.0, {})
    assert timeline.finish("c")[0] == 0.0
    assert timeline.finish("b")[0] == pytest.approx(1.0)
    assert timeline.finish("a")[0] == 0.0


def test_what_waits_for_one_lets_those_before_it_end_and_others_go_on():
    timeline = Timeline()
    timeline.start("a", "network", 1, "collectives", 2.0)
    timeline.start("c", "memory", 1, "copies", 5.0)
    timeline.start("b", "network", 1, "collectives", 1.0)
    assert timeline.finish("b")[0] == pytest.approx(3.0)
    assert timeline.finish("c")[0] == pytest.approx(2.0)
    assert timeline.now == pytest.approx(5.0)


def test_an_instruction_that_uses_the_carrier_leaves_it_less():
    timeline = Timeline()
    timeline.start("a", "memory", 1, "copies", 2.0)
    timeline.run(1, 3.0, {"memory": 2.5})
    assert timeline.finish("a")[0] == pytest.approx(1.5)


def test_executions_in_loops_are_counted():
    timeline = Timeline()
    # Ten turns of a loop, each with a transfer of 4 s beside 3 s of work.
    timeline.start("a", "network", 10, "collectives", 4.0)
    timeline.run(10, 3.0, {})
    assert timeline.finish("a")[0] == pytest.approx(10 * 1.0)
    assert timeline.now == pytest.approx(40.0)
    # One transfer beside a whole loop of ten turns of 3 s.
    timeline.start("b", "network", 1, "collectives", 40.0)
    timeline.run(10, 3.0, {})
    assert timeline.finish("b")[0] == pytest.approx(10.0)


def test_what_is_before_it_counts_as_often_as_it_is_executed():
    timeline = Timeline()
    timeline.start("a", "network", 10, "collectives", 2.0)  # in a loop
    timeline.start("b", "network", 1, "collectives", 5.0)
    assert timeline.finish("b") == (10 * 2.0 + 5.0, "collectives")
    timeline.start("c", "network", 1, "collectives", 20.0)
    timeline.start("d", "network", 10, "collectives", 3.0)
    assert timeline.finish("d") == (pytest.approx(20.0 + 10 * 3.0), "collectives")


def test_what_begins_again_before_its_end_takes_longer():
    timeline = Timeline()
    timeline.start("a", "network", 2, "collectives", 3.0)
    timeline.run(2, 1.0, {})
    timeline.start("a", "network", 2, "collectives", 4.0)
    timeline.start("a", "network", 6, "collectives", 1.0)  # in a loop within
    assert timeline.finish("a") == (2 * (3.0 - 1.0 + 4.0 + 3.0), "collectives")
    timeline.start("a", "network", 1, "collectives", 1.0)
    assert timeline.finish("a") == (1.0, "collectives")
