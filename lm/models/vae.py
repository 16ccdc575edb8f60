"""The sentence VAE (Bowman et al. 2016): a recurrent encoder, a Gaussian latent code, and a recurrent decoder that sees it at every step.

A row is one sentence: the encoder reads its targets, the decoder its tokens (`bos` first). The prior of the code is standard normal.
The model gives p(sentence | code); what can be said of p(sentence) is in `lm.objectives.vae`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import Embedding, Kernel, Unembedding, dropout, project
from lm.layers.recurrence import GATES, Recurrence, empty_state
from lm.models.base import Model, Sizes, logits_of
from lm.parallel import Layout, constrain, gathered

CODE = 1_000  # the place of the code's noise, beyond the dropouts


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape of a sentence VAE, with nothing left to default. Encoder and decoder have `layers` layers each."""

    cell: str
    vocab_size: int
    layers: int
    width: int
    embedding_width: int
    latent_width: int
    tie_embeddings: bool
    dropout: float
    dtype: str
    unroll: int
    remat: str

    @property
    def output_width(self) -> int:
        """Width of the output matrix."""
        return self.embedding_width if self.tie_embeddings else self.width


class Layers(nn.Module):
    """A stack of recurrent layers, [B, T, N] to [B, T, D], with the states after the last token."""

    spec: Spec
    place: int

    @nn.compact
    def __call__(self, x, states, noise=None, valid=None):
        """`valid` [B, T] is for decoding: False keeps a state as it is. `place` numbers the first dropout."""
        s, new_states = self.spec, []
        never = jnp.zeros(x.shape[:2], bool)
        recurrence = nn.remat(Recurrence) if s.remat == "full" else Recurrence
        for layer, state in enumerate(states):
            x, state = recurrence(s.cell, s.width, s.unroll, name=f"layer_{layer}")(x, state, never, valid)
            x = constrain(dropout(x, s.dropout, noise, self.place + layer), "batch", "scan_time", "act_width")
            new_states.append(state)
        return x, tuple(new_states)


class SentenceVAE(nn.Module):
    """Encoder and decoder, with one embedding for both."""

    spec: Spec

    def setup(self):
        s = self.spec
        self.embedding = Embedding(s.vocab_size, s.embedding_width, time="scan_time")
        self.encoder, self.decoder = Layers(s, 2), Layers(s, 2 + s.layers)
        self.mean = Kernel(s.latent_width, ("width", "cell"), bias=True)
        self.log_variance = Kernel(s.latent_width, ("width", "cell"), bias=True)
        parts = "hc" if s.cell == "lstm" else "h"
        self.bridges = {f"{part}_{layer}": Kernel(s.width, ("width", "cell"), bias=True) for layer in range(s.layers) for part in parts}
        if not s.tie_embeddings:
            self.unembedding = Unembedding(s.vocab_size, s.width)
        elif s.embedding_width != s.width:
            self.projection = Kernel(s.embedding_width, ("width", "cell"))

    def __call__(self, batch, noise=None):
        """(hidden [B, T, O], mean [B, Z], log-variance [B, Z]); the code is the mean without `noise`."""
        mean, log_variance = self.encode(batch, noise)
        hidden, _ = self.decode(batch["tokens"], draw(mean, log_variance, noise), noise)
        return hidden, mean, log_variance

    def encode(self, batch, noise=None):
        """(mean, log-variance) [B, Z] in float32, from the state at the last target of each row."""
        s, targets = self.spec, batch["targets"]
        x = dropout(self.embedding(targets, s.dtype), s.dropout, noise, 0)
        states = tuple(empty_state(s.cell, targets.shape[0], s.width) for _ in range(s.layers))
        outputs, _ = self.encoder(x, states, noise)
        last = jnp.maximum(jnp.sum(batch["segments"] > 0, axis=1) - 1, 0)
        summary = jnp.take_along_axis(outputs, last[:, None, None], axis=1)
        mean, log_variance = (self._dense(summary, kernel)[:, 0].astype(jnp.float32) for kernel in (self.mean, self.log_variance))
        return mean, log_variance

    def start(self, z):
        """The decoder's first states from codes [B, Z]: a product for each layer, through tanh for all but the LSTM's cell."""
        def one(name):
            y = self._dense(z[:, None].astype(self.spec.dtype), self.bridges[name])[:, 0].astype(jnp.float32)
            return y if name.startswith("c") else jnp.tanh(y)

        parts = "hc" if self.spec.cell == "lstm" else "h"
        return tuple(tuple(one(f"{part}_{layer}") for part in parts) for layer in range(self.spec.layers))

    def decode(self, tokens, z, noise=None, states=None, valid=None):
        """(hidden [B, n, O] of tokens [B, n], states), from codes [B, Z] and, after the first tokens, the states so far."""
        s = self.spec
        x = dropout(self.embedding(tokens, s.dtype), s.dropout, noise, 1)
        code = jnp.broadcast_to(z[:, None].astype(x.dtype), (*tokens.shape, s.latent_width))
        x, states = self.decoder(jnp.concatenate([x, code], axis=-1), self.start(z) if states is None else states, noise, valid)
        if not s.tie_embeddings:
            self.unembedding()  # so that `init` makes it
        elif s.embedding_width != s.width:
            x = self._dense(x, self.projection)
        return x, states

    @nn.nowrap
    def _dense(self, x, kernel):
        (y,) = project(x, [kernel(x.shape[-1], x.dtype)], "batch", "scan_time", "act_width")
        return y


