"""Filling of gaps by models of span corruption (T5, Raffel et al. 2020) and of a mixture of denoisers (UL2, Tay et al. 2022).

A prompt becomes inputs as training makes them, each gap a sentinel; the model writes the gaps, each behind its sentinel. Only such targets
are searched or drawn; what they are said to be likely is what the model itself gives them, by one more pass over each of them.
"""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import ConfigError
from lm.generate import loops
from lm.generate.generator import Generator, bucket
from lm.generate.sampling import UNCHANGED, Sampling, banned
from lm.generate.translate import Sourced, source_batch
from lm.objectives.causal import token_nats
from lm.objectives.denoisers import MODES, Denoisers
from lm.objectives.span import Span

MOST = 64  # tokens of a gap, unless more are asked for


class Gap(NamedTuple):
    """What stands in a gap, and the log-probability in nats of its tokens and of the sentinel or end behind them, given all before."""

    text: str
    logprob: float


class Filling(NamedTuple):
    """A prompt with its gaps filled, the gaps from left to right, and which of the prompts it was."""

    text: str
    gaps: tuple[Gap, ...]
    prompt: int

    @property
    def logprob(self) -> float:
        """Of all gaps together."""
        return sum(gap.logprob for gap in self.gaps)


class Progress(NamedTuple):
    """The state of a model that fills gaps: its own, and of each row the sentinels written and the tokens since the last of them [R]."""

    inner: object
    count: jax.Array
    size: jax.Array


@dataclasses.dataclass(frozen=True)
class Gapped:
    """A model that can write nothing but targets of `gaps` gaps of at most `most` tokens each: what `lm.generate.loops` meets.

    Its logits are those of `model`, and -inf where another sentinel than the next one, or the end too early, would be written.
    """

    model: object
    sentinel: int
    gaps: int
    most: int
    eos_id: int

    def __getattr__(self, name):
        return getattr(self.model, name)

    def init_decode(self, batch_size: int, max_len: int) -> Progress:
        """The model's state, and no sentinel."""
        none = jnp.zeros(batch_size, jnp.int32)
        return Progress(self.model.init_decode(batch_size, max_len), none, none)

    def expecting(self, state, lengths):
        """The model's own."""
        return state._replace(inner=self.model.expecting(state.inner, lengths))

    def decode(self, params, state, tokens, valid=None):
        """Of a prompt, in which sentinels do not count."""
        hidden, inner = self.model.decode(params, state.inner, tokens, valid)
        return hidden, state._replace(inner=inner)

    def decode_prefix(self, params, state, tokens, valid):
        """`decode` of a whole prompt, whose tokens see each other."""
        hidden, inner = self.model.decode_prefix(params, state.inner, tokens, valid)
        return hidden, state._replace(inner=inner)

    def logits(self, params, hidden):
        """After a prompt [R, V]: the first sentinel follows."""
        none = jnp.zeros(hidden.shape[:1], jnp.int32)
        return self.allowed(self.model.logits(params, hidden), none, none)

    def decode_step(self, params, state, tokens):
        """Logits [R, 1, V] after tokens [R, 1] that were written."""
        hidden, inner = self.model.decode(params, state.inner, tokens)
        is_sentinel = tokens[:, 0] >= self.sentinel
        count, size = state.count + is_sentinel, jnp.where(is_sentinel, 0, state.size + 1)
        return self.allowed(self.model.logits(params, hidden)[:, 0], count, size)[:, None], Progress(inner, count, size)

    def allowed(self, logits, count, size):
        """logits [R, V] with -inf for what may not follow: text may in a gap, and behind it the next sentinel, or the end after the last.

        As in training no gap is empty.
        """
        ids = jnp.arange(logits.shape[-1])
        text = (ids < self.sentinel) & (ids != self.eos_id) & ((count > 0) & (size < self.most))[:, None]
        following = jnp.where(count < self.gaps, self.sentinel + count, self.eos_id)[:, None]
        return jnp.where(text | ((ids == following) & ((count == 0) | (size > 0))[:, None]), logits, -jnp.inf)

    def take(self, state, rows):
        """The states of some rows [R]."""
        return Progress(self.model.take(state.inner, rows), state.count[rows], state.size[rows])

    def reorder(self, state, rows):
        """`take` among rows with the same source."""
        return Progress(self.model.reorder(state.inner, rows), state.count[rows], state.size[rows])


