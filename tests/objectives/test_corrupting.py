"""What the corrupting objectives share: their training data, by epochs and parts, and random numbers made of uniform ones."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.objectives.corrupting import integers, ranks
from lm.objectives.denoisers import Denoisers
from lm.objectives.masked import Masked
from lm.objectives.replaced import Replaced
from lm.objectives.span import Span

KINDS = {"masked": (Masked, {}), "pairs": (Masked, {"sentences": "next"}), "replaced": (Replaced, {}), "span": (Span, {}),
         "span_decoder": (Span, {"form": "decoder"}), "denoisers": (Denoisers, {})}


@pytest.fixture
def prepared(text_store):
    """Two stores, the second one small."""
    small = TokenStore.from_documents([(str(i), "xyz " * 30) for i in range(8)], ByteTokenizer())
    return types.SimpleNamespace(split_stores=lambda split: {"train": [text_store, small]}[split], weights=np.array([0.75, 0.25]))


def data_of(made, prepared):
    return made.data(prepared, types.SimpleNamespace(data=types.SimpleNamespace(global_batch=6), seed=made.seed))


@pytest.mark.parametrize("name", KINDS)
def test_batches_are_functions_of_step_and_place(objective, prepared, name):
    kind, options = KINDS[name]
    made = objective(kind, 48, **options)
    data = data_of(made, prepared)
    assert data.context == made.raw and data.shape(5) == (6, made.width)
    batch = data.batch(7, made.build)
    assert batch["weights"].shape == data.shape(7)
    for part in (np.array([1]), np.array([0, 3, 4]), slice(2, 5)):
        for key, value in data.batch(7, made.build, part).items():
            np.testing.assert_array_equal(value, batch[key][part])
    examples = np.arange(6) + 7 * 6
    sources, rows = data.order.locate(examples)
    stores = prepared.split_stores("train")
    for place in range(6):
        found = made.build(made.read(stores[sources[place]], rows[[place]], examples[[place]]), examples[[place]])
        for key, value in found.items():
            np.testing.assert_array_equal(value[0], batch[key][place])
    assert data.documents(7)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_corrupted_anew_in_every_epoch(objective, text_store, name):
    kind, options = KINDS[name]
    made = objective(kind, 48, **options)
    one = types.SimpleNamespace(split_stores=lambda split: [text_store], weights=np.ones(1))
    data = data_of(made, one)
    rows = data.order.sizes[0]
    _, order = data.order.locate(np.arange(3 * rows))
    first, *later = np.flatnonzero(order == order[0])
    assert len(later) == 2
    batches = [data.batch(example // 6, made.build, np.array([example % 6])) for example in (first, *later)]
    drawn = "masked" if name == "replaced" else "source_tokens" if "source_tokens" in batches[0] else "tokens"
    assert any((batch[drawn] != batches[0][drawn]).any() for batch in batches[1:])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_ranks_are_places_in_the_sorted_row(values):
    row = np.array([values, values[::-1]])
    for i in range(2):
        np.testing.assert_array_equal(np.sort(row[i], kind="stable")[ranks(row)[i]], row[i])
        assert sorted(ranks(row)[i]) == list(range(len(values)))


def test_integers_stay_below_their_count():
    count = np.array([1, 2, 3, 1000])
    np.testing.assert_array_equal(integers(np.full(4, 1 - 2**-53), count), count - 1)
    np.testing.assert_array_equal(integers(np.zeros(4), count), 0)
