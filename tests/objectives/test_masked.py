"""The masked objective: rows, what is hidden of them, its loss against a dense oracle, and pseudo-likelihoods."""

import jax
import numpy as np
import pytest
from scipy import stats

from lm import config, models
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.data.wordstarts import WordStarts
from lm.errors import ConfigError
from lm.models import encoder
from lm.objectives.masked import Masked, chunk_within, gathered
from lm.parallel import Layout

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def model():
    """(an encoder of 32 positions with all heads, its parameters): deviations large enough for uneven predictions."""
    section = config.default().model
    section.update(name="encoder", layers=1, width=16, heads=2, next_sentence=True, token_types=2, positions="learned")
    built = encoder.build(section, models.Sizes(BYTES.vocab_size + 3, 32), Layout())
    rng = np.random.default_rng(0)
    fill = lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32)  # noqa: E731
    return built, jax.tree.map(fill, jax.eval_shape(built.init, jax.random.key(0)))


def test_rows_are_cls_and_the_text_of_documents_apart(objective, text_store, rows_of):
    masked = objective(Masked, 64)
    rows = rows_of(masked, text_store, np.arange(8))
    batch = masked.build(rows, np.arange(8))
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        key: ((8, 64), "float32" if key == "weights" else "int32") for key in
        ("tokens", "targets", "weights", "segments", "positions", "types")}
    stream = text_store.read(0, 8 * 63).reshape(8, 63)
    np.testing.assert_array_equal(batch["targets"], np.concatenate([np.full((8, 1), masked.cls), stream], axis=1))
    assert batch["segments"][:, 0].tolist() == [1] * 8 and not batch["types"].any()
    for row in range(8):
        for number in range(1, batch["segments"][row].max() + 1):
            inside = batch["segments"][row] == number
            assert batch["positions"][row][inside].tolist() == list(range(inside.sum()))
            assert (batch["targets"][row][inside][:-1] != BYTES.eos_id).all()


def test_only_text_is_hidden_and_nothing_else_changes(objective, text_store, rows_of):
    for sentences in ("none", "next"):
        masked = objective(Masked, 64, sentences=sentences)
        batch = masked.build(rows_of(masked, text_store, np.arange(100)), np.arange(100))
        hidden = batch["weights"] == 1
        assert (batch["tokens"] == batch["targets"])[~hidden].all() and not batch["weights"][~hidden].any()
        assert (batch["targets"][hidden] < 256).all() and (batch["segments"][hidden] > 0).all()
        text = (batch["segments"] > 0) & (batch["targets"] < 256)
        np.testing.assert_array_equal(hidden.sum(axis=1), np.maximum(1, np.rint(0.15 * text.sum(axis=1))))


