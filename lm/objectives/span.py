"""Span corruption (T5, Raffel et al. 2020): spans of a row are cut out of the inputs and predicted, one after the other.

A row is one segment and may hold several documents with their eos between them, as in T5. See lm/objectives/spans.py.
"""

from typing import NamedTuple

import numpy as np

from lm.data.noise import uniforms
from lm.data.packing import Rows
from lm.errors import ConfigError
from lm.objectives import spans
from lm.objectives.corrupting import MULTIPLE, Corruption

_KEPT, _NOISE, _SUFFIX, _WHICH = range(230, 234)


class Denoiser(NamedTuple):
    """A way to corrupt: spans of `mean` tokens on average that make up `density` of a row; with mean 0 one suffix of that share on average.

    `rate` is its share of the examples (relative to the others), `mode` the number of the token before its inputs, -1 for none.
    """

    density: float
    mean: float
    rate: float = 1.0
    mode: int = -1

    def counts(self, length: int, most: bool) -> tuple[int, int]:
        """(tokens of noise, spans) of a row of `length`, for the most noise that it may get or for the least."""
        if self.mean:
            noise, count = spans.counts(length, self.density, self.mean)
            return int(noise), int(count)
        uniform = np.float64(1 - 2**-53 if most else 0)
        return int(spans.suffixes(np.int64(length), self.density, uniform)), 1

    def inputs(self, length: int) -> int:
        """The most tokens that the inputs of a row of `length` can have, with eos and mode token."""
        noise, count = self.counts(length, most=False)
        return length - noise + count + 1 + (self.mode >= 0)

    def targets(self, length: int) -> int:
        """The most tokens that its targets can have, with eos."""
        noise, count = self.counts(length, most=True)
        return noise + count + 1

    def both(self, length: int) -> int:
        """Tokens of inputs and targets together."""
        _, count = self.counts(length, most=True)
        return length + 2 * count + 2 + (self.mode >= 0)


