"""Log-likelihoods of continuations given contexts, in batches of few shapes; the end of every request is read with all the context it has.

What is longer than the model reads is cut on the left, and how much was cut is counted. Each token of a continuation is scored exactly
once: one that does not fit at all is scored in several windows, of which the last is full.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import ConfigError, DataError
from lm.evaluate.likelihood import on_devices
from lm.models import CountedModel, LanguageModel
from lm.models.base import ProbabilityModel
from lm.parallel import Layout, batch_sharding, replicated
from lm.parallel.layout import row_multiple

SMALLEST = 16  # tokens of the shortest rows, and scored tokens of a row
TOKENS = 8192  # of a batch, for each device
POSITIONS = 1024  # whose logits exist at once, for each device
INPUTS = ("tokens", "segments", "positions")  # of a model's batch


class Request(NamedTuple):
    """Ids of a context, at least one, and of the continuation that is scored."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Scores(NamedTuple):
    """Of n requests: log-probabilities in nats, and those of the last token alone, float64 [n]; whether all tokens were the likeliest ones.

    `counts`: requests, distinct_requests (the same is asked once), tokens_scored (of all requests), cut_requests and cut_tokens (left out
    on the left, and no part of a continuation), context (tokens that the model reads at most).
    """

    logprobs: np.ndarray
    last: np.ndarray
    greedy: np.ndarray
    counts: dict[str, int]