def test_shares_of_masks_and_random_tokens_over_many_rows(objective, text_store, rows_of):
    masked = objective(Masked, 64, seed=3)
    examples = np.arange(1500)  # several epochs of the store's rows
    rows = rows_of(masked, text_store, examples % (text_store.num_tokens // 63))
    batch = masked.build(rows, examples)
    hidden = batch["weights"] == 1
    seen, target = batch["tokens"][hidden], batch["targets"][hidden]
    total = len(seen)
    assert stats.binomtest(int((seen == masked.mask).sum()), total, 0.8).pvalue > 1e-3
    assert stats.binomtest(int((seen == target).sum()), total, 0.1 + 0.1 / 256).pvalue > 1e-3
    random = seen[(seen != masked.mask) & (seen != target)]
    assert random.max() < 256 and stats.chisquare(np.bincount(random // 32, minlength=8)).pvalue > 1e-3


class Marked(ByteTokenizer):
    """Bytes as a masked model's tokenizer has them: with a mask, beside what begins and ends a document."""

    vocab_size, special_tokens, _pieces = 260, {"[MASK]": 259}, [*ByteTokenizer._pieces, b""]


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_tokenizer_with_marks_of_its_own_lends_them(objective, text_store, rows_of, whole_words):
    made = objective(Masked, tokenizer=Marked(), whole_words=whole_words)
    assert (made.vocab_size, made.mask, made.cls, made.sep) == (260, 259, ByteTokenizer.bos_id, ByteTokenizer.eos_id)
    examples = np.arange(20)
    batch, plain = (one.build(rows_of(one, text_store, examples), examples) for one in (made, objective(Masked, whole_words=whole_words)))
    assert (batch["tokens"][:, 0] == ByteTokenizer.bos_id).all()
    np.testing.assert_array_equal(batch["tokens"] == 259, plain["tokens"] == 259)  # the first id after those of bytes is <mask> there
    np.testing.assert_array_equal(batch["targets"][:, 1:], plain["targets"][:, 1:])
    drawn = np.random.default_rng(0).choice(made.others, 10_000)
    assert not {256, 257, 258, 259} & set(drawn.tolist())


def test_what_is_hidden_depends_on_seed_and_example_alone(objective, text_store, rows_of):
    masked = objective(Masked, 64)
    examples = np.array([5, 900, 3])
    rows = rows_of(masked, text_store, np.array([5, 4, 3]))
    batch = masked.build(rows, examples)
    for i, example in enumerate(examples):
        one = masked.build(type(rows)(*(field[i : i + 1] for field in rows)), np.array([example]))
        for key, value in one.items():
            np.testing.assert_array_equal(value[0], batch[key][i])
    for other in (masked.build(rows, examples + 100), objective(Masked, 64, seed=1).build(rows, examples)):
        assert (other["weights"] != batch["weights"]).any(axis=1).all()
        np.testing.assert_array_equal(other["targets"], batch["targets"])


def test_whole_words_are_hidden_together(objective, text_store, rows_of):
    masked = objective(Masked, 64, whole_words=True)
    batch = masked.build(rows_of(masked, text_store, np.arange(100)), np.arange(100))
    starts = WordStarts([*BYTES.pieces(), b"", b"", b""])(batch["targets"])
    words = np.cumsum(starts, axis=1)
    for row in range(100):
        hidden = batch["weights"][row] == 1
        touched = np.isin(words[row], words[row][hidden]) & (batch["segments"][row] > 0)
        np.testing.assert_array_equal(hidden, touched)
    assert batch["weights"].sum() > 0.9 * 100 * 9


@pytest.mark.parametrize(("sentences", "chunk"), [("none", 0), ("next", 8)])
def test_loss_is_that_of_all_logits(model, objective, text_store, rows_of, sentences, chunk):
    built, params = model
    masked = objective(Masked, 32, sentences=sentences)
    last = text_store.num_tokens // masked.raw  # a partly filled row
    batch = masked.build(rows_of(masked, text_store, np.array([0, 1, 2, 7, last])), np.array([0, 1, 2, 7, last]))
    logits = np.asarray(jax.jit(built.apply)(params, batch), np.float64) @ np.asarray(built.unembedding(params), np.float64)
    normaliser = np.log(np.exp(logits).sum(-1))
    nats = normaliser - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    weights = batch["weights"].astype(np.float64)
    expected = np.sum(weights * (nats + 0.01 * normaliser**2))
    if sentences == "next":
        pair = np.asarray(jax.jit(built.next_sentence_logits)(params, batch), np.float64)
        pair_nats = np.log(np.exp(pair).sum(-1)) - pair[np.arange(5), np.maximum(batch["next"][:, 0], 0)]
        expected += np.sum(weights.sum(axis=1) * pair_nats * (batch["next"][:, 0] >= 0))
        assert len(np.unique(weights.sum(axis=1))) > 1 and set(batch["next"][:4, 0]) == {0, 1}
    both = jax.jit(lambda p, b: (masked.loss(built, p, b, z_loss=0.01, chunk=chunk), masked.scores(built, p, b, chunk)))
    (total, reported), scores = both(params, batch)
    np.testing.assert_allclose(total, expected, rtol=2e-6)
    np.testing.assert_allclose(reported, np.sum(weights * nats), rtol=2e-6)
    np.testing.assert_allclose(scores["nats"], weights * nats, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores["correct"], (logits.argmax(-1) == batch["targets"]) & (weights > 0))
    if sentences == "next":
        np.testing.assert_array_equal(scores["next_correct"][:, 0], pair.argmax(-1) == batch["next"][:, 0])


def test_gradients_are_those_without_gathering(model, objective, text_store, rows_of, monkeypatch):
    built, params = model
    masked = objective(Masked, 32)
    batch = masked.build(rows_of(masked, text_store, np.arange(3)), np.arange(3))
    grads = []
    for most in (masked.most, 32):
        monkeypatch.setattr(masked, "most", most)
        grads.append(jax.jit(jax.grad(lambda p: masked.loss(built, p, batch)[0]))(params))
    assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(grads[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *grads)


def test_gathering_leaves_out_nothing_that_counts():
    rng = np.random.default_rng(0)
    weights = (rng.random((4, 30)) < 0.2).astype(np.float32)
    hidden, targets = rng.normal(size=(4, 30, 2)), rng.integers(0, 9, (4, 30))
    (some, its, kept), places = gathered(int(weights.sum(axis=1).max()), hidden, targets, weights)
    assert some.shape[1] < 30 and kept.sum() == weights.sum()
    for row in range(4):
        assert len(set(places[row].tolist())) == places.shape[1]
        np.testing.assert_allclose(some[row], hidden[row][places[row]], rtol=1e-6)
        np.testing.assert_array_equal(its[row], targets[row][places[row]])


@pytest.mark.parametrize(("chunk", "count", "length", "expected"), [
    (0, 40, 256, 0), (64, 40, 256, 40), (16, 40, 256, 10), (32, 32, 32, 32)])
def test_chunks_divide_what_is_gathered(chunk, count, length, expected):
    assert chunk_within(chunk, count, length) == expected


@pytest.mark.parametrize("sentences", ["none", "next"])
def test_pseudo_likelihoods_hide_each_token_alone(model, objective, sentences):
    built, params = model
    store = TokenStore.from_documents([("a", "hello there, you"), ("b", ""), ("c", "a second one")], BYTES)
    masked = objective(Masked, 32, sentences=sentences)
    rows = masked.read(store, np.array([0, 1]), np.array([3, 4]))
    real = rows.segments > 0
    wanted = {(b, t) for b in range(2) for t in range(masked.raw) if real[b, t] and rows.tokens[b, 1 + t] != BYTES.eos_id}
    found, score = {}, jax.jit(lambda p, b: masked.scores(built, p, b)["nats"].sum(axis=1))
    for owners, places, batch in masked.pseudo_batches(rows, 7):
        assert batch["tokens"].shape == (7, 32) and batch["weights"].sum() == len(owners)
        scores = score(params, batch)
        for i, (owner, place) in enumerate(zip(owners.tolist(), places.tolist(), strict=True)):
            hidden = batch["weights"][i] == 1
            assert batch["tokens"][i][hidden] == masked.mask and batch["targets"][i][hidden] == rows.tokens[owner, 1 + place]
            np.testing.assert_array_equal(batch["tokens"][i][~hidden], batch["targets"][i][~hidden])
            found[owner, place] = float(scores[i])
    assert set(found) == wanted and min(found.values()) > 0


@pytest.mark.parametrize(("options", "context", "named"), [
    ({"mask_share": 0.95}, 32, "objective.mask_share"), ({}, 2, "data.context"), ({"sentences": "next"}, 4, "data.context")])
def test_bad_options_are_named(objective, options, context, named):
    with pytest.raises(ConfigError, match=named):
        objective(Masked, context, **options)
