"""Training data is a pure function of the step, whoever reads which part; the feed keeps its order and hides nothing."""

import threading
import time

import numpy as np
import pytest

from lm.data.feed import Feed, TrainingData, local_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.errors import DataError
from lm.objectives import causal
from lm.parallel import AXES, batch_sharding, make_mesh

BOS = ByteTokenizer.bos_id
def build(rows, examples):
    """The causal batch of some rows."""
    return causal.batch_of(rows, BOS)


def store_of(letter, count):
    """`count` documents of different lengths, each with its own text."""
    return TokenStore.from_documents([(f"{letter}{i}", f"{letter}{i}." * (1 + i % 4)) for i in range(count)], ByteTokenizer())


@pytest.fixture(params=[("a",), ("a", "b")], ids=["one source", "two sources"])
def data(request):
    """Training data of 8 rows of 16 tokens."""
    weights = (0.7, 0.3)[: len(request.param)]
    return TrainingData([store_of(letter, 40) for letter in request.param], weights, 16, 8, seed=3)


def same(a, b):
    """Whether two batches are equal to the bit."""
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and (a[key] == b[key]).all() for key in a)


def test_a_batch_depends_on_its_step_alone(data):
    forward = [data.batch(step, build) for step in range(30)]
    again = {step: data.batch(step, build) for step in (29, 3, 3, 17, 0)}
    assert all(same(forward[step], batch) for step, batch in again.items())
    assert not same(forward[0], forward[1])
    assert {key: value.shape for key, value in forward[0].items()} == dict.fromkeys(
        ("tokens", "targets", "weights", "segments", "positions"), (8, 16))


def test_another_seed_gives_another_batch(data):
    other = TrainingData(data.stores, data.weights, 16, 8, seed=4)
    assert not same(data.batch(0, build), other.batch(0, build))


class OneProcess:
    """The batch sharding of a mesh as one of several processes sees it, which has every `count`-th part of the devices."""

    def __init__(self, mesh, index, count):
        sharding, devices = batch_sharding(mesh), list(mesh.devices.flat)
        mine = devices[index * len(devices) // count:(index + 1) * len(devices) // count]
        everywhere = sharding.devices_indices_map((8, 16))
        self.indices = {device: everywhere[device] for device in mine}

    def addressable_devices_indices_map(self, shape):
        assert shape == (8, 16)
        return self.indices


@pytest.mark.parametrize(("sizes", "count", "rows"), [
    ({"replica": 8}, 4, 2), ({"replica": 2, "fsdp": 4}, 2, 4), ({"fsdp": 2, "context": 4}, 2, 4), ({"context": 8}, 4, 8),
    ({"replica": 2, "tensor": 4}, 4, 4), ({"replica": 4, "stage": 2}, 8, 2),
])
def test_processes_make_the_rows_that_their_devices_hold(data, sizes, count, rows):
    mesh = make_mesh(dict.fromkeys(AXES, 1) | sizes)
    whole = data.batch(5, build)
    for index in range(count):
        mine = OneProcess(mesh, index, count)
        made = local_rows(mine, (8, 16))
        assert len(made) == rows
        assert same(data.batch(5, build, made), {key: value[made] for key, value in whole.items()})
        for part, *_ in mine.indices.values():
            assert set(range(8)[part]) <= set(made.tolist())


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "context": 4}, {"replica": 2, "tensor": 4}, {"replica": 4, "stage": 2}])
def test_a_feed_lays_out_the_batch_of_any_mesh(data, sizes):
    mesh = make_mesh(dict.fromkeys(AXES, 1) | sizes)
    feed = Feed(lambda step, rows: data.batch(step, build, rows), 3, 5, batch_sharding(mesh), data.shape, 2)
    for step, batch in feed:
        assert same({key: np.asarray(value) for key, value in batch.items()}, data.batch(step, build))
        assert batch["tokens"].sharding == batch_sharding(mesh)