class _Row(NamedTuple):
    """A window: the tokens that the model reads, the targets at its end, its request, and whether it has the end of that."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    request: int
    final: bool


def encode_pair(tokenizer, context: str, continuation: str) -> Request:
    """The request of two texts. DataError when no token is left to score.

    As in EleutherAI's lm-evaluation-harness: white space at the end of the context belongs to the continuation, the two are encoded as
    one text, and the tokens after as many as the context alone has are the continuation. Bos stands first where prompts of the tokenizer
    begin with it, and before an empty context always.
    """
    first = (tokenizer.bos_id,)
    stripped = context.rstrip()
    if not stripped:
        ids = tokenizer.encode(context + continuation).tolist()
        request = Request(first, tuple(ids))
    else:
        whole, count = tokenizer.encode(context + continuation).tolist(), len(tokenizer.encode(stripped))
        request = Request((first if tokenizer.prompt_bos else ()) + tuple(whole[:count]), tuple(whole[count:]))
    if not request.continuation:
        raise DataError(f"{continuation[:40]!r} after {context[-40:]!r} has no token of its own to score")
    return request


def rolling(tokens: Sequence[int], first: int, context: int, stride: int = 0) -> list[Request]:
    """Windows of at most `context` tokens that score each of `tokens` [n] once; `first` stands before them.

    The first window scores all it holds, later ones `stride` tokens each (0: `context` of them), with as many before them as fit. Those
    are the windows of the harness's loglikelihood_rolling, whose context_len is context - stride + 1.
    """
    stride = stride or context
    if not 1 <= stride <= context:
        raise ConfigError(f"stride={stride} is not allowed: it must be from 1 to the model's context of {context}")
    tokens = [first, *map(int, tokens)]
    windows, done = [], 0
    while done < len(tokens) - 1:
        stop = min(len(tokens) - 1, done + (stride if done else context))
        start = max(0, stop - context)
        windows.append(Request(tuple(tokens[start : done + 1]), tuple(tokens[done + 1 : stop + 1])))
        done = stop
    return windows


def overlap(windows: Sequence[Request]) -> int:
    """How many tokens of windows are read for a second time: all contexts but the one token that has to stand before a target."""
    return sum(len(window.context) - 1 for window in windows)


class Scorer:
    """Scores requests with a model that gives text a likelihood; compiled once for each of few shapes.

    Rows are as wide as a power of two from 16 to `context`, and a batch holds about `batch` rows of `context` tokens, or as many
    more of shorter ones.
    """

    def __init__(self, model: LanguageModel, params, mesh, context: int, batch: int = 0, shardings=None):
        """`context` is the most tokens that the model reads; `batch` 0: about 8,192 tokens for each device."""
        self.model, self.params, self.mesh, self.context = model, params, mesh, context
        self._devices = row_multiple(dict(mesh.shape), Layout())
        self._tokens = -(-batch // self._devices) * context if batch else TOKENS
        self._sharding = batch_sharding(mesh)
        self._score = jax.jit(self._scores, in_shardings=(shardings, self._sharding), out_shardings=replicated(mesh))

    def __call__(self, requests: Sequence[Request], beat: Callable[[], None] = lambda: None) -> Scores:
        """The scores of requests, in their order. `beat` is called after each batch."""
        distinct: dict[Request, int] = {}
        places = [distinct.setdefault(Request(*request), len(distinct)) for request in requests]
        for request in distinct:
            if not request.context or not request.continuation:
                raise DataError("a request needs a token of context and one to score: give text before and after")
        rows = [row for i, request in enumerate(distinct) for row in self._windows(i, request)]
        logprobs, last, greedy = np.zeros(len(distinct)), np.zeros(len(distinct)), np.ones(len(distinct), bool)
        with jax.set_mesh(self.mesh):
            for group, batch in self._batches(rows):
                nats, best = (value[: len(group)] for value in self._measured(batch))
                owners, scored = [row.request for row in group], batch["scored"][: len(group)]
                np.subtract.at(logprobs, owners, np.where(scored, nats, 0).sum(axis=1, dtype=np.float64))
                final = [row.final for row in group]
                last[np.array(owners)[final]] = -nats[final, -1]
                np.logical_and.at(greedy, owners, np.all(best | ~scored, axis=1))
                beat()
        cut = [self._cut(request) for request in requests]
        counts = {"requests": len(requests), "distinct_requests": len(distinct),
                  "tokens_scored": sum(len(request.continuation) for request in requests),
                  "cut_requests": sum(left > 0 for left in cut), "cut_tokens": sum(cut), "context": self.context}
        return Scores(logprobs[places], last[places], greedy[places], counts)

    def _cut(self, request: Request) -> int:
        """Tokens on the left that no window reads."""
        later_windows = (len(request.continuation) - 1) // self.context * self.context
        return max(0, len(request.context) + len(request.continuation) - later_windows - self.context - 1)

    def _windows(self, number: int, request: Request) -> Iterator[_Row]:
        tokens, left = request.context + request.continuation, len(request.continuation)
        while left:
            scored = min(left, self.context)
            yield _Row(tokens[-self.context - 1 : -1], tokens[-scored:], number, left == len(request.continuation))
            tokens, left = tokens[:-scored], left - scored

    def _batches(self, rows: list[_Row]) -> Iterator[tuple[list[_Row], dict[str, np.ndarray]]]:
        """Groups of rows of one shape with their batches, the longest first, so that memory runs out at once or never."""
        groups: dict[tuple[int, int], list[_Row]] = {}
        for row in rows:
            width = _power(len(row.tokens), 2)
            shape = min(self.context, width), min(width, _power(len(row.targets), 4))
            groups.setdefault(shape, []).append(row)
        for (width, scored), group in sorted(groups.items(), reverse=True):
            most = self._devices * _floor(max(1, self._tokens // width))
            for first in range(0, len(group), most):
                part = group[first : first + most]
                count = min(most, self._devices * _power(-(-len(part) // self._devices), 2, 1))
                yield part, _batch(part, count, width, scored)

    def _measured(self, batch) -> tuple[np.ndarray, np.ndarray]:
        """(nats, token is the likeliest), each [B, scored], of a batch of NumPy arrays; what was counted gives its nats on the host."""
        nats, best = (np.asarray(value) for value in self._score(self.params, on_devices(batch, self._sharding)))
        if isinstance(self.model, CountedModel):
            nats = np.take_along_axis(self.model.token_nats(self.params, _with_targets(batch)), batch["places"], axis=1)
        return nats, best

    def _scores(self, params, batch):
        """`_measured` inside a compiled program: the logits of the scored places are made a few places at a time."""
        model, places, wanted = self.model, batch["places"], batch["wanted"]
        if isinstance(model, CountedModel):
            rows, width = batch["tokens"].shape
            states = model.decode(params, model.init_decode(rows, width), batch["tokens"], batch["segments"] > 0)[0]
        else:
            states = model.apply(params, {name: batch[name] for name in INPUTS})
        states = jnp.take_along_axis(states, places[..., None], axis=1)
        chunk = min(places.shape[1], _floor(max(1, POSITIONS * self._devices // len(places))))

        def part(values):
            states, wanted = values
            logits = model.logits(params, states)
            at_target = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
            return jax.nn.logsumexp(logits, axis=-1) - at_target, jnp.argmax(logits, axis=-1) == wanted

        cut = [jnp.moveaxis(x.reshape(len(x), -1, chunk, *x.shape[2:]), 1, 0) for x in (states, wanted)]
        nats, best = (jnp.moveaxis(x, 0, 1).reshape(places.shape) for x in jax.lax.map(part, cut))
        if isinstance(model, ProbabilityModel) and not isinstance(model, CountedModel):  # which knows one token's chance more exactly
            nats = jnp.take_along_axis(model.token_nats(params, _with_targets(batch)), places, axis=1)
        return nats, best


def _with_targets(batch) -> dict:
    """The model's inputs of a batch with `targets` [B, T] as in training: the token that is read next, at the end the last one wanted."""
    columns = np.arange(batch["tokens"].shape[1])
    following = batch["tokens"][:, np.minimum(columns + 1, columns[-1])]
    # `where` of what the batch is made of: NumPy on the host, JAX inside a program.
    where = np.where if isinstance(batch["tokens"], np.ndarray) else jnp.where
    targets = where(columns == batch["places"][:, -1:], batch["wanted"][:, -1:], following)
    return {name: batch[name] for name in INPUTS} | {"targets": targets}


def _batch(rows: list[_Row], count: int, width: int, scored: int) -> dict[str, np.ndarray]:
    """tokens, segments, positions [count, width] and, right-aligned, places, wanted (both int32) and scored (bool) [count, scored]."""
    tokens, segments = np.zeros((2, count, width), np.int32)
    places, wanted = np.zeros((2, count, scored), np.int32)
    real = np.zeros((count, scored), bool)
    for i, row in enumerate(rows):
        length, n = len(row.tokens), len(row.targets)
        tokens[i, :length], segments[i, :length] = row.tokens, 1
        places[i, scored - n :], wanted[i, scored - n :] = range(length - n, length), row.targets
        real[i, scored - n :] = True
    positions = np.where(segments > 0, np.arange(width, dtype=np.int32), 0)
    return {"tokens": tokens, "segments": segments, "positions": positions, "places": places, "wanted": wanted, "scored": real}


def _power(length: int, base: int, smallest: int = SMALLEST) -> int:
    """The least of smallest * base^k that is at least `length`."""
    size = smallest
    while size < length:
        size *= base
    return size


def _floor(value: int) -> int:
    """The largest power of two up to `value`, which is at least 1."""
    return 1 << (value.bit_length() - 1)
