"""ELECTRA's two encoders: what they share, and what belongs to one of them alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import logits_of

SETTINGS = {"positions": "learned", "norm": "layernorm", "norm_position": "post", "bias": True, "embedding_width": 12, "heads": 4,
            "ff_width": 48}
SEGMENTS = [[1] * 5 + [2] * 4, [1] * 7 + [0] * 2]


@pytest.fixture
def batch(random_batch):
    made = random_batch(SEGMENTS)
    return made | {"types": np.zeros_like(made["tokens"])}


@pytest.mark.parametrize(("share", "sizes"), [(0.25, (1, 4, 12)), (0.5, (2, 8, 24)), (1.0, (4, 16, 48)), (0.01, (1, 4, 12))])
def test_the_generator_has_a_share_of_heads_and_widths(make, share, sizes):
    model, params = make("electra", generator_share=share, **SETTINGS)
    block = model.spec.generator.block
    assert (block.heads, block.width, block.ff_width) == sizes and block.head_width == 4
    assert params["generator"]["stack"]["layers"]["attention"]["query"]["kernel"].shape == (2, sizes[1], sizes[1])
    assert params["discriminator"]["stack"]["layers"]["attention"]["query"]["kernel"].shape == (2, 16, 16)


def test_embeddings_are_shared_and_nothing_else_is(make, batch):
    model, params = make("electra", **SETTINGS)
    generate = jax.grad(lambda params: jnp.sum(logits_of(model.apply(params, batch), model.unembedding(params)) ** 2))
    discriminate = jax.grad(lambda params: jnp.sum(model.discriminate(params, batch) ** 2))
    touched = [{name for name, tree in jax.jit(f)(params).items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
               for f in (generate, discriminate)]
    assert touched == [{"inputs", "generator", "masked"}, {"inputs", "discriminator", "replaced"}]


def test_a_logit_per_token_sees_its_own_document_alone(make, batch):
    model, params = make("electra", **SETTINGS)
    tokens = batch["tokens"].copy()
    tokens[0, 2] = (tokens[0, 2] + 1) % 19
    discriminate = jax.jit(model.discriminate)
    before, after = (np.asarray(discriminate(params, batch | {"tokens": t})) for t in (batch["tokens"], tokens))
    assert before.shape == (2, 9) and before.dtype == np.float32
    np.testing.assert_array_equal(before != after, [[True] * 5 + [False] * 4, [False] * 9])


def test_logits_are_a_closed_form_of_hidden_states(make, batch):
    model, params = make("electra", **SETTINGS, activation="relu")
    head = params["replaced"]
    x = np.maximum(np.asarray(jax.jit(model.encode)(params, batch)) @ head["transform"]["kernel"] + head["transform"]["bias"], 0)
    expected = (x @ head["output"]["kernel"] + head["output"]["bias"])[..., 0]
    np.testing.assert_allclose(jax.jit(model.discriminate)(params, batch), expected, rtol=1e-4, atol=1e-5)


def test_the_halves_drop_units_apart(make, batch):
    """With the same sizes and parameters, and the same random key of a row."""
    model, params = make("electra", **SETTINGS, dropout=0.5, generator_share=1.0)
    params = params | {"generator": params["discriminator"]}
    noise = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(2))

    def hidden(module, half):
        return getattr(module, half)(module.inputs(batch), batch, noise)

    run = jax.jit(lambda params, half: model.module.apply({"params": params}, half, method=hidden), static_argnums=1)
    first, second = (run(params, half) for half in ("generator", "discriminator"))
    assert float(jnp.max(jnp.abs(first - second))) > 0.1
