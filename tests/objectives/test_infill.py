"""Fill-in-the-middle: rearranged rows give back their text, fit into the row, and keep documents apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lm.data.packing import count_rows, read_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.objectives.causal import batch_of
from lm.objectives.infill import Infill

BYTES = ByteTokenizer()
EOS = BYTES.eos_id


def segments_of(array, segments):
    """The parts [[tokens of a segment] of a row] of an array [B, T]."""
    return [[array[row][segments[row] == number] for number in range(1, segments[row].max(initial=0) + 1)] for row in range(len(array))]


def store_of(seed, count=12, longest=30):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh"), rng.integers(0, longest))) for _ in range(count)]
    return TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], BYTES)


@given(st.integers(4, 50), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_rows_give_back_their_text(objective, length, seed, rate, spm):
    made, store = objective(Infill, length, infill_rate=rate, spm_rate=spm), store_of(seed)
    examples = np.arange(count_rows(store.num_tokens, length) + 1)
    rows = read_rows(store, examples * length, length)
    batch = made.build(rows, examples)
    before, after = segments_of(rows.tokens[:, 1:], rows.segments), segments_of(batch["targets"], batch["segments"])
    for row in range(len(examples)):
        original = np.concatenate([part[part != EOS] for part in before[row]] or [[]]).tolist()
        parts = [made.uninfill(part) for part in after[row]]
        text = np.concatenate(parts or [[]]).tolist()
        assert text == original[: len(text)]  # what is lost is lost at the end
        changed = [part[0] == made.pre for part in after[row]]
        used = int((batch["segments"][row] > 0).sum())
        assert len(original) - len(text) <= 4 * (sum(changed) + 1)
        assert used >= min(length, int((rows.segments[row] > 0).sum())) - 4
        for index, (part, is_changed) in enumerate(zip(after[row], changed, strict=True)):
            if not is_changed:
                assert rate < 1 or len(before[row][index]) == 1
                assert part.tolist() == before[row][index][: len(part)].tolist()
                continue
            assert part[-1] == EOS and rate > 0
            assert [(part == token).sum() for token in (made.pre, made.suf, made.mid, EOS)] == [1] * 4
            # The suffix comes first, or what comes first is no longer than what came before it.
            assert part[1] == made.suf or (spm < 1 and part[1] == before[row][index][0])


@given(st.integers(4, 50), st.integers(0, 1000))
def test_batches_are_causal_over_the_new_order(objective, length, seed):
    made, store = objective(Infill, length), store_of(seed)
    examples = np.arange(count_rows(store.num_tokens, length) + 1)
    rows = read_rows(store, examples * length, length)
    batch = made.build(rows, examples)
    plain = batch_of(rows, BYTES.bos_id)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        key: (value.shape, value.dtype.name) for key, value in plain.items()}
    np.testing.assert_array_equal(batch["tokens"][:, 0], plain["tokens"][:, 0])
    for row in range(len(examples)):
        real = batch["segments"][row] > 0
        assert (np.diff(real.astype(int)) <= 0).all() and batch["weights"][row].tolist() == real.astype(float).tolist()
        for number in range(1, batch["segments"][row].max() + 1):
            inside = batch["segments"][row] == number
            tokens, targets = batch["tokens"][row][inside], batch["targets"][row][inside]
            assert tokens[1:].tolist() == targets[:-1].tolist()
            assert number == 1 or tokens[0] == BYTES.bos_id
            assert batch["positions"][row][inside].tolist() == list(range(inside.sum()))


def test_shares_and_cuts(objective):
    made = objective(Infill, 16, infill_rate=0.3, spm_rate=0.25)
    store = TokenStore.from_documents([(str(i), "abcdefgh") for i in range(2)], BYTES)
    examples = np.arange(6000)
    batch = made.build(read_rows(store, np.zeros(6000, int), 16, stop=9), examples)
    changed = batch["targets"][:, 0] == made.pre
    assert stats.binomtest(int(changed.sum()), 6000, 0.3).pvalue > 1e-3
    spm = batch["targets"][changed, 1] == made.suf
    # An empty prefix looks the same in PSM: of 81 pairs of cuts 17 have one.
    assert stats.binomtest(int(spm.sum()), int(changed.sum()), 0.25 + 0.75 * 17 / 81).pvalue > 1e-3
    middles = []
    for row in batch["targets"][changed][~spm]:
        suf, mid, end = (int(np.flatnonzero(row == token)[0]) for token in (made.suf, made.mid, EOS))
        middles.append((suf - 1) * 9 + suf - 1 + end - mid - 1)
    counts = np.bincount(middles, minlength=81).reshape(9, 9)[1:]
    # Two uniform cuts in order: those that differ come about in two ways.
    expected = np.triu(np.full((9, 9), 2.0) - np.eye(9))[1:]
    assert not counts[expected == 0].any()
    keep = expected > 0
    assert stats.chisquare(counts[keep], expected[keep] / expected.sum() * counts.sum()).pvalue > 1e-3


def test_a_row_does_not_depend_on_its_batch_but_on_example_and_seed(objective, text_store, rows_of):
    made = objective(Infill, 64)
    rows = rows_of(made, text_store, np.arange(20))
    batch = made.build(rows, np.arange(20))
    part = np.array([11, 6, 2])
    some = made.build(type(rows)(*(field[part] for field in rows)), part)
    for key, value in some.items():
        np.testing.assert_array_equal(value, batch[key][part])
    for other in (made.build(rows, np.arange(20) + 1000), objective(Infill, 64, seed=1).build(rows, np.arange(20))):
        assert (other["targets"] != batch["targets"]).any()


@pytest.mark.parametrize("form", ["psm", "spm"])
def test_prompts_are_what_stands_before_the_middle_in_training(objective, form):
    made = objective(Infill, 32, infill_rate=1.0, spm_rate=float(form == "spm"))
    store = TokenStore.from_documents([("a", "abcdefghij")], BYTES)
    for example in range(20):
        batch = made.build(read_rows(store, np.array([0]), 32), np.array([example]))
        row = batch["targets"][0][batch["segments"][0] > 0]
        suf, mid = (int(np.flatnonzero(row == token)[0]) for token in (made.suf, made.mid))
        suffix = row[suf + 1 : mid]
        text = np.frombuffer(b"abcdefghij", np.uint8)
        assert made.uninfill(row).tolist() == text.tolist()
        for first in range(len(text) - len(suffix) + 1):
            prompt = made.prompt(text[:first], suffix, form)
            if form == "psm" and first != suf - 1:
                continue
            assert row[: len(prompt)].tolist() == prompt.tolist()
            middle = row[len(prompt) : -1]
            assert [*text[:first], *middle, *suffix] == text.tolist()