class Span(Corruption):
    """T5's objective. The ids of its own are the sentinels.

    objective.form=encoder_decoder: source_tokens, source_segments, source_positions [B, S] are the inputs, S = data.context, and tokens,
    targets, weights, segments, positions [B, T'] the targets, read from bos on; T' is what the longest targets need, filled up to a
    multiple of 8. decoder: both follow each other in one row of T = data.context after bos, `prefix` [B, T] is 1 at bos and the inputs,
    and weights are 1 at the targets. The raw row is as long as fits.
    """

    measure = "loss"
    modes = 0

    def __init__(self, options, tokenizer, context: int, seed: int):
        super().__init__(options, tokenizer, context, seed)
        self.denoisers = self._denoisers()
        self.extra_tokens = options.sentinels + self.modes
        self.bidirectional_prompts = options.form == "decoder"
        self.sentinel, self.mode = tokenizer.vocab_size, tokenizer.vocab_size + options.sentinels
        self.decoder = options.form == "decoder"
        size = (lambda n: max(d.both(n) for d in self.denoisers)) if self.decoder else (lambda n: max(d.inputs(n) for d in self.denoisers))
        try:
            self.raw = spans.longest(size, context)
        except ValueError as error:
            raise ConfigError(f"data.context={context} is too small for objective.name={options.name}: raise it") from error
        self.width = context if self.decoder else -(-max(d.targets(self.raw) for d in self.denoisers) // MULTIPLE) * MULTIPLE
        shares = np.array([d.rate for d in self.denoisers]) / sum(d.rate for d in self.denoisers)
        self.inputs, self.outputs = (float(shares @ [side(d) for d in self.denoisers])
                                     for side in (lambda d: d.inputs(self.raw), lambda d: d.targets(self.raw)))
        self.row_tokens = self.inputs + self.outputs if self.decoder else self.outputs
        most = max(d.counts(self.raw, most=True)[1] for d in self.denoisers)
        if most > options.sentinels:
            raise ConfigError(f"rows of data.context={context} have up to {most} spans, more than objective.sentinels={options.sentinels}: "
                              f"raise it to {most}")

    def flops_by_component(self, model) -> dict[str, float]:
        """FLOPs of a forward pass for each token of a decoder's row, or each target of an encoder-decoder."""
        return super().flops_by_component(model) if self.decoder else model.pair_flops(self.inputs, self.outputs)

    def _denoisers(self) -> list[Denoiser]:
        return [Denoiser(self.options.noise_density, self.options.mean_span)]

    def with_gaps(self, pieces: list[np.ndarray]) -> np.ndarray:
        """Inputs [n] as `build` makes them, but for the mode token: pieces of text with a sentinel between each two, and eos."""
        parts = [np.append(piece, self.sentinel + i) for i, piece in enumerate(pieces[:-1])]
        return np.concatenate([*parts, pieces[-1], [self.tokenizer.eos_id]]).astype(np.int32)

    def batch_of(self, inputs: np.ndarray, targets: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The batch in the form of `build` of some targets, each with its eos, of the same `inputs` [n]; no wider than it must be."""
        most = max(map(len, targets))
        both = [np.tile(inputs, (len(targets), 1)), np.stack([np.pad(target, (0, most - len(target))) for target in targets])]
        lengths = [np.full(len(targets), len(inputs)), np.array([len(target) for target in targets])]
        width = lambda n: min(self.context, -(-n // MULTIPLE) * MULTIPLE)  # noqa: E731
        sizes = (0, width(len(inputs) + most)) if self.decoder else (width(len(inputs)), width(most))
        return (one_row if self.decoder else two_rows)(both[0], lengths[0], both[1], lengths[1], *sizes, self.tokenizer.bos_id)

    def which(self, examples: np.ndarray) -> np.ndarray:
        """int64 [B]: the denoiser of each of the `examples` [B]."""
        shares = np.cumsum([d.rate for d in self.denoisers])
        uniform = uniforms(self.seed, _WHICH, examples, 1)[:, 0]
        return np.minimum(np.searchsorted(shares / shares[-1], uniform, side="right"), len(shares) - 1)

    def noise(self, length: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """bool [B, R]: the tokens that are cut out of rows with `length` [B] tokens."""
        density, mean = np.array([(d.density, d.mean) for d in self.denoisers])[self.which(examples)].T
        kept, noise = (uniforms(self.seed, stream, examples, self.raw) for stream in (_KEPT, _NOISE))
        mask = spans.noise_mask(length, *spans.counts(length, density, np.where(mean > 0, mean, 1)), kept, noise)
        suffix = spans.suffixes(length, density, uniforms(self.seed, _SUFFIX, examples, 1)[:, 0])
        place = np.arange(self.raw)
        at_end = (place >= (length - suffix)[:, None]) & (place < length[:, None])
        return np.where((mean > 0)[:, None], mask, at_end)

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of B rows of R tokens, in the form that the class describes; int32, but float32 weights."""
        length = (rows.segments > 0).sum(axis=1)
        noise = self.noise(length, examples)
        first = self.mode + np.array([d.mode for d in self.denoisers])[self.which(examples)] if self.modes else None
        parts = spans.split(rows.tokens[:, 1:], length, noise, self.sentinel, self.tokenizer.eos_id, first)
        return (one_row if self.decoder else two_rows)(*parts, self.context, self.width, self.tokenizer.bos_id)


def two_rows(inputs, input_length, targets, target_length, source_width: int, width: int, bos_id: int) -> dict[str, np.ndarray]:
    """The batch for an encoder of inputs [B, at least S] and a decoder of targets [B, at least T']."""
    source, source_keys = _keys(_fit(inputs, source_width), input_length)
    tokens, keys = _keys(_fit(np.concatenate([np.full_like(targets[:, :1], bos_id), targets[:, :-1]], axis=1), width), target_length)
    return {
        "source_tokens": source, **{f"source_{name}": value for name, value in source_keys.items()},
        "tokens": tokens, "targets": _keys(_fit(targets, width), target_length)[0],
        "weights": (keys["segments"] > 0).astype(np.float32), **keys,
    }


def one_row(inputs, input_length, targets, target_length, context: int, width: int, bos_id: int) -> dict[str, np.ndarray]:
    """The batch for a decoder that reads bos, inputs and targets in one row of `width`."""
    place = np.broadcast_to(np.arange(width), (len(inputs), width))
    end = input_length[:, None]
    both = np.where(place < end, np.take_along_axis(inputs, np.minimum(place, inputs.shape[1] - 1), axis=1),
                    np.take_along_axis(targets, np.clip(place - end, 0, targets.shape[1] - 1), axis=1))
    before = np.concatenate([np.full_like(both[:, :1], bos_id), both[:, :-1]], axis=1)
    tokens, keys = _keys(before, input_length + target_length)
    real = keys["segments"] > 0
    return {
        "tokens": tokens, "targets": np.where(real, both, 0).astype(np.int32),
        "weights": (real & (place >= end)).astype(np.float32), **keys, "prefix": (real & (place <= end)).astype(np.int32),
    }


def _fit(array: np.ndarray, width: int) -> np.ndarray:
    """array [B, n] with `width` columns; what is cut off is padding."""
    return np.pad(array[:, :width], ((0, 0), (0, max(0, width - array.shape[1]))))


def _keys(tokens: np.ndarray, length: np.ndarray):
    """(tokens [B, T] with 0 from `length` [B] on, {segments, positions} of rows that are one segment)."""
    place = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    real = place < length[:, None]
    keys = {"segments": real.astype(np.int32), "positions": np.where(real, place, 0).astype(np.int32)}
    return np.where(real, tokens, 0).astype(np.int32), keys
