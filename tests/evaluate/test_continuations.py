"""Scores of continuations against one request at a time, without batch, padding or buckets."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, models
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError, DataError
from lm.evaluate.continuations import Request, Scorer, encode_pair, overlap, rolling
from lm.parallel import AXES, make_mesh, replicated

TOKENIZER = ByteTokenizer()
CONTEXT, VOCAB = 24, 40


def requests(count=24, longest=CONTEXT, seed=0):
    """Requests whose tokens, contexts and continuations are random, some of them twice."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        total = int(rng.integers(2, longest + 2))
        scored = int(rng.integers(1, total))
        ids = tuple(rng.integers(VOCAB, size=total).tolist())
        found.append(Request(ids[: total - scored], ids[total - scored :]))
    return found + found[3:6]


def tiny(name="transformer", **keys):
    """(a tiny model, its parameters), which are large enough for its choices to be clear."""
    section = config.default().model
    section.update(name=name, layers=1, width=16, heads=2, **keys)
    model = models.build(section, VOCAB, CONTEXT)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)


def scores(model, params, asked, batch=0, devices=1, context=CONTEXT):
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1}, jax.devices()[:devices])
    scorer = Scorer(model, params, mesh, context, batch, replicated(mesh))
    return scorer(asked), scorer


@functools.cache
def forward(model):
    """A compiled function of (params, batch) to logits."""
    return jax.jit(lambda params, batch: model.logits(params, model.apply(params, batch)))


def alone(model, params, context, continuation):
    """(log-probability of each token in float64, whether it is the likeliest), from a pass over one row with its tokens in front."""
    ids = [*context, *continuation][:-1]
    tokens, segments, positions = np.zeros((3, 1, CONTEXT), np.int32)
    tokens[0, : len(ids)], segments[0, : len(ids)], positions[0, : len(ids)] = ids, 1, range(len(ids))
    logits = forward(model)(params, {"tokens": tokens, "segments": segments, "positions": positions})
    logits = np.asarray(logits, np.float64)[0, len(context) - 1 : len(ids)]
    logits -= logits.max(axis=1, keepdims=True)
    each = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return each[np.arange(len(continuation)), list(continuation)], each.argmax(axis=1) == np.array(continuation)


@pytest.fixture(scope="module")
def transformer():
    return tiny(positions="learned")


@pytest.mark.parametrize(("batch", "devices"), [(0, 1), (1, 1), (3, 1), (2, 8)])
def test_requests_score_as_they_do_alone(transformer, batch, devices):
    asked = requests()
    found, _ = scores(*transformer, asked, batch, devices)
    expected = [alone(*transformer, *request) for request in asked]
    np.testing.assert_allclose(found.logprobs, [each.sum() for each, _ in expected], rtol=2e-6)
    np.testing.assert_allclose(found.last, [each[-1] for each, _ in expected], rtol=1e-5)
    assert found.greedy.tolist() == [bool(best.all()) for _, best in expected]
    assert found.counts == {"requests": 27, "distinct_requests": 24, "tokens_scored": sum(len(r.continuation) for r in asked),
                            "cut_requests": 0, "cut_tokens": 0, "context": CONTEXT}


def test_greedy_is_true_of_what_the_model_itself_would_write(transformer):
    model, params = transformer
    context, written = (3, 9, 4), []
    for _ in range(5):
        choices = [alone(model, params, (*context, *written), (token,))[0][0] for token in range(VOCAB)]
        written.append(int(np.argmax(choices)))
    other = [*written[:4], (written[4] + 1) % VOCAB]
    first_differs = [(written[0] + 1) % VOCAB, *written[1:]]
    asked = [Request(context, tuple(ids)) for ids in (written, other, first_differs, written[:2])]
    assert scores(model, params, asked)[0].greedy.tolist() == [True, False, False, True]


def test_what_is_too_long_is_cut_on_the_left_and_counted(transformer):
    rng = np.random.default_rng(2)
    long = tuple(rng.integers(VOCAB, size=40).tolist())
    asked = [Request(long, (1, 2, 3)), Request(long[:22], (1, 2, 3)), Request(long[:23], (1, 2, 3))]
    found, _ = scores(*transformer, asked)
    expected = [alone(*transformer, request.context[-(CONTEXT + 1 - 3) :], request.continuation)[0].sum() for request in asked]
    np.testing.assert_allclose(found.logprobs, expected, rtol=2e-6)
    assert (found.counts["cut_requests"], found.counts["cut_tokens"]) == (2, 40 + 3 - 25 + 1)


@pytest.mark.parametrize("length", [24, 25, 48, 49, 60])
def test_a_continuation_longer_than_the_context_is_scored_once_in_windows_of_which_the_last_is_full(transformer, length):
    rng = np.random.default_rng(length)
    before, after = tuple(rng.integers(VOCAB, size=5).tolist()), tuple(rng.integers(VOCAB, size=length).tolist())
    found, _ = scores(*transformer, [Request(before, after)])
    tokens, each, stop = [*before, *after], [], 5 + length
    while stop > 5:
        start = max(5, stop - CONTEXT)
        each.append(alone(*transformer, tokens[max(0, stop - CONTEXT - 1) : start], tokens[start:stop])[0])
        stop = start
    assert found.last[0] == pytest.approx(each[0][-1], rel=1e-5)
    total = np.concatenate(each).sum()
    first_window = (length - 1) % CONTEXT + 1
    assert found.logprobs[0] == pytest.approx(total, rel=2e-6)
    assert found.counts["cut_tokens"] == max(0, 5 + first_window - CONTEXT - 1)
    assert found.counts["tokens_scored"] == length


