"""The n-gram as a family: log-probabilities of batches, states of decoding, and the compiled loops with it."""

import jax
import numpy as np
import pytest

from lm import config, models
from lm.data.packing import read_rows
from lm.errors import DataError
from lm.generate import Generator, Sampling
from lm.models.ngram import NGram, NGramModel, build, fit
from lm.objectives import causal
from lm.parallel import Layout
from tests.models.ngram.ngram_oracle import BOS, EOS, corpus, oracle, store_of

VOCAB = 8


class Letters:
    """Ids 0 pad, 1 bos, 2 eos, then letters from a."""

    vocab_size, pad_id, bos_id, eos_id, stop_ids, prompt_bos = VOCAB, 0, BOS, EOS, (EOS,), True

    def encode(self, text):
        return np.array([ord(letter) - ord("a") + 3 for letter in text], np.int32)


def fitted(order, smoothing="kneser_ney", documents=None, **options):
    model = NGramModel(None, VOCAB, None, BOS, order, smoothing, **options)
    return model, model.fit([store_of(documents or corpus(7, VOCAB, length=100))])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_batches_are_scored_by_the_history_within_the_segment(order):
    documents = corpus(7, VOCAB, documents=6, length=14)
    model, tables = fitted(order, documents=documents)
    store = store_of(documents)
    rows = read_rows(store, np.arange(0, store.num_tokens, 9), 9)
    batch = causal.batch_of(rows, BOS)
    nats = model.token_nats(tables, batch)
    assert nats.dtype == np.float32 and nats.shape == batch["targets"].shape
    reference = oracle("kneser_ney", documents, VOCAB, order)
    for b, t in np.argwhere(rows.scored):
        first = np.flatnonzero(batch["segments"][b] == batch["segments"][b, t])[0]
        history = batch["tokens"][b, max(first, t - order + 2) : t + 1].tolist()
        np.testing.assert_allclose(np.exp(-nats[b, t]), reference.p(int(batch["targets"][b, t]), history), rtol=1e-5)


@pytest.mark.parametrize(("smoothing", "order"), [("kneser_ney", 1), ("kneser_ney", 2), ("kneser_ney", 6), ("katz", 3), ("add_k", 3)])
def test_decoding_gives_the_distributions_of_the_tables(smoothing, order):
    model, tables = fitted(order, smoothing, prune=(2,) if order == 6 else ())
    ngram = NGram(order, VOCAB, tables)
    tokens = np.random.default_rng(0).integers(2, VOCAB, (3, 12))
    tokens[:, 0] = BOS
    hidden, state = jax.jit(model.decode)(tables, model.init_decode(3, 12), tokens)
    logits = jax.jit(model.logits)(tables, hidden)
    assert logits.shape == (3, 12, VOCAB) and logits.dtype == np.float32
    for t in range(12):
        history = np.full((3, order - 1), -1)
        known = tokens[:, max(0, t - order + 2) : t + 1]
        if order > 1:
            history[:, -known.shape[1] :] = known
        np.testing.assert_allclose(logits[:, t], ngram.distribution(history), atol=1e-5)
        here = ngram.log_probs(tokens[:, : t + 1], np.repeat(tokens[:, :1] * 0 + 4, t + 1, 1), np.ones((3, t + 1)))[:, -1]
        np.testing.assert_allclose(logits[:, t, 4], here, atol=1e-5)
    np.testing.assert_array_equal(state, np.asarray(hidden[:, -1]))


@pytest.mark.parametrize("order", [1, 4])
def test_padding_on_the_left_and_going_back_leave_the_state_of_the_tokens_alone(order):
    model, tables = fitted(order)
    tokens = np.array([[0, 0, 0, 1, 4, 5], [0, 1, 3, 3, 4, 5]])
    valid = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]], bool)
    start = model.init_decode(2, 9)
    hidden, state = model.decode(tables, start, tokens, valid)
    for b, length in enumerate((3, 5)):
        alone, after = model.decode(tables, model.init_decode(1, 9), tokens[b : b + 1, -length:])
        np.testing.assert_array_equal(hidden[b, -length:], alone[0])
        np.testing.assert_array_equal(state[b], after[0])
    more = np.array([[6, 3, 4], [5, 6, 7]])
    _, after = model.decode(tables, state, more)
    accepted = model.accept(tables, state, after, more, np.array([2, 0]))
    np.testing.assert_array_equal(accepted[0], model.decode(tables, state, more[:, :2])[1][0])
    np.testing.assert_array_equal(accepted[1], state[1])
    np.testing.assert_array_equal(model.take(state, np.array([1, 1, 0])), np.asarray(state)[[1, 1, 0]])


