"""The neural probabilistic language model (Bengio et al. 2003): a window of embeddings, one tanh layer, direct connections."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from lm.layers.dense import Embedding, Kernel, Unembedding, dropout, project
from lm.models.base import LanguageModel, Sizes
from lm.parallel import Layout, constrain, gathered


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape of the model; `window` tokens are seen, that is, it is an n-gram model of order window + 1."""

    vocab_size: int
    window: int
    width: int
    embedding_width: int
    direct: bool
    dropout: float
    dtype: str

    @property
    def inputs(self) -> int:
        """Units of a window's embeddings, one after the other."""
        return self.window * self.embedding_width

    @property
    def outputs(self) -> int:
        """Units that the output matrix reads: the hidden layer, with direct connections the window too, and a one for the bias."""
        return self.width + (self.inputs if self.direct else 0) + 1


class NeuralProbabilisticLM(nn.Module):
    """Tokens to what the output matrix reads: logits are b + W x + U tanh(d + H x), with x the window's embeddings."""

    spec: Spec

    @nn.compact
    def __call__(self, batch, noise=None):
        """Hidden [B, T, outputs]. Places before a document's first token are zeros."""
        s = self.spec
        table = Embedding(s.vocab_size, s.embedding_width, time="scan_time", std=s.inputs**-0.5, name="embedding")
        embedded = table(batch["tokens"], s.dtype)
        window = jnp.concatenate([_back(embedded, batch["positions"], k) for k in range(s.window)], axis=-1)
        kernel = Kernel(s.width, ("width", "cell"), bias=True, name="hidden")(s.inputs, s.dtype)
        (hidden,) = project(window, [kernel], "batch", "scan_time", "act_width")
        hidden = dropout(jnp.tanh(hidden), s.dropout, noise, 0)
        Unembedding(s.vocab_size, s.outputs, name="unembedding")()
        parts = [hidden, *([window] if s.direct else []), jnp.ones_like(hidden[..., :1])]
        return constrain(jnp.concatenate(parts, axis=-1), "batch", "scan_time", "act_width")


def _back(x, positions, k: int):
    """x [B, T, D] of k tokens before, 0 where that is another document."""
    earlier = jnp.pad(x, ((0, 0), (k, 0), (0, 0)))[:, : x.shape[1]]
    return jnp.where((positions >= k)[..., None], earlier, 0)


class NeuralProbabilisticModel(LanguageModel):
    """The interface of `LanguageModel`; its decoding state is the last tokens [B, window - 1], and how many of them there are [B]."""

    @property
    def spec(self) -> Spec:
        """The module's shape."""
        return self.module.spec

    def unembedding(self, params):
        """[outputs, V] in float32: U over W over b."""
        return gathered(params["unembedding"]["kernel"], "vocab", "width").T

    def init_decode(self, batch_size: int, max_len: int):
        """No tokens yet; `max_len` does not matter to a window."""
        return jnp.zeros((batch_size, self.spec.window - 1), jnp.int32), jnp.zeros(batch_size, jnp.int32)

    def decode(self, params, state, tokens, valid=None):
        """Hidden states [B, n, outputs] and the last tokens after them."""
        before, seen = state
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        count = jnp.cumsum(valid, axis=1)
        # Padding stands before a row's first token, and nothing else does then: positions count what is real.
        positions = jnp.concatenate([jnp.zeros_like(before), seen[:, None] + count - 1], axis=1)
        batch = {"tokens": jnp.concatenate([before, tokens], axis=1), "positions": positions}
        hidden = self.module.apply({"params": params}, batch)[:, before.shape[1]:]
        kept = batch["tokens"][:, tokens.shape[1]:] if before.shape[1] else before
        return hidden, (kept, jnp.minimum(seen + count[:, -1], self.spec.window))

    def accept(self, params, before, after, tokens, counts):
        """The window as it was after `counts` of the tokens."""
        kept, seen = before
        row = jnp.concatenate([kept, tokens], axis=1)
        places = counts[:, None] + jnp.arange(kept.shape[1])
        return jnp.take_along_axis(row, places, axis=1), jnp.minimum(seen + counts, self.spec.window)

    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """FLOPs per token of a forward pass; neither argument changes it."""
        s = self.spec
        return {"hidden layer": 2 * s.inputs * s.width, "output matrix": 2 * s.outputs * s.vocab_size}


def build(model, sizes: Sizes, layout: Layout) -> NeuralProbabilisticModel:
    """The model of the config's model section; any context will do."""
    spec = Spec(vocab_size=sizes.vocab, window=model.window, width=model.width, embedding_width=model.embedding_width or model.width,
                direct=model.direct, dropout=model.dropout, dtype=model.dtype)
    return NeuralProbabilisticModel(NeuralProbabilisticLM(spec), sizes.vocab, None)
