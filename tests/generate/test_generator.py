"""Decoding against repeated full forward passes, brute force over all continuations, and the distributions that it claims."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lm import config, models
from lm.errors import ConfigError
from lm.generate import Generator, Sampling
from lm.generate.generator import bucket
from lm.generate.sampling import choose, truncate

PAD, BOS, EOS = 0, 1, 2
CONTEXT = 40
LONG = "abcdabbacadabcabcdba"


class Letters:
    """Ids 0 pad, 1 bos, 2 eos, then letters from a."""

    pad_id, bos_id, eos_id, stop_ids, prompt_bos = PAD, BOS, EOS, (EOS,), True

    def __init__(self, vocab_size=0):
        self.vocab_size = vocab_size

    def encode(self, text):
        return np.array([ord(letter) - ord("a") + 3 for letter in text], np.int32)


def generator(name, vocab, seed=0, **settings):
    section = config.default().model
    small = {"layers": 1, "width": 16} | ({"heads": 2} if name == "transformer" else {"unroll": 1})
    section.update(small | settings, name=name, tie_embeddings=False)
    model = models.build(section, vocab, CONTEXT)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    # Drawn as [D, V]: with these logits, and the seeds below, some completions end and others do not.
    matrix = params["unembedding"]["kernel"]
    params["unembedding"]["kernel"] = matrix.reshape(matrix.shape[::-1]).T
    return Generator(model, params, Letters(vocab))


@pytest.fixture(scope="module", params=[("transformer", {"positions": "learned", "seed": 4}), ("gru", {})], ids=["transformer", "gru"])
def small(request):
    """A generator over 7 tokens, of which 4 are letters; its seed makes some completions end and others not."""
    name, settings = request.param
    return generator(name, 7, **settings)


@pytest.fixture(scope="module")
def log_probs(small):
    return log_probs_of(small)


def log_probs_of(generator):
    """log_probs(rows of ids from bos on) -> float64 [R, CONTEXT, V], by full forward passes."""
    model, params = generator.model, generator.params
    apply = jax.jit(model.apply)

    def log_probs(rows):
        tokens, segments = np.zeros((2, -(-len(rows) // 32) * 32, CONTEXT), np.int32)
        for place, there, row in zip(tokens, segments, rows, strict=False):
            place[: len(row)], there[: len(row)] = row, 1
        positions = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), tokens.shape)
        batches = [{"tokens": tokens[i : i + 32], "segments": segments[i : i + 32], "positions": positions[i : i + 32]}
                   for i in range(0, len(tokens), 32)]
        hidden = np.concatenate([np.asarray(apply(params, batch), np.float64) for batch in batches])[: len(rows)]
        logits = hidden @ np.asarray(model.unembedding(params), np.float64)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return log_probs


def start(prompt):
    return [BOS, *Letters().encode(prompt).tolist()]


def score(log_probs, prompt, completion):
    """Log-probability of a completion's tokens, and of eos where it ended, from one full forward pass."""
    written = completion.tokens + [EOS] * completion.ended
    row = start(prompt) + written
    table = log_probs([row[:-1]])[0]
    return sum(table[len(start(prompt)) - 1 + i, token] for i, token in enumerate(written))


def greedy_by_hand(log_probs, prompt, limit):
    tokens = []
    while len(tokens) < limit:
        table = log_probs([start(prompt) + tokens])[0][len(start(prompt)) - 1 + len(tokens)]
        table[[PAD, BOS]] = -np.inf
        if table.argmax() == EOS:
            return tokens, True
        tokens.append(int(table.argmax()))
    return tokens, False


GREEDY = Sampling(temperature=0.0)


@pytest.mark.parametrize("prompt", ["", "ab", LONG])
def test_greedy_is_the_argmax_of_full_forward_passes(small, log_probs, prompt):
    (completion,) = small([prompt], max_tokens=12, sampling=GREEDY)
    assert (completion.tokens, completion.ended) == greedy_by_hand(log_probs, prompt, 12)
    assert completion.logprob == pytest.approx(score(log_probs, prompt, completion), abs=1e-5)  # float32 sum of 12


