"""The lower bounds against the likelihood itself, by integration over a code of one unit; the loss, and what keeps the code in use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from lm import config, optim
from lm.data.sentences import read_sentences
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.models import Sizes, vae
from lm.objectives import vae as objective
from lm.parallel import AXES, Layout, make_mesh
from lm.train.step import gradients, init_state, train_step

TOKENIZER, CONTEXT = ByteTokenizer(), 8
TEXTS = ["abc", "", "abcdefg", "hello world", "xy", "zzzz", "q", "abcab"]


def settings(**changes):
    """The config of a tiny sentence VAE; a__b stands for a.b."""
    made = config.default()
    made.model.update({"name": "vae", "cell": "gru", "layers": 1, "width": 16, "embedding_width": 8, "latent_width": 3})
    made.objective.name, made.data.context = "vae", CONTEXT
    for name, value in changes.items():
        section, leaf = name.split("__")
        made[section][leaf] = value
    return made


def objective_of(made):
    return objective.VAE(made.objective, TOKENIZER, made.data.context, 0)


def model_of(made, vocab=TOKENIZER.vocab_size + 1):
    return vae.build(made.model, Sizes(vocab, made.data.context), Layout())


def random_parameters(model, seed=0, factor=1.0):
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        deviation = leaf.shape[-2] ** -0.5 if path[-1].key in ("kernel", "input", "recurrent") else 0.5
        return (factor * deviation * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0)))


def keys(seed, rows):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))


def batch_of(made, documents=tuple(range(8)), examples=None):
    store = TokenStore.from_documents([(text, text) for text in TEXTS], TOKENIZER)
    documents = np.array(documents)
    return objective_of(made).build(read_sentences(store, documents, CONTEXT), np.arange(len(documents)) if examples is None else examples)


def test_the_divergence_is_what_samples_say():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 4, 3)).astype(np.float32)
    deviation, rows = np.exp(log_variance / 2), 40_000
    repeated = [np.repeat(part, rows, axis=0) for part in (mean, log_variance)]
    z = np.asarray(vae.draw(*repeated, keys(0, 4 * rows)), np.float64)
    differences = norm.logpdf(z, *(np.repeat(part, rows, axis=0) for part in (mean, deviation))) - norm.logpdf(z)
    differences = differences.reshape(4, rows, 3)
    errors = differences.std(axis=1) / rows**0.5
    # Five standard errors.
    assert (np.abs(objective.kl(mean, log_variance) - differences.mean(axis=1)) < 5 * errors).all() and errors.max() < 0.05
    np.testing.assert_allclose(objective.log_normal(z[:4].astype(np.float32), mean, log_variance),
                               norm.logpdf(z[:4], mean, deviation).sum(-1), rtol=1e-4)


@pytest.fixture(scope="module")
def integrated():
    """(model, parameters, batch, log p [B], ELBO [B], deviation [B] of p(x, z) / q(z | x) / p(x) under q) of sentences whose code has one
    unit, integrated over a fine grid."""
    made = settings(model__latent_width=1)
    model = model_of(made)
    params, batch = random_parameters(model, 1, 1.5), batch_of(made)
    for name in ("mean", "log_variance"):  # near enough to the prior to cover the posterior
        params[name] = jax.tree.map(lambda leaf: 0.3 * leaf, params[name])
    grid = np.linspace(-12, 12, 2401)
    cost = jax.jit(functools.partial(objective.reconstruction, model, params, batch))
    costs = jax.lax.map(lambda z: cost(jnp.full((len(TEXTS), 1), z)), jnp.asarray(grid, jnp.float32))
    logs = -np.asarray(costs, np.float64)  # [grid, B]
    mean, log_variance = (np.asarray(part, np.float64)[:, 0] for part in jax.jit(model.encode)(params, batch))
    step = grid[1] - grid[0]
    log_p = np.logaddexp.reduce(logs + norm.logpdf(grid)[:, None], axis=0) + np.log(step)
    weight = norm.pdf(grid[:, None], mean, np.exp(log_variance / 2)) * step
    np.testing.assert_allclose(weight.sum(axis=0), 1, rtol=1e-6)
    bound = (weight * logs).sum(axis=0) - (mean**2 + np.exp(log_variance) - log_variance - 1) / 2
    assert (bound < log_p - 0.05).all(), "the encoder is far from the posterior, so that bounds can be told apart"
    ratio = np.exp(logs + norm.logpdf(grid)[:, None] - norm.logpdf(grid[:, None], mean, np.exp(log_variance / 2)) - log_p)
    return model, params, batch, log_p, bound, np.sqrt((weight * ratio**2).sum(axis=0) - 1)


def repeated(batch, times):
    return jax.tree.map(lambda leaf: np.tile(leaf, (times, 1)), batch)


def test_the_elbo_is_its_integral_and_below_the_likelihood(integrated):
    model, params, batch, log_p, bound, _ = integrated
    many = repeated(batch, 1500)
    draws = jax.jit(lambda batch: objective.elbo(model, params, batch, keys(0, len(batch["tokens"]))))(many)
    np.testing.assert_allclose(draws["elbo"], -draws["reconstruction"] - draws["kl"], rtol=1e-5)
    elbo = np.asarray(draws["elbo"], np.float64).reshape(1500, -1)
    errors = elbo.std(axis=0) / len(elbo) ** 0.5
    assert (np.abs(elbo.mean(axis=0) - bound) < 5 * errors + 1e-4).all()
    assert (bound < log_p).all() and errors.max() < 0.3 * (log_p - bound).min() + 0.1


def test_the_importance_bound_rises_from_the_elbo_to_the_likelihood(integrated):
    model, params, batch, log_p, bound, deviation = integrated
    rounds = 200

    @functools.partial(jax.jit, static_argnums=1)
    def bounds(batch, samples):
        return objective.importance_bound(model, params, batch, keys(0, len(batch["tokens"])), samples)

    many = repeated(batch, rounds)
    draws = {samples: np.asarray(bounds(many, samples), np.float64).reshape(rounds, -1).sum(axis=1) for samples in (1, 4, 16)}
    means = {samples: values.mean() for samples, values in draws.items()}
    errors = {samples: values.std() / rounds**0.5 for samples, values in draws.items()}
    assert abs(means[1] - bound.sum()) < 5 * errors[1]
    for fewer, more in ((1, 4), (4, 16)):
        assert means[more] > means[fewer] + 2 * errors[fewer]
    assert means[16] < log_p.sum() + 5 * errors[16]
    assert log_p.sum() - means[16] < 0.5 * (log_p.sum() - means[1])
    error = deviation / 3000**0.5
    assert (np.abs(bounds(batch, 3000) - log_p) < 5 * error).all() and np.median(error / (log_p - bound)) < 0.05


def test_a_row_of_padding_has_no_bound_and_no_loss():
    made = settings(objective__free_bits=0.5)
    model = model_of(made)
    params = random_parameters(model)
    batch, padded = batch_of(made, range(3)), batch_of(made, [0, 1, 2, -1])

    @jax.jit
    def sums(batch):
        noise = keys(0, len(batch["tokens"]))
        bound = objective.importance_bound(model, params, batch, noise, 3)
        elbo = objective.elbo(model, params, batch, noise)
        return objective_of(made).loss(model, params, batch, noise=noise), jax.tree.map(jnp.sum, (bound, elbo))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums(batch), sums(padded))


@pytest.mark.parametrize("free_bits", [0.0, 0.4])
def test_the_loss_is_reconstruction_and_weighted_divergence_with_a_floor(free_bits):
    made = settings(objective__free_bits=free_bits, objective__kl_anneal=32, objective__kl_schedule="linear")
    model = model_of(made)
    params, batch = random_parameters(model), batch_of(made, examples=np.arange(8, 16))
    minimised, reported = jax.jit(lambda params: objective_of(made).loss(model, params, batch))(params)
    mean, log_variance = jax.jit(model.encode)(params, batch)
    cost = np.asarray(jax.jit(lambda z: objective.reconstruction(model, params, batch, z))(mean), np.float64).sum()
    divergence = np.asarray(objective.kl(mean, log_variance), np.float64)
    assert (divergence < 0.4).any() and (divergence > 0.4).any()
    np.testing.assert_allclose(reported, cost + divergence.sum(), rtol=1e-5)
    weights = np.arange(8, 16) / 32
    np.testing.assert_allclose(minimised, cost + (weights[:, None] * np.maximum(divergence, free_bits)).sum(), rtol=1e-5)


def test_a_dimension_below_its_floor_is_not_pushed():
    made = settings(objective__free_bits=50.0)
    model, batch = model_of(made), batch_of(made)
    params = random_parameters(model)

    def divergence_part(params):
        minimised, _ = objective_of(made).loss(model, params, batch)
        return minimised - jnp.sum(objective.reconstruction(model, params, batch, model.encode(params, batch)[0]))

    def largest(gradient):
        return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))

    plain = jax.jit(jax.grad(lambda params: jnp.sum(objective.kl(*model.encode(params, batch)))))(params)
    assert largest(jax.jit(jax.grad(divergence_part))(params)) < 1e-3 * largest(plain)


def test_the_weight_of_the_divergence_rises_with_the_examples():
    examples = np.array([0, 250, 500, 750, 1000, 9000])
    np.testing.assert_allclose(objective.kl_weight(examples, 1000, "linear"), [0, 0.25, 0.5, 0.75, 1, 1])
    logistic = objective.kl_weight(examples, 1000, "logistic")
    np.testing.assert_allclose(logistic, [1 / (1 + np.exp(6)), 1 / (1 + np.exp(3)), 0.5, 1 / (1 + np.exp(-3)), 1, 1])
    np.testing.assert_array_equal(objective.kl_weight(examples, 0, "logistic"), 1)
    batch = batch_of(settings(objective__kl_anneal=10, objective__kl_schedule="linear"), [0, 1], np.array([3, 40]))
    np.testing.assert_allclose(batch["kl_weight"], [[0.3], [1.0]])
    assert batch["kl_weight"].dtype == np.float32


def test_dropped_words_belong_to_their_row_and_never_reach_the_encoder():
    made = settings(objective__word_dropout=0.4)
    batch = batch_of(made, np.tile(np.arange(len(TEXTS)), 40))
    unknown = TOKENIZER.vocab_size
    assert objective.dropped(batch, 0.4, unknown) is batch
    noise = keys(0, len(batch["tokens"]))
    seen = objective.dropped(batch, 0.4, unknown, noise)
    assert all(seen[name] is batch[name] for name in batch if name != "tokens")
    tokens, changed = np.asarray(seen["tokens"]), np.asarray(seen["tokens"]) != batch["tokens"]
    assert (tokens[changed] == unknown).all() and not changed[:, 0].any()
    assert changed[batch["positions"] > 0].mean() == pytest.approx(0.4, abs=0.05)
    part = objective.dropped(jax.tree.map(lambda leaf: leaf[5:9], batch), 0.4, unknown, noise[5:9])
    np.testing.assert_array_equal(part["tokens"], tokens[5:9])
    everything = objective.dropped(batch, 1.0, unknown, noise)["tokens"]
    np.testing.assert_array_equal(np.asarray(everything) == unknown, batch["positions"] > 0)
    model = model_of(made)
    params = random_parameters(model)
    loss = jax.jit(lambda noise: objective_of(made).loss(model, params, batch_of(made), noise=noise)[0])
    none, train = loss(None), loss(keys(1, len(TEXTS)))
    assert abs(float(train) - float(none)) > 1e-3


def test_neither_micro_batches_nor_a_mesh_change_anything():
    made = settings(objective__word_dropout=0.3, objective__free_bits=0.1, model__dropout=0.2, model__latent_width=4)
    model, batch, noise = model_of(made, 264), batch_of(made), keys(5, len(TEXTS))
    params = random_parameters(model)
    run = functools.partial(gradients, model, objective_of(made))
    expected = jax.jit(lambda *arguments: run(*arguments, made))(params, batch, noise)
    micro = settings(train__accumulate=2)
    with jax.set_mesh(make_mesh(dict.fromkeys(AXES, 1) | {"fsdp": 2, "tensor": 2, "replica": 2}, jax.devices())):
        got = jax.jit(lambda *arguments: run(*arguments, micro))(params, batch, noise)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


WORDS, TOPICS, LENGTH = 40, 4, 6


def topical(rng, rows):
    """Sentences of words of one topic of four: a code that knows the topic saves the decoder from learning it word by word."""
    topics = rng.integers(0, TOPICS, rows)
    return 2 + topics[:, None] * (WORDS // TOPICS) + rng.integers(0, WORDS // TOPICS, (rows, LENGTH))


def trained_divergence(steps=160, **changes):
    """Mean KL of a sentence in nats, after training."""
    made = settings(optim__learning_rate=0.02, data__global_batch=32, model__latent_width=4, **changes)
    model = model_of(made, WORDS + 3)

    class Words:
        vocab_size, bos_id = WORDS + 2, 0

    of = objective.VAE(made.objective, Words, LENGTH + 1, 0)
    optimizer = optim.optimizer(made.optim)
    step = jax.jit(functools.partial(train_step, model=model, objective=of, optimizer=optimizer, learning_rate=lambda _: 0.02, config=made))
    state, rng = init_state(model, optimizer, jax.random.key(0), False), np.random.default_rng(0)
    for i in range(steps):
        words = np.concatenate([topical(rng, 32), np.ones((32, 1), int)], axis=1).astype(np.int32)
        ones = np.ones(words.shape, np.int32)
        batch = {"tokens": np.concatenate([0 * ones[:, :1], words[:, :-1]], axis=1), "targets": words, "segments": ones,
                 "positions": np.tile(np.arange(LENGTH + 1, dtype=np.int32), (32, 1)), "weights": ones.astype(np.float32),
                 "kl_weight": objective.kl_weight(32 * i + np.arange(32), made.objective.kl_anneal, "linear").astype(np.float32)[:, None]}
        state, metrics = step(state, batch)
    assert float(metrics["loss"]) < 3.0, "it learnt something"
    return float(jnp.mean(jnp.sum(objective.kl(*jax.jit(model.encode)(state.params, batch)), axis=-1)))


def test_annealing_free_bits_and_word_dropout_keep_the_code_in_use():
    """A topic is worth log 4 = 1.39 nats. Without help the decoder learns to do without the code first; the floor alone is 1 nat."""
    collapsed = trained_divergence()
    kept = trained_divergence(objective__kl_anneal=32 * 100, objective__kl_schedule="linear", objective__free_bits=0.25,
                              objective__word_dropout=0.5)
    assert kept > 1.3 and collapsed < 0.4 * kept, (kept, collapsed)
