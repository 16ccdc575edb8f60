"""Decoding: prompts in, completions with log-probabilities out; one compiled loop for every kind of model.

Prompts of unequal length are padded to a bucket, so that few shapes are ever compiled. The log-probability of a completion is
the model's own (temperature 1, no truncation), summed over its tokens and the end of the document where it came to one.
"""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import ConfigError

PREFILL_CHUNK = 128
SMALLEST_BUCKET = 16


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


class Completion(NamedTuple):
    """Tokens after a prompt (without the end of document), their log-probability in nats, whether the document ended, and
    which of the prompts it was."""

    tokens: list[int]
    logprob: float
    ended: bool
    prompt: int


class Carry(NamedTuple):
    """The decoding loop's state: `logits` [R, V] predict token number `count` of each row."""

    count: jax.Array
    state: object
    logits: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    done: jax.Array


def bucket(length: int) -> int:
    """The power of two, at least 16, that holds `length`."""
    return max(SMALLEST_BUCKET, 1 << max(0, length - 1).bit_length())


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


def prefill(model, params, prompts, lengths, max_len: int):
    """(logits [R, V] after each row's last prompt token, state), from prompts [R, P] of `lengths` [R] tokens."""
    rows, width = prompts.shape
    chunk = min(width, PREFILL_CHUNK)

    def feed(carry, start):
        state, last = carry
        tokens = jax.lax.dynamic_slice_in_dim(prompts, start, chunk, axis=1)
        places = start + jnp.arange(chunk)
        logits, state = model.decode_step(params, state, tokens, places < lengths[:, None])
        index = jnp.clip(lengths - 1 - start, 0, chunk - 1)
        here = jnp.take_along_axis(logits, index[:, None, None], axis=1)[:, 0]
        ends_here = (lengths - 1 >= start) & (lengths - 1 < start + chunk)
        return (state, jnp.where(ends_here[:, None], here, last)), None

    start = (model.init_decode(rows, max_len), jnp.zeros((rows, model.vocab_size), jnp.float32))
    (state, logits), _ = jax.lax.scan(feed, start, jnp.arange(0, width, chunk))
    return logits, state


def _sample(params, prompts, lengths, limit, seed, *, model, room, sampling, eos_id, banned):
    """Carry after sampling at most `limit` <= room tokens for each row."""
    rows = prompts.shape[0]
    logits, state = prefill(model, params, prompts, lengths, prompts.shape[1] + room)
    row_keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(rows))

    def more(carry):
        return (carry.count < limit) & ~jnp.all(carry.done)

    def step(carry):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, carry.count))(row_keys)
        chosen = choose(carry.logits.at[:, banned].set(-jnp.inf), keys, sampling)
        gained = jnp.take_along_axis(jax.nn.log_softmax(carry.logits), chosen[:, None], axis=1)[:, 0]
        tokens = carry.tokens.at[:, carry.count].set(jnp.where(carry.done, -1, chosen))
        logprobs = carry.logprobs + jnp.where(carry.done, 0.0, gained)
        logits, state = model.decode_step(params, carry.state, chosen[:, None])
        return Carry(carry.count + 1, state, logits[:, 0], tokens, logprobs, carry.done | (chosen == eos_id))

    empty = jnp.full((rows, room), -1, jnp.int32)
    return jax.lax.while_loop(more, step, Carry(jnp.int32(0), state, logits, empty, jnp.zeros(rows), jnp.zeros(rows, bool)))