def test_an_epoch_of_one_source_trains_on_every_token_once():
    data = TrainingData([store_of("a", 40)], (1.0,), 16, 4, seed=0)
    rows = data.order.sizes[0]
    assert data.steps_per_epoch == rows / 4
    batches = [data.batch(step, build) for step in range(-(-rows // 4))]
    targets = np.concatenate([batch["targets"] for batch in batches])[:rows]
    weights = np.concatenate([batch["weights"] for batch in batches])[:rows]
    store = data.stores[0]
    assert weights.sum() == store.num_tokens
    assert sorted(targets[weights > 0]) == sorted(store.read(0, store.num_tokens))


def test_documents_are_those_whose_tokens_are_in_the_batch():
    for letters, weights in ((("a",), (1.0,)), (("a", "b"), (0.7, 0.3))):
        stores = [store_of(letter, 40) for letter in letters]
        data = TrainingData(stores, weights, 16, 8, seed=3)
        for step in range(3):
            wanted = []
            for source, row in zip(*data.order.locate(np.arange(8) + 8 * step), strict=True):
                store = stores[source]
                for document in range(store.num_documents):
                    if store.offsets[document] < (row + 1) * 16 and store.offsets[document + 1] > row * 16:
                        wanted.append(store.document_id(document))
            assert data.documents(step) == list(dict.fromkeys(wanted))


def test_text_shorter_than_a_row_is_refused():
    store = store_of("a", 2)
    TrainingData([store], (1.0,), store.num_tokens, 1, 0)
    with pytest.raises(DataError, match=r"fewer than the \d+ of one row: use more text or a smaller data.context"):
        TrainingData([store], (1.0,), store.num_tokens + 1, 1, 0)


def feed_of(make, first=0, last=5, depth=2):
    """A feed of batches of 8 rows over 8 devices."""
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1})
    return Feed(lambda step, rows: make(step), first, last, batch_sharding(mesh), lambda step: (8, 2), depth)


def numbered(step):
    """A batch that knows its step."""
    return {"tokens": np.full((8, 2), step, np.int32)}


def until(holds):
    """Waits a few seconds at most for what another thread does."""
    stop = time.perf_counter() + 5
    while not holds() and time.perf_counter() < stop:
        time.sleep(0.01)


def closes(feed):
    """Whether the feed's thread ends soon."""
    feed.close()
    return not feed._thread.is_alive()


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_feed_gives_every_step_once_in_order_on_the_devices(depth):
    feed = feed_of(numbered, 3, 9, depth)
    got = list(feed)
    assert [step for step, _ in got] == [3, 4, 5, 6, 7, 8]
    for step, batch in got:
        assert (np.asarray(batch["tokens"]) == step).all()
        assert len(batch["tokens"].sharding.device_set) == 8 and batch["tokens"].addressable_shards[0].data.shape == (1, 2)
    assert closes(feed)


def test_feed_makes_at_most_its_depth_and_one_ahead():
    made = []
    feed = feed_of(lambda step: made.append(step) or numbered(step), 0, 100, depth=2)
    until(lambda: len(made) >= 3)
    time.sleep(0.2)
    assert made == [0, 1, 2]  # two in the queue, one in the hand
    assert closes(feed)


def test_feed_raises_the_makers_error_in_the_consumer_at_its_step():
    def make(step):
        if step == 2:
            raise DataError("the disk is gone")
        return numbered(step)

    feed, seen = feed_of(make), []
    with pytest.raises(DataError, match="the disk is gone"):
        for step, _ in feed:
            seen.append(step)
    assert seen == [0, 1] and closes(feed)


def test_feed_closes_early_without_hanging():
    feed = feed_of(numbered, 0, 10**9, depth=1)
    assert next(iter(feed))[0] == 0
    start = time.perf_counter()
    assert closes(feed) and time.perf_counter() - start < 2
    assert closes(feed_of(numbered, 0, 10**9)), "a feed that nobody reads"
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_waiting_for_a_slow_maker_is_counted_and_for_a_fast_one_it_is_not():
    def slowly(step):
        time.sleep(0.1)
        return numbered(step)

    slow = feed_of(slowly, 0, 4)
    list(slow)
    assert 0.25 < slow.waited < 2
    fast = feed_of(numbered, 0, 2)
    until(fast._queue.full)
    list(fast)
    assert fast.waited < 0.05
