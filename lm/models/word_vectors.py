"""Word vectors: two tables, of words and of what they meet (Mikolov et al. 2013a, b: `word2vec`; Pennington et al. 2014: `glove`).

There is no network: an objective (lm/objectives/word2vec.py, lm/objectives/glove.py) says which rows of the two are multiplied.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import Embedding
from lm.models.base import Model, Sizes
from lm.parallel import Layout


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape of the tables. `symmetric` is GloVe's: both tables start alike, words and contexts have biases, and their sum is exported."""

    vocab_size: int
    width: int
    symmetric: bool
    dtype: str


class WordVectors(nn.Module):
    """The tables `inputs` and `outputs` [V, D], and with `symmetric` a bias [V, 1] of each row of both."""

    spec: Spec

    def setup(self):
        s = self.spec
        # As wide as word2vec's and GloVe's uniform numbers in +-0.5 / D; word2vec's second table starts at 0.
        std = 0.5 / s.width / 3**0.5
        self.inputs = Embedding(s.vocab_size, s.width, time="scan_time", std=std)
        self.outputs = Embedding(s.vocab_size, s.width, time="scan_time", std=std if s.symmetric else 0.0)
        if s.symmetric:
            self.input_biases = Embedding(s.vocab_size, 1, time="scan_time", std=std)
            self.output_biases = Embedding(s.vocab_size, 1, time="scan_time", std=std)

    def __call__(self, batch, noise=None):
        """Vectors [B, T, D] of the tokens [B, T]; touches every parameter, so that `init` finds them."""
        del noise  # nothing is dropped
        vectors = self.read("inputs", batch["tokens"])
        self.read("outputs", batch["tokens"])
        if self.spec.symmetric:
            self.read("input_biases", batch["tokens"])
            self.read("output_biases", batch["tokens"])
        return vectors

    def read(self, table: str, indices):
        """Rows [B, n, D] of a table by name."""
        return getattr(self, table)(indices, self.spec.dtype)


class WordVectorModel(Model):
    """What objectives and exports read of the tables."""

    @property
    def spec(self) -> Spec:
        """The module's shape."""
        return self.module.spec

    def read(self, params, table: str, indices: jax.Array) -> jax.Array:
        """Rows [B, n, D] of `inputs` or `outputs` at indices [B, n], in the compute type; of `input_biases`, `output_biases` [B, n, 1]."""
        return self.module.apply({"params": params}, table, indices, method="read")

    def vectors(self, params) -> jax.Array:
        """The words' vectors [V, D] in float32: word2vec's first table, GloVe's sum of both (Pennington et al. 2014, section 4.2)."""
        tables = ("inputs", "outputs") if self.spec.symmetric else ("inputs",)
        return sum(jnp.asarray(params[table]["embedding"]) for table in tables)

    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """FLOPs per word of the scores of a row's words with each other (of a triple for GloVe); what an objective adds is not counted."""
        return {"scores": 2.0 * self.spec.width * (1 if self.spec.symmetric else context)}


def build(model, sizes: Sizes, layout: Layout) -> WordVectorModel:
    """The tables of the config's model section, `word2vec` or `glove`; rows of any length will do, and no layout changes them."""
    spec = Spec(sizes.vocab, model.width, model.name == "glove", model.dtype)
    return WordVectorModel(WordVectors(spec), sizes.vocab, None)
