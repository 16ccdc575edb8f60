"""What evaluations beside the likelihood of text report, against one row at a time."""

import math

import jax
import numpy as np
import pytest

from lm import config as configs
from lm import evaluate
from lm.data.pairs import PairStore
from lm.data.sources import Document
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.evaluate import denoising
from lm.models import logits_of
from lm.objectives import make
from lm.objectives.vae import elbo
from lm.parallel import AXES, make_mesh, replicated

TOKENIZER = ByteTokenizer()
TEXTS = ["we the people", "of the union", "a", "in order to form a more perfect union and much more", "peace"]


def made(objective, family, **overrides):
    """(config, objective, model, random parameters)."""
    given = {"objective.name": objective, "model.name": family, "model.width": "16", "model.layers": "1", "data.context": "16",
             "data.global_batch": "4"}
    given |= {"model.heads": "2"} if family in ("encoder", "electra") else {}
    config = configs.override(configs.default(), given | overrides)
    objective = make(config, TOKENIZER, TOKENIZER if objective == "translation" else None)
    model, rng = objective.model(config), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return config, objective, model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.4, shapes)


def evaluated(config, objective, model, params, stores, max_tokens=0):
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1})
    with jax.set_mesh(mesh):
        evaluator = evaluate.make(config, objective, model, mesh, replicated(mesh))
        return evaluator(jax.device_put(params, replicated(mesh)), stores, max_tokens)


def store_of(texts):
    return TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], TOKENIZER)


def log_probs(model, params, batch):
    """Float64 log-probabilities [B, T, V]."""
    logits = np.float64(logits_of(model.apply(params, batch), model.unembedding(params)))
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


@pytest.mark.parametrize(("max_tokens", "count"), [(0, 5), (15, 2)])
def test_translations_cost_what_each_pair_costs_alone(max_tokens, count):
    config, objective, model, params = made("translation", "seq2seq")
    pairs = [Document(str(i), text, text[::-1]) for i, text in enumerate(TEXTS)]
    store = PairStore.from_documents(pairs, TOKENIZER, TOKENIZER)
    result = evaluated(config, objective, model, params, [store], max_tokens)
    nats, size = 0.0, 0
    fitting = [text for text in TEXTS[:count] if len(text) < 16]
    for text in fitting:
        ids, back = [*text.encode(), TOKENIZER.eos_id], [*text[::-1].encode(), TOKENIZER.eos_id]
        row = lambda tokens: np.array([tokens], np.int32)  # noqa: E731
        times, ones = row(range(len(ids))), np.ones((1, len(ids)), np.int32)
        batch = {"tokens": row([TOKENIZER.bos_id, *ids[:-1]]), "segments": ones, "positions": times, "source_tokens": row(back),
                 "source_segments": ones, "source_positions": times}
        found = log_probs(model, params, batch)[0]
        nats, size = nats - found[np.arange(len(ids)), ids].sum(), size + len(text)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert (result["bytes"], result["documents"], result["left_out"]) == (size, len(fitting), count - len(fitting))


def test_masked_models_report_the_hidden_tokens_and_each_token_hidden_alone():
    config, objective, model, params = made("masked", "encoder", **{"eval.pseudo_tokens": "20", "objective.mask_rate": "0.3"})
    store = store_of(TEXTS)
    result = evaluated(config, objective, model, params, [store])
    nats = right = hidden = 0
    for first in range(0, -(-store.num_tokens // objective.raw)):
        places = np.array([first])
        batch = objective.build(objective.read(store, places, places), places)
        found, chosen = log_probs(model, params, batch)[0], batch["weights"][0] > 0
        targets = batch["targets"][0]
        nats -= found[np.flatnonzero(chosen), targets[chosen]].sum()
        right, hidden = right + np.sum(np.argmax(found, axis=-1)[chosen] == targets[chosen]), hidden + chosen.sum()
    assert result["masked_tokens"] == hidden and result["masked_accuracy"] == pytest.approx(right / hidden)
    assert result["masked_nats_per_token"] == pytest.approx(nats / hidden, rel=1e-5)
    pseudo, size = alone(objective, model, params, store, 20)
    assert result["pseudo_tokens"] == 20 and result["pseudo_bits_per_byte"] == pytest.approx(pseudo / math.log(2) / size, rel=1e-5)


def alone(objective, model, params, store, count):
    """(nats, bytes) of the first tokens of text of a store, each hidden alone in its row."""
    nats = size = done = 0
    for first in range(0, -(-store.num_tokens // objective.raw)):
        laid = objective.lay_out(objective.read(store, np.array([first]), np.array([first])))
        for place in np.flatnonzero(laid.eligible[0])[: count - done]:
            tokens = laid.tokens.copy()
            tokens[0, place] = objective.mask
            batch = {"tokens": tokens, "segments": laid.segments, "positions": laid.positions, "types": laid.types}
            nats -= log_probs(model, params, batch)[0, place, laid.tokens[0, place]]
            size, done = size + 1, done + 1  # a token is a byte here
    return nats, size


def test_a_discriminator_is_judged_by_the_order_of_its_logits():
    """Exactly: the share of pairs of a replaced token and another in which the former has the higher logit."""
    config, objective, model, params = made("replaced", "electra", **{"objective.mask_rate": "0.4"})
    store = store_of(TEXTS)
    result = evaluated(config, objective, model, params, [store])
    places = np.arange(-(-store.num_tokens // objective.raw))
    batch = objective.build(objective.read(store, places, places), places)
    scores = jax.jit(lambda p, b: objective.scores(model, p, b))(params, batch)
    real = batch["weights"] > 0
    logits, replaced = np.asarray(scores["logits"])[real], np.asarray(scores["replaced"])[real] > 0
    above = logits[replaced][:, None] - logits[~replaced]
    assert result["discriminator_auc"] == pytest.approx(np.mean((above > 0) + (above == 0) / 2), abs=2e-3)  # rounding swaps near ones
    assert result["discriminator_accuracy"] == pytest.approx(np.mean((logits > 0) == replaced), abs=1e-6)


@pytest.mark.parametrize(("scores", "positive", "area"), [
    ([1, 2, 3, 4], [0, 0, 1, 1], 1.0), ([4, 3, 2, 1], [0, 0, 1, 1], 0.0), ([1, 1, 1], [0, 1, 0], 0.5), ([1, 3, 2, 2], [0, 0, 1, 1], 0.5),
    ([0, 1, 1, 2], [0, 0, 1, 1], 0.875), ([1, 2], [1, 1], None), ([1, 2], [0, 0], None)])
def test_area_under_the_curve(scores, positive, area):
    assert denoising.area_under_curve(np.array(scores, np.float32), np.array(positive, bool)) == area


def test_a_vae_reports_the_bound_of_the_sentences_that_fit():
    config, objective, model, params = made("vae", "vae", **{"model.latent_width": "3"})
    store = store_of(TEXTS)
    result = evaluated(config, objective, model, params, [store])
    fitting = [i for i, text in enumerate(TEXTS) if len(text) < 16]
    total = 0.0
    for i in fitting:
        batch = objective.build(objective.read(store, np.array([i]), np.array([0])), np.array([0]))
        noise = jax.random.fold_in(jax.random.key(objective.seed), i)[None]
        total -= float(elbo(model, params, batch, noise)["elbo"][0])
    size = sum(len(TEXTS[i]) for i in fitting)
    assert result["bits_per_byte_bound"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert (result["sentences"], result["left_out"], result["bytes"]) == (len(fitting), len(TEXTS) - len(fitting), size)
    assert 0 < result["bits_per_byte_sampled"] <= result["bits_per_byte_bound"] * 1.05