def test_the_context_can_be_filled_to_its_last_token(small, log_probs):
    prompt = (LONG * 2)[: CONTEXT - 6]
    (completion,) = small([prompt], max_tokens=6, sampling=GREEDY)
    assert (completion.tokens, completion.ended) == greedy_by_hand(log_probs, prompt, 6)


def test_prompts_of_unequal_length_do_not_touch_each_other(small):
    prompts = ["", "dabcab"]
    for settings in ({"sampling": GREEDY}, {"beams": 3, "num": 2}):
        together = small(prompts, max_tokens=5, **settings)
        alone = [completion for prompt in prompts for completion in small([prompt], max_tokens=5, **settings)]
        assert [c.tokens for c in together] == [c.tokens for c in alone]
        np.testing.assert_allclose([c.logprob for c in together], [c.logprob for c in alone], atol=1e-5)


def test_sampled_log_probabilities_are_the_models_own(small, log_probs):
    completions = small(["ab", "cadab"], max_tokens=9, sampling=Sampling(temperature=1.5, top_k=4), num=6, seed=3)
    assert len(completions) == 12
    assert {c.ended for c in completions} == {True, False}
    assert len({tuple(c.tokens) for c in completions}) > 6
    for prompt, completion in zip(["ab"] * 6 + ["cadab"] * 6, completions, strict=True):
        assert completion.logprob == pytest.approx(score(log_probs, prompt, completion), abs=1e-5)
        assert not {PAD, BOS, EOS} & set(completion.tokens)
        assert completion.ended == (len(completion.tokens) < 9)


def test_a_seed_decides_the_samples(small):
    draw = [[c.tokens for c in small(["a"], max_tokens=9, num=4, seed=seed)] for seed in (5, 5, 6)]
    assert draw[0] == draw[1] != draw[2]


def test_top_one_is_greedy_and_one_beam_is_greedy(small):
    expected = small(["ab"], max_tokens=9, sampling=GREEDY)[0]
    for other in (small(["ab"], max_tokens=9, sampling=Sampling(top_k=1))[0], small(["ab"], max_tokens=9, beams=1)[0]):
        assert (other.tokens, other.ended) == (expected.tokens, expected.ended)
        assert other.logprob == pytest.approx(expected.logprob, abs=1e-5)


def continuations(letters, limit):
    """Every token list of at most `limit` tokens that ends with eos or is full."""
    for length in range(limit):
        yield from ([*body, EOS] for body in itertools.product(letters, repeat=length))
    yield from map(list, itertools.product(letters, repeat=limit))


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_wide_beams_find_all_continuations_in_order(name):
    search = generator(name, 5, seed=4)
    prompt, limit = "abba", 3
    everything = list(continuations((3, 4), limit))
    table = log_probs_of(search)([start(prompt) + tokens for tokens in everything])
    first = len(start(prompt)) - 1
    scores = [sum(table[i, first + j, token] for j, token in enumerate(tokens)) for i, tokens in enumerate(everything)]
    order = np.argsort(scores)[::-1]
    for beams in (15, 40):  # all that exist, and more
        found = search([prompt], max_tokens=limit, beams=beams, num=beams)
        assert [c.tokens + [EOS] * c.ended for c in found] == [everything[i] for i in order]
        np.testing.assert_allclose([c.logprob for c in found], np.array(scores)[order], atol=1e-5)


def test_beams_beat_or_equal_greedy(small, log_probs):
    greedy = small(["ab"], max_tokens=5, sampling=GREEDY)[0]
    best, second = small(["ab"], max_tokens=5, beams=6, num=2)
    assert best.logprob >= max(second.logprob, greedy.logprob - 1e-5)
    assert best.logprob == pytest.approx(score(log_probs, "ab", best), abs=1e-5)


