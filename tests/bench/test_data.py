"""What the benchmark of data makes of its sides' seconds, by hand; and what the sides measure, once for real on a few documents."""

import time

import pytest

from lm.bench import data, ours_data
from lm.bench.shapes import shape_of


def test_speeds_are_of_medians_and_the_speedup_is_over_one_process():
    turns = [{"seconds": seconds, "tokens": 600, "bytes": 3_000_000} for seconds in (2.0, 1.0, 3.0)]
    assert data._text("prepare x8", turns, alone=150.0) == {
        "what": "prepare x8", "tokens_per_s": 300.0, "megabytes_per_s": 1.5, "ms": 2000.0, "low_ms": 1500.0, "high_ms": 2500.0,
        "speedup": 2.0}


def test_a_batch_is_set_against_a_step_and_waiting_against_all_steps():
    load = [{"seconds": 0.2, "count": 10}, {"seconds": 0.4, "count": 10}]
    steps = [{"seconds": 4.0, "waited": 0.1, "each": [1.0, 3.0]}, {"seconds": 2.0, "waited": 0.2, "each": [2.0]}]
    batch, step = data.feed_rows(60, load, steps)
    assert (batch["tokens_per_s"], batch["ms"], batch["share_of_step"]) == pytest.approx((2000.0, 30.0, 0.015))
    assert (step["tokens_per_s"], step["ms"], step["waited"]) == pytest.approx((30.0, 2000.0, 0.05))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def preparing(folder):
    return ours_data.Preparation(list(shape_of("tiny")), str(folder), tiny=True)


def test_each_preparation_makes_the_store_anew_of_all_copies(preparing, folder):
    alone, once, twice = preparing.encode(), preparing.prepare(1), preparing.prepare(2)
    documents = preparing.info["documents"]
    assert (documents, alone["bytes"], once["bytes"], twice["bytes"]) == (8, *[preparing.info["bytes"] * copies for copies in (1, 1, 2)])
    assert once["tokens"] == alone["tokens"] + documents and twice["tokens"] == 2 * once["tokens"]
    (manifest,) = folder.glob("cache/stores/*/manifest.json")
    before = manifest.stat().st_mtime_ns
    preparing.prepare(2)
    assert manifest.stat().st_mtime_ns > before


def test_the_step_waits_for_a_slow_loader_and_its_first_batch_is_not_counted(preparing, folder):
    shape = shape_of("tiny", layers=1, context=16, batch=8)
    side = ours_data.Feeding(list(shape), str(folder))
    found = side.load(3)
    assert found["count"] == 3 and found["seconds"] > 0 and side._at == 4
    fast = side.steps(3)
    assert len(fast["each"]) == 3 and fast["seconds"] == pytest.approx(sum(fast["each"])) and side._at == 9
    assert fast["waited"] < fast["seconds"]
    batch = side._job.data.batch

    class Slow:
        """Batches that take 50 ms, and the first one half a second."""

        shape = staticmethod(side._job.data.shape)

        def batch(self, index, *arguments):
            time.sleep(0.5 if index == 9 else 0.05)
            return batch(index, *arguments)

    side._job.data = Slow()
    slow = side.steps(3)
    assert 0.1 < slow["waited"] <= slow["seconds"] < 0.5
