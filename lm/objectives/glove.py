"""GloVe: vectors whose products are the logarithms of co-occurrence counts (Pennington et al. 2014)."""

import jax.numpy as jnp
import numpy as np

from lm.data import files
from lm.data.cooccurrence import Cooccurrences, cooccurrences
from lm.data.words import WordTokenizer
from lm.errors import ConfigError
from lm.objectives.base import Objective


class Glove(Objective):
    """Weighted least squares over the cells of the co-occurrence matrix that are not 0; each is one target."""

    measure = "words"
    scores_text = False

    def __init__(self, options, tokenizer, context: int, seed: int):
        """ConfigError unless the tokenizer is of words."""
        super().__init__(options, tokenizer, context, seed)
        if not isinstance(tokenizer, WordTokenizer):
            raise ConfigError("objective.name=glove learns vectors of words: set data.tokenizer=words")

    def data(self, prepared, config) -> Cooccurrences:
        """The triples of all training text together, counted once and kept in the cache. ConfigError for what counts cannot do."""
        if config.eval.split != "none":
            raise ConfigError(f"eval.split={config.eval.split} has no counts of its own for objective.name=glove: set eval.split=none and "
                              "ask scripts/words.py what the vectors know")
        if config.data.weights:
            raise ConfigError("data.weights cannot be used with objective.name=glove, which counts all text together: remove it")
        triples = cooccurrences(prepared, files.cache_root(config.data), self.options.window)
        return Cooccurrences(triples, self.context, config.data.global_batch, config.seed)

    def build(self, rows: np.ndarray, examples: np.ndarray) -> dict[str, np.ndarray]:
        """int32 `tokens` and `targets` (a row and a column of the matrix), float32 `counts` and `weights` (1) [B, T] of triples [B, T]."""
        return {"tokens": rows["row"].astype(np.int32), "targets": rows["column"].astype(np.int32),
                "counts": rows["count"].astype(np.float32), "weights": np.ones(rows.shape, np.float32)}

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """The sum of f(x) (w . c + b + b' - log x)^2, f(x) = min(1, (x / x_max)^alpha), twice (equation 8); per triple when divided."""
        tokens, targets = batch["tokens"], batch["targets"]
        product = jnp.einsum("btd,btd->bt", model.read(params, "inputs", tokens), model.read(params, "outputs", targets),
                             preferred_element_type=jnp.float32)
        biases = model.read(params, "input_biases", tokens) + model.read(params, "output_biases", targets)
        error = product + biases[..., 0].astype(jnp.float32) - jnp.log(batch["counts"])
        trust = jnp.minimum(1.0, (batch["counts"] / self.options.x_max) ** self.options.alpha)
        total = jnp.sum(batch["weights"] * trust * jnp.square(error))
        return total, total

    def tokens(self, batch):
        """Triples, of which a step is made as others are of tokens."""
        return jnp.sum(batch["weights"] > 0)
