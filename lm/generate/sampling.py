"""How the next token is chosen among its logits."""

import dataclasses

import jax
import jax.numpy as jnp

from lm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else drawn among the top_k and the top_p of probability (0 and 1: all)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ConfigError(f"temperature={self.temperature} is not allowed: 0 is greedy, 1 the model's own distribution")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} is negative: 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is not a share above 0 and up to 1")


UNCHANGED = Sampling()  # the model's own distribution


def banned(tokenizer, model) -> tuple[int, ...]:
    """Ids that are never written, rising: padding, bos, and an objective's own tokens, which are no text and come after the tokenizer's."""
    return tuple(sorted({tokenizer.pad_id, tokenizer.bos_id, *range(tokenizer.vocab_size, model.vocab_size)} - set(tokenizer.stop_ids)))


def ends(tokens, eos_id: int | tuple[int, ...]):
    """bool [...]: which of `tokens` [...] end a document, by one id or by several."""
    first, *others = (eos_id,) if isinstance(eos_id, int) else eos_id
    found = tokens == first
    for other in others:
        found |= tokens == other
    return found


def truncate(logits, sampling: Sampling):
    """Logits [..., V] with tokens outside the top_k and the top_p (smallest set of at least that probability) at -inf."""
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        kept = jnp.sum(before < sampling.top_p, axis=-1, keepdims=True)
        smallest = jnp.take_along_axis(ordered, kept - 1, axis=-1)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits


def choose(logits, keys, sampling: Sampling):
    """The next token of each row, [R], from logits [R, V] and a key per row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    scaled = truncate(logits / sampling.temperature, sampling)
    return jax.vmap(jax.random.categorical)(keys, scaled)


def probabilities(logits, sampling: Sampling):
    """The distribution [..., V] that `choose` draws from; all on one token at temperature 0."""
    if sampling.temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return jax.nn.softmax(truncate(logits / sampling.temperature, sampling), axis=-1)


def without(logits, tokens: tuple[int, ...]):
    """Logits [..., V] with some tokens at -inf."""
    banned = jnp.zeros(logits.shape[-1], bool).at[jnp.array(tokens, int)].set(True)
    return jnp.where(banned, -jnp.inf, logits)


def row_keys(seed, rows: int):
    """A random key for each row, [R]."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(rows))


def gained(logits, tokens):
    """Log-probability [...] of tokens [...] by the model's own distribution, logits [..., V]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
