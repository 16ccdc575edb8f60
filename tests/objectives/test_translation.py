"""Translation against the definition: every target token and its eos is scored once, from the tokens before it and the whole source."""

import types

import jax
import numpy as np
import pytest

from lm import config
from lm.data.pairs import PairData, PairStore, read_pairs
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.objectives import make
from lm.objectives.translation import Translation

TOKENIZER = ByteTokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
TARGET = ("tokens", "targets", "weights", "segments", "positions")
SOURCE = ("source_tokens", "source_segments", "source_positions")


def objective(smoothing=0.0, context=16):
    return Translation(types.SimpleNamespace(label_smoothing=smoothing), TOKENIZER, context, 0)


def pairs_of(seed, count=20):
    """(store, its pairs of texts); sides of 0 to 9 characters, some of several bytes."""
    rng = np.random.default_rng(seed)
    texts = [["".join(rng.choice(list("abé中"), size)) for size in rng.integers(0, 10, 2)] for _ in range(count)]
    sides = ([(str(i), pair[side]) for i, pair in enumerate(texts)] for side in (0, 1))
    return PairStore(*(TokenStore.from_documents(side, TOKENIZER) for side in sides)), texts


@pytest.mark.parametrize("seed", range(4))
def test_batch_is_the_definition(seed):
    store, texts = pairs_of(seed)
    pairs, length = np.array([3, -1, 0, 19, 3]), 31
    batch = objective().build(read_pairs([store], pairs, length), np.arange(5))
    assert set(batch) == {*TARGET, *SOURCE}
    for row, pair in enumerate(pairs):
        source, target = ([*text.encode(), EOS] for text in texts[pair]) if pair >= 0 else ([], [])
        columns = zip([BOS, *target], target, [1.0] * len(target), [1] * len(target), range(length), strict=False)
        expected = dict(zip(TARGET, zip(*columns, strict=True), strict=True)) if target else dict.fromkeys(TARGET, ())
        expected |= {"source_tokens": source, "source_segments": [1] * len(source), "source_positions": range(len(source))}
        for name, values in expected.items():
            assert batch[name][row].tolist() == [*values] + [0] * (length - len(values)), name
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        name: ((5, length), "float32" if name == "weights" else "int32") for name in batch}
    assert objective().tokens(batch) == sum(len(texts[pair][1].encode()) + 1 for pair in pairs if pair >= 0)


def settings(**values):
    chosen = config.default()
    chosen.data.update({"context": 32, "global_batch": 2} | values)
    return chosen


def test_data_are_the_training_pairs_in_the_buckets_of_the_config():
    store, _ = pairs_of(0)
    prepared = types.SimpleNamespace(pair_stores={"train": [store]}.get)
    made = objective(context=32).data(prepared, settings())
    assert isinstance(made, PairData) and made.stores == [store] and (made.lengths, made.global_batch) == ((16, 32), 2)
    assert objective(context=32).data(prepared, settings(buckets=(4.0, 9.0))).lengths == (4, 9, 32)
    assert set(made.batch(0, objective(context=32).build)) == {*TARGET, *SOURCE}
    with pytest.raises(ConfigError, match=r"data.weights is for rows of text: .* leave it empty"):
        objective().data(prepared, settings(weights=(1.0,)))


def test_a_config_can_name_it():
    chosen = settings()
    chosen.objective.name, chosen.objective.label_smoothing = "translation", 0.1
    made = make(chosen, TOKENIZER, TOKENIZER)
    with pytest.raises(ConfigError, match=r"objective\.name=translation reads pairs, and data.source holds texts"):
        make(chosen, TOKENIZER)
    chosen.objective.name = "causal"
    with pytest.raises(ConfigError, match=r"objective\.name=causal reads texts, and data.source holds pairs"):
        make(chosen, TOKENIZER, TOKENIZER)
    assert isinstance(made, Translation) and made.vocab_size == TOKENIZER.vocab_size and made.options.label_smoothing == 0.1


class Lookup:
    """Hidden states that are rows of tables, by the current token and the first one of the source."""

    def __init__(self):
        rng = np.random.default_rng(0)
        shapes = {"table": (TOKENIZER.vocab_size, 6), "source": (TOKENIZER.vocab_size, 6), "matrix": (6, TOKENIZER.vocab_size)}
        self.params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def apply(self, params, batch, noise=None):
        return params["table"][batch["tokens"]] + params["source"][batch["source_tokens"][:, :1]]

    def unembedding(self, params):
        return params["matrix"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 8, 16, 64])
def test_loss_trains_on_smoothed_targets_and_reports_plain_nats(smoothing, chunk):
    """`chunk` need not divide the length of a bucket: 16 and 12 have chunks of 4 in common."""
    store, _ = pairs_of(1)
    fits = np.flatnonzero(store.sizes() <= 12)[:6]
    made = objective(smoothing, context=64)
    batch, model = made.build(read_pairs([store], fits, 12), fits), Lookup()
    logits = model.apply(model.params, batch).astype(np.float64) @ model.params["matrix"]
    normaliser = np.log(np.exp(logits).sum(-1, keepdims=True))
    log_p = logits - normaliser
    one_hot = np.eye(TOKENIZER.vocab_size)[batch["targets"]]
    spread = (1 - smoothing) * one_hot + smoothing / TOKENIZER.vocab_size
    weights = batch["weights"]

    def total(params):
        return made.loss(model, params, batch, z_loss=0.1, chunk=chunk)

    (got, reported), grads = jax.value_and_grad(total, has_aux=True)(model.params)
    np.testing.assert_allclose(reported, -np.sum(weights * (one_hot * log_p).sum(-1)), rtol=1e-6)
    np.testing.assert_allclose(got, np.sum(weights * (-(spread * log_p).sum(-1) + 0.1 * normaliser[..., 0] ** 2)), rtol=1e-6)
    p = np.exp(log_p)
    d_logits = weights[..., None] * (p - spread + 0.2 * normaliser * p)
    expected = np.einsum("btd,btv->dv", model.apply(model.params, batch).astype(np.float64), d_logits)
    np.testing.assert_allclose(grads["matrix"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
