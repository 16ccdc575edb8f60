"""The copy probe: rows of real text said twice, which what copies knows, what has no memory does not, and no device changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm.evaluate
from lm.compare import copying
from lm.compare.copying import copy_probe, text_runs
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.parallel import make_mesh
from lm.run import open_run
from lm.train import train
from tests.compare.small_runs import small, write_corpus

pytestmark = pytest.mark.usefixtures("programs")

EM = {"model__classes": 4, "optim__name": "em", "optim__learning_rate": 1.0, "optim__schedule": "constant", "optim__clip": 0.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """run(name, **overrides) -> a run trained for a few steps, with the stores of its split."""
    corpus = write_corpus(tmp_path_factory.mktemp("copying"))

    @functools.cache
    def run(name, **overrides):
        workdir = tmp_path_factory.mktemp(name)
        train(small(corpus, model__name=name, **overrides), workdir)
        opened = open_run(workdir)
        return opened, opened.prepare().split_stores("validation")

    return run


@dataclasses.dataclass(frozen=True)
class Copier:
    """A model that is sure of what stood a period before, and has no idea where nothing stood there."""

    period: int
    vocab: int

    def apply(self, params, batch):
        # The target of place t - period is the input of the place after it; the first input, bos, is no target.
        before = jnp.roll(batch["tokens"], self.period - 1, axis=1)
        return 50 * jax.nn.one_hot(jnp.where(batch["positions"] < self.period, -1, before), self.vocab)

    def unembedding(self, params):
        return jnp.eye(self.vocab)


def no_parameters(monkeypatch, run, model):
    """The run with a model that has none."""
    monkeypatch.setattr(type(run), "parameters", lambda self, sharding=None, step=None: ({}, 4))
    return dataclasses.replace(run, model=model)


def test_what_copies_knows_the_second_half_and_not_the_first(trained, monkeypatch):
    run, stores = trained("ngram")
    vocab = run.objective.vocab_size
    found = copy_probe(no_parameters(monkeypatch, run, Copier(12, vocab)), stores)
    assert found["second"] < 1e-6 and found["first"] == pytest.approx(np.log(vocab)) == found["difference"]
    assert (found["rows"], found["tokens"]) == (64, 64 * 11)


@pytest.mark.parametrize("context", [24, 25])
def test_what_has_no_memory_pays_twice(trained, context):
    run, stores = trained("ngram", model__order=1, data__context=context)
    found = copy_probe(run, stores)
    assert found["difference"] == pytest.approx(0.0, abs=1e-9) and found["first"] > 1 and found["tokens"] == 64 * 11


@pytest.mark.parametrize("name", ["lstm", "transformer", "nplm", "hmm"])
def test_it_is_the_mean_of_each_half_for_every_likelihood_on_one_device_and_on_eight(trained, monkeypatch, name):
    run, stores = trained(name, **(EM if name == "hmm" else {}))
    found = copy_probe(run, stores)
    rows = np.tile(text_runs(stores, 12), 2)
    inputs = np.concatenate([np.full((64, 1), run.tokenizer.bos_id), rows[:, :-1]], axis=1).astype(np.int32)
    batch = {"tokens": inputs, "targets": rows, "segments": np.ones_like(rows), "positions": np.broadcast_to(np.arange(24), rows.shape)}
    params, _ = run.parameters()
    nats = np.asarray(jax.jit(functools.partial(lm.evaluate.likelihood.causal.token_nats, run.model))(params, batch), np.float64)
    assert found["first"] == pytest.approx(nats[:, 1:12].mean(), rel=1e-5)
    assert found["second"] == pytest.approx(nats[:, 13:].mean(), rel=1e-5)
    assert found["difference"] == found["first"] - found["second"]
    monkeypatch.setattr(lm.evaluate, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    assert copy_probe(run, stores) == pytest.approx(found, rel=1e-6, abs=1e-6)  # nats are float32


def test_runs_are_of_the_text_without_the_ends_of_documents_wherever_they_can_begin(monkeypatch):
    texts = [["abcdefgh", "", "ijk"], ["lmnopqrstu"], ["xyz"]]
    tokenizer = ByteTokenizer()
    stores = [TokenStore.from_documents([("d", text) for text in of_store], tokenizer) for of_store in texts]
    runs = text_runs(stores, 6)
    np.testing.assert_array_equal(runs, text_runs(stores, 6))
    monkeypatch.setattr(copying, "ROWS", 500)
    found = {tokenizer.decode(row.tolist()) for row in text_runs(stores, 6)}
    assert found == {"abcdefghijk"[i:i + 6] for i in range(6)} | {"lmnopqrstu"[i:i + 6] for i in range(5)}
    assert {tokenizer.decode(row.tolist()) for row in text_runs(stores, 100)} == {"abcdefghijk"}  # no store has so much


def test_without_a_likelihood_or_two_tokens_to_say_twice_there_is_none(trained):
    run, stores = trained("ngram")
    masked, _ = trained("encoder", objective__name="masked", model__heads=2, train__steps=1)
    assert copy_probe(masked, stores) is None
    for text in ("", "a"):
        assert copy_probe(run, [TokenStore.from_documents([("d", text)], run.tokenizer)]) is None
    found = copy_probe(run, [TokenStore.from_documents([("d", "abc")], run.tokenizer)])
    assert found["tokens"] == 64 * 2
