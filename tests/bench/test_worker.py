"""Sides: what they answer, and what is said of those that fail, hang or die; none outlives its benchmark."""

import os
import pathlib
import sys
import time

import pytest

from lm.bench import worker
from lm.bench.worker import Side
from lm.errors import BenchError

ECHO = "tests.bench.sides:Echo"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_side_answers_in_its_own_process_with_the_same_settings_for_all_and_ends_with_the_block(capfd):
    with Side(ECHO, {"value": {"a": [1, None]}}, {"MINE": "yes"}) as side:
        assert side.info["pid"] != os.getpid() and side.info["tunables"] == worker.SETTINGS["GLIBC_TUNABLES"] and side.info["mine"] == "yes"
        assert side("get", times=2) == [{"a": [1, None]}] * 2
        assert side("get") == [{"a": [1, None]}]
        pid = side.info["pid"]
    assert not alive(pid)
    assert capfd.readouterr() == ("", "")


def test_an_error_is_one_line_and_the_side_goes_on():
    with Side(ECHO, {"value": 1}) as side:
        with pytest.raises(BenchError, match=r"^tests.bench.sides:Echo: KeyError: 'no\\nsuch thing' \(--debug shows where\)$"):
            side("fail")
        with pytest.raises(BenchError, match=r"AttributeError.*'nothing'"):
            side("nothing")
        with pytest.raises(BenchError, match=r"TypeError.*not JSON serializable"):
            side("unwritable")
        assert side("get") == [1]


@pytest.mark.parametrize(("target", "options", "words"), [
    (ECHO, {"value": 1, "fail": True}, "ValueError: cannot be made"),
    ("tests.bench.sides:Nobody", {}, "AttributeError.*Nobody"),
    ("lm.bench.nowhere:X", {}, "ModuleNotFoundError.*lm.bench.nowhere"),
])
def test_an_object_that_cannot_be_made_is_an_error_of_one_line(target, options, words):
    with pytest.raises(BenchError, match=words) as raised:
        Side(target, options)
    assert "\n" not in str(raised.value)


def test_a_process_that_ends_is_named_with_its_last_words_and_stays_gone():
    with Side(ECHO, {"value": 1}) as side:
        with pytest.raises(BenchError, match=r"Echo ended with exit code 7: last words \(--debug"):
            side("leave", code=7)
        with pytest.raises(BenchError, match="ended with exit code 7"):
            side("get")
    with Side(ECHO, {"value": 1}) as side, pytest.raises(BenchError, match="was ended by SIGKILL"):
        side("die")


def test_a_side_that_does_not_answer_in_time_is_killed():
    with Side(ECHO, {"value": 1}, timeout=5.0) as side:
        side._timeout = 0.2
        start = time.perf_counter()
        with pytest.raises(BenchError, match=r"did not answer within 0.2 seconds"):
            side("hang")
        assert not alive(side.info["pid"]) and time.perf_counter() - start < 3.0


def test_an_error_in_the_block_ends_a_busy_side_at_once(monkeypatch):
    monkeypatch.setattr(worker, "ENDING_SECONDS", 60.0)
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), Side(ECHO, {"value": 1}) as side:
        print('["hang", {}]', file=side._process.stdin, flush=True)
        raise KeyboardInterrupt
    assert not alive(side.info["pid"]) and time.perf_counter() - start < 5.0


def test_debug_shows_what_a_side_prints(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--debug"])
    with Side(ECHO, {"value": 1}) as side, pytest.raises(BenchError):
        side("fail")
    assert "noise on standard output" in (shown := capfd.readouterr().err) and "Traceback" in shown


def test_peak_memory_counts_what_was_held_at_once_and_does_not_shrink():
    with Side(ECHO, {"value": 1}) as side:
        before, held, after = side("hold", size=50_000_000)
    assert before + 48_000_000 < held < before + 60_000_000 and after == held
