"""Replaced-token detection (ELECTRA, Clark et al. 2020): a generator fills in hidden tokens, and a discriminator tells which were replaced.

The generator is a masked language model that sees <mask> at every chosen position; rows are those of lm/objectives/masked.py without
pairs. What it puts there is drawn from its own distribution, without a gradient. A drawn token that equals the original counts as original.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm import losses
from lm.data.noise import uniforms
from lm.data.packing import Rows
from lm.models import logits_of
from lm.objectives.corrupting import by_chunks, chunk_within
from lm.objectives.masked import Masked, gathered

_DRAW = 220


class Replaced(Masked):
    """ELECTRA's objective, for models whose `apply` and `unembedding` are the generator's, and with `discriminate`.

    The batch has `masked` [B, T] float32, 1 where the generator predicts; `weights` are 1 at every token of text (the positions that
    could have been chosen), where the discriminator decides; `draw` [B, T] float32 in [0, 1) decides what the generator puts at a place, by
    inverting its cumulative distribution: it follows from seed and example, in training and evaluation alike.
    """

    measure = "replaced"

    def _sentences(self) -> str:
        return "none"

    def _shares(self) -> tuple[float, float]:
        return 1.0, 0.0

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """int32 tokens (the generator's), targets, segments, positions and types, float32 weights, masked and draw, each [B, T]."""
        laid = self.lay_out(rows)
        chosen = self.choose(laid, examples)
        batch = self._batch(laid, self.corrupt(laid.tokens, chosen, examples), laid.eligible, None)
        draw = uniforms(self.seed, _DRAW, examples, self.context).astype(np.float32)
        # Rounding to float32 may reach 1.
        return batch | {"masked": chosen.astype(np.float32), "draw": np.minimum(draw, np.float32(1 - 2**-24))}

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """(sum over rows of (n / m) g + objective.discriminator_weight * d, sum of d), d in nats.

        Of a row with n tokens of text, m of them hidden, g is the sum of the generator's cross-entropies (with z-loss) at the m and d the
        sum of the discriminator's binary cross-entropies at the n. Divided by the sum of n over all rows these are means over tokens
        (g's, over rows of unequal length, of the rows' means weighed by n), however the batch is cut.
        """
        generator = model.apply(params, batch, noise)
        matrix = model.unembedding(params)
        (hidden, targets, weights), places = gathered(self.most, generator, batch["targets"], batch["masked"])
        scale = jnp.sum(batch["weights"], axis=1) / jnp.maximum(jnp.sum(batch["masked"], axis=1), 1.0)
        chunk = chunk_within(chunk, targets.shape[1], self.width)
        total, _ = losses.loss(hidden, matrix, targets, weights * scale[:, None], z_loss=z_loss, chunk=chunk)
        tokens = fill_in(batch, places, weights, draw(hidden, matrix, batch, places, chunk))
        logits = model.discriminate(params, batch | {"tokens": tokens}, noise)
        decided = jnp.sum(batch["weights"] * binary_nats(logits, tokens != batch["targets"]))
        return total + self.options.discriminator_weight * decided, decided

    def scores(self, model, params, batch, chunk: int = 0) -> dict[str, jax.Array]:
        """For evaluation, [B, T] each and 0 where nothing is asked.

        At tokens of text: `nats` and `logits` of the discriminator, `correct` 1 where it is right (at a logit of 0 it says original),
        `replaced` 1 where the token is not the original and `detected` 1 where it says so. At hidden ones: `generator_nats`.
        """
        generator = model.apply(params, batch)
        matrix = model.unembedding(params)
        (hidden, targets, weights), places = gathered(self.most, generator, batch["targets"], batch["masked"])
        chunk = chunk_within(chunk, targets.shape[1], self.width)
        nats = losses.chunked_token_nats(hidden, matrix, targets, chunk)
        tokens = fill_in(batch, places, weights, draw(hidden, matrix, batch, places, chunk))
        logits = model.discriminate(params, batch | {"tokens": tokens})
        real, replaced = batch["weights"] > 0, tokens != batch["targets"]
        rows, zero = jnp.arange(len(targets))[:, None], jnp.zeros(real.shape, jnp.float32)
        found = {"nats": binary_nats(logits, replaced), "logits": logits, "correct": (logits > 0) == replaced, "replaced": replaced,
                 "detected": logits > 0}
        result = {name: jnp.where(real, value, 0).astype(jnp.float32) for name, value in found.items()}
        return result | {"generator_nats": zero.at[rows, places].set(jnp.where(weights > 0, nats, 0))}


def draw(hidden, unembedding, batch, places, chunk: int = 0):
    """A token for each of `places` [B, M] from the softmax of hidden [B, M, D] @ unembedding [D, V]: int32 [B, M], without a gradient.

    The token at which the cumulative distribution first exceeds the position's `draw`.
    """
    hidden, unembedding = jax.lax.stop_gradient((hidden, unembedding))

    def one(hidden, uniform):
        logits = logits_of(hidden, unembedding)
        below = jnp.cumsum(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), axis=-1)
        # The last sum is the normaliser: sums of equal parts compare with it without a rounding of their own.
        return jnp.sum(below <= uniform[..., None] * below[..., -1:], axis=-1, dtype=jnp.int32)

    drawn = by_chunks(one, chunk, hidden, jnp.take_along_axis(batch["draw"], places, axis=1))
    return jnp.minimum(drawn, unembedding.shape[1] - 1)


def fill_in(batch, places, weights, drawn):
    """The discriminator's tokens [B, T]: the original ones, but `drawn` [B, M] at those of `places` [B, M] whose weight is above 0."""
    rows = jnp.arange(len(places))[:, None]
    original = jnp.take_along_axis(batch["targets"], places, axis=1)
    return jnp.asarray(batch["targets"]).at[rows, places].set(jnp.where(weights > 0, drawn, original))


def binary_nats(logits, truth):
    """-log p of `truth` (bool) under the logits of True, in float32 nats."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - jnp.where(truth, logits, 0.0)