def _beam(params, prompts, lengths, limit, seed, *, model, room, beams, eos_id, banned):
    """Carry with rows ordered prompt by prompt, best beam first; a beam that has ended keeps its score and adds nothing."""
    count, vocab = prompts.shape[0], model.vocab_size
    logits, state = prefill(model, params, prompts, lengths, prompts.shape[1] + room)
    logits, state = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), (logits, state))

    def more(carry):
        return (carry.count < limit) & ~jnp.all(carry.done)

    def step(carry):
        scores = jax.nn.log_softmax(carry.logits).at[:, banned].set(-jnp.inf)
        # An ended beam has one continuation, which costs nothing and is not written.
        ended = jnp.full(vocab, -jnp.inf).at[eos_id].set(0.0)
        totals = carry.logprobs[:, None] + jnp.where(carry.done[:, None], ended, scores)
        best, index = jax.lax.top_k(totals.reshape(count, beams * vocab), beams)
        parents = (jnp.arange(count)[:, None] * beams + index // vocab).reshape(-1)
        chosen = (index % vocab).reshape(-1)
        done, tokens, state = jax.tree.map(lambda x: x[parents], (carry.done, carry.tokens, carry.state))
        tokens = tokens.at[:, carry.count].set(jnp.where(done, -1, chosen))
        logits, state = model.decode_step(params, state, chosen[:, None])
        return Carry(carry.count + 1, state, logits[:, 0], tokens, best.reshape(-1), done | (chosen == eos_id))

    first = jnp.where(jnp.arange(count * beams) % beams == 0, 0.0, -jnp.inf)  # all beams are alike at first: one is enough
    empty = jnp.full((count * beams, room), -1, jnp.int32)
    return jax.lax.while_loop(more, step, Carry(jnp.int32(0), state, logits, empty, first, jnp.zeros(count * beams, bool)))


class Generator:
    """Decodes with one model; compiled once per bucket of prompt length, room, number of rows and way of choosing."""

    def __init__(self, model, params, tokenizer):
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.seconds = 0.0
        banned = {tokenizer.pad_id, tokenizer.bos_id} - {tokenizer.eos_id}
        self._fixed = {"model": model, "eos_id": tokenizer.eos_id, "banned": tuple(sorted(banned))}
        self._compiled = functools.lru_cache(maxsize=64)(self._compile)

    def __call__(self, prompts: list[str], max_tokens: int | None = None, sampling: Sampling = Sampling(), beams: int = 0,
                 seed: int = 0, num: int = 1) -> list[Completion]:
        """`num` completions of each prompt, in the order of the prompts; with beams, the best `num` <= beams of each.

        Beams give fewer where there are no more completions of so few tokens.
        `max_tokens` None fills the context (at most 128 tokens). ConfigError when prompt and completion do not fit.
        """
        if not prompts:
            raise ConfigError("there is no prompt to continue")
        if num < 1 or (beams and num > beams):
            raise ConfigError(f"num={num} is not allowed: it must be at least 1" + (f" and at most beams={beams}" if beams else ""))
        encoded = [[self.tokenizer.bos_id, *self.tokenizer.encode(prompt).tolist()] for prompt in prompts]
        limit = self._limit(max(map(len, encoded)), max_tokens)
        rows = [row for row in encoded for _ in range(1 if beams else num)]
        lengths = np.array([len(row) for row in rows], np.int32)
        padded = np.zeros((len(rows), bucket(int(lengths.max()))), np.int32)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        run = self._compiled(padded.shape, bucket(limit), sampling, beams)
        start = time.perf_counter()
        carry = run(self.params, padded, lengths, np.int32(limit), np.uint32(seed))
        tokens, logprobs = np.asarray(carry.tokens), np.asarray(carry.logprobs)
        self.seconds = time.perf_counter() - start
        per_prompt = len(tokens) // len(prompts)
        results = [self._completion(*row, i // per_prompt) for i, row in enumerate(zip(tokens, logprobs, strict=True))]
        # Beams that no continuation filled have probability 0.
        return [result for i, result in enumerate(results) if not beams or (i % beams < num and result.logprob != -np.inf)]

    def _limit(self, longest: int, max_tokens: int | None) -> int:
        room = self.model.max_positions
        if max_tokens is not None and max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} is not allowed: it must be at least 1")
        if room is None:
            return max_tokens or 128
        # The last token is written but never read: it needs no place in the context.
        fits = room + 1 - longest
        if fits < 1:
            raise ConfigError(f"the prompt has {longest - 1} tokens, but the model's context is {room}: shorten the prompt")
        if max_tokens is not None and max_tokens > fits:
            raise ConfigError(f"max_tokens={max_tokens} after a prompt of {longest - 1} tokens is more than the model's context of {room}: "
                              f"use at most {fits}")
        return max_tokens or min(128, fits)

    def _compile(self, shape, room, sampling, beams):
        if beams:
            function = functools.partial(_beam, beams=beams, room=room, **self._fixed)
        else:
            function = functools.partial(_sample, sampling=sampling, room=room, **self._fixed)
        tokens, lengths = jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape[:1], np.int32)
        scalars = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.uint32)
        return jax.jit(function).lower(self.params, tokens, lengths, *scalars).compile()

    def _completion(self, tokens, logprob, prompt) -> Completion:
        written = tokens[tokens >= 0].tolist()
        ended = bool(written) and written[-1] == self.tokenizer.eos_id
        return Completion(written[:-1] if ended else written, float(logprob), ended, prompt)
