"""The encoder-decoder: decoding is teacher forcing, sources and pairs stay apart, and its settings do what they say.

tests/interop has it beside the transformers library's T5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, models
from lm.errors import ConfigError

VOCAB, SOURCE_VOCAB, LENGTH = 19, 17, 12
SOURCE_LENGTHS = np.array([9, 4, 1])
SETTINGS = {
    "vaswani": {"positions": "sinusoidal", "norm": "layernorm", "norm_position": "post", "bias": True, "activation": "relu",
                "share_embeddings": True},
    "t5": {"positions": "relative", "relative_buckets": 8, "relative_distance": 6, "scale_attention": False, "scale_logits": True,
           "share_embeddings": True, "encoder_layers": 1, "head_width": 6},
    "t5 1.1, grouped": {"positions": "relative", "scale_attention": False, "activation": "geglu", "tie_embeddings": False, "kv_heads": 2,
                        "scan_layers": False},
    "rope": {"positions": "rope", "qk_norm": True, "layers": 1},
}


@pytest.fixture(params=SETTINGS)
def model(request):
    """(model, random parameters) of each of the settings."""
    return made(request.param)


@functools.cache
def made(name):
    return make(**SETTINGS[name])


@functools.cache
def applied(model):
    """`apply`, compiled once per shape for all tests."""
    return jax.jit(model.apply)


def make(**settings):
    section = config.default().model
    section.update({"layers": 2, "width": 16} | settings, name="encoder_decoder")
    model = models.build(section, VOCAB, LENGTH, source_vocab=VOCAB if section.share_embeddings else SOURCE_VOCAB)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        deviation = {"kernel": leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.3}.get(path[-1].key, 0.3)
        return ((path[-1].key == "scale") + deviation * rng.normal(size=leaf.shape)).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0)))


def rows(lengths, length, prefix="", seed=0):
    """The keys of rows padded on the right."""
    segments = (np.arange(length) < np.asarray(lengths)[:, None]).astype(np.int32)
    tokens = np.random.default_rng(seed).integers(0, SOURCE_VOCAB, segments.shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), segments.shape)
    return {f"{prefix}tokens": tokens, f"{prefix}segments": segments, f"{prefix}positions": positions}


def pairs(lengths=(LENGTH,) * 3):
    return rows(lengths, LENGTH) | rows(SOURCE_LENGTHS, 9, "source_", seed=1)


def started(model, params, batch):
    return jax.jit(lambda params, batch: model.start_decode(params, batch, LENGTH))(params, batch)


def test_decoding_is_teacher_forcing(model):
    """Some tokens at once, then one by one; rows that start later are padded on the left."""
    (model, params), batch, skipped = model, pairs(), np.array([0, 2, 1])
    expected = np.asarray(applied(model)(params, batch)) @ np.asarray(model.unembedding(params))
    state = started(model, params, batch)
    shifted = np.take_along_axis(batch["tokens"], np.maximum(np.arange(LENGTH) - skipped[:, None], 0), axis=1)
    step, logits = jax.jit(model.decode_step), []
    for start, stop in ((0, 5), *((t, t + 1) for t in range(5, LENGTH))):
        valid = np.arange(start, stop) >= skipped[:, None]
        part, state = step(params, state, shifted[:, start:stop], valid)
        logits.append(part)
    logits = np.concatenate(logits, axis=1)
    assert np.std(expected) > 0.1
    for row, first in enumerate(skipped):
        np.testing.assert_allclose(logits[row, first:], expected[row, : LENGTH - first], rtol=1e-4, atol=2e-5)


def test_rows_of_a_state_are_taken_and_tokens_taken_back(model):
    (model, params), batch, order = model, pairs(), np.array([2, 0, 0])
    tokens, step = batch["tokens"], jax.jit(model.decode)
    _, before = step(params, started(model, params, batch), tokens[:, :3])
    before = model.take(before, jnp.asarray(order))
    drafts = (tokens[order, 3:6] + np.array([[0, 1, 1]])) % VOCAB  # the first is right
    _, after = step(params, before, drafts)
    state = model.accept(params, before, after, drafts, jnp.ones(3, jnp.int32))
    hidden, _ = step(params, state, tokens[order, 4:5])
    expected = applied(model)(params, batch)[order, 4]
    np.testing.assert_allclose(hidden[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_padding_of_sources_is_not_read(model):
    (model, params), batch = model, pairs()
    apply = applied(model)
    expected = np.asarray(apply(params, batch))
    padding = batch["source_segments"] == 0
    other = batch | {"source_tokens": np.where(padding, 3, batch["source_tokens"])}
    assert (other["source_tokens"] != batch["source_tokens"]).any()
    np.testing.assert_array_equal(apply(params, other), expected)
    seen = batch | {"source_tokens": np.where(padding, batch["source_tokens"], (batch["source_tokens"] + 1) % SOURCE_VOCAB)}
    assert (np.asarray(apply(params, seen)) != expected).any(axis=-1).all(), "the source is not used"


def test_pairs_that_are_packed_into_a_row_are_what_they_are_alone(model):
    """The source of the second pair is before and after other tokens, and a third target has no source at all."""
    model, params = model
    source, target = np.array([1, 1, 1, 2, 2, 0, 0]), np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 0])
    rng, batch = np.random.default_rng(2), {}
    for prefix, segments in (("source_", source), ("", target)):
        begins = np.concatenate([[True], segments[1:] != segments[:-1]])
        times = np.arange(len(segments))
        row = {"tokens": rng.integers(0, SOURCE_VOCAB, len(segments)), "segments": segments,
               "positions": times - np.maximum.accumulate(np.where(begins, times, 0))}
        # The packed row, and its first two pairs each in a row of its own.
        batch |= {f"{prefix}{name}": np.stack([value] + [np.pad(value[segments == i], (0, np.sum(segments != i))) for i in (1, 2)])
                  for name, value in row.items()}
    hidden = np.asarray(applied(model)(params, batch))
    assert np.isfinite(hidden).all()
    for segment in (1, 2):
        mine = target == segment
        np.testing.assert_allclose(hidden[segment, : mine.sum()], hidden[0, mine], rtol=1e-4, atol=2e-5)


def test_no_token_sees_the_future(model):
    (model, params), batch = model, pairs()
    repeated = {name: np.repeat(value[:1], LENGTH, axis=0) for name, value in batch.items()}
    tokens = repeated["tokens"].copy()
    tokens[np.arange(LENGTH), np.arange(LENGTH)] += 1  # row i has token i changed
    apply = jax.jit(model.apply)
    changed = (np.asarray(apply(params, repeated)) != np.asarray(apply(params, repeated | {"tokens": tokens}))).any(axis=-1)
    np.testing.assert_array_equal(changed, np.triu(np.ones((LENGTH, LENGTH), bool)))


@pytest.mark.parametrize("name", ["t5", "t5 1.1, grouped"])
def test_attention_weights_are_a_distribution_over_the_source(name):
    (model, params), batch = made(name), pairs((LENGTH, 5, 7))
    weights = np.asarray(jax.jit(model.attention_weights)(params, batch))
    assert weights.shape == (3, LENGTH, 9) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=2), batch["segments"], rtol=1e-5, atol=1e-6)
    assert (weights[np.broadcast_to((batch["source_segments"] == 0)[:, None], weights.shape)] == 0).all()


def test_embeddings_are_shared_where_they_are_asked_to_be():
    names = {name: set(made(name)[1]) for name in SETTINGS}
    assert names["vaswani"] == names["t5"] == {"inputs", "encoder", "decoder"}
    assert names["rope"] == {"inputs", "source_inputs", "encoder", "decoder"}
    assert names["t5 1.1, grouped"] == {"inputs", "source_inputs", "encoder", "decoder", "unembedding"}
    assert made("rope")[1]["source_inputs"]["tokens"]["embedding"].shape == (SOURCE_VOCAB, 16)


def test_an_untrained_t5_has_logits_of_order_one():
    """Embeddings of deviation 1, logits divided by the root of the width, queries that start small."""
    section = config.default().model
    section.update(name="encoder_decoder", layers=1, width=64, **{k: v for k, v in SETTINGS["t5"].items() if k != "head_width"})
    model = models.build(section, VOCAB, LENGTH, source_vocab=VOCAB)
    params = jax.jit(model.init)(jax.random.key(0))
    logits = applied(model)(params, pairs()) @ model.unembedding(params)
    assert 0.5 < float(jnp.std(logits)) < 2
    query, key = (np.std(params["decoder"]["layers"]["attention"][name]["kernel"]) for name in ("query", "key"))
    assert query / key == pytest.approx(16**-0.5, rel=0.05)  # 4,096 draws each: over four standard errors of the ratio


def test_dropout_is_in_both_stacks_and_follows_the_row():
    model, params = make(**SETTINGS["rope"], dropout=0.3)
    batch = pairs()
    noise = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(3))
    apply = jax.jit(model.apply)
    blind = batch | {"source_segments": np.zeros_like(batch["source_segments"])}  # the decoder alone
    kept, dropped = apply(params, blind), np.asarray(apply(params, blind, noise))
    assert (np.abs(kept - dropped).max(axis=(1, 2)) > 0.1).all()
    encode = jax.jit(lambda params, noise: model.module.apply({"params": params}, batch, noise, method="encode"))
    assert (np.abs(encode(params, None) - encode(params, noise)).max(axis=(1, 2)) > 0.1).all()
    dropped = np.asarray(apply(params, batch, noise))
    order = np.array([2, 0, 1])
    again = apply(params, {name: value[order] for name, value in batch.items()}, noise[order])
    np.testing.assert_allclose(again, dropped[order], rtol=1e-5, atol=1e-6)


def test_flops_count_the_matrix_products_of_the_compiled_program():
    """XLA's own count, which adds element-wise work and all keys of the mask, is a little more."""
    model, params = make(positions="sinusoidal", width=64, scan_layers=False)
    batch = rows((LENGTH,) * 2, LENGTH) | rows((LENGTH,) * 2, LENGTH, "source_")
    step = jax.jit(lambda params, batch: model.apply(params, batch) @ model.unembedding(params)).lower(params, batch)
    counted = step.compile().cost_analysis()["flops"] / (2 * LENGTH)
    assert 1.0 < counted / model.forward_flops(LENGTH, causal=False) < 1.2


@pytest.mark.parametrize(("settings", "message"), [
    ({"positions": "learned"}, "model.positions=learned is not for model.name=encoder_decoder"),
    ({"share_embeddings": True}, "model.share_embeddings needs one vocabulary, but source tokens are 17 and target tokens 19"),
    ({"scale_logits": True, "tie_embeddings": False}, "set model.tie_embeddings=true"),
    ({"positions": "relative", "relative_distance": 16}, "must be more than half of model.relative_buckets=32"),
    ({"positions": "relative", "relative_buckets": 5}, "model.relative_buckets=5 must be even"),
])
def test_what_cannot_be_is_refused(settings, message):
    section = config.default().model
    section.update(settings, name="encoder_decoder")
    with pytest.raises(ConfigError, match=message):
        models.build(section, VOCAB, LENGTH, source_vocab=SOURCE_VOCAB)
