"""The families beside the decoder on eight devices give the value and gradients of one; meshes that cannot be are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config as configs
from lm import models
from lm.errors import ConfigError
from lm.models import logits_of
from lm.parallel import AXES, batch_sharding, layout, make_mesh, parameter_shardings

VOCAB, ROWS, CONTEXT, SOURCE = 64, 8, 16, 8
RNG = np.random.default_rng(0)
BERT = {"positions": "learned", "norm": "layernorm", "norm_position": "post", "bias": True}
SETTINGS = {
    "encoder": BERT | {"next_sentence": True, "replaced_head": True},
    "electra": BERT | {"embedding_width": 8, "generator_share": 0.5},
    "encoder_decoder": {"positions": "relative", "kv_heads": 2, "scale_attention": False, "share_embeddings": True},
    "transformer": {},
    "nplm": {"window": 3, "embedding_width": 8},
    "vae": {"layers": 1, "cell": "gru", "latent_width": 4},
    **{f"seq2seq {cell} {attention}": {"layers": 1, "cell": cell, "attention": attention}
       for cell, attention in (("lstm", "bahdanau"), ("gru", "bahdanau"), ("lstm", "luong"), ("rnn", "none"))},
}


def rows(length, prefix=""):
    """Keys of packed rows, of segments 1 and 2 with padding after them."""
    segments = np.sort(RNG.integers(1, 3, (ROWS, length)), axis=1).astype(np.int32)
    segments[1, -3:] = 0
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), segments.shape)
    return {f"{prefix}tokens": RNG.integers(0, VOCAB, segments.shape).astype(np.int32), f"{prefix}segments": segments,
            f"{prefix}positions": positions}


def value(model, params, batch):
    """A number that depends on everything the model gives."""
    hidden = model.apply(params, batch)
    hidden, *codes = hidden if isinstance(hidden, tuple) else (hidden,)
    total = jnp.sum(jnp.sin(logits_of(hidden, model.unembedding(params)))) + sum(jnp.sum(jnp.sin(code)) for code in codes)
    if hasattr(model, "discriminate"):
        total += jnp.sum(jnp.sin(model.discriminate(params, batch)))
    return total + jnp.sum(model.next_sentence_logits(params, batch)) if hasattr(model, "next_sentence_logits") else total


@pytest.mark.parametrize("name", SETTINGS)
def test_a_hybrid_of_data_fsdp_and_tensor_is_one_device(name):
    section = configs.default().model
    section.update({"layers": 2, "width": 16} | SETTINGS[name], name=name.split()[0])
    model = models.build(section, VOCAB, CONTEXT, source_vocab=VOCAB)
    batch = rows(CONTEXT) | rows(SOURCE, "source_")
    if name.startswith(("seq2seq", "vae")):  # a pair or a sentence a row
        batch |= {key: np.minimum(batch[key], 1) for key in ("segments", "source_segments")}
    batch |= {"targets": RNG.integers(0, VOCAB, (ROWS, CONTEXT)).astype(np.int32)}
    batch |= {"types": RNG.integers(0, 2, (ROWS, CONTEXT)).astype(np.int32)}
    batch |= {"prefix": RNG.integers(0, 2, (ROWS, CONTEXT)).astype(np.int32)} if name == "transformer" else {}
    boxed = jax.eval_shape(model.init_boxed, jax.random.key(0))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32) * max(leaf.shape) ** -0.5, shapes)
    step = jax.value_and_grad(lambda params, batch: value(model, params, batch))
    expected = jax.jit(step)(params, batch)
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        shardings = parameter_shardings(boxed, mesh)
        placed = jax.device_put(params, shardings), jax.device_put(batch, batch_sharding(mesh))
        got = jax.jit(step, out_shardings=(None, shardings))(*placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize(("name", "settings", "sizes", "message"), [
    ("encoder", {}, {"context": 2}, "mesh.context=2 cuts rows in time, which only causal attention can be"),
    ("encoder_decoder", {}, {"stage": 2}, "mesh.stage=2 is for one stack of causal layers"),
    ("encoder", {"heads": 2}, {"tensor": 4}, "model.heads=2 is not a multiple of mesh.tensor"),
    ("electra", {"heads": 4}, {"tensor": 4}, "model.heads x model.generator_share=1 is not a multiple of mesh.tensor"),
])
def test_meshes_that_cannot_be_are_refused(name, settings, sizes, message):
    config = configs.default()
    config.model.update(settings, name=name)
    with pytest.raises(ConfigError, match=message):
        layout.check(config, dict.fromkeys(AXES, 1) | sizes)
