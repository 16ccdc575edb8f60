"""What every model with parameters offers, whatever its family: pure functions over a tree of parameters."""

import abc
import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.alike import drawn_together


class Sizes(NamedTuple):
    """What a model must know of its data: ids of the tokens (an objective's own included), tokens of a row, ids of source tokens, and
    the id that stands before a document."""

    vocab: int
    context: int
    source_vocab: int = 0
    bos: int = 0


def widening(model) -> float:
    """How many times as wide as model.mup_base_width the model of the config's model section is; 1 without muP (Yang et al. 2022)."""
    return model.width / model.mup_base_width if model.mup_base_width else 1.0


@dataclasses.dataclass(frozen=True)
class Model(abc.ABC):
    """A Linen module with the interface that training meets.

    `max_positions` is the longest sequence that the model can take in one piece (None: any length).
    """

    module: nn.Module
    vocab_size: int
    max_positions: int | None

    def example(self) -> dict:
        """The smallest batch that shows the module's parameters."""
        row = jnp.zeros((1, 2), jnp.int32)
        return {"tokens": row, "segments": row + 1, "positions": row}

    def init_boxed(self, rng: jax.Array):
        """Parameters with their logical axes, as Linen boxes."""
        return self.module.init({"params": rng}, self.example())["params"]

    def init(self, rng: jax.Array):
        """Fresh float32 parameters: a nested dict of arrays."""
        return drawn_together(lambda rng: nn.meta.unbox(self.init_boxed(rng)), rng)

    def apply(self, params, batch: dict, noise: jax.Array | None = None) -> jax.Array:
        """Hidden states [B, T, D] in the compute type, of a batch with tokens, segments and positions [B, T].

        `noise` [B], a random key per row, trains with dropout; without it nothing is random.
        """
        return self.module.apply({"params": params}, batch, noise)

    @abc.abstractmethod
    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """FLOPs per token of a forward pass over rows of `context` tokens, by component: matrix products only, two per multiply-add.

        Attention counts the keys that a query sees (half of them on average); `causal=False` counts all keys of a row.
        """

    def forward_flops(self, context: int, causal: bool = True) -> float:
        """FLOPs per token of a forward pass: the sum of `flops_by_component`."""
        return sum(self.flops_by_component(context, causal).values())


class LanguageModel(Model):
    """A model that gives each next token a probability, by a softmax over hidden states times an output matrix, and decodes."""

    @abc.abstractmethod
    def unembedding(self, params) -> jax.Array:
        """The output matrix [D, V] in float32: logits are hidden states times it."""

    @abc.abstractmethod
    def init_decode(self, batch_size: int, max_len: int):
        """State before the first of at most `max_len` tokens of each of `batch_size` sequences."""

    @abc.abstractmethod
    def decode(self, params, state, tokens: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, object]:
        """Hidden states [B, n, D] of the tokens [B, n], and the state after them.

        `valid` [B, n] is False at the padding before a row's first token, so that prompts of unequal length share one call.
        """

    def expecting(self, state, lengths: jax.Array):
        """The state before the first token of rows whose prompts have `lengths` [B] tokens, however many calls they are read in."""
        return state

    def take(self, state, rows: jax.Array):
        """The state of some rows [R], any of them several times; arrays of a state are [B, ...] unless a model says otherwise."""
        return jax.tree.map(lambda x: x[rows], state)

    @abc.abstractmethod
    def accept(self, params, before, after, tokens: jax.Array, counts: jax.Array):
        """The state after the first `counts` [B] of tokens [B, n], of which `decode` has led from the state `before` to `after`."""

    def decode_step(self, params, state, tokens: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, object]:
        """Float32 logits [B, n, V] after each of the tokens [B, n], and the state after them; see `decode`."""
        hidden, state = self.decode(params, state, tokens, valid)
        return self.logits(params, hidden), state

    def logits(self, params, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]."""
        return logits_of(hidden, self.unembedding(params))


class ProbabilityModel(LanguageModel):
    """A language model that gives probabilities itself: `logits` are log-probabilities, and there is no output matrix."""

    def unembedding(self, params):
        """There is none."""
        raise TypeError(f"{type(self).__name__} has no output matrix: use token_nats or logits")

    @abc.abstractmethod
    def token_nats(self, params, batch: dict):
        """-log p of each of the batch's targets, [B, T] in float32."""

    @abc.abstractmethod
    def logits(self, params, hidden: jax.Array) -> jax.Array:
        """Float32 log-probabilities [..., V]."""


class CountedModel(ProbabilityModel):
    """A model that is made by counting: its parameters are a dict of NumPy arrays, and it works on the host."""

    @property
    @abc.abstractmethod
    def history(self) -> int:
        """How many tokens before a target it reads at most."""

    def init_boxed(self, rng):
        """There is nothing to draw."""
        raise TypeError(f"{type(self).__name__} is made by counting: use fit")

    @abc.abstractmethod
    def fit(self, stores: list, seen: list | None = None) -> dict:
        """Tables from the tokens of token stores; of each store those alone where its array `seen` [tokens] is True."""

    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """None: it multiplies no matrices."""
        return {}


def on_side(name: str, flops: dict[str, float], times: float = 1.0) -> dict[str, float]:
    """FLOPs by component of one of a model's two sides (`encoder`, `generator`, ...), so many times over."""
    return {f"{name}: {component}": times * value for component, value in flops.items()}


def logits_of(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
    """Float32 logits [..., V]; the product runs in hidden's type and accumulates in float32."""
    return jnp.matmul(hidden, unembedding.astype(hidden.dtype), preferred_element_type=jnp.float32)
