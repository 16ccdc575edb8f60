"""The machine's limits: the best product over sizes, rounds and whoever makes it."""

import pytest

from lm.bench import limits, matmul


def test_the_peak_is_the_best_of_a_type_whoever_reaches_it():
    def turn(*speeds):
        cases = [("float32", 64), ("float32", 128), ("bfloat16", 64)]
        return [{"type": kind, "size": size, "flops": speed * 1e9} for (kind, size), speed in zip(cases, speeds, strict=True)]

    rows = matmul.summary({"jax": [turn(10, 20, 5), turn(30, 10, 7)], "torch": [turn(1, 25, 50), turn(1, 35, 40)]})
    assert rows[0] == {"what": "jax float32", "size": 64, "gflops": 30.0, "gflops_median": 20.0}
    assert [row["gflops"] for row in rows] == [30, 20, 7, 1, 35, 50]
    assert matmul.peak_of(rows, "float32") == 35e9 and matmul.peak_of(rows, "bfloat16") == 50e9
    assert matmul.peak_of(rows[:3], "bfloat16") == 7e9


def half_a_second(call):
    call()
    return 0.5


def test_a_turn_counts_two_flops_for_each_multiply_and_add(monkeypatch):
    monkeypatch.setattr(limits, "best_seconds", half_a_second)
    assert limits.Products([16], ["float32", "bfloat16"]).turn() == [
        {"type": kind, "size": 16, "flops": 2 * 16**3 / 0.5} for kind in ("float32", "bfloat16")]


def test_bandwidth_counts_each_byte_read_and_each_byte_written(monkeypatch):
    memory = limits.Bandwidth(size=4096)
    monkeypatch.setattr(limits, "best_seconds", half_a_second)
    assert memory.turn() == pytest.approx({"read": 8192, "copy": 16384})
    memory._from[0][:] = 3.0
    memory.turn()
    assert sum(part.size for part in memory._to) == 1024 and memory._to[0][0] == 3.0 and memory._to[-1][-1] == 1.0
