"""Translation against brute force over all targets, greedy choices by hand, and BLEU counted by hand."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest

from lm import config
from lm.errors import ConfigError, DataError
from lm.generate import Sampling, loops
from lm.generate.translate import Sourced, Translator, bleu, search, source_batch
from lm.models import seq2seq
from lm.models.base import Sizes
from lm.parallel import Layout

PAD, BOS, EOS = 0, 1, 2
VOCAB, EXTRA = 6, 2  # 3 letters, and 2 tokens that the tokenizer does not have
LIMIT = 4
SEED = 10  # the penalty changes what wins, and greedy targets end after 1, 2 and 3 tokens
BANNED = (PAD, BOS, VOCAB, VOCAB + 1)
SOURCES = ("ab", "c", "", "abcab")


class Letters:
    """Ids 0 pad, 1 bos, 2 eos, then letters from a."""

    pad_id, bos_id, eos_id, stop_ids, vocab_size = PAD, BOS, EOS, (EOS,), VOCAB

    def encode(self, text):
        return np.array([ord(letter) - ord("a") + 3 for letter in text], np.int32)

    def decode(self, ids):
        return "".join(chr(ord("a") + int(i) - 3) for i in ids if i > EOS)


@functools.cache
def make(attention="luong"):
    """(model, parameters): random, such that some targets end and others do not."""
    section = config.default().model
    section.update(cell="gru", attention=attention, width=8, layers=1, tie_embeddings=False)
    model = seq2seq.build(section, Sizes(VOCAB + EXTRA, 8, VOCAB), Layout())
    rng = np.random.default_rng(SEED)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: rng.normal(0, 0.9, leaf.shape).astype(np.float32), shapes)


@functools.cache
def translator(rows=4):
    return Translator(*make(), Letters(), Letters(), rows=rows)


def source_ids(text):
    return [*Letters().encode(text).tolist(), EOS]


@functools.cache
def tables():
    """{source: {target tokens: log-probability}} of every target of at most LIMIT tokens that ends or is full, by teacher forcing."""
    model, params = make()
    letters = range(3, VOCAB)
    targets = [[*body, EOS] for length in range(LIMIT) for body in itertools.product(letters, repeat=length)]
    targets += [list(body) for body in itertools.product(letters, repeat=LIMIT)]
    tokens = np.zeros((len(targets), LIMIT), np.int32)
    for row, target in zip(tokens, targets, strict=True):
        row[: len(target)] = [BOS, *target[:-1]]
    run = jax.jit(lambda params, batch: model.logits(params, model.apply(params, batch)))
    found = {}
    for text in SOURCES:
        batch = source_batch([source_ids(text)] * len(targets), 16)
        logits = np.asarray(run(params, batch | {"tokens": tokens, "segments": tokens * 0 + 1, "positions": tokens}), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found[text] = {tuple(target): sum(log_p[row, t, token] for t, token in enumerate(target)) for row, target in enumerate(targets)}
    return found


def gnmt(length, alpha):
    return ((5 + length) / 6) ** alpha


def text_of(target):
    return Letters().decode(target)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_wide_beams_find_every_target_in_the_order_of_penalised_scores(alpha):
    beams = 128  # more than the 121 targets: nothing is ever pruned
    model, params = make()
    batch = source_batch([source_ids(text) for text in SOURCES], 16)
    run = jax.jit(functools.partial(search, model=model, room=LIMIT, beams=beams, alpha=alpha, bos_id=BOS, eos_id=EOS,
                                    banned=BANNED))
    decoded = run(params, batch, LIMIT)
    for i, text in enumerate(SOURCES):
        rows = slice(i * beams, (i + 1) * beams)
        found = [(tuple(row[row >= 0].tolist()), p) for row, p in zip(*map(np.asarray, (decoded.tokens[rows], decoded.logprobs[rows])),
                                                                     strict=True) if p > -np.inf]
        ranked = sorted(tables()[text].items(), key=lambda pair: -pair[1] / gnmt(len(pair[0]), alpha))
        assert [target for target, _ in found] == [target for target, _ in ranked]
        np.testing.assert_allclose([p for _, p in found], [p for _, p in ranked], atol=1e-5)


def test_penalty_changes_what_wins():
    """Otherwise the test before this one would show little."""
    best = {alpha: [max(table, key=lambda target, table=table: table[target] / gnmt(len(target), alpha)) for table in tables().values()]
            for alpha in (0.0, 2.0)}
    assert best[0.0] != best[2.0]
    assert sum(map(len, best[0.0])) < sum(map(len, best[2.0]))


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_translation_is_the_best_target_with_its_penalised_score(alpha):
    for text, found in zip(SOURCES, translator()(list(SOURCES), beams=27, alpha=alpha, max_tokens=LIMIT), strict=True):
        table = {target: p / gnmt(len(target), alpha) for target, p in tables()[text].items()}
        best = max(table, key=table.get)
        assert found.text == text_of(best)
        assert found.score == pytest.approx(table[best], abs=1e-5)


def test_tokens_that_the_tokenizer_does_not_have_are_never_written():
    """An objective's own, and pad and bos, made far likelier than all others: the others keep their order."""
    model, params = make()
    louder = np.array(params["unembedding"]["kernel"])
    louder[list(BANNED)] *= 50
    loud = Translator(model, dict(params, unembedding={"kernel": louder}), Letters(), Letters(), rows=4)
    expected = translator()(list(SOURCES), beams=1, max_tokens=LIMIT)
    assert [found.text for found in loud(list(SOURCES), beams=1, max_tokens=LIMIT)] == [found.text for found in expected]