def test_pairs_of_sampled_tokens_follow_the_models_distribution(small, log_probs):
    """2,000 draws of two tokens against the exact probabilities (pad and bos excluded), by a chi-square test."""
    letters = [EOS, 3, 4, 5, 6]
    draws = [tuple(c.tokens + [EOS] * c.ended) for c in small(["ab"], max_tokens=2, num=2000, seed=1)]
    tables = log_probs([start("ab")] + [[*start("ab"), letter] for letter in letters[1:]])
    place = len(start("ab")) - 1

    def allowed(table):
        return np.exp(table[letters]) / np.exp(table[letters]).sum()

    first = allowed(tables[0, place])
    expected = {(EOS,): first[0]}
    for i, letter in enumerate(letters[1:], 1):
        expected |= {(letter, token): first[i] * p for token, p in zip(letters, allowed(tables[i, place + 1]), strict=True)}
    assert set(draws) <= set(expected)
    counts = np.array([draws.count(pair) for pair in expected])
    probabilities = np.array(list(expected.values()))
    common = probabilities * 2000 >= 5  # chi-square needs five expected draws; the rare ones count as one
    folded = [np.append(values[common], values[~common].sum()) for values in (counts, probabilities * 2000)]
    keep = folded[1] > 0
    assert stats.chisquare(folded[0][keep], folded[1][keep]).pvalue > 1e-3  # fixed seed: it does not flicker


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=2.0, top_k=3), Sampling(temperature=0.5, top_p=0.8)])
def test_choosing_follows_the_truncated_distribution(sampling):
    logits = np.array([1.0, 0.3, -0.5, 0.9, -2.0, 0.0], np.float32)
    scaled = np.exp(logits.astype(np.float64) / sampling.temperature)
    probabilities = scaled / scaled.sum()
    order = np.argsort(-probabilities)
    kept = order[: sampling.top_k or None]
    if sampling.top_p < 1:
        kept = order[: np.searchsorted(np.cumsum(probabilities[order]), sampling.top_p) + 1]
    assert sampling == Sampling() or 1 < len(kept) < 6
    keys = jax.random.split(jax.random.key(0), 4000)
    counts = np.bincount(choose(jnp.broadcast_to(logits, (4000, 6)), keys, sampling), minlength=6)
    assert counts[kept].sum() == 4000
    assert stats.chisquare(counts[kept], probabilities[kept] / probabilities[kept].sum() * 4000).pvalue > 1e-3


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (0, 0.95), (0, 1e-6), (3, 1.0), (1, 1.0), (5, 0.7), (100, 1.0), (0, 1.0)])
def test_truncation_keeps_the_smallest_set_that_is_enough(top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 2, (50, 12)).astype(np.float32)
    got = np.asarray(truncate(logits, Sampling(top_k=top_k, top_p=top_p)))
    for row, truncated in zip(logits.astype(np.float64), got, strict=True):
        order = np.argsort(-row)[: top_k or None]
        p = np.exp(row[order]) / np.exp(row[order]).sum()
        if top_p < 1:
            order = order[: np.searchsorted(np.cumsum(p), top_p) + 1]
        assert set(np.flatnonzero(np.isfinite(truncated))) == set(order)
        np.testing.assert_array_equal(truncated[order], row[order])


def test_exactly_the_wanted_probability_is_enough():
    logits = np.log([[0.5, 0.25, 0.125, 0.125]]).astype(np.float32)
    assert np.isfinite(truncate(logits, Sampling(top_p=0.5))).sum() == 1


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": -0.1}, "temperature=-0.1 is not allowed"),
    ({"top_k": -1}, "top_k=-1 is negative"),
    ({"top_p": 0.0}, "top_p=0.0 is not a share"),
    ({"top_p": 1.1}, "top_p=1.1 is not a share"),
])
def test_impossible_sampling_is_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(("prompt", "settings", "message"), [
    ("a" * CONTEXT, {}, "the prompt has 40 tokens, but the model's context is 40"),
    ("a" * 10, {"max_tokens": 31}, "max_tokens=31 after a prompt of 10 tokens .* use at most 30"),
    ("a", {"max_tokens": 0}, "max_tokens=0"),
    ("a", {"num": 0}, "num=0 .* at least 1"),
    ("a", {"num": 3, "beams": 2}, "num=3 .* at most beams=2"),
])
def test_what_does_not_fit_is_an_error(prompt, settings, message):
    with pytest.raises(ConfigError, match=message):
        generator("transformer", 7)([prompt], **settings)


