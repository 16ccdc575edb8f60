"""word2vec's losses equal loops over pairs in NumPy; the code is Huffman's; what is drawn has the frequencies that it should."""

import heapq
import itertools
import types

import jax
import numpy as np
import pytest

from lm.data.packing import read_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.objectives import word2vec
from lm.objectives.word2vec import Cbow, SkipGram, huffman, keep_probability, nats_of, noise_distribution
from tests.objectives.word_texts import STORE, TEXTS, TOKENIZER, model_of, options_of

CONTEXT, WINDOW = 16, 4
KINDS = {"skipgram": SkipGram, "cbow": Cbow}


def objective_of(name, seed=5, **changes):
    """An objective with small windows; everything is kept unless `subsample` is given."""
    options = options_of(name, **{"window": WINDOW, "subsample": 0.0, "negatives": 3, "shared_negatives": 8} | changes)
    return KINDS[name](options, TOKENIZER, CONTEXT, seed)


def rows_of(count=None, context=CONTEXT):
    """Rows of the text, the last of them padded."""
    return read_rows(STORE, np.arange(count or -(-STORE.num_tokens // context)) * context, context)


def batch_of(objective):
    """The batch of all rows."""
    rows = rows_of()
    return objective.build(rows, np.arange(len(rows.tokens)))


def sigmoid_nats(score):
    """-log sigmoid."""
    return np.logaddexp(0.0, -float(score))


def pairs_of(batch, row):
    """(centre, place) of every pair of a row, by two loops."""
    segments, windows = batch["segments"][row], batch["windows"][row]
    return [(i, j) for i in range(CONTEXT) for j in range(CONTEXT)
            if i != j and segments[i] > 0 and segments[i] == segments[j] and abs(i - j) <= windows[i]]


def predictions_of(name, params, batch):
    """(row, input vector, target word) of everything that is predicted."""
    inputs = np.asarray(params["inputs"]["embedding"], np.float64)
    for row, tokens in enumerate(batch["tokens"]):
        pairs = pairs_of(batch, row)
        if name == "skipgram":
            yield from ((row, inputs[tokens[i]], tokens[j]) for i, j in pairs)
            continue
        for centre in range(CONTEXT):
            around = [inputs[tokens[j]] for i, j in pairs if i == centre]
            if around:
                yield row, np.mean(around, axis=0), tokens[centre]


@pytest.mark.parametrize("name", KINDS)
def test_negative_sampling_equals_a_loop_over_pairs(name):
    objective = objective_of(name)
    (model, params), batch = model_of("word2vec"), batch_of(objective)
    outputs = np.asarray(params["outputs"]["embedding"], np.float64)
    nats, count, skipped = 0.0, 0, 0
    for row, vector, target in predictions_of(name, params, batch):
        nats += sigmoid_nats(vector @ outputs[target])
        count += 1
        for negative in batch["negatives"][row]:
            if negative == target:
                skipped += 1
            else:
                nats += 3 / 8 * sigmoid_nats(-vector @ outputs[negative])
    minimised, reported = objective.loss(model, params, batch)
    assert count > 300 and skipped > 100
    assert batch["weights"].sum() == count
    np.testing.assert_allclose([minimised, reported], nats, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_hierarchical_softmax_equals_a_loop_over_paths(name):
    objective = objective_of(name, hierarchical=True)
    (model, params), batch = model_of("word2vec"), batch_of(objective)
    outputs = np.asarray(params["outputs"]["embedding"], np.float64)
    code = huffman(TOKENIZER.counts, 4)
    nats, count = 0.0, 0
    for _, vector, target in predictions_of(name, params, batch):
        path = [(node, sign) for node, sign in zip(code.nodes[target], code.signs[target], strict=True) if sign]
        nats += sum(sigmoid_nats(int(sign) * vector @ outputs[node]) for node, sign in path)
        count += 1
    assert batch["weights"].sum() == count > 300 and "negatives" not in batch
    np.testing.assert_allclose(objective.loss(model, params, batch)[0], nats, rtol=1e-5)


def test_the_loss_of_a_score_and_its_slope():
    scores = np.array([-90.0, -20.0, -1.5, 0.0, 0.3, 4.0, 20.0, 90.0], np.float32)
    np.testing.assert_allclose(nats_of(scores), np.logaddexp(0, -scores.astype(np.float64)), rtol=1e-5, atol=2e-7)
    slopes = jax.vmap(jax.grad(nats_of))(scores)
    np.testing.assert_allclose(slopes, -1 / (1 + np.exp(scores.astype(np.float64))), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(("length", "size", "reach"), [(12, 4, 2), (12, 4, 4), (12, 12, 3), (6, 6, 9), (12, 3, 0)])
def test_blocks_hold_what_is_near(length, size, reach):
    x = np.random.default_rng(0).integers(1, 100, (2, length, 3))
    padded = np.pad(x, ((0, 0), (reach, reach), (0, 0)))
    expected = np.stack([padded[:, first : first + size + 2 * reach] for first in range(0, length, size)], axis=1)
    np.testing.assert_array_equal(word2vec.blocks(x, reach, size), expected)


@pytest.mark.parametrize("name", KINDS)
def test_blocks_change_nothing(name, monkeypatch):
    """Rows of 16 in four blocks and in one: losses and gradients."""
    objective, (model, params), found = objective_of(name), model_of("word2vec"), []
    batch = batch_of(objective)
    for size in (4, 16):
        monkeypatch.setattr(word2vec, "_BLOCK", size)
        assert word2vec.block_of(CONTEXT, WINDOW) == size
        found.append(jax.jit(jax.value_and_grad(lambda p: objective.loss(model, p, batch)[0]))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *found)


def test_scores_far_from_zero_stay_finite_and_keep_their_slope():
    objective = objective_of("skipgram")
    (model, params), batch = model_of("word2vec"), batch_of(objective)
    large = jax.tree.map(lambda p: 30 * p, params)
    value, grads = jax.value_and_grad(lambda params: objective.loss(model, params, batch)[0])(large)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    _, zero = jax.value_and_grad(lambda params: objective.loss(model, params, batch)[0])(jax.tree.map(np.zeros_like, params) | {
        "inputs": params["inputs"]})
    assert np.abs(zero["outputs"]["embedding"][4:]).max() > 0, "word2vec's second table starts at 0 and must move"


def test_a_huffman_code_is_the_shortest_there_is():
    for seed in range(5):
        counts = np.concatenate([[0, 0, 0, 9], np.sort(np.random.default_rng(seed).integers(1, 60, 40))[::-1]])
        code = huffman(counts, 4)
        lengths = np.abs(code.signs).sum(axis=1)
        assert (lengths[:4] == 0).all() and (lengths[4:] > 0).all()
        heap, cost = counts[4:].tolist(), 0  # the cost is the sum of all inner nodes
        heapq.heapify(heap)
        while len(heap) > 1:
            both = heapq.heappop(heap) + heapq.heappop(heap)
            cost += both
            heapq.heappush(heap, both)
        assert (counts * lengths).sum() == cost
        assert sum(2.0 ** -lengths[4:]) == 1


def test_a_huffman_code_of_few_words_beats_every_other_tree():
    counts = [7, 5, 2, 2, 1]

    def cheapest(weights):
        if len(weights) == 1:
            return 0
        return min(weights[i] + weights[j] + cheapest([w for k, w in enumerate(weights) if k not in (i, j)] + [weights[i] + weights[j]])
                   for i, j in itertools.combinations(range(len(weights)), 2))

    lengths = np.abs(huffman(np.array([0, 0, 0, 0, *counts]), 4).signs).sum(axis=1)[4:]
    assert (lengths * counts).sum() == cheapest(counts)


def test_hierarchical_softmax_is_a_distribution_over_the_words():
    code = huffman(TOKENIZER.counts, 4)
    _, params = model_of("word2vec")
    scores = np.asarray(params["outputs"]["embedding"], np.float64) @ np.array([0.3, -1.0, 2.0, 0.1, 0.5, -0.7])
    nats = np.logaddexp(0, -code.signs * scores[code.nodes]) * np.abs(code.signs)
    probabilities = np.exp(-nats.sum(axis=1))[4:]
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-12)
    assert code.nodes.max() == TOKENIZER.vocab_size - 4 - 2, "one node fewer than words"


def test_one_word_and_equal_counts_have_codes():
    assert huffman(np.array([0, 0, 0, 0, 3]), 4).signs.tolist() == [[0]] * 5
    first, second = huffman(np.array([0] * 4 + [2] * 6), 4), huffman(np.array([0] * 4 + [2] * 6), 4)
    np.testing.assert_array_equal(first.nodes, second.nodes)
    np.testing.assert_array_equal(first.signs, second.signs)


def test_words_are_kept_as_often_as_word2vec_keeps_them():
    counts = np.array([0, 0, 0, 50, 700, 200, 90, 10])
    keep = keep_probability(counts, 4, 0.02)
    share = counts[4:] / 1000
    np.testing.assert_allclose(keep[4:], np.minimum(1, (np.sqrt(share / 0.02) + 1) * 0.02 / share))  # as it stands in word2vec.c
    assert keep[7] == 1 and (keep_probability(counts, 4, 0.0) == 1).all()


def test_sub_sampling_leaves_out_at_the_rate_it_should():
    objective, rows = objective_of("skipgram", subsample=0.02), rows_of()
    raw = np.bincount(rows.tokens[:, 1:][rows.scored], minlength=TOKENIZER.vocab_size)
    epochs, kept = 200, np.zeros(TOKENIZER.vocab_size)
    for epoch in range(epochs):
        batch = objective.build(rows, np.arange(len(rows.tokens)) + epoch * len(rows.tokens))
        kept += np.bincount(batch["tokens"][batch["segments"] > 0], minlength=TOKENIZER.vocab_size)
        assert batch["words"].sum() == raw[4:].sum()
    expected = keep_probability(TOKENIZER.counts, 4, 0.02) * raw * epochs
    assert (kept[:4] == 0).all() and (expected[4:] < raw[4:] * epochs).any()
    assert (np.abs(kept - expected)[4:] <= 4 * np.sqrt(expected[4:]) + 1e-9).all()


def test_what_is_kept_keeps_its_order_and_closes_the_gaps():
    objective, rows = objective_of("skipgram", subsample=0.05), rows_of()
    batch = objective.build(rows, np.arange(len(rows.tokens)))
    shorter = 0
    for row in range(len(rows.tokens)):
        count = int((batch["segments"][row] > 0).sum())
        known = rows.tokens[row, 1:][rows.scored[row] & (rows.tokens[row, 1:] >= 4)].tolist()
        left = iter(known)
        assert all(token in left for token in batch["tokens"][row, :count].tolist()), "not a subsequence"
        assert (batch["tokens"][row, count:] == 0).all() and (batch["windows"][row, count:] == 0).all()
        assert (batch["windows"][row, :count] > 0).all()
        shorter += count < len(known)
    assert shorter > 10


def test_windows_are_uniform_whatever_is_kept_and_drawn_anew_each_epoch():
    objective, rows = objective_of("cbow", subsample=0.02), rows_of()
    epochs = [objective.build(rows, np.arange(len(rows.tokens)) + epoch * len(rows.tokens)) for epoch in range(60)]
    windows = np.concatenate([batch["windows"][batch["segments"] > 0] for batch in epochs])
    share = np.bincount(windows, minlength=WINDOW + 1) / len(windows)
    np.testing.assert_allclose(share, [0] + [1 / WINDOW] * WINDOW, atol=4 * np.sqrt(0.25 / len(windows)))
    assert (epochs[0]["windows"] != epochs[1]["windows"]).any() and (epochs[0]["negatives"] != epochs[1]["negatives"]).any()


def test_negatives_follow_the_counts_to_the_power_of_three_quarters():
    objective, rows = objective_of("skipgram", shared_negatives=64), rows_of()
    drawn = np.concatenate([objective.build(rows, np.arange(len(rows.tokens)) + e * len(rows.tokens))["negatives"].ravel()
                            for e in range(40)])
    share = np.bincount(drawn, minlength=TOKENIZER.vocab_size) / len(drawn)
    powers = np.where(np.arange(TOKENIZER.vocab_size) < 4, 0.0, TOKENIZER.counts**0.75)
    np.testing.assert_allclose(share, powers / powers.sum(), atol=4 * np.sqrt(0.25 / len(drawn)))
    assert noise_distribution(TOKENIZER.counts, 4)[-1] == 1 and (share[:4] == 0).all()


def test_a_batch_is_a_function_of_seed_and_example():
    rows, examples = rows_of(), np.arange(100, 100 + len(rows_of().tokens))
    whole = objective_of("skipgram", subsample=0.02).build(rows, examples)
    part = objective_of("skipgram", subsample=0.02).build(type(rows)(*[value[3:5] for value in rows]), examples[3:5])
    for key, value in part.items():
        np.testing.assert_array_equal(value, whole[key][3:5])
    other = objective_of("skipgram", seed=6, subsample=0.02).build(rows, examples)
    assert all((other[key] != whole[key]).any() for key in ("tokens", "windows", "negatives"))


def test_documents_do_not_meet():
    objective = objective_of("skipgram", window=CONTEXT)
    (model, params), batch = model_of("word2vec"), batch_of(objective)
    row = next(i for i, segments in enumerate(batch["segments"]) if len(set(segments[segments > 0])) > 1)
    one = {key: value[row : row + 1] for key, value in batch.items()}
    second = one["segments"][0] == one["segments"][0].max()
    changed = one | {"tokens": np.where(second, 4 + (one["tokens"] - 3) % (TOKENIZER.vocab_size - 4), one["tokens"]).astype(np.int32)}
    grads = [jax.grad(lambda p, b=b: objective.loss(model, p, b | {"negatives": b["negatives"] * 0})[0])(params) for b in (one, changed)]
    first_only = sorted(set(one["tokens"][0][~second & (one["segments"][0] > 0)]) - set(one["tokens"][0][second])
                        - set(changed["tokens"][0][second]))
    assert first_only
    for table in ("inputs", "outputs"):
        np.testing.assert_array_equal(*[g[table]["embedding"][np.array(first_only)] for g in grads])


@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_flops_are_those_of_the_scores_that_count(name, hierarchical):
    rng, length = np.random.default_rng(0), 4000
    drawn = rng.choice(len(TOKENIZER.counts), length, p=TOKENIZER.counts / TOKENIZER.counts.sum())
    text = " ".join(TOKENIZER.decode([i]).strip() for i in drawn)
    store = TokenStore.from_documents([("0", text)], TOKENIZER)
    options = options_of(name, window=WINDOW, subsample=1e-2, negatives=3, shared_negatives=8, hierarchical=hierarchical)
    objective = KINDS[name](options, TOKENIZER, length, 5)
    batch = objective.build(read_rows(store, np.zeros(1, np.int64), length), np.arange(1))
    (model, _), lengths = model_of("word2vec"), np.abs(batch["signs"]).sum(axis=2)[0] if hierarchical else None
    kept = int((batch["windows"] > 0).sum())
    windows = batch["windows"][0]
    reached = [j for i in range(kept) for j in range(max(0, i - windows[i]), min(kept, i + windows[i] + 1)) if i != j]
    if name == "skipgram":
        scores = sum(lengths[j] for j in reached) if hierarchical else len(reached) + 8 * kept
    else:
        scores = lengths[:kept].sum() if hierarchical else 9 * kept
    expected = 2.0 * model.spec.width * scores / batch["words"].sum()
    assert objective.forward_flops(model) == pytest.approx(expected, rel=0.05)


def test_other_tokenizers_are_refused():
    with pytest.raises(ConfigError, match=r"data\.tokenizer=words"):
        SkipGram(types.SimpleNamespace(name="skipgram"), ByteTokenizer(), CONTEXT, 0)


def test_the_text_has_what_these_tests_need():
    assert len(TEXTS) == 30 and TOKENIZER.vocab_size == 20 and TOKENIZER.counts[3] > 0