def test_one_beam_is_greedy():
    model, params = make()
    found = translator()(list(SOURCES), beams=1, alpha=0.6, max_tokens=LIMIT)
    batch = source_batch([source_ids(text) for text in SOURCES], 16)
    greedy = jax.jit(lambda params: loops.sample(
        params, np.full((4, 1), BOS, np.int32), np.ones(4, np.int32), LIMIT, 0, (), model=Sourced(model, batch, params), room=LIMIT,
        sampling=Sampling(temperature=0.0), eos_id=EOS, banned=BANNED))(params)
    for translation, tokens, logprob in zip(found, np.asarray(greedy.tokens), greedy.logprobs, strict=True):
        assert translation.text == text_of(tokens)
        assert translation.score == pytest.approx(float(logprob) / gnmt(np.sum(tokens >= 0), 0.6), abs=1e-5)


def test_greedy_takes_the_likeliest_next_token():
    """By teacher forcing: no decoding code on this side."""
    model, params = make()
    run = jax.jit(lambda params, batch: model.logits(params, model.apply(params, batch)))
    for text in SOURCES:
        target = ()
        while len(target) < LIMIT and EOS not in target:
            row = np.zeros((1, LIMIT), np.int32)
            row[0, : len(target) + 1] = [BOS, *target]
            batch = source_batch([source_ids(text)], 16) | {"tokens": row, "segments": row * 0 + 1, "positions": row}
            logits = np.array(run(params, batch))[0, len(target)]
            logits[list(BANNED)] = -np.inf
            target = (*target, int(np.argmax(logits)))
        assert translator()([text], beams=1, max_tokens=LIMIT)[0].text == text_of(target)


def test_a_source_is_translated_alike_in_any_company():
    """Sources of two buckets, in batches of at most three; order and results are those of each alone."""
    texts = ["abc" * 6, "ab", "cab" * 7, "c", "b", "", "a" * 17]
    together = translator(3)(texts, beams=3, alpha=2.0, max_tokens=5)
    for text, found in zip(texts, together, strict=True):
        (alone,) = translator(3)([text], beams=3, alpha=2.0, max_tokens=5)
        assert found.text == alone.text
        assert found.score == pytest.approx(alone.score, abs=1e-5)
    assert len({found.text for found in together}) > 2
    assert translator(3)([]) == []


def test_lengths_within_a_bucket_share_one_compilation():
    fresh = Translator(*make(), Letters(), Letters(), rows=2)
    for texts in (["a", "b"], ["ab", "abc", "abcabc", "c" * 15]):
        fresh(texts, beams=2, max_tokens=3)
    fresh(["a", "b"], beams=2, max_tokens=9)  # the room is a bucket too
    assert fresh._compiled.cache_info().misses == 1
    fresh(["a" * 16, "b" * 16], beams=2, max_tokens=3)
    assert fresh._compiled.cache_info().misses == 2


