"""The tables of word vectors start as they should, and give the same losses and gradients however a mesh cuts them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.data.cooccurrence import TRIPLE
from lm.data.packing import read_rows
from lm.objectives.glove import Glove
from lm.objectives.word2vec import Cbow, SkipGram
from lm.optim import groups
from lm.parallel import AXES, batch_sharding, make_mesh, parameter_shardings
from tests.objectives.word_texts import STORE, TOKENIZER, model_of, options_of


def word2vec(kind, **changes):
    """(model name, objective, a batch of 8 rows)."""
    objective = kind(options_of(kind.__name__.lower(), window=3, shared_negatives=8, **changes), TOKENIZER, 16, 0)
    return "word2vec", objective, objective.build(read_rows(STORE, np.arange(8) * 16, 16), np.arange(8))


def glove():
    """The same of GloVe."""
    rng, cells = np.random.default_rng(2), np.zeros((8, 16), TRIPLE)
    cells["row"], cells["column"] = rng.integers(4, TOKENIZER.vocab_size, (2, 8, 16))
    cells["count"] = rng.exponential(12, (8, 16)) + 0.1
    objective = Glove(options_of("glove"), TOKENIZER, 16, 0)
    return "glove", objective, objective.build(cells, np.arange(8))


CASES = {
    "skipgram": lambda: word2vec(SkipGram),
    "skipgram, hierarchical": lambda: word2vec(SkipGram, hierarchical=True),
    "cbow": lambda: word2vec(Cbow),
    "cbow, hierarchical": lambda: word2vec(Cbow, hierarchical=True),
    "glove": glove,
}
MESHES = {"replica": {"replica": 8}, "fsdp x tensor": {"fsdp": 4, "tensor": 2}}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", CASES)
def test_every_mesh_gives_the_loss_and_the_gradients_of_one_device(case, mesh):
    name, objective, batch = CASES[case]()
    model, params = model_of(name, width=8)

    def value_and_grad(params, batch):
        return jax.value_and_grad(lambda p: objective.loss(model, p, batch)[0])(params)

    value, grads = jax.jit(value_and_grad)(params, batch)
    devices = make_mesh(dict.fromkeys(AXES, 1) | MESHES[mesh])
    cut = parameter_shardings(jax.eval_shape(model.init_boxed, jax.random.key(0)), devices)
    whole = NamedSharding(devices, PartitionSpec())
    with jax.set_mesh(devices):
        step = jax.jit(value_and_grad, in_shardings=(cut, batch_sharding(devices)), out_shardings=(whole, cut))
        other, others = step(jax.device_put(params, cut), jax.device_put(batch, batch_sharding(devices)))
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_tables_start_as_their_papers_have_them():
    for name in ("word2vec", "glove"):
        model, _ = model_of(name, width=50)
        params = model.init(jax.random.key(0))
        spread = 0.5 / 50 / 3**0.5  # of uniform numbers in +-0.5 / D
        np.testing.assert_allclose(np.std(params["inputs"]["embedding"]), spread, rtol=0.1)
        assert (np.std(params["outputs"]["embedding"]) > 0) == (name == "glove")
        assert set(jax.tree.leaves(groups(params))) == {"embedding"}
        assert set(params) == {"inputs", "outputs"} | ({"input_biases", "output_biases"} if name == "glove" else set())
    assert model_of("word2vec")[0].forward_flops(16) == 2 * 6 * 16 and model_of("glove")[0].forward_flops(16) == 2 * 6
