"""The numbers that the benchmark of training makes of what its sides measured, by hand; and that sides train the same model."""

from typing import ClassVar

import pytest

from lm.bench import train
from lm.bench.command import options_of
from lm.bench.shapes import Shape
from lm.errors import BenchError

SHAPE = Shape("gpt2", 2, 64, 50, 2, 256)  # 100 tokens a step
FIRST = {"seconds": 2.0, "loss": 5.0, "parameters": 1000}


def row(name, seconds, first=FIRST, memory=10**9):
    return train.row(name, SHAPE, seconds, flops=6e9, peaks=[20e9, 30e9], first=first, memory=memory)


def test_a_row_has_speed_spread_and_mfu_of_the_run_and_of_the_round():
    found = row("ours", [[0.5, 0.5, 0.5], [0.4, 0.4]])
    assert found == {
        "side": "ours", "tokens_per_s": 200.0, "step_ms": 500.0, "low_ms": 400.0, "high_ms": 500.0,
        "mfu": pytest.approx(6e9 / 0.5 / 30e9), "mfu_of_round": pytest.approx((0.6 + 0.5) / 2),
        "first_step_s": 2.0, "peak_memory_gb": 1.0, "parameters": 1000, "loss": 5.0}


def test_the_peer_is_its_faster_setting_and_ratios_above_1_say_that_ours_is_better():
    seconds = {"ours": [[0.5], [0.5]], "torch eager": [[0.6], [0.8]], "torch compiled": [[1.0], [1.0]]}
    rows = [row("ours", seconds["ours"]), row("torch eager", seconds["torch eager"], {**FIRST, "seconds": 1.0}, 5 * 10**8),
            row("torch compiled", seconds["torch compiled"], {**FIRST, "seconds": 50.0}, 2 * 10**9)]
    found = train.compare("torch", rows, seconds)
    assert (found["against"], found["setting"], found["unit"]) == ("torch", "torch eager", "tokens/s")
    assert (found["ours"], found["peer"], found["ratio"]) == (200.0, pytest.approx(100 / 0.7), pytest.approx(1.4))
    assert found["ratios"]["torch eager"] == pytest.approx(
        {"speed": 1.4, "speed_low": 1.2, "speed_high": 1.6, "first_step": 0.5, "memory": 0.5})
    assert found["ratios"]["torch compiled"] == pytest.approx(
        {"speed": 2.0, "speed_low": 2.0, "speed_high": 2.0, "first_step": 25.0, "memory": 2.0})


@pytest.mark.parametrize(("info", "change", "words"), [
    ({}, {}, None),
    ({"extra_parameters": 8}, {"parameters": 1008}, None),
    ({}, {"loss": 5.1}, None),
    ({}, {"parameters": 1008}, "peer has 1,008 parameters and ours 1,000"),
    ({"extra_parameters": 8}, {}, "peer has 992 parameters"),
    ({}, {"loss": 5.2}, r"the first loss of peer is 5\.2000 and ours 5\.0000"),
    ({}, {"loss": float("nan")}, "first loss of peer is nan"),
])
def test_sides_must_train_the_same_model(info, change, words):
    infos, firsts = {"ours": {"flops": 1.0}, "peer": info}, {"ours": FIRST, "peer": FIRST | change}
    if words is None:
        train.check_same(infos, firsts)
        return
    with pytest.raises(BenchError, match=words):
        train.check_same(infos, firsts)


class FakeSide:
    """A side whose steps take 1 s when it is ours, 3 s eager and 2 s compiled; `log` has who was asked what."""

    log: ClassVar[list] = []

    def __init__(self, target, options, environment=None):
        self.kind = "products" if "sizes" in options else "ours" if "compiled" not in options else "c" if options["compiled"] else "e"
        self.plain = (environment or {}).get("GLIBC_TUNABLES") == ""
        self.info = {"flops": 30e9} if self.kind == "ours" else {}
        self.log.append(("start", self.kind, *(["plain"] if self.plain else [])))

    def __call__(self, method, count=1):
        self.log.append((method, self.kind))
        return {"first": FIRST, "steps": [{"ours": 1.0, "e": 3.0, "c": 2.0}.get(self.kind)] * count,
                "memory": 10**9 if self.plain else 2 * 10**9, "turn": [{"type": "float32", "size": 1024, "flops": 50e9}]}[method]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_every_side_and_the_products_take_turns_and_peers_may_have_the_allocator_that_needs_less(monkeypatch):
    monkeypatch.setattr(train, "Side", FakeSide)
    monkeypatch.setattr(train.matmul, "Side", FakeSide)
    monkeypatch.setattr(FakeSide, "log", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # PyTorch need not be here
    result = train.run(options_of("M", against="torch", rounds=2, seconds=6.0))
    assert {name: [len(turn) for turn in turns] for name, turns in result["step_seconds"].items()} == {
        "ours": [6, 6], "torch eager": [2, 2], "torch compiled": [3, 3]}
    start = FakeSide.log.index(("turn", "products")) - 3
    assert [kind for _, kind in FakeSide.log[start:start + 10]] == ["ours", "e", "c", *["products"] * 4, "c", "e", "ours"]
    assert [row["peak_memory_gb"] for row in result["rows"]] == [2.0, 1.0, 1.0]
    assert (result["peak_flops"], result["rows"][0]["mfu"], result["rows"][2]["mfu"]) == (50e9, 0.6, 0.3)
    assert (result["setting"], result["ratio"], result["ratios"]["torch eager"]["speed"]) == ("torch compiled", 2.0, 3.0)
