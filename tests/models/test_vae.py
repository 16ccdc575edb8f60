"""The sentence VAE as a model: what the encoder reads, what the decoder sees, and greedy decoding against the full forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, optim
from lm.models import Sizes, vae
from lm.models.base import logits_of
from lm.parallel import Layout

VOCAB, BOS, EOS = 13, 0, 1
SEGMENTS = [[1] * 6 + [0] * 2, [1] * 8, [1] + [0] * 7]


def model_of(**changes):
    section = config.default().model
    section.update({"cell": "lstm", "layers": 2, "width": 16, "embedding_width": 12, "latent_width": 3} | changes)
    return vae.build(section, Sizes(VOCAB, 8), Layout())


def random_parameters(model, seed=0):
    """Random values everywhere: zero biases would hide errors in them."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        deviation = leaf.shape[-2] ** -0.5 if path[-1].key in ("kernel", "input", "recurrent") else 0.5
        return (deviation * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0)))


def keys(seed, rows):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))


@pytest.mark.parametrize("changes", [{}, {"cell": "gru", "layers": 1}, {"tie_embeddings": False}, {"width": 12, "embedding_width": 0}],
                         ids=["projected", "gru", "untied", "tied"])
def test_parameters_have_groups_and_shapes_fit(random_batch, changes):
    model = model_of(**changes)
    params = random_parameters(model)
    assert set(jax.tree.leaves(optim.groups(params))) == {"embedding", "matrix", "vector"}
    hidden, mean, log_variance = jax.eval_shape(model.apply, params, random_batch(SEGMENTS, vocab=VOCAB))
    assert hidden.shape == (3, 8, model.spec.output_width) and mean.shape == log_variance.shape == (3, 3)
    assert jax.eval_shape(model.unembedding, params).shape == (model.spec.output_width, VOCAB)


def test_the_encoder_reads_the_sentence_and_nothing_else(random_batch):
    model = model_of()
    params, batch = random_parameters(model), random_batch(SEGMENTS, vocab=VOCAB)
    encode = jax.jit(model.encode)
    before = encode(params, batch)
    for column in range(8):
        targets = batch["targets"].copy()
        targets[:, column] = (targets[:, column] + 1) % VOCAB
        for got, had in zip(encode(params, batch | {"targets": targets}), before, strict=True):
            np.testing.assert_array_equal((np.asarray(got) != np.asarray(had)).any(axis=1), np.array(SEGMENTS)[:, column] > 0)
    for got, had in zip(encode(params, batch | {"tokens": batch["tokens"] * 0}), before, strict=True):
        np.testing.assert_array_equal(got, had)


def test_the_decoder_sees_the_code_everywhere_and_tokens_up_to_its_own(random_batch):
    model = model_of()
    params, batch = random_parameters(model), random_batch(SEGMENTS, vocab=VOCAB)
    z = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    hidden = jax.jit(model.hidden)
    before = np.asarray(hidden(params, batch["tokens"], z))
    changed = batch["tokens"].copy()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB
    after = np.asarray(hidden(params, changed, z))
    np.testing.assert_array_equal((after != before).any(axis=-1), np.tile(np.arange(8) >= 4, (3, 1)))
    z[1] += 1
    assert ((np.asarray(hidden(params, batch["tokens"], z)) != before).any(axis=-1) == (np.arange(3) == 1)[:, None]).all()
    # At every step, and not through the first state alone.
    bridges = {name: jax.tree.map(np.zeros_like, part) if name.startswith("bridges") else part for name, part in params.items()}
    assert any(name.startswith("bridges") for name in params)
    far = np.asarray(hidden(bridges, batch["tokens"], z))[:, -1]
    assert np.abs(far - np.asarray(hidden(bridges, batch["tokens"], z + 1))[:, -1]).max() > 1e-2


def test_codes_are_drawn_by_row_and_dropout_needs_noise(random_batch):
    model = model_of(dropout=0.5)
    params, batch = random_parameters(model), random_batch(SEGMENTS, vocab=VOCAB)
    apply = jax.jit(model.apply)
    plain, noisy, again, other = (apply(params, batch, noise) for noise in (None, keys(1, 3), keys(1, 3), keys(2, 3)))
    np.testing.assert_array_equal(noisy[0], again[0])
    assert (np.asarray(noisy[0]) != np.asarray(other[0])).mean() > 0.9
    without = model_of(dropout=0.0)
    np.testing.assert_array_equal(plain[0], jax.jit(without.apply)(params, batch)[0])
    encode = jax.jit(without.encode)
    mean, log_variance = encode(params, batch)
    np.testing.assert_array_equal(plain[1], mean)
    # One row alone draws what it drew in company.
    row = jax.tree.map(lambda leaf: leaf[1:2], batch)
    alone = vae.draw(*encode(params, row), keys(1, 3)[1:2])
    np.testing.assert_allclose(alone[0], vae.draw(mean, log_variance, keys(1, 3))[1], rtol=1e-5, atol=1e-6)


