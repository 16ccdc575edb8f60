"""The class-based hidden Markov model (Rabiner 1989; as a language model: Kupiec 1992), trained by EM (Baum et al. 1970).

A class emits each token and is followed by another class. A segment's first class depends on the token that stands before
the segment: `bos` at a document's start, elsewhere the last token of the row before. Parameters are log-probabilities. The
gradient of the log-likelihood by them, as if each were free, is the expected count of its event (Eisner 2016, "Inside-outside and
forward-backward algorithms are just backprop"): `lm.optim.em` turns it into the M-step.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import sharded_lookup
from lm.layers.forward_algorithm import EXACT, advance, best_path, predictive
from lm.models.base import ProbabilityModel, Sizes
from lm.parallel import Layout, constrain, extent, gathered


def _log_dirichlet(rng, shape, dtype):
    """Log-probabilities along the last axis, uniform over all distributions (a Dirichlet of ones): classes must differ to part."""
    return jax.nn.log_softmax(-jax.random.gumbel(rng, shape, dtype))  # the log of an exponential variable, and never of 0


def _log_uniform(rng, shape, dtype):
    return jnp.full(shape, -jnp.log(shape[-1]), dtype)


class HiddenMarkov(nn.Module):
    """Tokens to log p(class at t | tokens before), [B, T, K], of `classes` K and `vocab_size` V.

    transition [K, K] is log p(class | class before), emission [K, V] log p(token | class), start [V, K] log p(class | token before).
    """

    classes: int
    vocab_size: int

    @nn.compact
    def __call__(self, batch, noise=None):
        """Nothing is random: `noise` changes nothing."""
        k, v = self.classes, self.vocab_size
        transition = self._table("transition", _log_dirichlet, (k, k), ("width", "cell"))
        emission = self._table("emission", _log_dirichlet, (k, v), ("width", "vocab"))
        start = self._table("start", _log_uniform, (v, k), ("vocab", "width"))
        if self.is_initializing():  # the example's one row cannot be cut over devices
            return None
        restart, tokens = (batch["positions"] == 0).T, batch["tokens"].T
        read = jnp.where(restart[..., None], rows(start, tokens), rows(emission.T, tokens))
        # Whole on every device: it is small, and cut it would be gathered at each time.
        hidden = predictive(constrain(transition, None, None), read, restart)
        return constrain(jnp.swapaxes(hidden, 0, 1), "batch", "scan_time", "act_width")

    def _table(self, name, init, shape, axes):
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def rows(table, indices):
    """Rows [T, B, K] of a table [V, K], for indices [T, B]."""
    if extent("batch", "scan_time", "vocab", "width") == 1:
        return jnp.take(table, indices, axis=0)
    return jnp.swapaxes(sharded_lookup(table, indices.T, ("vocab", "width"), "scan_time"), 0, 1)


class HiddenMarkovModel(ProbabilityModel):
    """The interface of `ProbabilityModel` for a hidden Markov model.

    Its decoding state is log p(next class | what was read) [B, K], and whether anything was read [B].
    """

    @property
    def classes(self) -> int:
        """K."""
        return self.module.classes

    def token_nats(self, params, batch):
        """-log p of each target given the tokens before it in its segment, [B, T]."""
        emitted = jnp.swapaxes(rows(params["emission"].T, batch["targets"].T), 0, 1)
        return -jax.nn.logsumexp(self.apply(params, batch) + emitted, axis=-1)

    def logits(self, params, hidden):
        """log p(next token), [..., V], of log p(next class) [..., K]; for a whole vocabulary at few places, as in decoding."""
        emission = jnp.exp(gathered(params["emission"], "width", "vocab"))
        return jnp.log(jnp.matmul(jnp.exp(hidden), emission, precision=EXACT))

    def init_decode(self, batch_size: int, max_len: int):
        """Nothing read; `max_len` does not matter."""
        return jnp.zeros((batch_size, self.classes)), jnp.zeros(batch_size, bool)

    def decode(self, params, state, tokens, valid=None):
        """log p(next class) [B, n, K] after each token, and the state after the last; the first valid token stands before the sequence."""
        transition = jnp.exp(params["transition"])
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        starting, emitting = rows(params["start"], tokens.T), rows(params["emission"].T, tokens.T)

        def step(state, now):
            before, begun = state
            start, emit, valid = now
            after = jnp.where(begun[:, None], advance(transition, before, emit), start)
            after = jnp.where(valid[:, None], after, before)
            return (after, begun | valid), after

        state, hidden = jax.lax.scan(step, state, (starting, emitting, valid.T))
        return jnp.swapaxes(hidden, 0, 1), state

    def accept(self, params, before, after, tokens, counts):
        """The state after `counts` tokens, which are read once more."""
        return self.decode(params, before, tokens, jnp.arange(tokens.shape[1]) < counts[:, None])[1]

    def viterbi(self, params, batch) -> jax.Array:
        """The most probable class of each target, [B, T] int32: the best path of each segment, ties to the lower class."""
        restart = (batch["positions"] == 0).T
        start, emitted = rows(params["start"], batch["tokens"].T), rows(params["emission"].T, batch["targets"].T)
        return best_path(params["transition"], start, emitted, restart).T

    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """The product with the transitions; neither argument changes it. A target's probability needs its own column of emissions alone."""
        return {"transitions": 2 * self.classes**2}


def build(model, sizes: Sizes, layout: Layout) -> HiddenMarkovModel:
    """The hidden Markov model of the config's model section; any context will do, and layouts differ in the sizes of the mesh alone."""
    return HiddenMarkovModel(HiddenMarkov(model.classes, sizes.vocab), sizes.vocab, None)
