"""Who proposes tokens for `lm.generate.speculative`: what followed the last words before, or a smaller model.

A drafter is made once per compiled loop. `start` reads the prompts; `draft` proposes n tokens after those so far; `settle` hears how
many of the tokens that were fed counted. States are pytrees, the drafter itself is static.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.generate.loops import apart, prefill
from lm.generate.sampling import Sampling, choose, probabilities, without


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Proposes what came last after the words that the text ends with, the more of them alike the better, up to `longest` (Saxena 2023)."""

    longest: int = 4

    def start(self, params, prompts, lengths, room: int):
        """The state: nothing but the text."""
        return ()

    def draft(self, params, state, text, ends, n: int, keys, banned):
        """(tokens [R, n], None for certainty, state) after text [R, W] that ends before the columns `ends` [R]."""
        rows, width = text.shape
        columns = jnp.arange(width)
        matched, alive = jnp.zeros((rows, width), jnp.int32), jnp.ones((rows, width), bool)
        for back in range(self.longest):
            last = jnp.take_along_axis(text, jnp.maximum(ends - 1 - back, 0)[:, None], axis=1)
            # Shifted so that column j stands for an ending at j - 1; -1 is no token.
            shifted = jnp.pad(text, ((0, 0), (back + 1, 0)), constant_values=-1)[:, :width]
            alive = alive & (shifted == last) & (shifted >= 0)
            matched += alive
        earlier = columns < ends[:, None]
        best = jnp.argmax(jnp.where(earlier, matched * width + columns, -1), axis=1)
        # Where the text repeats itself up to its end, it goes on repeating.
        places = best[:, None] + jnp.arange(n) % (ends - best)[:, None]
        return jnp.maximum(jnp.take_along_axis(text, places, axis=1), 0), None, state

    def settle(self, params, before, after, fed, counts):
        """Nothing to go back on."""
        return after


@dataclasses.dataclass(frozen=True)
class Draft:
    """Proposes what a smaller model with the same tokens draws, in the same way as the larger one chooses."""

    model: object
    sampling: Sampling

    def start(self, params, prompts, lengths, room: int):
        """The smaller model's state after the prompts."""
        state = prefill(self.model, params, prompts, lengths, prompts.shape[1] + room)[1]
        return apart(self.model, params, state, prompts.shape[0])

    def draft(self, params, state, text, ends, n: int, keys, banned):
        """(tokens [R, n], what each was drawn from [R, n, V], state after all n of them) after the token before `ends` [R]."""

        def step(carry, number):
            state, token = carry
            logits, state = self.model.decode_step(params, state, token[:, None])
            allowed = without(logits[:, 0], banned)
            now = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            chosen = choose(allowed, now, self.sampling).astype(token.dtype)
            return (state, chosen), (chosen, probabilities(allowed, self.sampling))

        last = jnp.take_along_axis(text, ends[:, None] - 1, axis=1)[:, 0]
        # One step more than drafts, for the state to have read all that may be accepted.
        (state, _), (tokens, chances) = jax.lax.scan(step, (state, last), jnp.arange(n + 1))
        return tokens[:n].T, chances[:n].swapaxes(0, 1), state

    def settle(self, params, before, after, fed, counts):
        """The state after `counts` [R] of the tokens fed [R, n + 1]."""
        return self.model.accept(params, before, after, fed, counts)