class Filler:
    """Fills gaps with one model; compiled once per number of gaps, their room, bucket of prompt length and way of choosing.

    After a call `seconds` is what decoding took, and `tokens` how many were written.
    """

    def __init__(self, model, params, tokenizer, objective: Span):
        self.model, self.params, self.tokenizer, self.objective = model, params, tokenizer, objective
        self.seconds, self.tokens = 0.0, 0
        self._generator = functools.lru_cache(maxsize=16)(self._make_generator)
        self._compiled = functools.lru_cache(maxsize=64)(self._compile)
        self._nats = jax.jit(lambda params, batch: token_nats(model, params, batch))

    def __call__(self, prompts: list[list[str]], mode: str | None = None, max_tokens: int | None = None, sampling: Sampling = UNCHANGED,
                 beams: int = 0, seed: int = 0, num: int = 1) -> list[Filling]:
        """`num` fillings of each prompt, in their order; with beams, the best `num` <= beams of each, best first.

        A prompt is its pieces of text, with a gap between each two. `mode` is UL2's, R unless said otherwise, and None for T5.
        `max_tokens` are the most of a gap (default: 64, or what fits). ConfigError for what this model cannot do.
        """
        if num < 1 or (beams and num > beams):
            raise ConfigError(f"num={num} is not allowed: it must be at least 1" + (f" and at most beams={beams}" if beams else ""))
        self.seconds, self.tokens, found = 0.0, 0, []
        for number, pieces in enumerate(prompts):
            inputs = self.inputs(pieces, mode)
            most = self._most(len(inputs), len(pieces) - 1, max_tokens)
            write, start = self._continue if self.objective.decoder else self._translate, time.perf_counter()
            written = write(inputs, len(pieces) - 1, most, sampling, beams, seed, num)
            self.seconds, self.tokens = self.seconds + time.perf_counter() - start, self.tokens + sum(map(len, written))
            found += [self._filling(pieces, gaps, number) for gaps in self._gaps(inputs, written)]
        return found

    def inputs(self, pieces: list[str], mode: str | None = None) -> np.ndarray:
        """Ids [n] of a prompt as training makes them: pieces, sentinels, eos, and the mode's token in front."""
        objective, gaps = self.objective, len(pieces) - 1
        if gaps < 1 or not all(pieces[1:-1]):
            raise ConfigError("a prompt needs a gap, and text between each two gaps")
        if gaps > objective.options.sentinels:
            raise ConfigError(f"the prompt has {gaps} gaps, and the run objective.sentinels={objective.options.sentinels}: mark fewer")
        ids = objective.with_gaps([self.tokenizer.encode(piece) for piece in pieces])
        if not isinstance(objective, Denoisers):
            if mode is not None:
                raise ConfigError(f"mode={mode} is for runs with objective.name=denoisers, not {objective.options.name}: leave it out")
            return ids
        mode = mode or MODES[0]
        if mode not in MODES:
            raise ConfigError(f"mode={mode} is not allowed: use one of {', '.join(MODES)}")
        if mode == "S" and (gaps > 1 or pieces[-1]):
            raise ConfigError("mode=S continues a text: it has one gap, at its end")
        return objective.prompt(mode, ids)

    def _most(self, length: int, gaps: int, max_tokens: int | None) -> int:
        # Targets are gaps times (sentinel, tokens), and eos; a decoder reads them behind the inputs.
        context = self.objective.context
        room = context - length if self.objective.decoder else context
        fits = (room - 1) // gaps - 1 if length <= context else 0
        if fits < 1:
            raise ConfigError(f"the prompt has {length} tokens and {gaps} gaps, too many for the model's context of {context}: shorten it")
        if max_tokens is not None and not 1 <= max_tokens <= fits:
            raise ConfigError(f"max_tokens={max_tokens} for each gap is not allowed: use 1 to {fits} in the model's context of {context}")
        return max_tokens or min(MOST, fits)

    def _gapped(self, model, gaps: int, most: int) -> Gapped:
        return Gapped(model, self.objective.sentinel, gaps, most, self.tokenizer.eos_id)

    def _continue(self, inputs, gaps, most, sampling, beams, seed, num) -> list[np.ndarray]:
        """Targets that a decoder writes behind its inputs."""
        completions = self._generator(gaps, most)([inputs], gaps * (most + 1) + 1, sampling, beams, seed, num,
                                                     begin=True)  # as every row of training does, whatever prompts do
        return [np.append(completion.tokens, self.tokenizer.eos_id) for completion in completions]

    def _make_generator(self, gaps, most) -> Generator:
        own = tuple(range(self.objective.sentinel, self.objective.sentinel + gaps))
        return Generator(self._gapped(self.model, gaps, most), self.params, self.tokenizer, prefix=True, own=own)

    def _translate(self, inputs, gaps, most, sampling, beams, seed, num) -> list[np.ndarray]:
        """Targets that a decoder writes which reads the inputs through an encoder."""
        limit = gaps * (most + 1) + 1
        batch = source_batch([inputs.tolist()] * (1 if beams else num), min(bucket(len(inputs)), self.objective.context))
        run = self._compiled(gaps, most, bucket(limit), sampling, beams)
        decoded = jax.device_get(run(self.params, batch, np.int32(limit), np.uint32(seed)))
        kept = [tokens for tokens, logprob in zip(decoded.tokens, decoded.logprobs, strict=True) if logprob > -np.inf]
        return [tokens[tokens >= 0] for tokens in kept[:num]]

    def _compile(self, gaps, most, room, sampling, beams):
        tokenizer = self.tokenizer
        own = range(self.objective.sentinel, self.objective.sentinel + gaps)
        options = {"room": room, "eos_id": tokenizer.eos_id, "banned": tuple(i for i in banned(tokenizer, self.model) if i not in own)}

        def run(params, batch, limit, seed):
            rows = len(batch["source_tokens"])
            gapped = self._gapped(Sourced(self.model, batch, params), gaps, most)
            prompts, lengths = jnp.full((rows, 1), tokenizer.bos_id, jnp.int32), jnp.ones(rows, jnp.int32)
            if beams:
                return loops.beam(params, prompts, lengths, limit, seed, (), model=gapped, beams=beams, reorder=gapped.reorder, **options)
            return loops.sample(params, prompts, lengths, limit, seed, (), model=gapped, sampling=sampling, **options)

        return jax.jit(run)

    def _gaps(self, inputs, written: list[np.ndarray]) -> list[list[Gap]]:
        """The gaps of each of some targets of the same inputs."""
        batch = self.objective.batch_of(inputs, written)
        nats, found = np.asarray(self._nats(self.params, batch), np.float64), []
        for row, targets in enumerate(written):
            scored = nats[row][batch["weights"][row] > 0]
            ends = np.flatnonzero((targets >= self.objective.sentinel) | (targets == self.tokenizer.eos_id))
            spans = zip(ends[:-1] + 1, ends[1:] + 1, strict=True)
            found.append([Gap(self.tokenizer.decode(targets[first : stop - 1]), -float(scored[first:stop].sum())) for first, stop in spans])
        return found

    @staticmethod
    def _filling(pieces: list[str], gaps: list[Gap], number: int) -> Filling:
        text = pieces[0] + "".join(gap.text + piece for gap, piece in zip(gaps, pieces[1:], strict=True))
        return Filling(text, tuple(gaps), number)