def draw(mean, log_variance, noise=None):
    """Codes [B, Z] from N(mean, exp(log_variance)), by a random key per row `noise` [B]; the mean without it."""
    if noise is None:
        return mean
    normal = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, CODE), mean.shape[1:]))(noise)
    return mean + jnp.exp(log_variance / 2) * normal


class SentenceVAEModel(Model):
    """The functions of a sentence VAE."""

    @property
    def spec(self) -> Spec:
        """The module's shape."""
        return self.module.spec

    def example(self) -> dict:
        """The smallest batch that shows the module's parameters."""
        batch = super().example()
        return batch | {"targets": batch["tokens"]}

    def apply(self, params, batch, noise=None):
        """(hidden [B, T, O], mean [B, Z], log-variance [B, Z]); `noise` [B], a key per row, draws codes and drops units."""
        return self.module.apply({"params": params}, batch, noise)

    def unembedding(self, params):
        """The output matrix [O, V] in float32."""
        table = params["embedding"]["embedding"] if self.spec.tie_embeddings else params["unembedding"]["kernel"]
        return gathered(table, "vocab", "width").T

    def encode(self, params, batch) -> tuple[jax.Array, jax.Array]:
        """(mean, log-variance) [B, Z] of the code of each row, in float32."""
        return self.module.apply({"params": params}, batch, method="encode")

    def hidden(self, params, tokens, z) -> jax.Array:
        """Hidden states [B, T, O] of tokens [B, T] given codes [B, Z]."""
        return self.module.apply({"params": params}, tokens, z, method="decode")[0]

    def greedy(self, params, z, max_len: int, bos_id: int, eos_id: int, banned: tuple[int, ...] = ()) -> jax.Array:
        """The likeliest next tokens, one after the other, given codes [B, Z]: int32 [B, max_len], eos last and then -1.

        `banned` are never written.
        """
        unembedding = self.unembedding(params)

        def step(carry, _):
            states, last, done = carry
            hidden, states = self.module.apply({"params": params}, last[:, None], z, None, states, method="decode")
            logits = logits_of(hidden[:, 0], unembedding)
            chosen = jnp.argmax(logits.at[:, jnp.array(banned, int)].set(-jnp.inf), axis=-1).astype(jnp.int32)
            return (states, chosen, done | (chosen == eos_id)), jnp.where(done, -1, chosen)

        states = self.module.apply({"params": params}, z, method="start")
        start = states, jnp.full(len(z), bos_id, jnp.int32), jnp.zeros(len(z), bool)
        return jax.lax.scan(step, start, None, max_len)[1].T

    def reconstruct(self, params, batch, max_len: int, bos_id: int, eos_id: int, banned: tuple[int, ...] = ()) -> jax.Array:
        """`greedy` from the mean code of each row."""
        return self.greedy(params, self.encode(params, batch)[0], max_len, bos_id, eos_id, banned)

    def sample(self, params, key, count: int, max_len: int, bos_id: int, eos_id: int, banned: tuple[int, ...] = ()) -> jax.Array:
        """`greedy` from `count` codes of the prior."""
        return self.greedy(params, jax.random.normal(key, (count, self.spec.latent_width)), max_len, bos_id, eos_id, banned)

    def interpolate(self, params, a, b, steps: int, max_len: int, bos_id: int, eos_id: int, banned: tuple[int, ...] = ()) -> jax.Array:
        """`greedy` from `steps` >= 2 codes in equal steps from the first row of batch `a` to the first of batch `b`, both included."""
        first, last = (self.encode(params, batch)[0][0] for batch in (a, b))
        share = jnp.linspace(0.0, 1.0, steps)[:, None]
        return self.greedy(params, (1 - share) * first + share * last, max_len, bos_id, eos_id, banned)

    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """FLOPs per token of a forward pass over sentences of `context` tokens: cells of both sides, and once a sentence its code."""
        s = self.spec

        def stack(inputs):
            return sum(2 * GATES[s.cell] * s.width * (n + s.width) for n in [inputs] + [s.width] * (s.layers - 1))

        code = 2 * s.width * s.latent_width * (2 + s.layers * (2 if s.cell == "lstm" else 1))
        projection = {"output projection": 2 * s.width * s.output_width} if s.output_width != s.width else {}
        return {"encoder: recurrence": stack(s.embedding_width), "decoder: recurrence": stack(s.embedding_width + s.latent_width),
                "code": code / context, **projection, "output matrix": 2 * s.output_width * s.vocab_size}


def build(model, sizes: Sizes, layout: Layout) -> SentenceVAEModel:
    """The sentence VAE of the config's model section; any context will do, and layouts differ in the sizes of the mesh alone."""
    spec = Spec(
        cell=model.cell, vocab_size=sizes.vocab, layers=model.layers, width=model.width,
        embedding_width=model.embedding_width or model.width, latent_width=model.latent_width, tie_embeddings=model.tie_embeddings,
        dropout=model.dropout, dtype=model.dtype, unroll=model.unroll, remat=model.remat,
    )
    return SentenceVAEModel(SentenceVAE(spec), sizes.vocab, None)