def test_decoding_ends_when_all_rows_have_ended():
    """The model runs once for each token of the longest target, and not up to the limit."""
    passes = []

    class Counted(seq2seq.Seq2SeqModel):
        def decode(self, params, state, tokens, valid=None):
            jax.debug.callback(lambda: passes.append(1))
            return super().decode(params, state, tokens, valid)

    model, params = make()
    counted = Counted(model.module, model.vocab_size, model.max_positions)
    options = {"room": 64, "beams": 1, "alpha": 0.6, "bos_id": BOS, "eos_id": EOS, "banned": BANNED}
    batch = source_batch([source_ids(text) for text in SOURCES], 16)
    decoded = jax.jit(functools.partial(search, model=counted, **options))(params, batch, 64)
    jax.effects_barrier()
    longest = int(np.max(np.sum(np.asarray(decoded.tokens) >= 0, axis=1)))
    assert 1 < longest < 64
    assert len(passes) == longest


@pytest.mark.parametrize("settings", [{"beams": 0}, {"alpha": -0.1}, {"max_tokens": 0}], ids=lambda settings: next(iter(settings)))
def test_what_is_not_allowed_is_an_error(settings):
    with pytest.raises(ConfigError, match="not allowed"):
        translator()(["a"], **settings)


def test_a_model_with_a_context_takes_what_fits():
    class Short:
        max_positions, vocab_size = 20, VOCAB

    short = Translator(Short(), {}, Letters(), Letters())
    assert (short._bucket(17), short._limit(None, 16), short._limit(20, 16), short._room(17)) == (20, 20, 20, 20)
    with pytest.raises(ConfigError, match="a source has 20 tokens"):
        short(["a" * 20])
    with pytest.raises(ConfigError, match="max_tokens=21"):
        short(["a"], max_tokens=21)


SACREBLEU = "sacrebleu is not installed: BLEU is NOT checked (pip install -e '.[translate]')"


def bleu_by_hand(hypotheses, references):
    """Papineni et al. (2002) over lists of words, one reference each, without smoothing."""
    logs = []
    for n in range(1, 5):
        matches = total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            grams, wanted = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in (hypothesis, reference))
            matches += sum(min(grams.count(gram), wanted.count(gram)) for gram in set(grams))
            total += len(grams)
        logs.append(math.log(matches / total))
    ours, theirs = sum(map(len, hypotheses)), sum(map(len, references))
    return 100 * min(1.0, math.exp(1 - theirs / ours)) * math.exp(sum(logs) / 4)


def test_bleu_is_papinenis():
    pytest.importorskip("sacrebleu", reason=SACREBLEU)
    hypotheses = ["the cat sat on the mat today", "there is a dog in the garden ."]
    references = ["the cat sat on the red mat", "there is a big dog in the garden now ."]
    expected = bleu_by_hand([text.split() for text in hypotheses], [text.split() for text in references])
    assert bleu(hypotheses, references) == pytest.approx(expected, abs=1e-6)
    assert bleu(references, references) == pytest.approx(100.0)


def test_bleu_of_chinese_is_by_character():
    pytest.importorskip("sacrebleu", reason=SACREBLEU)
    hypotheses, references = ["今天天气很好我们去公园"], ["今天天气很好他们去公园玩"]
    expected = bleu_by_hand(list(map(list, hypotheses)), list(map(list, references)))
    assert bleu(hypotheses, references, "zh") == pytest.approx(expected, abs=1e-6)


def test_bleu_of_references_that_are_all_too_short_is_refused():
    """It would be 0 of perfect translations."""
    pytest.importorskip("sacrebleu", reason=SACREBLEU)
    with pytest.raises(ConfigError, match=r"no reference has 4 tokens by tokenize=13a, .* use tokenize=char"):
        bleu(["dog", "a cat"], ["dog", "a cat"])
    assert bleu(["dog", "a cat"], ["dog", "a cat"], "char") == pytest.approx(100.0)


def test_bleu_needs_a_reference_for_each_translation():
    pytest.importorskip("sacrebleu", reason=SACREBLEU)
    for hypotheses, references in (([], []), (["a"], []), (["a"], ["a", "b"])):
        with pytest.raises(DataError, match="one reference for each"):
            bleu(hypotheses, references)
