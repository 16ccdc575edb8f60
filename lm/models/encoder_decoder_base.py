"""What a model that reads a source and writes a target offers: the interface of a language model, started with a source."""

import abc

import jax
import jax.numpy as jnp

from lm.errors import ConfigError
from lm.models.base import LanguageModel


class EncoderDecoder(LanguageModel):
    """A language model of targets given a source; a row is one pair, padded on the right.

    Batches have source_tokens, source_segments and source_positions [B, S] beside the keys of a language model [B, T]. Segments are 1,
    0 at the padding. `apply` gives the hidden states [B, T, D] of the teacher-forced targets.
    """

    def example(self) -> dict[str, jax.Array]:
        """The smallest batch that `init` can trace."""
        row = jnp.zeros((1, 2), jnp.int32)
        target = {"tokens": row, "segments": row + 1, "positions": row}
        return target | {f"source_{name}": value for name, value in target.items()}

    @abc.abstractmethod
    def encode(self, params, batch: dict):
        """What the decoder needs of the sources: a pytree with rows on axis 0."""

    @abc.abstractmethod
    def start_decode(self, params, batch: dict, max_len: int):
        """State before the first of at most `max_len` target tokens, from the source keys of a batch; rows on axis 0.

        It holds what `encode` gave, so that `decode` and `take` are those of a language model.
        """

    def init_decode(self, batch_size: int, max_len: int):
        """There is no state without a source: raises ConfigError."""
        raise ConfigError("this model reads a source: decode with lm.generate.translate, not with prompts")

    def reorder(self, state, rows: jax.Array):
        """`take` for rows [B] each of which has the source of the row whose place it takes, so that sources need not be copied."""
        return self.take(state, rows)

    def attention_weights(self, params, batch: dict) -> jax.Array:
        """[B, T, S] in float32: how much each target position reads of each source token; rows sum to 1, and are 0 at padding.

        ConfigError where the model has no attention between target and source.
        """
        raise ConfigError("this model has no attention between target and source")
