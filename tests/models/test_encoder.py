"""BERT's encoder: who sees whom, its heads in closed form, what its settings must not change. tests/interop has it beside its peers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, models
from lm.errors import ConfigError
from lm.models import encoder, logits_of

SEGMENTS = np.array([1] * 6 + [2] * 7 + [0] * 3)
LENGTH = len(SEGMENTS)
BERT = {"positions": "learned", "norm": "layernorm", "norm_position": "post", "bias": True, "activation": "gelu_erf", "next_sentence": True}
SETTINGS = {"bert": BERT, "pre-norm": {"norm": "rmsnorm", "kv_heads": 2, "activation": "geglu", "embedding_width": 8, "token_types": 0}}


def typed(batch):
    return batch | {"types": np.random.default_rng(5).integers(0, 2, batch["tokens"].shape).astype(np.int32)}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_changed_token_changes_all_of_its_document_and_nothing_else(make, random_batch, name):
    model, params = make("encoder", **SETTINGS[name])
    batch = typed(jax.tree.map(lambda row: np.repeat(row, LENGTH, axis=0), random_batch(SEGMENTS[None])))
    tokens = batch["tokens"].copy()
    tokens[np.arange(LENGTH), np.arange(LENGTH)] += 1  # row i has token i changed
    encode = jax.jit(model.encode)
    changed = (np.asarray(encode(params, batch)) != np.asarray(encode(params, batch | {"tokens": tokens % 19}))).any(axis=-1)
    np.testing.assert_array_equal(changed, SEGMENTS[:, None] == SEGMENTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_packed_document_is_encoded_as_it_is_alone(make, random_batch, name):
    model, params = make("encoder", **SETTINGS[name])
    batch = typed(random_batch(SEGMENTS[None]))
    # The packed row, and its two documents each in a row of its own.
    rows = {key: np.stack([row] + [np.pad(row[segment == SEGMENTS], (0, np.sum(segment != SEGMENTS))) for segment in (1, 2)])
            for key, (row,) in batch.items()}
    hidden = np.asarray(jax.jit(model.encode)(params, rows))
    for segment in (1, 2):
        mine = segment == SEGMENTS
        np.testing.assert_allclose(hidden[segment, : mine.sum()], hidden[0, mine], rtol=1e-5, atol=1e-5)
    assert np.isfinite(hidden).all(), "padding"


def test_types_and_positions_are_added_before_the_norm(make, random_batch):
    model, params = make("encoder", **BERT)
    batch = typed(random_batch(SEGMENTS[None]))
    inputs = params["inputs"]
    x = sum(inputs[name]["embedding"][batch[key]] for name, key in (("tokens", "tokens"), ("positions", "positions"), ("types", "types")))
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    expected = x * inputs["norm"]["scale"] + inputs["norm"]["bias"]
    np.testing.assert_allclose(encoder.Inputs(model.spec).apply({"params": inputs}, batch), expected, rtol=1e-4, atol=1e-5)


def test_heads_are_their_closed_forms(make, random_batch):
    model, params = make("encoder", **BERT)
    batch = typed(random_batch(SEGMENTS[None]))
    hidden = np.asarray(jax.jit(model.encode)(params, batch), np.float64)
    masked = params["masked"]
    x = hidden @ masked["transform"]["kernel"] + masked["transform"]["bias"]
    x = np.asarray(jax.scipy.stats.norm.cdf(x)) * x
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    x = x * masked["norm"]["scale"] + masked["norm"]["bias"]
    expected = x @ params["inputs"]["tokens"]["embedding"].T + masked["bias"]
    for got in (jax.jit(model.apply)(params, batch), model.predict(params, jnp.asarray(hidden, jnp.float32))):
        np.testing.assert_allclose(logits_of(got, model.unembedding(params)), expected, rtol=1e-3, atol=1e-4)
    pooled = np.tanh(hidden[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    np.testing.assert_allclose(model.pool(params, jnp.asarray(hidden, jnp.float32)), pooled, rtol=1e-4, atol=1e-5)
    follows = pooled @ params["next_sentence"]["kernel"] + params["next_sentence"]["bias"]
    np.testing.assert_allclose(jax.jit(model.next_sentence_logits)(params, batch), follows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("settings", "heads"), [({}, set()), ({"pooler": True}, {"pooler"}),
                                                 ({"next_sentence": True}, {"pooler", "next_sentence"})])
def test_heads_are_there_only_where_they_are_asked_for(make, settings, heads):
    _, params = make("encoder", **settings)
    assert set(params) == {"inputs", "body", "masked"} | heads


def test_an_encoder_alone_gives_hidden_states_and_no_tokens(make, random_batch):
    (model, params), (alone, other) = (make("encoder", masked_head=masked, **BERT) for masked in (True, False))
    batch = typed(random_batch(SEGMENTS[None]))
    assert set(other) == set(params) - {"masked"}
    np.testing.assert_array_equal(jax.jit(alone.apply)(params, batch), jax.jit(model.encode)(params, batch))
    with pytest.raises(ConfigError, match=r"predicts no tokens \(model\.masked_head=false\)"):
        alone.predict(params, alone.encode(params, batch))


def test_positions_may_begin_later_in_their_table(make, random_batch):
    (model, params), (later, shapes) = (make("encoder", position_offset=offset, **BERT) for offset in (0, 3))
    batch = typed(random_batch(SEGMENTS[None]))
    rows = params["inputs"]["positions"]["embedding"]
    assert shapes["inputs"]["positions"]["embedding"].shape == (len(rows) + 3, 16)
    table = np.concatenate([np.full((3, 16), np.nan, np.float32), rows])
    shifted = params | {"inputs": params["inputs"] | {"positions": {"embedding": table}}}
    np.testing.assert_array_equal(jax.jit(later.encode)(shifted, batch), jax.jit(model.encode)(params, batch))
    with pytest.raises(ConfigError, match=r"model\.position_offset=3 is for a table"):
        make("encoder", position_offset=3, positions="rope")


def test_the_head_that_tells_replaced_tokens_is_electras(make, random_batch):
    electra, params = make("electra", **BERT | {"next_sentence": False})
    model, own = make("encoder", replaced_head=True, **BERT | {"next_sentence": False})
    batch = typed(random_batch(SEGMENTS[None]))
    mine = {"inputs": params["inputs"], "body": params["discriminator"], "replaced": params["replaced"], "masked": own["masked"]}
    assert jax.tree.map(np.shape, mine) == jax.tree.map(np.shape, own)
    np.testing.assert_array_equal(jax.jit(model.discriminate)(mine, batch), jax.jit(electra.discriminate)(params, batch))


def test_heads_may_have_another_activation_than_the_layers(make, random_batch):
    model, params = make("encoder", head_activation="relu", **BERT)
    batch = typed(random_batch(SEGMENTS[None]))
    hidden = np.asarray(jax.jit(model.encode)(params, batch))
    np.testing.assert_allclose(hidden, jax.jit(make("encoder", **BERT)[0].encode)(params, batch), rtol=1e-5, atol=1e-5)
    x = np.maximum(hidden @ params["masked"]["transform"]["kernel"] + params["masked"]["transform"]["bias"], 0)
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    expected = x * params["masked"]["norm"]["scale"] + params["masked"]["norm"]["bias"]
    np.testing.assert_allclose(model.predict(params, hidden)[..., :-1], expected, rtol=1e-3, atol=1e-4)


def test_scanned_layers_are_the_unscanned_ones(make, random_batch):
    (scanned, params), (unscanned, other) = (make("encoder", scan_layers=scan, **BERT) for scan in (True, False))
    stack = {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["body"]["stack"]["layers"]) for i in range(2)}
    unstacked = params | {"body": {"stack": stack}}
    assert jax.tree.map(np.shape, unstacked) == jax.tree.map(np.shape, other)
    batch = typed(random_batch(SEGMENTS[None]))
    np.testing.assert_allclose(jax.jit(unscanned.apply)(unstacked, batch), jax.jit(scanned.apply)(params, batch), rtol=1e-5, atol=1e-5)


def test_dropout_follows_the_row(make, random_batch):
    model, params = make("encoder", **BERT, dropout=0.3)
    batch = typed(random_batch(np.ones((3, 8))))
    noise = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(3))
    apply = jax.jit(model.apply)
    kept, dropped = apply(params, batch), apply(params, batch, noise)
    assert (np.abs(np.asarray(kept - dropped)).max(axis=(1, 2)) > 0.1).all()
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(apply(params, {key: value[order] for key, value in batch.items()}, noise[order]), dropped[order],
                               rtol=1e-5, atol=1e-6)


def test_flops_count_the_matrix_products_of_the_compiled_program(make, random_batch):
    """XLA's own count, which adds element-wise work, is a little more."""
    model, params = make("encoder", positions="learned", scan_layers=False, width=64, embedding_width=32)
    batch = typed(random_batch(np.ones((2, 24))))
    step = jax.jit(lambda params, batch: logits_of(model.apply(params, batch), model.unembedding(params))).lower(params, batch)
    counted = step.compile().cost_analysis()["flops"] / 48
    assert 1.0 < counted / model.forward_flops(24) < 1.2


@pytest.mark.parametrize("positions", ["sinusoidal", "relative"])
def test_positions_that_it_does_not_have_are_refused(positions):
    section = config.default().model
    section.update(name="encoder", positions=positions)
    with pytest.raises(ConfigError, match=f"model.positions={positions} is not for model.name=encoder: use learned, rope"):
        models.build(section, 19, 24)
