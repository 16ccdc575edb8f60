"""Smoothed probabilities against formulas written out again over dictionaries, examples by hand, and nltk."""

import itertools
from fractions import Fraction as F

import numpy as np
import pytest

from lm.errors import ConfigError
from lm.models.ngram import fit
from lm.models.ngram import smoothing as rules
from tests.models.ngram.ngram_oracle import BOS, EOS, corpus, oracle, store_of

SMOOTHINGS = ("kneser_ney", "katz", "add_k")
VOCAB = 7


def histories(order, rng, count=30):
    """Histories of up to order - 1 tokens, padded with -1 on the left: random ones, some from bos on."""
    result = np.full((count, order - 1), -1)
    for row in result:
        length = rng.integers(0, order)
        if length:
            row[-length:] = rng.integers(2, VOCAB, length)
            if rng.random() < 0.4:
                row[-length] = BOS
    return result


def exact(documents, order, smoothing, **options):
    return fit([store_of(documents)], VOCAB, BOS, order, smoothing, dtype=np.float64, **options)


def by_definition(model, rows):
    return np.array([[model.p(word, [t for t in row if t >= 0]) for word in range(VOCAB)] for row in rows.tolist()])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_distributions_are_those_of_the_formulas_and_sum_to_1(smoothing, order):
    for seed in range(4):
        # Short texts take the rules for degenerate counts of counts, long ones the estimates.
        documents = corpus(seed, length=(8, 30, 200, 600)[seed])
        options = {"add_k": 0.3} if smoothing == "add_k" else {}
        rows = histories(order, np.random.default_rng(seed))
        got = np.exp(exact(documents, order, smoothing, **options).distribution(rows))
        wanted = by_definition(oracle(smoothing, documents, VOCAB, order, **({"k": 0.3} if options else {})), rows)
        np.testing.assert_allclose(got, wanted, rtol=1e-9)
        np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-9)


@pytest.mark.parametrize(("order", "prune"), [(2, (2,)), (3, (2,)), (3, (2, 3)), (4, (1, 2, 2)), (4, (3,))])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_pruned_ngrams_leave_their_count_to_shorter_histories(smoothing, order, prune):
    documents = corpus(11, length=120)
    model = exact(documents, order, smoothing, prune=prune)
    minimums = [1, *[1] * (order - len(prune)), *prune]
    rows = histories(order, np.random.default_rng(5))
    got = np.exp(model.distribution(rows))
    np.testing.assert_allclose(got, by_definition(oracle(smoothing, documents, VOCAB, order, minimums=minimums), rows), rtol=1e-9)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-9)
    assert model.sizes[order] < exact(documents, order, smoothing).sizes[order]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_only_targets_that_were_seen_count_though_histories_are_read_whole(smoothing):
    documents, order = corpus(3, length=60), 3
    rng = np.random.default_rng(0)
    flags = [rng.random(len(document)) < 0.6 for document in documents]
    model = exact(documents, order, smoothing, seen=[np.concatenate(flags)])
    rows = histories(order, rng)
    got = np.exp(model.distribution(rows))
    np.testing.assert_allclose(got, by_definition(oracle(smoothing, documents, VOCAB, order, seen=flags), rows), rtol=1e-9)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-9)


@pytest.mark.parametrize("order", [5, 6, 7])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_high_orders_sum_to_1_after_any_history_in_float32_too(smoothing, order):
    model = fit([store_of(corpus(1, length=300))], VOCAB, BOS, order, smoothing, prune=(2,))
    rows = histories(order, np.random.default_rng(0), 200)
    np.testing.assert_allclose(np.exp(model.distribution(rows)).sum(axis=1), 1, rtol=1e-5)


def test_a_token_that_never_occurs_has_a_probability_after_every_history():
    rows = np.array(list(itertools.product(range(VOCAB), repeat=2)))
    for smoothing in SMOOTHINGS:
        # One word alone: no count of counts can be estimated, and all counts may be large.
        for documents in ([[3, EOS]], [[3] * 40 + [EOS]] * 9, corpus(0)):
            assert np.isfinite(exact(documents, 3, smoothing).distribution(rows)).all()


