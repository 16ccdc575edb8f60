"""Dropout in models: every place has a mask of its own, a variational mask stays for the whole row, evaluation has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import recurrent, transformer

SEGMENTS = np.ones((3, 12), int)
CASES = [("transformer", {"scan_layers": False}), ("lstm", {}), ("lstm", {"variational_dropout": True}), ("gru", {"remat": "full"})]


def noise_of(seed):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(SEGMENTS)))


@pytest.fixture
def masks_of(monkeypatch):
    """masks_of(model, params, batch): what each dropout kept, in order, [B, T, D] of bools."""
    masks, dropout = [], transformer.dropout

    def spy(x, *arguments):
        y = dropout(x, *arguments)
        if not isinstance(y, jax.core.Tracer):  # not while the parameters are made
            masks.append(np.asarray(y != 0))
        return y

    for module in (recurrent, transformer):
        monkeypatch.setattr(module, "dropout", spy)

    def run(model, params, batch):
        masks.clear()
        model.apply(params, batch, noise_of(0))
        return list(masks)

    return run


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_every_place_draws_its_own_mask(make, random_batch, masks_of, name, settings):
    model, params = make(name, dropout=0.5, **settings)
    masks = masks_of(model, params, random_batch(SEGMENTS))
    assert len(masks) == (5 if name == "transformer" else 3)  # the embedding, and each layer's outputs
    for i, mask in enumerate(masks):
        assert 0.3 < mask.mean() < 0.7
        for other in masks[:i]:
            agreement = (mask == other).mean()
            assert 0.25 < agreement < 0.75, "two places share a mask"


def test_variational_masks_last_for_a_row(make, random_batch, masks_of):
    for variational in (True, False):
        model, params = make("lstm", dropout=0.5, variational_dropout=variational)
        for mask in masks_of(model, params, random_batch(SEGMENTS)):
            assert (mask == mask[:, :1]).all() == variational
            assert (mask[0] != mask[1]).any()


@pytest.mark.parametrize("scan_layers", [True, False])
def test_layers_of_a_stack_draw_different_masks(make, random_batch, scan_layers):
    """With constant layers the hidden state counts, for each unit, the layers that kept it."""
    model, params = make("transformer", dropout=0.5, scan_layers=scan_layers, bias=True, norm="rmsnorm", positions="rope")

    def constant(path, leaf):
        names = [part.key for part in path]
        if names[-1] == "scale":
            return np.ones_like(leaf)
        return np.ones_like(leaf) if names[-3:] == ["attention", "output", "bias"] else np.zeros_like(leaf)

    hidden = model.apply(jax.tree_util.tree_map_with_path(constant, params), random_batch(SEGMENTS), noise_of(0))
    row = np.asarray(hidden)[0, 0]
    kept = np.round(row / row[row > 0].min(), 3).tolist()
    assert set(kept) == {0.0, 1.0, 2.0}, "two layers with one mask keep a unit twice or never"


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_dropout_is_a_function_of_its_key_and_off_in_evaluation(make, random_batch, name):
    (model, params), (without, _) = make(name, dropout=0.5), make(name)
    batch = random_batch(SEGMENTS)
    run = jax.jit(lambda seed: model.apply(params, batch, noise_of(seed)))
    np.testing.assert_array_equal(run(1), run(1))
    assert (np.asarray(run(1)) != np.asarray(run(2))).mean() > 0.5
    np.testing.assert_array_equal(model.apply(params, batch), without.apply(params, batch))