def test_every_place_draws_noise_of_its_own(random_batch, monkeypatch):
    places, dropout = [], vae.dropout
    monkeypatch.setattr(vae, "dropout", lambda x, rate, noise, place: places.append(place) or dropout(x, rate, noise, place))
    model = model_of(dropout=0.5)
    params, batch = random_parameters(model), random_batch(SEGMENTS, vocab=VOCAB)
    places.clear()  # of the making of the parameters
    jax.eval_shape(lambda params: model.apply(params, batch, keys(1, 3)), params)
    assert len(places) == len(set(places)) == 2 + 2 * model.spec.layers, "an embedding and the layers, on both sides"
    assert max(places) < vae.CODE


def test_bfloat16_keeps_the_code_in_float32(random_batch):
    model = model_of(dtype="bfloat16")
    hidden, mean, log_variance = jax.eval_shape(model.apply, random_parameters(model), random_batch(SEGMENTS, vocab=VOCAB))
    assert (hidden.dtype, mean.dtype, log_variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_greedy_decoding_takes_the_likeliest_token_of_the_full_forward_pass(cell):
    model, length, banned = model_of(cell=cell), 12, (BOS, 5)
    params = random_parameters(model, 3)
    z = 2 * np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
    written = np.asarray(jax.jit(lambda params: model.greedy(params, z, length, BOS, EOS, banned))(params))
    assert written.shape == (24, length) and written.dtype == np.int32
    tokens = np.concatenate([np.full((24, 1), BOS), np.maximum(written[:, :-1], 0)], axis=1)
    logits = np.array(logits_of(model.hidden(params, tokens, z), model.unembedding(params)))
    logits[..., list(banned)] = -np.inf
    ended = np.cumsum(written == EOS, axis=1) - (written == EOS) > 0
    np.testing.assert_array_equal(written, np.where(ended, -1, logits.argmax(-1)))
    assert 0 < (written == EOS).sum() < 24, "some end and some do not"
    assert len({tuple(row) for row in written.tolist()}) > 5


def test_interpolation_leads_from_one_reconstruction_to_the_other(random_batch):
    model, ends = model_of(), (10, BOS, EOS)
    params, batch = random_parameters(model), random_batch(SEGMENTS, vocab=VOCAB)
    params["mean"]["kernel"] *= 4  # codes that are far apart
    a, b = (jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch) for i in (0, 1))
    path = np.asarray(jax.jit(lambda params: model.interpolate(params, a, b, 5, *ends))(params))
    texts = np.asarray(jax.jit(lambda params: model.reconstruct(params, batch, *ends))(params))
    np.testing.assert_array_equal(path[[0, -1]], texts[:2])
    means = np.asarray(model.encode(params, batch)[0])
    middle = jax.jit(lambda z: model.greedy(params, z, *ends))(means[:2].mean(axis=0, keepdims=True))
    np.testing.assert_array_equal(path[2:3], middle)
    assert (path[0] != path[-1]).any()


def test_samples_follow_their_key():
    model = model_of()
    params = random_parameters(model)
    sample = jax.jit(lambda key: model.sample(params, key, 16, 10, BOS, EOS))
    np.testing.assert_array_equal(sample(jax.random.key(0)), sample(jax.random.key(0)))
    assert (np.asarray(sample(jax.random.key(0))) != np.asarray(sample(jax.random.key(1)))).any()


@pytest.mark.parametrize("changes", [{}, {"cell": "gru", "tie_embeddings": False, "layers": 1}], ids=["lstm", "gru"])
def test_flops_are_those_of_the_matrices(changes):
    model, context = model_of(**changes), 8
    shapes, s = jax.eval_shape(model.init, jax.random.key(0)), model.spec
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    by_path = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size for path, leaf in leaves}
    matrices = {path: size for path, size in by_path.items() if optim.group_of(path) == "matrix"}
    once = sum(size for path, size in matrices.items() if path.split("/")[0].startswith(("mean", "log_variance", "bridges")))
    total = 2 * (sum(matrices.values()) - once) + 2 * once / context + 2 * s.output_width * VOCAB
    assert model.forward_flops(context) == pytest.approx(total)
