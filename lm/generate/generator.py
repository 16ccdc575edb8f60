"""Prompts in, completions out: what is compiled for which shapes, and what fits.

Prompts of unequal length are padded to a bucket, so that few shapes are ever compiled. The log-probability of a completion is
the model's own (temperature 1, no truncation), summed over its tokens and the end of the document where it came to one.
"""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np

from lm.errors import ConfigError
from lm.generate import loops
from lm.generate.drafts import Draft, Lookup
from lm.generate.sampling import UNCHANGED, Sampling, banned
from lm.generate.speculative import speculate

SMALLEST_BUCKET = 16


class Completion(NamedTuple):
    """Tokens after a prompt (without the end of document), their log-probability in nats, whether the document ended, and
    which of the prompts it was."""

    tokens: list[int]
    logprob: float
    ended: bool
    prompt: int


def bucket(length: int) -> int:
    """What holds `length`: a power of two from 16 on, beyond a chunk of `loops.prefill` a multiple of it."""
    return max(SMALLEST_BUCKET, min(1 << max(0, length - 1).bit_length(), -(-length // loops.PREFILL_CHUNK) * loops.PREFILL_CHUNK))


class Generator:
    """Decodes with one model; compiled once per bucket of prompt length, room, number of rows and way of choosing.

    `draft` is a smaller model with the same tokens, and its parameters, for speculative decoding. After a call `seconds` is what the
    decoding took, and `tokens_per_pass` how many tokens of a row a pass of the model gave, above 1 where drafts were accepted.
    """

    def __init__(self, model, params, tokenizer, draft: tuple | None = None, prefix: bool = False, own: tuple[int, ...] = ()):
        """With `prefix`, the tokens of a prompt see each other, as a prefix language model has learned it; `own` are ids that may be
        written although they are an objective's own."""
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self._draft, self._draft_params = draft or (None, ())
        if draft and draft[0].vocab_size != model.vocab_size:
            raise ConfigError(f"the draft model has {draft[0].vocab_size} tokens and the model {model.vocab_size}: use the same tokenizer")
        self.seconds = self.tokens_per_pass = 0.0
        stops = tokenizer.stop_ids
        self._fixed = {"model": loops.Prefixed(model) if prefix else model, "eos_id": stops[0] if len(stops) == 1 else stops,
                       "banned": tuple(token for token in banned(tokenizer, model) if token not in own)}
        self._compiled = functools.lru_cache(maxsize=64)(self._compile)

    def __call__(self, prompts: list[str | np.ndarray], max_tokens: int | None = None, sampling: Sampling = UNCHANGED, beams: int = 0,
                 seed: int = 0, num: int = 1, drafts: int = 0, begin: bool | None = None) -> list[Completion]:
        """`num` completions of each prompt, in the order of the prompts; with beams, the best `num` <= beams of each.

        A prompt is a text, or token ids. With `begin` it is put after the token that begins a document, by default where the tokenizer
        says so (prompt_bos); an empty one always is.

        Beams give fewer where there are no more completions of so few tokens. With `drafts` that many tokens are drafted for each pass
        of the model, by the draft model or else by lookup in the text so far; what comes out is distributed as without.
        `max_tokens` None fills the context (at most 128 tokens). ConfigError when prompt and completion do not fit.
        """
        self._check(prompts, beams, num, drafts)
        encoded = [self._encode(prompt, self.tokenizer.prompt_bos if begin is None else begin) for prompt in prompts]
        limit = self._limit(max(map(len, encoded)), max_tokens)
        rows = [row for row in encoded for _ in range(1 if beams else num)]
        lengths = np.array([len(row) for row in rows], np.int32)
        padded = np.zeros((len(rows), bucket(int(lengths.max()))), np.int32)
        for place, row in zip(padded, rows, strict=True):
            place[len(place) - len(row) :] = row
        run = self._compiled(padded.shape, bucket(limit), sampling, beams, drafts)
        start = time.perf_counter()
        decoded = jax.device_get(run(self.params, padded, lengths, np.int32(limit), np.uint32(seed), self._draft_params))
        self.seconds = time.perf_counter() - start
        self.tokens_per_pass = np.sum(decoded.tokens >= 0) / decoded.row_passes
        per_prompt = len(decoded.tokens) // len(prompts)
        results = [self._completion(*row, i // per_prompt) for i, row in enumerate(zip(decoded.tokens, decoded.logprobs, strict=True))]
        # Beams that no continuation filled have probability 0.
        return [result for i, result in enumerate(results) if not beams or (i % beams < num and result.logprob != -np.inf)]

    def _encode(self, prompt: str | np.ndarray, begin: bool) -> list[int]:
        ids = (self.tokenizer.encode(prompt) if isinstance(prompt, str) else np.asarray(prompt)).tolist()
        return [self.tokenizer.bos_id, *ids] if begin or not ids else ids

    def _check(self, prompts, beams, num, drafts):
        if not prompts:
            raise ConfigError("there is no prompt to continue")
        if num < 1 or (beams and num > beams):
            raise ConfigError(f"num={num} is not allowed: it must be at least 1" + (f" and at most beams={beams}" if beams else ""))
        if drafts < 0 or (beams and drafts):
            raise ConfigError(f"drafts={drafts} is not allowed: it is at least 0, and 0 with beams")

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

    def _compile(self, shape, room, sampling, beams, drafts=0):
        if beams:
            function = functools.partial(loops.beam, beams=beams)
        elif drafts:
            drafter = Draft(self._draft, sampling) if self._draft else Lookup()
            function = functools.partial(speculate, drafter=drafter, n=drafts, sampling=sampling)
        else:
            function = functools.partial(loops.sample, sampling=sampling)
        tokens, lengths = jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape[:1], np.int32)
        scalars = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.uint32)
        function = functools.partial(function, room=room, **self._fixed)
        return jax.jit(function).lower(self.params, tokens, lengths, *scalars, self._draft_params).compile()

    def _completion(self, tokens, logprob, prompt) -> Completion:
        written = tokens[tokens >= 0].tolist()
        ended = bool(written) and written[-1] in self.tokenizer.stop_ids
        return Completion(written[:-1] if ended else written, float(logprob), ended, prompt)