def pieces_of(prompt: str, mark: str, mode: str | None = None) -> list[str]:
    """The text around the gaps of a prompt, which `mark` marks; with mode S it is continued, and may lack the mark.

    A space before a gap belongs to the gap: words bring their own. ConfigError where there is no gap, or nothing between two.
    """
    if not mark:
        raise ConfigError("--gap is empty: give the mark of a gap, such as ____")
    pieces = prompt.split(mark)
    if mode == "S" and len(pieces) == 1:
        pieces.append("")
    if len(pieces) == 1:
        raise ConfigError(f"the prompt {prompt[:40]!r} has no gap: mark each with {mark}, or another mark by --gap=MARK")
    pieces = [*(piece.removesuffix(" ") for piece in pieces[:-1]), pieces[-1]]
    if not all(pieces[1:-1]):
        raise ConfigError(f"the prompt {prompt[:40]!r} has nothing between two gaps: mark them as one")
    return pieces


def answer(run, prompts: list[str], mark: str, step: int | None, **options) -> dict:
    """What `scripts/generate.py` says of a run that fills gaps; prints each text. `options` are those of `Filler`."""
    pieces = [pieces_of(prompt, mark, options.get("mode")) for prompt in prompts]
    filler = Filler(run.model, run.parameters(step=step)[0], run.tokenizer, run.objective)
    results = []
    for filling in filler(pieces, **options):
        print(f"{filling.text}\n" + "-" * 20)
        results.append({"text": filling.text, "logprob": filling.logprob, "gaps": [gap._asdict() for gap in filling.gaps]})
    return {"completions": results, "tokens_per_second": filler.tokens / filler.seconds}
