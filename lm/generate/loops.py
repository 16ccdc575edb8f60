"""The loops of sampling and beam search, a token at a time; they know models by the interface in `lm.models.base` alone."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.generate.sampling import choose, ends, gained, row_keys, without
from lm.models import LanguageModel

# Tokens of a prompt, and of all prompts, that are read at once: enough for products at full speed, few enough for the caches of a CPU.
PREFILL_CHUNK, PREFILL_TOKENS = 128, 1024


class Decoded(NamedTuple):
    """Tokens [R, room], -1 where there is none, with their log-probabilities [R], and the sum over rows of the passes that each took."""

    tokens: jax.Array
    logprobs: jax.Array
    row_passes: jax.Array


class Carry(NamedTuple):
    """A loop's state after `count` tokens [R, room] (-1 where there is none), of which the model has yet to read the `last` [R]."""

    count: jax.Array
    state: object
    logits: jax.Array
    tokens: jax.Array
    last: jax.Array
    logprobs: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class Prefixed:
    """A prefix language model, whose prompts are read in one piece: their tokens see each other, as in training."""

    model: LanguageModel

    def __getattr__(self, name):
        return getattr(self.model, name)


def prefill(model, params, prompts, lengths, max_len: int):
    """(logits [R, V] after the last token, state), from prompts [R, P] whose last `lengths` [R] columns are tokens."""
    rows, width = prompts.shape
    chunk = chunk_of(rows, width)
    valid = jnp.arange(width) >= width - lengths[:, None]
    state = model.expecting(model.init_decode(rows, max_len), lengths)
    if isinstance(model, Prefixed):
        hidden, state = model.decode_prefix(params, state, prompts, valid)
        return model.logits(params, hidden[:, -1]), state

    def feed(carry, chunk):
        hidden, state = model.decode(params, carry[1], *chunk)
        return (hidden[:, -1], state), None

    chunks = [x.reshape(rows, -1, chunk).swapaxes(0, 1) for x in (prompts, valid)]
    last, _ = jax.eval_shape(lambda: feed((None, state), [x[0] for x in chunks])[0])
    (hidden, state), _ = jax.lax.scan(feed, (jnp.zeros(last.shape, last.dtype), state), chunks)
    return model.logits(params, hidden), state


def apart(model, params, state, rows: int):
    """A state of which each row may go on by another number of tokens, for `model.accept`."""
    return model.accept(params, state, state, jnp.zeros((rows, 0), jnp.int32), jnp.zeros(rows, jnp.int32))


def chunk_of(rows: int, width: int) -> int:
    """How many columns of prompts [R, P] are read at once: a power of two, which divides any P that is one or whole chunks."""
    chunk = min(width, PREFILL_CHUNK)
    while chunk > 8 and rows * chunk > PREFILL_TOKENS:
        chunk //= 2
    return chunk


def put(tokens, index, column):
    """tokens [R, room] with a column [R] at one index."""
    return jax.lax.dynamic_update_slice_in_dim(tokens, column[:, None].astype(tokens.dtype), index, axis=1)


def sample(params, prompts, lengths, limit, seed, _, *, model, room, sampling, eos_id, banned):
    """At most `limit` <= room sampled tokens for each row. `eos_id` is one id that ends a document, or several."""
    rows = prompts.shape[0]
    logits, state = prefill(model, params, prompts, lengths, prompts.shape[1] + room)
    keys = row_keys(seed, rows)

    def written(carry):
        """With one token more, drawn from the logits."""
        now = jax.vmap(lambda key: jax.random.fold_in(key, carry.count))(keys)
        chosen = choose(without(carry.logits, banned), now, sampling)
        tokens = put(carry.tokens, carry.count, jnp.where(carry.done, -1, chosen))
        logprobs = carry.logprobs + jnp.where(carry.done, 0.0, gained(carry.logits, chosen))
        return carry._replace(count=carry.count + 1, tokens=tokens, last=chosen, logprobs=logprobs, done=carry.done | ends(chosen, eos_id))

    def step(carry):
        logits, state = model.decode_step(params, carry.state, carry.last[:, None])
        return written(carry._replace(logits=logits[:, 0], state=state))

    empty = jnp.full((rows, room), -1, jnp.int32)
    start = Carry(jnp.int32(0), state, logits, empty, jnp.zeros(rows, int), jnp.zeros(rows), jnp.zeros(rows, bool))
    return _decode(step, written(start), limit)


def beam(params, prompts, lengths, limit, seed, _, *, model, room, beams, eos_id, banned, length_penalty=0.0, reorder=None):
    """Rows are ordered prompt by prompt, best beam first; a beam that has ended keeps its score and adds nothing.

    Beams are ordered by log-probability / `penalty(tokens, length_penalty)`. `reorder` takes the states of other beams of the same
    prompt, for models that have something cheaper than `take`.
    """
    reorder = reorder or model.take
    count, vocab = prompts.shape[0], model.vocab_size
    logits, state = prefill(model, params, prompts, lengths, prompts.shape[1] + room)
    copies = jnp.repeat(jnp.arange(count), beams)
    logits, state = logits[copies], model.take(state, copies)

    def written(carry):
        """The best beams with one token more."""
        scores = without(jax.nn.log_softmax(carry.logits), banned)
        # An ended beam has one continuation, which costs nothing and is not written.
        ended = jnp.full(vocab, -jnp.inf).at[eos_id if isinstance(eos_id, int) else eos_id[0]].set(0.0)
        totals = carry.logprobs[:, None] + jnp.where(carry.done[:, None], ended, scores)
        best, index = jax.lax.top_k(ranked(carry, totals).reshape(count, beams * vocab), beams)
        parents = (jnp.arange(count)[:, None] * beams + index // vocab).reshape(-1)
        chosen = (index % vocab).reshape(-1)
        done = carry.done[parents]
        tokens = put(carry.tokens[parents], carry.count, jnp.where(done, -1, chosen))
        return Carry(carry.count + 1, reorder(carry.state, parents), carry.logits, tokens, chosen,
                     totals[parents, chosen] if length_penalty else best.reshape(-1), done | ends(chosen, eos_id))

    def ranked(carry, totals):
        if not length_penalty:
            return totals
        written = jnp.where(carry.done, jnp.sum(carry.tokens >= 0, axis=1), carry.count + 1)
        return totals / penalty(written, length_penalty)[:, None]

    def step(carry):
        logits, state = model.decode_step(params, carry.state, carry.last[:, None])
        return written(carry._replace(logits=logits[:, 0], state=state))

    rows = count * beams
    first = jnp.where(jnp.arange(rows) % beams == 0, 0.0, -jnp.inf)  # all beams are alike at first: one is enough
    start = Carry(jnp.int32(0), state, logits, jnp.full((rows, room), -1, jnp.int32), jnp.zeros(rows, int), first, jnp.zeros(rows, bool))
    return _decode(step, written(start), limit)


def penalty(tokens, alpha: float):
    """((5 + tokens) / 6)^alpha (Wu et al. 2016): divides the log-probability of so many tokens, so that long ones have a chance."""
    return ((5.0 + tokens) / 6.0) ** alpha


def _decode(step, start: Carry, limit) -> Decoded:
    end = jax.lax.while_loop(lambda carry: (carry.count < limit) & ~jnp.all(carry.done), step, start)
    return Decoded(end.tokens, end.logprobs, jnp.sum(end.tokens >= 0))
