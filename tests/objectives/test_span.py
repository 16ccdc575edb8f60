"""Span corruption and its mixture: batches of both forms hold every token of their rows once, whatever the batch."""

import numpy as np
import pytest
from scipy import stats

from lm.data.packing import count_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.objectives import spans
from lm.objectives.denoisers import TABLE, Denoisers
from lm.objectives.span import Span

BYTES = ByteTokenizer()
KINDS = pytest.mark.parametrize("kind", [Span, Denoisers])
FORMS = pytest.mark.parametrize("form", ["encoder_decoder", "decoder"])


def parts_of(made, batch, row):
    """(inputs, targets) of a row without padding, bos and mode token; checks the shift by one and where the weights are."""
    real = batch["segments"][row] == 1
    tokens, targets, weights = (batch[key][row][real] for key in ("tokens", "targets", "weights"))
    assert tokens[0] == BYTES.bos_id and tokens[1:].tolist() == targets[:-1].tolist()
    assert batch["positions"][row][real].tolist() == list(range(real.sum()))
    for key in ("tokens", "targets", "weights", "segments", "positions"):
        assert not batch[key][row][~real].any()
    if made.decoder:
        end = int((weights == 0).sum())
        assert weights.tolist() == [0] * end + [1] * (len(weights) - end)
        # What is predicted is not in the prefix, but for the last token of it, which predicts the first.
        assert batch["prefix"][row].tolist() == [1] * (end + 1) + [0] * (made.width - end - 1)
        inputs, targets = targets[:end], targets[end:]
    else:
        assert weights.all()
        there = batch["source_segments"][row] == 1
        inputs = batch["source_tokens"][row][there]
        assert batch["source_positions"][row][there].tolist() == list(range(there.sum()))
        assert not batch["source_tokens"][row][~there].any() and (np.diff(there.astype(int)) <= 0).all()
    assert inputs[-1] == targets[-1] == BYTES.eos_id
    return inputs[1 if made.modes else 0 :], targets


@KINDS
@FORMS
@pytest.mark.parametrize("context", [24, 64, 192])
def test_rows_hold_the_text_and_fit(objective, text_store, rows_of, kind, form, context):
    made = objective(kind, context, form=form)
    examples = np.arange(count_rows(text_store.num_tokens, made.raw))[-60:]
    rows = rows_of(made, text_store, examples)
    batch = made.build(rows, examples)
    shapes = {"tokens", "targets", "weights", "segments", "positions"} | ({"prefix"} if form == "decoder" else set())
    expected = {key: ((60, made.width), "float32" if key == "weights" else "int32") for key in shapes}
    if form == "encoder_decoder":
        expected |= {f"source_{key}": ((60, context), "int32") for key in ("tokens", "segments", "positions")}
        assert made.width % 8 == 0
    else:
        assert made.width == context
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == expected
    for row in range(60):
        inputs, targets = parts_of(made, batch, row)
        text = rows.tokens[row, 1:][rows.segments[row] > 0]
        assert spans.invert(inputs, targets, made.sentinel, 100).tolist() == text.tolist()


@FORMS
def test_the_longest_rows_fill_the_context(objective, form):
    made = objective(Span, 64, form=form)
    assert made.raw == (70 if form == "encoder_decoder" else 56)
    store = TokenStore.from_documents([("a", "a" * 500)], BYTES)
    batch = made.build(made.read(store, np.array([1]), np.array([1])), np.array([1]))
    key = "source_segments" if form == "encoder_decoder" else "segments"
    assert batch[key].sum() == 64


@KINDS
def test_a_row_does_not_depend_on_its_batch_but_on_example_and_seed(objective, text_store, rows_of, kind):
    made = objective(kind, 64)
    rows = rows_of(made, text_store, np.arange(12))
    batch = made.build(rows, np.arange(12))
    part = np.array([9, 4])
    some = made.build(type(rows)(*(field[part] for field in rows)), part)
    for key, value in some.items():
        np.testing.assert_array_equal(value, batch[key][part])
    for other in (made.build(rows, np.arange(12) + 1000), objective(kind, 64, seed=1).build(rows, np.arange(12))):
        assert (other["targets"] != batch["targets"]).any(axis=1).mean() > 0.5  # one span in a row is always its end


def test_rows_beyond_the_store_are_padding(objective):
    store = TokenStore.from_documents([("a", "a" * 100)], BYTES)
    for form in ("encoder_decoder", "decoder"):
        made = objective(Denoisers, 32, form=form)
        beyond = np.array([count_rows(store.num_tokens, made.raw) + 1])
        batch = made.build(made.read(store, beyond, beyond), beyond)
        assert not any(value.any() for value in batch.values())


def test_denoisers_are_drawn_by_their_rates_and_named_by_their_modes(objective):
    rates = (0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1)
    made = objective(Denoisers, 64, denoiser_rates=rates)
    which = made.which(np.arange(5000))
    assert stats.chisquare(np.bincount(which, minlength=7), 5000 * np.array(rates)).pvalue > 1e-3
    store = TokenStore.from_documents([("a", "ab" * 4000)], BYTES)
    examples = np.arange(60)
    rows = made.read(store, examples, examples)
    batch = made.build(rows, examples)
    modes = np.array([denoiser.mode for denoiser in TABLE])[made.which(examples)]
    np.testing.assert_array_equal(batch["source_tokens"][:, 0], BYTES.vocab_size + 100 + modes)
    for row, denoiser in enumerate(np.array(TABLE, dtype=object)[made.which(examples)]):
        density, mean = denoiser[:2]
        sentinel = (batch["targets"][row] >= made.sentinel).sum()
        noise = int(batch["weights"][row].sum()) - sentinel - 1
        if mean:
            assert (noise, sentinel) == tuple(int(n) for n in spans.counts(made.raw, density, mean))
        else:
            assert sentinel == 1 and batch["source_tokens"][row][batch["source_segments"][row] == 1][-2] == made.sentinel
    only = objective(Denoisers, 64, denoiser_rates=(0, 0, 1, 0, 0, 0, 0))
    assert set(only.which(np.arange(50)).tolist()) == {0} and only.denoisers[0].mode == 1


def test_prompts_begin_with_their_mode(objective):
    made = objective(Denoisers, 64)
    assert [made.prompt(mode, np.array([5, 6])).tolist() for mode in "RSX"] == [[BYTES.vocab_size + 100 + i, 5, 6] for i in range(3)]
    assert made.vocab_size == BYTES.vocab_size + 103 and objective(Span, 64).vocab_size == BYTES.vocab_size + 100


@pytest.mark.parametrize(("kind", "context", "options", "named"), [
    (Span, 2, {}, "data.context=2"), (Span, 512, {"sentinels": 27}, "objective.sentinels=27: raise it to 28"),
    (Denoisers, 64, {"denoiser_rates": (1.0, 2.0)}, "objective.denoiser_rates"),
    (Denoisers, 64, {"denoiser_rates": (0.0,) * 7}, "objective.denoiser_rates")])
def test_bad_options_are_named(objective, kind, context, options, named):
    with pytest.raises(ConfigError, match=named):
        objective(kind, context, **options)
