"""Parameters drawn together are those drawn one by one, to the bit, for every family and on a mesh, and are less for XLA to compile."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config as configs
from lm import models, optim
from lm.models.alike import drawn_together
from lm.parallel import Layout, make_mesh
from lm.train.step import init_state, state_shardings

VOCAB, CONTEXT = 40, 16
# By the name of a family, or its variants: settings of the model section beside 3 layers of width 16.
MODELS = {name: {} for name in models.FAMILIES if name != "ngram"} | {
    "transformer": {"scan_layers": False},
    "transformer scanned": {},
    "transformer experts": {"experts": 4},
    "transformer Llama": {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "tie_embeddings": False},
    "lstm wide": {"width": 24, "tie_embeddings": False},
}


def build(name, layout=Layout()):  # noqa: B008
    section = configs.default().model
    small = {"layers": 3, "width": 16} | MODELS[name]
    section.update({key: value for key, value in small.items() if key in section}, name=name.split()[0])
    return models.build(section, VOCAB, CONTEXT, layout, source_vocab=VOCAB, bos=1)


def one_by_one(model):
    return lambda key: nn.meta.unbox(model.init_boxed(key))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_of_every_family_are_the_same(name):
    model, key = build(name), jax.random.key(3)
    together = jax.jit(model.init)(key)
    same(together, jax.jit(one_by_one(model))(key))
    assert {jnp.result_type(leaf) for leaf in jax.tree.leaves(together)} == {jnp.dtype(jnp.float32)}


def test_matrices_that_differ_by_their_key_alone_are_drawn_in_one_loop():
    model, key = build("transformer"), jax.random.key(0)

    def draws(make):
        return len(re.findall(r"name=_normal\b", str(jax.make_jaxpr(make)(key))))

    # Query, key, value, output, up and down of each of three layers, and the embedding.
    assert draws(one_by_one(model)) == 3 * 6 + 1
    # Query, key and value are alike; of the others each has a shape or scale of its own.
    assert draws(model.init) == 4 + 1


def test_nothing_of_the_forward_pass_is_left():
    """Outside of jit too, where nobody else would leave it out."""
    text = str(jax.make_jaxpr(build("transformer").init)(jax.random.key(0)))
    assert "random_bits" in text and "dot_general" not in text


def test_results_that_are_made_otherwise_stay_apart():
    """Of other numbers, other keys, by several folds, by two keys of which only one differs, by none."""

    def make(key):
        folded = [jax.random.fold_in(key, number) for number in range(6)]
        draw = lambda key, scale=1.0: scale * jax.random.normal(key, (5, 3))  # noqa: E731
        return {"one": draw(folded[0]), "two": draw(folded[1]), "again": draw(folded[0]), "scaled": draw(folded[2], 2.0),
                "twice": draw(jax.random.fold_in(folded[3], 7)), "twice more": draw(jax.random.fold_in(folded[4], 7)),
                "sub": draw(jax.random.split(folded[2])[1]), "traced": draw(jax.random.fold_in(key, jnp.arange(9)[4])),
                "root": draw(key), "zeros": jnp.zeros((5, 3)), "zeros too": jnp.zeros((5, 3)), "shifted": draw(folded[5]) + 1,
                "mixed": draw(folded[0]) + draw(folded[1]), "other way": draw(folded[1]) + draw(folded[0])}

    key = jax.random.key(11)
    same(jax.jit(lambda key: drawn_together(make, key))(key), jax.jit(make)(key))
    same(drawn_together(make, key), make(key))


def test_a_function_that_folds_nothing_is_as_it_is():
    key = jax.random.key(1)
    same(drawn_together(lambda key: [jax.random.normal(key, (3,)), jnp.ones(2)], key), [jax.random.normal(key, (3,)), jnp.ones(2)])


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_a_mesh_draws_its_own_parts(axes):
    """The same values in place, and no device holds or is sent what others have drawn."""
    config = configs.override(configs.default(), {"model.width": "64", "model.layers": "3", "model.heads": "4",
                                                   "model.scan_layers": "False"})
    config.mesh.update({"replica": 1} | axes)
    mesh = make_mesh(config.mesh)
    layout = Layout.of(config.layout, dict(mesh.shape))
    model, optimizer = models.build(config.model, 512, CONTEXT, layout), optim.optimizer(config.optim, 1.0)
    where = state_shardings(model, optimizer, mesh, False, config.layout).state
    with jax.set_mesh(mesh):
        program = jax.jit(lambda key: init_state(model, optimizer, key, False), out_shardings=where).lower(jax.random.key(5)).compile()
        params = program(jax.random.key(5)).params
    plain = models.build(config.model, 512, CONTEXT)
    same(jax.device_get(params), jax.device_get(jax.jit(one_by_one(plain))(jax.random.key(5))))
    text = program.as_text()
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if f" {name}(" in text]
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert program.memory_analysis().temp_size_in_bytes < whole / 2