A, B, C = 3, 4, 5


def test_modified_kneser_ney_by_hand():
    # Unigrams by what stands before them: A: bos, B, C; B: A, C; C: A, B; EOS: C, A.
    documents = [[A, B, A, B, C, EOS], [A, B, C, B, A, C, EOS], [C, A, B, A, EOS]]
    adjusted = {A: 3, B: 2, C: 3, EOS: 2}
    model = exact(documents, 2, "kneser_ney")
    # Bigrams: (bos A) 2, (bos C) 1, (A B) 4, (A C) 1, (A EOS) 1, (B A) 3, (B C) 2, (C EOS) 2, (C B) 1, (C A) 1.
    # n1 = 5, n2 = 3, n3 = 1, n4 = 1.
    y = F(5, 5 + 2 * 3)
    d1, d2, d3 = 1 - 2 * y * F(3, 5), 2 - 3 * y * F(1, 3), 3 - 4 * y * F(1, 1)
    assert (d1, d2, d3) == (F(5, 11), F(17, 11), F(13, 11))
    np.testing.assert_allclose(rules.kneser_ney_discounts(np.array([2, 1, 4, 1, 1, 3, 2, 2, 1, 1])), [float(d) for d in (d1, d2, d3)])
    # C follows bos, A and B; all unigrams have counts 2 or 3, so theirs are the discounts for tiny texts: 1 and 3/2.
    total = sum(adjusted.values())
    left = (2 * F(3, 2) + 2 * F(1)) / total
    unigram = {w: (c - (F(1) if c == 2 else F(3, 2))) / total + left / VOCAB for w, c in adjusted.items()}
    after_a = (d3 + d1 + d1) / 6
    assert after_a == F(23, 66)
    wanted = {B: (4 - d3) / 6 + after_a * unigram[B], C: (1 - d1) / 6 + after_a * unigram[C], A: after_a * unigram[A]}
    got = np.exp(model.distribution(np.array([[A]])))[0]
    np.testing.assert_allclose([got[w] for w in wanted], [float(p) for p in wanted.values()], rtol=1e-12)


def test_the_continuation_count_decides_below_the_highest_order():
    # B always stands after A (its continuation count is 1), C after A, B and bos.
    documents = [[A, B, A, B, A, B, C, EOS], [C, A, C, EOS]]
    model = exact(documents, 3, "kneser_ney", discounts=[(0.5, 0.5, 0.5)] * 3)
    # Distinct bigrams by last token: A: bos, B, C; B: A; C: B, bos, A; EOS: C.
    unigram = {w: (c - F(1, 2)) / 8 + F(4, 2) / 8 / VOCAB for w, c in {A: 3, B: 1, C: 3, EOS: 1}.items()}
    # Trigrams that end in (A w): (bos A B), (B A B), (C A C): continuation counts 2 and 1.
    bigram = (2 - F(1, 2)) / 3 + F(2, 2) / 3 * unigram[B]
    # After (B, A) came B, twice.
    trigram = (2 - F(1, 2)) / 2 + F(1, 2) / 2 * bigram
    got = np.exp(model.distribution(np.array([[-1, -1], [-1, A], [B, A]])))[:, B]
    np.testing.assert_allclose(got, [float(unigram[B]), float(bigram), float(trigram)], rtol=1e-12)


def test_good_turing_factors_and_katz_weights_by_hand():
    # 40, 15, 8, 5, 3, 2 n-grams with counts of 1 to 6: no count above 5 is changed.
    of = (40, 15, 8, 5, 3, 2)
    counts = np.repeat(np.arange(1, 7), of)
    cut = F(6 * 2, 40)
    wanted = [(F((r + 1) * of[r], r * of[r - 1]) - cut) / (1 - cut) for r in range(1, 6)]
    assert wanted[0] == (F(3, 4) - F(3, 10)) / F(7, 10) == F(9, 14)
    np.testing.assert_allclose(rules.katz_discounts(counts), [1, *map(float, wanted)])
    # Without a count of 5 the counts from 4 on are left alone, and without one of 3 nothing can be estimated.
    assert len(rules.katz_discounts(counts[counts != 5])) == 4
    assert len(rules.katz_discounts(counts[counts != 3])) == 0
    # One history with counts 1 (id 0), 2 (id 1), 7 (id 2) of V = 5; the lower order gives 1/2, 1/4, 1/8 and 1/8 to the ids 3 and 4.
    lower = np.array([0.5, 0.25, 0.125])
    order = rules.Order(np.array([1, 2, 7]), np.zeros(3, int), 1, lower, np.ones(3, bool))
    p, weights = rules.katz(order, 5, np.array([1, 0.5, 0.75]))
    np.testing.assert_allclose(p, [0.05, 0.15, 0.7])
    np.testing.assert_allclose(weights, [0.1 / 0.125])


