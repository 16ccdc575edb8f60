"""The causal objective on random stores, against the definition: every token is predicted once, from its own document."""

import numpy as np
import pytest

from lm import config as configs
from lm import objectives
from lm.data.packing import count_rows, read_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.data.words import WordTokenizer
from lm.errors import ConfigError
from lm.objectives import causal

TOKENIZER = ByteTokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id


def random_store(seed):
    """(store, its documents as token lists); documents of 0 to 11 characters, some of several bytes."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcé中"), rng.integers(0, 12))) for _ in range(rng.integers(1, 9))]
    store = TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], TOKENIZER)
    return store, [[*text.encode(), EOS] for text in texts]


def expected_rows(documents, length):
    """The batch, one token at a time."""
    stream = [(d, i, token) for d, document in enumerate(documents) for i, token in enumerate(document)]
    rows = []
    for start in range(0, len(stream), length):
        row, segment, position = [], 0, 0
        for place, (d, i, token) in enumerate(stream[start : start + length]):
            new = place == 0 or d != stream[start + place - 1][0]
            segment, position = segment + new, 0 if new else position + 1
            row.append((BOS if i == 0 else documents[d][i - 1], token, 1.0, segment, position))
        rows.append(row)
    return rows


@pytest.mark.parametrize("length", [1, 2, 7, 16, 300])
@pytest.mark.parametrize("seed", range(5))
def test_batch_is_the_definition(seed, length):
    store, documents = random_store(seed)
    rows = count_rows(store.num_tokens, length)
    batch = causal.batch_of(read_rows(store, np.arange(rows) * length, length), BOS)
    expected = expected_rows(documents, length)
    assert len(expected) == rows
    for b, row in enumerate(expected):
        for t, values in enumerate(row):
            assert tuple(batch[name][b, t] for name in ("tokens", "targets", "weights", "segments", "positions")) == values
        for name in ("weights", "segments"):
            np.testing.assert_array_equal(batch[name][b, len(row) :], 0)
    scored = batch["weights"] == 1
    assert batch["targets"][scored].tolist() == [token for document in documents for token in document]
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        name: ((rows, length), "float32" if name == "weights" else "int32") for name in batch}


def test_rows_beyond_the_store_are_padding_in_the_vocabulary():
    store, _ = random_store(0)
    batch = causal.batch_of(read_rows(store, np.array([store.num_tokens, store.num_tokens + 1000]), 7), BOS)
    assert not batch["weights"].any()
    assert not batch["segments"].any()
    for name in ("tokens", "targets"):
        assert ((batch[name] >= 0) & (batch[name] < TOKENIZER.vocab_size)).all()


class Lookup:
    """Hidden states that are rows of a table, by the current token."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.params = {"table": rng.normal(size=(19, 6)).astype(np.float32), "matrix": rng.normal(size=(6, 19)).astype(np.float32)}

    def apply(self, params, batch, noise=None):
        return params["table"][batch["tokens"]]

    def unembedding(self, params):
        return params["matrix"]


def test_loss_is_the_weighed_sum_whatever_the_chunk():
    model, rng = Lookup(), np.random.default_rng(1)
    batch = {name: rng.integers(0, 19, (3, 8)) for name in ("tokens", "targets")} | {"weights": rng.random((3, 8)).astype(np.float32)}
    logits = model.params["table"][batch["tokens"]].astype(np.float64) @ model.params["matrix"]
    normaliser = np.log(np.exp(logits).sum(-1))
    nats = normaliser - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(causal.token_nats(model, model.params, batch), nats, rtol=1e-5, atol=1e-5)
    for chunk in (0, 2, 8, 100):
        total, cross_entropy = causal.Causal(None, None, 8, 0).loss(model, model.params, batch, z_loss=0.1, chunk=chunk)
        np.testing.assert_allclose(cross_entropy, np.sum(batch["weights"] * nats), rtol=1e-6)
        np.testing.assert_allclose(total, np.sum(batch["weights"] * (nats + 0.1 * normaliser**2)), rtol=1e-6)


def test_a_tokenizer_of_words_is_refused_wherever_it_comes_from():
    config = configs.override(configs.default(), {"data.source": "store:words"})
    with pytest.raises(ConfigError, match=r"data\.source=store:words is one of words, which loses case.* objective\.name=causal"):
        objectives.make(config, WordTokenizer(["a", "b"], [2, 1], 0))
    assert objectives.make(configs.override(config, {"objective.name": "cbow"}), WordTokenizer(["a", "b"], [2, 1], 0))
