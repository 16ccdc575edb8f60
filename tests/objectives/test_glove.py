"""GloVe's loss equals a loop over cells; its vectors find back the matrix that they are fitted to."""

import jax
import numpy as np
import optax
import pytest

from lm import config
from lm.data.cooccurrence import TRIPLE
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.objectives.glove import Glove
from tests.objectives.word_texts import TOKENIZER, model_of, options_of


@pytest.fixture(scope="module")
def triples():
    """[3, 8] cells with counts on both sides of x_max."""
    rng, cells = np.random.default_rng(2), np.zeros((3, 8), TRIPLE)
    cells["row"], cells["column"] = rng.integers(4, TOKENIZER.vocab_size, (2, 3, 8))
    cells["count"] = rng.exponential(12, (3, 8)) + 0.1
    return cells


@pytest.fixture(scope="module")
def objective():
    """GloVe with x_max = 10."""
    return Glove(options_of("glove", x_max=10.0, alpha=0.6), TOKENIZER, 8, 0)


def test_the_loss_equals_a_loop_over_cells(objective, triples):
    model, params = model_of("glove")
    batch = objective.build(triples, np.arange(3))
    batch["weights"][2, 5:] = 0
    tables = {name: np.asarray(value["embedding"], np.float64) for name, value in params.items()}
    total = 0.0
    for row, column, count in triples.ravel()[: 2 * 8 + 5].tolist():
        trust = 1.0 if count >= 10 else (count / 10) ** 0.6
        guess = tables["inputs"][row] @ tables["outputs"][column] + tables["input_biases"][row, 0] + tables["output_biases"][column, 0]
        total += trust * (guess - np.log(count)) ** 2
    assert (triples["count"] > 10).any() and (triples["count"] < 10).any()
    np.testing.assert_allclose(objective.loss(model, params, batch), [total, total], rtol=1e-5)
    assert objective.tokens(batch) == 21


def test_vectors_are_the_sum_of_both_tables():
    model, params = model_of("glove")
    np.testing.assert_array_equal(model.vectors(params), params["inputs"]["embedding"] + params["outputs"]["embedding"])


def test_adagrad_fits_a_matrix_of_low_rank(objective):
    rng, words = np.random.default_rng(0), np.arange(4, TOKENIZER.vocab_size)
    a, b = rng.normal(size=(2, len(words), 3))
    cells = np.zeros(len(words) ** 2, TRIPLE)
    cells["row"], cells["column"] = np.repeat(words, len(words)), np.tile(words, len(words))
    cells["count"] = np.exp(a @ b.T).ravel()
    model, params = model_of("glove")
    batch = objective.build(cells[None], np.zeros(1, np.int64))
    rule = optax.scale_by_rss(0.0, 1e-16)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: objective.loss(model, p, batch)[0] / len(cells))(params)
        directions, state = rule.update(grads, state)
        return (jax.tree.map(lambda p, d: p - 0.2 * d, params, directions), state), value

    (_, losses) = jax.jit(lambda params: jax.lax.scan(step, (params, rule.init(params)), None, length=600))(params)
    assert losses[-1] < 1e-2 * losses[0]


def test_what_it_cannot_use_is_refused(objective):
    with pytest.raises(ConfigError, match=r"data\.tokenizer=words"):
        Glove(options_of("glove"), ByteTokenizer(), 8, 0)
    section = config.default()
    with pytest.raises(ConfigError, match=r"eval\.split=none"):
        objective.data(None, section)
    section.eval.split, section.data.weights = "none", (0.5, 0.5)
    with pytest.raises(ConfigError, match=r"data\.weights"):
        objective.data(None, section)