def test_without_a_limit_a_transformer_fills_its_context():
    transformer, recurrent = generator("transformer", 7), generator("gru", 7)
    assert transformer._limit(11, None) == 30
    assert transformer._limit(CONTEXT, None) == 1
    assert recurrent._limit(10_000, None) == 128
    assert recurrent._limit(10_000, 500) == 500


def test_buckets_are_powers_of_two_and_then_whole_chunks():
    assert [bucket(n) for n in (0, 1, 16, 17, 32, 33, 100, 129, 1000)] == [16, 16, 16, 32, 32, 64, 128, 256, 1024]


def test_lengths_within_a_bucket_share_one_compilation():
    decode = generator("rnn", 7)
    for prompt, max_tokens in (("a", 3), ("abcabc", 16), ("", 1)):
        decode([prompt], max_tokens=max_tokens)
    assert decode._compiled.cache_info().misses == 1
    decode([LONG], max_tokens=3)
    assert decode._compiled.cache_info().misses == 2


def test_prompts_longer_than_a_prefill_chunk_are_read_whole(monkeypatch):
    """Chunks of 16: prompts of one to three chunks, and some that end at a border."""
    monkeypatch.setattr("lm.generate.loops.PREFILL_CHUNK", 16)
    decode = generator("transformer", 7, kv_heads=1)
    prompts = [(LONG * 2)[:length] for length in (0, 14, 15, 16, 31, 35)]
    table = log_probs_of(decode)
    for prompt, completion in zip(prompts, decode(prompts, max_tokens=3, sampling=GREEDY), strict=True):
        assert (completion.tokens, completion.ended) == greedy_by_hand(table, prompt, 3)
        assert completion.logprob == pytest.approx(score(table, prompt, completion), abs=1e-5)


# Rotations that go by the length of a row, with an original context inside that of these tests.
BY_LENGTH = {
    "dynamic": {"positions": "rope", "rope_scaling": "dynamic", "rope_factor": 4.0, "rope_original_context": 12},
    "longrope": {"positions": "rope", "rope_scaling": "longrope", "rope_factor": 4.0, "rope_original_context": 12,
                 "rope_short_factors": (1.0, 1.2, 1.4, 1.6), "rope_long_factors": (2.0, 5.0, 9.0, 20.0)},
}


@pytest.mark.parametrize("name", BY_LENGTH)
def test_how_many_tokens_may_follow_does_not_change_the_first(name):
    """Up to the original context, and right after a prompt that is longer, greedy tokens are those of full forward passes."""
    decode = generator("transformer", 7, seed=13, **BY_LENGTH[name])
    table = log_probs_of(decode)
    for prompt, first in (("ab", 10), (LONG, 1)):
        expected = greedy_by_hand(table, prompt, first)
        assert len(expected[0]) == first
        short, long = (decode([prompt], max_tokens=most, sampling=GREEDY)[0] for most in (first, CONTEXT - len(prompt)))
        assert short.tokens == long.tokens[:first] == expected[0]
        assert short.logprob == pytest.approx(score(table, prompt, short), abs=1e-5)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_prompt_that_is_read_in_chunks_is_as_long_as_it_is(name, monkeypatch):
    monkeypatch.setattr("lm.generate.loops.PREFILL_CHUNK", 16)
    decode = generator("transformer", 7, seed=13, **BY_LENGTH[name])
    table, prompts = log_probs_of(decode), ["ab", (LONG * 2)[:33]]
    for prompt, completion in zip(prompts, decode(prompts, max_tokens=1, sampling=GREEDY), strict=True):
        assert completion.logprob == pytest.approx(score(table, prompt, completion), abs=1e-5)
    beam = decode(prompts, max_tokens=1, beams=3)[1]
    assert beam.logprob == pytest.approx(score(table, prompts[1], beam), abs=1e-5)
