"""The n-gram as a family of models: fitted by counting, evaluated on the host, decoded inside the compiled loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.base import CountedModel, Sizes
from lm.models.ngram import lookup
from lm.models.ngram.model import NGram, fit
from lm.parallel import Layout


@dataclasses.dataclass(frozen=True)
class NGramModel(CountedModel):
    """The interface of `CountedModel` for an n-gram: its parameters are `NGram.tables`.

    Its decoding state is the history: the last order - 1 tokens [B, order - 1], -1 where there is none; so is a hidden state.
    """

    bos_id: int
    order: int = 5
    smoothing: str = "kneser_ney"
    add_k: float = 1.0
    prune: tuple[int, ...] = ()

    @property
    def history(self) -> int:
        """order - 1."""
        return self.order - 1

    def fit(self, stores: list, seen: list | None = None) -> dict[str, np.ndarray]:
        """Tables from the tokens of token stores; of each store those alone where its array `seen` [tokens] is True."""
        return fit(stores, self.vocab_size, self.bos_id, self.order, self.smoothing, add_k=self.add_k, prune=self.prune, seen=seen).tables

    def of(self, params) -> NGram:
        """The model with tables."""
        return NGram(self.order, self.vocab_size, params)

    def token_nats(self, params, batch):
        """-log p of each target given the tokens before it in its segment, float32 [B, T], by NumPy on the host."""
        return -self.of(params).log_probs(batch["tokens"], batch["targets"], batch["segments"]).astype(np.float32)

    def logits(self, params, hidden):
        """log p(next token), float32 [..., V], after histories [..., order - 1]."""
        flat = hidden.reshape(math.prod(hidden.shape[:-1]), self.order - 1)
        result = lookup.traced_distribution(params, self.order, self.vocab_size, flat)
        return result.reshape(*hidden.shape[:-1], self.vocab_size)

    def init_decode(self, batch_size: int, max_len: int):
        """No history; `max_len` does not matter."""
        return jnp.full((batch_size, self.order - 1), -1, jnp.int32)

    def decode(self, params, state, tokens, valid=None):
        """Histories [B, n, order - 1] after each token, and the one after the last."""
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid

        def step(state, now):
            token, valid = now
            after = jnp.concatenate([state, token[:, None].astype(state.dtype)], axis=1)[:, 1:]
            after = jnp.where(valid[:, None], after, state)
            return after, after

        state, hidden = jax.lax.scan(step, state, (tokens.T, valid.T))
        return jnp.swapaxes(hidden, 0, 1), state

    def accept(self, params, before, after, tokens, counts):
        """The history after `counts` tokens, which are read once more."""
        return self.decode(params, before, tokens, jnp.arange(tokens.shape[1]) < counts[:, None])[1]


def build(model, sizes: Sizes, layout: Layout) -> NGramModel:
    """The n-gram of the config's model section; any context will do, and it is counted by one process."""
    return NGramModel(None, sizes.vocab, None, sizes.bos, model.order, model.smoothing, model.add_k, tuple(model.prune))