@pytest.mark.parametrize("name", ["lstm", "nplm", "hmm"])
def test_every_family_that_gives_likelihoods(name):
    model, params = tiny(name)
    if name == "hmm":  # whose parameters are log-probabilities
        params = jax.tree.map(lambda leaf: jax.nn.log_softmax(4 * leaf, axis=-1), params)
    asked = requests(10)
    found, _ = scores(model, params, asked)
    expected = [alone(model, params, *request) for request in asked]
    np.testing.assert_allclose(found.logprobs, [each.sum() for each, _ in expected], rtol=1e-5)
    assert found.greedy.tolist() == [bool(best.all()) for _, best in expected]


def test_an_ngram_is_scored_by_its_tables():
    section = config.default().model
    section.update(name="ngram", order=3, smoothing="add_k")
    model = models.build(section, TOKENIZER.vocab_size, CONTEXT, bos=TOKENIZER.bos_id)
    params = model.fit([TokenStore.from_documents([("a", "abracadabra abracadabra"), ("b", "cadabra")], TOKENIZER)])
    asked = [encode_pair(TOKENIZER, "abra", text) for text in ("cadabra", "c", "dab")]
    found, _ = scores(model, params, asked)
    for request, logprob, greedy in zip(asked, found.logprobs, found.greedy, strict=True):
        history, total, best = list(request.context), 0.0, True
        for token in request.continuation:
            row = model.of(params).distribution(np.array([[-1, -1, *history][-2:]]))[0]
            total, best = total + row[token], best and row.argmax() == token
            history.append(token)
        assert (logprob, greedy) == (pytest.approx(total, rel=1e-5), best)
    assert found.greedy.tolist() == [True, True, False]


class Uniform:
    """All tokens are as likely."""

    def apply(self, params, batch):
        return jnp.zeros((*batch["tokens"].shape, 1))

    def logits(self, params, hidden):
        return jnp.zeros((*hidden.shape[:-1], 259))


def test_a_uniform_model_gives_n_log_v():
    found, _ = scores(Uniform(), {}, requests(50))
    sizes = [len(request.continuation) for request in requests(50)]
    np.testing.assert_allclose(found.logprobs, -np.array(sizes) * np.log(259), rtol=1e-6)


def test_few_shapes_are_compiled(transformer):
    asked = requests(200, seed=3)
    _, scorer = scores(*transformer, asked)
    # Rows of 16 or 24 tokens with 16 or 24 scored places: at most four, for full batches and for the rest.
    assert scorer._score._cache_size() <= 4
    before = scorer._score._cache_size()
    scorer(requests(200, seed=4))
    assert scorer._score._cache_size() <= before + 2


@pytest.mark.parametrize(("length", "context", "stride"), [(30, 8, 0), (30, 8, 3), (8, 8, 8), (9, 8, 8), (1, 8, 1), (5, 1, 1), (0, 4, 2)])
def test_rolling_windows_are_those_of_the_harness(length, context, stride):
    utils = pytest.importorskip("lm_eval.utils", reason="needs the extra parity: scripts/test.sh --parity")
    tokens = list(range(100, 100 + length))
    theirs = utils.get_rolling_token_windows(tokens, 7, context, context - (stride or context) + 1)
    theirs = [utils.make_disjoint_window(pair) for pair in theirs]
    assert rolling(tokens, 7, context, stride) == [(tuple(before), tuple(after)) for before, after in theirs]


@hypothesis.given(st.integers(0, 50), st.integers(1, 12), st.data())
def test_rolling_windows_score_each_token_once_with_the_tokens_before_it(length, context, data):
    stride = data.draw(st.integers(1, context))
    windows = rolling(range(length), -1, context, stride)
    assert [token for window in windows for token in window.continuation] == list(range(length))
    read = 0
    for number, window in enumerate(windows):
        seen = [*window.context, *window.continuation]
        assert seen == list(range(seen[0], seen[-1] + 1))
        assert len(seen) == context + 1 if number else len(seen) <= context + 1
        assert len(window.continuation) <= (stride if number else context)
        read += len(seen) - 1
    assert overlap(windows) == read - length


def test_strides_are_checked():
    for stride in (-1, 9):
        with pytest.raises(ConfigError, match="from 1 to the model's context of 8"):
            rolling([1, 2], 0, 8, stride)


def test_text_is_split_as_the_harness_does():
    byte = lambda text: tuple(text.encode())  # noqa: E731
    bos = (TOKENIZER.bos_id,)
    assert encode_pair(TOKENIZER, "ab", " c") == (bos + byte("ab"), byte(" c"))
    assert encode_pair(TOKENIZER, "ab  ", "c") == (bos + byte("ab"), byte("  c"))
    assert encode_pair(TOKENIZER, "", "c d") == (bos, byte("c d"))
    assert encode_pair(TOKENIZER, "\n ", "c") == (bos, byte("\n c"))
    without = TOKENIZER.changed(prompt_bos=False)
    assert encode_pair(without, "ab", " c") == (byte("ab"), byte(" c"))
    assert encode_pair(without, "", "c") == (bos, byte("c"))
    with pytest.raises(DataError, match="no token of its own"):
        encode_pair(TOKENIZER, "ab", "")


def test_a_request_needs_a_token_on_both_sides(transformer):
    for request in (Request((), (1,)), Request((1,), ())):
        with pytest.raises(DataError, match="a token of context and one to score"):
            scores(*transformer, [request])