@pytest.mark.parametrize("options", [{"sampling": Sampling(0.0)}, {"beams": 3}, {"sampling": Sampling(0.0), "drafts": 2}],
                         ids=["greedy", "beams", "drafts"])
def test_the_compiled_loops_decode_what_the_tables_say(options):
    model, tables = fitted(3, documents=corpus(9, VOCAB, documents=40))
    ngram = NGram(3, VOCAB, tables)
    done = Generator(model, tables, Letters())(["abcab", "b"], max_tokens=9, **options)
    for completion, prompt in zip(done, ["abcab", "b"], strict=True):
        text = [BOS, *Letters().encode(prompt).tolist()]
        total = 0.0
        for token in completion.tokens + [EOS] * completion.ended:
            logs = ngram.distribution(np.array([([-1, *text])[-2:]]))[0]
            logs_allowed = np.where(np.isin(np.arange(VOCAB), [0, BOS]), -np.inf, logs)
            assert "beams" in options or token == np.argmax(logs_allowed)
            total += logs[token]
            text.append(token)
        assert len(text) > 3
        np.testing.assert_allclose(completion.logprob, total, rtol=1e-4)


def test_the_config_says_what_is_fitted():
    section = config.default().model
    section.update(name="ngram", order=4, smoothing="add_k", add_k=0.25, prune=(2.0, 3.0))
    model = build(section, models.Sizes(VOCAB, 16, bos=BOS), Layout())
    assert (model.vocab_size, model.max_positions) == (VOCAB, None)
    store = store_of(corpus(7, VOCAB, length=100))
    wanted = fit([store], VOCAB, BOS, 4, "add_k", add_k=0.25, prune=(2, 3)).tables
    found = model.fit([store])
    assert found.keys() == wanted.keys()
    for name, table in found.items():
        np.testing.assert_array_equal(table, wanted[name])


def test_no_history_crosses_segments_whatever_stands_at_their_start():
    ngram = fit([store_of(corpus(7, VOCAB, length=100))], VOCAB, BOS, 4)
    tokens, targets = np.random.default_rng(3).integers(3, VOCAB, (2, 5, 12))
    segments = np.repeat([[1, 2, 3]], [5, 4, 3], axis=1).repeat(5, axis=0)
    parts = [ngram.log_probs(tokens[:, part], targets[:, part], segments[:, part]) for part in (slice(0, 5), slice(5, 9), slice(9, 12))]
    np.testing.assert_array_equal(ngram.log_probs(tokens, targets, segments), np.concatenate(parts, axis=1))


def test_it_is_counted_and_multiplies_nothing():
    model, tables = fitted(3)
    assert isinstance(model, models.CountedModel) and model.forward_flops(100) == 0
    assert all(isinstance(table, np.ndarray) and table.itemsize == 4 and table.ndim == 1 for table in tables.values())
    sizes = NGram(3, VOCAB, tables).sizes
    assert sizes[1] == VOCAB and NGram(3, VOCAB, tables).num_parameters == 2 * (sizes[1] + sizes[2]) + sizes[3]
    with pytest.raises(TypeError, match="use fit"):
        model.init(jax.random.key(0))


def test_ids_of_another_tokenizer_are_one_line():
    ngram = fit([store_of(corpus(0, VOCAB))], VOCAB, BOS, 3)
    with pytest.raises(DataError, match=r"0\.\.7, found 3\.\.8"):
        ngram.distribution(np.array([[3, 8]]))
    with pytest.raises(DataError, match=r"0\.\.7, found 8\.\.8"):
        ngram.log_probs(np.array([[3]]), np.array([[8]]), np.ones((1, 1)))
