"""Speculative decoding: several drafted tokens are checked by one pass of the model, and what comes out is distributed as without drafts.

Leviathan, Kalman and Matias 2023; Chen et al. 2023. A draft d, drawn from q, is accepted with probability min(1, p(d) / q(d)); at the
first that is not, a token is drawn from max(0, p - q), normalised, and after n accepted ones one from p. Greedily p is all on one token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.generate.loops import Decoded, apart, prefill, put
from lm.generate.sampling import choose, ends, gained, probabilities, row_keys, without


class Carry(NamedTuple):
    """The loop's state: `text` [R, P + room] is the prompt and `counts` [R] tokens after it, the last of which the model has not read
    yet, and -1 elsewhere; `row_passes` counts for how many rows that were not done the model has run."""

    counts: jax.Array
    state: object
    drafting: object
    text: jax.Array
    logprobs: jax.Array
    done: jax.Array
    row_passes: jax.Array


def verify(drafts, p, q, keys):
    """(how many drafts [R, n] are accepted [R], the token after them [R]) by p [R, n + 1, V]; q [R, n, V], None where each was certain."""
    n = drafts.shape[1]
    each = jax.vmap(lambda key: jax.random.split(key))(keys)
    of_p = jnp.take_along_axis(p[:, :n], drafts[..., None], axis=-1)[..., 0]
    certain = jax.nn.one_hot(drafts, p.shape[-1]) if q is None else q
    of_q = jnp.take_along_axis(certain, drafts[..., None], axis=-1)[..., 0]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(each[:, 0])
    accepted = jnp.sum(jnp.cumprod(uniform * of_q < of_p, axis=1), axis=1)
    here = jnp.take_along_axis(p, accepted[:, None, None], axis=1)[:, 0]
    # After n accepted drafts there is none to make up for.
    padded = jnp.concatenate([certain, jnp.zeros_like(p[:, :1])], axis=1)
    rest = jnp.maximum(here - jnp.take_along_axis(padded, accepted[:, None, None], axis=1)[:, 0], 0)
    # p = q leaves nothing, and is only refused by rounding.
    rest = jnp.where(jnp.sum(rest, axis=-1, keepdims=True) > 0, rest, here)
    return accepted, jax.vmap(jax.random.categorical)(each[:, 1], jnp.log(rest))


def speculate(params, prompts, lengths, limit, seed, draft_params, *, model, drafter, n, room, sampling, eos_id, banned):
    """At most `limit` <= room tokens for each row, `n` drafts at a time."""
    rows, width = prompts.shape
    keys, space = row_keys(seed, rows), room + n + 1
    logits, state = prefill(model, params, prompts, lengths, width + space)
    chosen = choose(without(logits, banned), _fold(keys, jnp.zeros(rows, jnp.int32)), sampling)
    zeros = jnp.zeros(rows, jnp.int32)
    valid = jnp.arange(width) >= width - lengths[:, None]
    text = jnp.concatenate([jnp.where(valid, prompts, -1), jnp.full((rows, space), -1, jnp.int32)], axis=1)
    start = Carry(zeros + 1, apart(model, params, state, rows),
                  drafter.start(draft_params, prompts, lengths, space), put(text, width, chosen), gained(logits, chosen),
                  ends(chosen, eos_id) | (limit <= 1), jnp.int32(rows))

    def step(carry):
        now, places = _fold(keys, carry.counts), width + carry.counts
        drafts, q, drafting = drafter.draft(draft_params, carry.drafting, carry.text, places, n, now, banned)
        fed = jnp.concatenate([jnp.take_along_axis(carry.text, places[:, None] - 1, axis=1), drafts], axis=1)
        logits, state = model.decode_step(params, carry.state, fed)
        p = probabilities(without(logits, banned), sampling)
        accepted, after = verify(drafts, p, q, _fold(now, jnp.full(rows, n + 1)))
        new = jnp.where(jnp.arange(n + 1) < accepted[:, None], jnp.pad(drafts, ((0, 0), (0, 1))), after[:, None])
        fresh = counting(new, accepted, carry.counts, limit, eos_id) & ~carry.done[:, None]
        counts = jnp.sum(fresh, axis=1)
        text = jax.vmap(jax.lax.dynamic_update_slice)(carry.text, jnp.where(fresh, new, -1), places[:, None])
        done = carry.done | jnp.any(fresh & ends(new, eos_id), axis=1) | (carry.counts + counts >= limit)
        logprobs = carry.logprobs + jnp.sum(jnp.where(fresh, gained(logits, new), 0.0), axis=1)
        return Carry(carry.counts + counts, model.accept(params, carry.state, state, fed, counts),
                     drafter.settle(draft_params, carry.drafting, drafting, fed, counts), text, logprobs, done,
                     carry.row_passes + jnp.sum(~carry.done))

    end = jax.lax.while_loop(lambda carry: ~jnp.all(carry.done), step, start)
    return Decoded(end.text[:, width : width + room], end.logprobs, end.row_passes)


def _fold(keys, numbers):
    """Keys [R] with a number each."""
    return jax.vmap(jax.random.fold_in)(keys, numbers)


def counting(new, accepted, counts, limit, eos_id):
    """[R, n + 1]: which of the accepted tokens and the one after them count, up to the limit and the end of the document."""
    places = jnp.arange(new.shape[1])
    ended = ends(new, eos_id)
    before = jnp.cumsum(ended, axis=1) - ended
    return (places <= accepted[:, None]) & (counts[:, None] + places < limit) & (before == 0)
