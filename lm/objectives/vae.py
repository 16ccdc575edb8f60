"""The evidence lower bound of a sentence VAE (Kingma and Welling 2014; Bowman et al. 2016), and how tight it is.

With p(x | z) from the decoder, a standard normal prior p(z) and the encoder's q(z | x):
log p(x) >= ELBO = E_q log p(x | z) - KL(q || p). A decoder that ignores z has KL 0: it is kept from that by weakening it (word dropout),
and by weighing the KL less at first (annealing; Bowman et al. 2016) or not at all below a floor (free bits; Kingma et al. 2016).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lm import losses
from lm.data.packing import Rows
from lm.data.sentences import SentenceData, read_sentences
from lm.data.store import TokenStore
from lm.models.vae import draw
from lm.objectives.base import Objective
from lm.objectives.causal import batch_of

_WORDS = 2_000  # the place of word dropout's noise, beyond those of the model


class VAE(Objective):
    """The lower bound on the likelihood of sentences, each a row. <unk>, which the decoder reads for a dropped word, is the extra token."""

    extra_tokens = 1
    measure = "vae"

    def read(self, store: TokenStore, rows: np.ndarray, examples: np.ndarray) -> Rows:
        """The documents `rows` [B] of a store, a row each."""
        return read_sentences(store, rows, self.context)

    def tokens_per_step(self, data: SentenceData) -> float:
        """Tokens of a step, on average."""
        return data.tokens_per_step

    def data(self, prepared, config) -> SentenceData:
        """The documents of the training stores, a row each; what is longer than `context` tokens is cut off."""
        return SentenceData(prepared.split_stores("train"), tuple(prepared.weights), self.context, config.data.global_batch, config.seed)

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """int32 tokens, targets, segments, positions and float32 weights [B, T], and float32 kl_weight [B, 1] by the examples."""
        options = self.options
        weight = kl_weight(np.asarray(examples), options.kl_anneal, options.kl_schedule)
        return batch_of(rows, self.tokenizer.bos_id) | {"kl_weight": weight.astype(np.float32)[:, None]}

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """Sums over rows of reconstruction + kl_weight * (KL with its floor), and of -ELBO, in nats.

        Free bits are nats of each dimension of the code of each row. Without `noise` no word is dropped and the code is the mean.
        """
        seen = dropped(batch, self.options.word_dropout, self.tokenizer.vocab_size, noise)
        hidden, mean, log_variance = model.apply(params, seen, noise)
        total, nats = losses.loss(hidden, model.unembedding(params), batch["targets"], batch["weights"], z_loss, chunk)
        divergence = kl(mean, log_variance) * real(batch)[:, None]
        floored = jnp.maximum(divergence, self.options.free_bits * real(batch)[:, None])
        return total + jnp.sum(batch["kl_weight"] * floored), nats + jnp.sum(divergence)


def kl_weight(examples: np.ndarray, length: int, schedule: str) -> np.ndarray:
    """Weight of the KL [B] for examples [B]: from 0 to 1 over `length` examples, along a line or a logistic curve; 1 for length 0."""
    if not length:
        return np.ones(len(examples))
    share = np.minimum(1.0, examples / length)
    if schedule == "linear":
        return share
    return np.where(share < 1, 1 / (1 + np.exp(-12 * (share - 0.5))), 1.0)  # from 0.0025 on


def dropped(batch: dict, rate: float, unknown: int, noise=None) -> dict:
    """The batch with each of its tokens replaced by `unknown` with probability `rate`, where `noise` [B] is given; `bos` stays."""
    if noise is None or not rate:
        return batch
    tokens = batch["tokens"]
    drop = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, _WORDS), rate, tokens.shape[1:]))(noise)
    return batch | {"tokens": jnp.where(drop & (batch["positions"] > 0), unknown, tokens)}


def real(batch) -> jax.Array:
    """float32 [B]: 1 for rows that hold a sentence, 0 for padding."""
    return (batch["segments"][:, 0] > 0).astype(jnp.float32)


def kl(mean, log_variance) -> jax.Array:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, of each dimension [B, Z]."""
    return (jnp.square(mean) + jnp.exp(log_variance) - log_variance - 1) / 2


def log_normal(z, mean, log_variance) -> jax.Array:
    """log density of N(mean, exp(log_variance)) at z, summed over the last axis: [B]."""
    squares = jnp.square(z - mean) * jnp.exp(-log_variance)
    return -jnp.sum(squares + log_variance + math.log(2 * math.pi), axis=-1) / 2


def reconstruction(model, params, batch, z, chunk: int = 0) -> jax.Array:
    """-log p(sentence | code) in nats [B], of codes z [B, Z]."""
    hidden = model.hidden(params, batch["tokens"], z)
    nats = losses.chunked_token_nats(hidden, model.unembedding(params), batch["targets"], chunk)
    return jnp.sum(batch["weights"] * nats, axis=1)


def elbo(model, params, batch, noise, chunk: int = 0) -> dict[str, jax.Array]:
    """`elbo`, `reconstruction` and `kl` of each row in nats [B], with one code per row drawn by its key `noise` [B]; not for gradients.

    elbo = -reconstruction - kl is, in expectation over the code, at most log p(sentence).
    """
    mean, log_variance = model.encode(params, batch)
    cost = reconstruction(model, params, batch, draw(mean, log_variance, noise), chunk)
    divergence = jnp.sum(kl(mean, log_variance), axis=-1) * real(batch)
    return {"elbo": -cost - divergence, "reconstruction": cost, "kl": divergence}


def importance_bound(model, params, batch, noise, samples: int, chunk: int = 0) -> jax.Array:
    """log of the mean over `samples` codes of p(x, z) / q(z | x), in nats [B] (Burda et al. 2016); not for gradients.

    In expectation at most log p(sentence), and nearer to it the more samples there are; with one it is the ELBO in expectation.
    """
    mean, log_variance = model.encode(params, batch)

    def log_weight(sample):
        z = draw(mean, log_variance, jax.vmap(jax.random.fold_in, (0, None))(noise, sample))
        prior = log_normal(z, jnp.zeros_like(z), jnp.zeros_like(z))
        return prior - log_normal(z, mean, log_variance) - reconstruction(model, params, batch, z, chunk)

    log_weights = jax.lax.map(log_weight, jnp.arange(samples))
    return (jax.nn.logsumexp(log_weights, axis=0) - math.log(samples)) * real(batch)
