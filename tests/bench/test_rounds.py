"""Turns, medians, quartiles and ratios, against numbers made by hand."""

import threading
import time

import pytest

from lm.bench import rounds


def test_sides_take_turns_and_every_other_round_goes_backward():
    order = []
    turns = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert rounds.interleave(turns, 3) == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert "".join(order) == "abccbaabc"


def test_spread_is_median_and_quartiles():
    assert rounds.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert rounds.spread([1.0, 2.0]) == {"median": 1.5, "low": 1.25, "high": 1.75}
    assert rounds.spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0}


def test_the_ratio_is_of_all_medians_with_the_least_and_greatest_of_a_round():
    ours = [[1.0, 2.0, 1.0], [2.0, 2.0, 2.0]]  # all: median 2; rounds: 1 and 2
    peer = [[3.0, 3.0], [8.0, 4.0]]  # all: median 3.5; rounds: 3 and 6
    assert rounds.speed_ratio(ours, peer) == {"ratio": 1.75, "ratio_low": 3.0, "ratio_high": 3.0}
    assert rounds.speed_ratio([[2.0], [1.0]], [[1.0], [3.0]]) == {"ratio": 2.0 / 1.5, "ratio_low": 0.5, "ratio_high": 3.0}
    with pytest.raises(ValueError, match="zip"):
        rounds.speed_ratio([[1.0]], [[1.0], [2.0]])


@pytest.mark.parametrize(("seconds", "one", "count"), [(3.0, 1.0, 3), (3.0, 1.3, 2), (0.0, 1.0, 1), (1.0, 4.0, 1), (1.0, 0.001, 1000)])
def test_a_turn_has_as_many_steps_as_fit_and_at_least_one(seconds, one, count):
    assert rounds.count_for(seconds, one) == count


def test_the_best_of_a_short_call_is_the_least_of_many_and_a_long_one_is_made_twice(monkeypatch):
    calls = []
    assert rounds.best_seconds(lambda: calls.append(time.sleep(0.02 if len(calls) else 0.06))) < 0.05
    assert 3 <= len(calls) <= 8
    monkeypatch.setattr(rounds, "LEAST_SECONDS", 0.0)
    calls.clear()
    rounds.best_seconds(lambda: calls.append(1))
    assert calls == [1, 1]


def test_what_is_not_timed_runs_at_once_in_order_and_its_error_is_raised(monkeypatch):
    monkeypatch.setattr(rounds.os, "sched_getaffinity", lambda pid: {0, 1})
    both = threading.Barrier(2, timeout=10)
    assert rounds.at_once([lambda i=i: (both.wait(), i)[1] for i in range(4)]) == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        rounds.at_once([lambda: 1 / 0])


def test_the_first_step_of_a_turn_is_made_and_not_timed():
    made = []

    def side(method, count):
        made.append((method, count))
        return [9.0] + [0.5] * (count - 1)

    turn = rounds.turn_of(side, 2.0)
    assert turn() == turn() == [0.5] * 4
    assert made == [("steps", 2), ("steps", 5), ("steps", 5)]
