"""Words and their vectors."""

import dataclasses
import functools

import numpy as np

from lm.data.words import WordTokenizer
from lm.errors import ConfigError, DataError
from lm.models.word_vectors import WordVectorModel


@dataclasses.dataclass(frozen=True)
class Vectors:
    """`words`, the most frequent first as a rule, and `matrix` float32 [V, D]; no word twice. Raises DataError."""

    words: list[str]
    matrix: np.ndarray

    def __post_init__(self):
        if self.matrix.ndim != 2 or len(self.matrix) != len(self.words) or not self.matrix.size:
            raise DataError(f"{len(self.words)} words do not fit vectors of shape {self.matrix.shape}")
        if not np.all(np.isfinite(self.matrix)):
            raise DataError("some vectors are not finite: train again with a lower optim.learning_rate")
        if len(self.index) != len(self.words):
            raise DataError("some words have several vectors: keep the first of each")

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Number of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @functools.cached_property
    def unit(self) -> np.ndarray:
        """The vectors at length 1, float32 [V, D]; a vector of zeros stays one."""
        norms = np.linalg.norm(self.matrix, axis=1, keepdims=True)
        return self.matrix / np.where(norms > 0, norms, 1)


def of_model(model, params, tokenizer) -> Vectors:
    """The vectors of a model of lm.models.word_vectors, without the special ids. ConfigError for any other model or tokenizer."""
    if not isinstance(model, WordVectorModel) or not isinstance(tokenizer, WordTokenizer):
        raise ConfigError("this run has no word vectors: give one with model.name=word2vec or glove")
    first = tokenizer.first_word
    return Vectors(tokenizer.words[first:], np.asarray(model.vectors(params), np.float32)[first:])