def test_katz_keeps_mass_where_counts_are_large_and_where_all_ids_are_known():
    lower, one = np.array([0.25, 0.5]), np.zeros(2, int)
    order = rules.Order(np.array([10, 30]), one, 1, lower, np.ones(2, bool))
    p, weights = rules.katz(order, 3, np.array([1, 0.5, 0.75]))
    np.testing.assert_allclose(p, [10 / 41, 30 / 41])
    np.testing.assert_allclose(weights, [1 / 41 / 0.25])
    p, weights = rules.katz(order._replace(counts=np.array([1, 30]), lower=np.array([0.5, 0.5])), 2, np.array([1, 0.5, 0.75]))
    np.testing.assert_allclose(p, [1 / 31, 30 / 31])
    assert weights == [1]


def test_add_k_by_hand():
    documents = [[A, B, A, B, C, EOS], [A, C, EOS]]
    got = np.exp(exact(documents, 2, "add_k", add_k=0.5).distribution(np.array([[A], [BOS], [EOS]])))
    np.testing.assert_allclose(got[0, [A, B, C]], [0.5 / 6.5, 2.5 / 6.5, 1.5 / 6.5])
    np.testing.assert_allclose(got[1, [A, B]], [2.5 / 5.5, 0.5 / 5.5])
    np.testing.assert_allclose(got[2], 1 / VOCAB)
    single = np.exp(exact(documents, 1, "add_k", add_k=0.5).distribution(np.zeros((1, 0), int)))
    np.testing.assert_allclose(single[0, [A, BOS]], [3.5 / 12.5, 0.5 / 12.5])


def test_kneser_ney_agrees_with_nltk_where_both_define_the_same():
    peers, util = (pytest.importorskip(name, reason="the comparison with nltk needs: pip install -e '.[parity]'")
                   for name in ("nltk.lm", "nltk.util"))
    (document,), order, discount = corpus(2, documents=1, length=120), 3, 0.6
    # nltk has one discount and takes unigrams as they are. It counts what stands before bos, which nothing does: after other histories
    # than bos that makes no difference.
    discounts = [(0, 0, 0), (discount,) * 3, (discount,) * 3]
    model = exact([document], order, "kneser_ney", discounts=discounts)
    peer = peers.KneserNeyInterpolated(order, discount)
    text = ["<s>", *map(str, document)]
    peer.fit([list(util.everygrams(text, max_len=order))], [*map(str, range(VOCAB)), "<s>"])
    for history in sorted({*itertools.pairwise(document[:-1])}):
        got = np.exp(model.distribution(np.array([history])))[0, 3:]
        np.testing.assert_allclose(got, [peer.score(str(w), list(map(str, history))) for w in range(3, VOCAB)], rtol=1e-9)


@pytest.mark.parametrize("options", [{"order": 0}, {"order": 8}, {"smoothing": "witten_bell"}, {"smoothing": "add_k", "add_k": 0.0},
                                     {"prune": (2, 2, 2)}, {"prune": (3, 2)}, {"prune": (0,)}, {"prune": (1.5,)},
                                     {"discounts": [(2, 1, 1)] * 3}],
                         ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()))
def test_options_that_mean_nothing_are_one_line(options):
    with pytest.raises(ConfigError) as error:
        fit([store_of(corpus(0))], VOCAB, BOS, **({"order": 3} | options))
    assert "\n" not in str(error.value)
