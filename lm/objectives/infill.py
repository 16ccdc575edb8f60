"""Fill-in-the-middle (Bavarian et al. 2022): a causal model learns to write a middle after it has read what stands before and behind it.

With probability objective.infill_rate a document's part in a row (a segment) is cut at two places, which are uniform among those between
its tokens (not its characters, as in one variant of the paper), and put into another order:

    PSM  <pre> prefix <suf> suffix <mid> middle eos
    SPM  <pre> <suf> suffix <mid> prefix middle eos      (a share objective.spm_rate of them)

The eos ends the middle, also where the row's border cuts the document off. All tokens are targets, the three of its own too. What then no
longer fits into a row is left out beforehand, at the end of the text: three or four tokens for each part that is changed.
"""

import numpy as np

from lm.data.noise import uniforms
from lm.data.packing import Rows
from lm.objectives.causal import Causal, batch_of
from lm.objectives.corrupting import integers

_WHETHER, _FORM, _FIRST, _SECOND = range(250, 254)
# Places of the parts of a changed segment: <pre>, <suf> and <mid> stand before what has the next number.
_PRE, _SUF, _MID, _EOS = 0, 2, 4, 7
_STEP = 8


class Infill(Causal):
    """The likelihood of documents, some of them with their middle behind their end. The ids of its own are <pre>, <suf> and <mid>."""

    extra_tokens = 3

    def __init__(self, options, tokenizer, context: int, seed: int):
        super().__init__(options, tokenizer, context, seed)
        self.pre, self.suf, self.mid = (tokenizer.vocab_size + i for i in range(3))

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """The causal batch of the rearranged rows: int32 tokens, targets, segments, positions and float32 weights, each [B, T]."""
        length = rows.segments.shape[1]
        most = int(rows.segments.max(initial=0))
        draws = [uniforms(self.seed, stream, examples, most) for stream in (_WHETHER, _FORM, _FIRST, _SECOND)]
        targets, segments = self.rearrange(rows.tokens[:, 1:], rows.segments, draws)
        new = np.concatenate([np.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
        place = np.arange(length)
        positions = place - np.maximum.accumulate(np.where(new, place, 0), axis=1)
        real = segments > 0
        # Only a row's first segment may go on with a document; all others begin one.
        starts = new & real
        starts[:, 0] = rows.starts[:, 0]
        rows = Rows(np.concatenate([rows.tokens[:, :1], targets], axis=1), starts, segments,
                    np.where(real, positions, 0).astype(np.int32), real, rows.documents)
        return batch_of(rows, self.tokenizer.bos_id)

    def rearrange(self, tokens: np.ndarray, segments: np.ndarray, draws: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(targets, their segments), int32 [B, T], of tokens and segments [B, T].

        `draws` are four arrays [B, segments] of uniform numbers, whose column j belongs to segment j + 1: whether it is changed, its
        form, and two cuts.
        """
        whether, form, first, second = draws
        (count, width), most = tokens.shape, whether.shape[1]
        sizes, ends = _sizes(segments, tokens == self.tokenizer.eos_id, most)
        changed = (whether < self.options.infill_rate) & (sizes - ends > 0)
        kept = _fitting(segments, sizes, ends, changed, width)
        sizes, ends = _sizes(kept, tokens == self.tokenizer.eos_id, most)
        changed &= sizes - ends > 0
        text = sizes - ends
        cuts = np.sort([integers(first, text + 1), integers(second, text + 1)], axis=0)
        spm = form < self.options.spm_rate
        keys = _token_keys(kept, tokens == self.tokenizer.eos_id, changed, spm, cuts)
        # An eos that a changed part lacks, and the three tokens of its own.
        number = np.arange(most) * _STEP
        none = np.iinfo(np.int64).max
        new = [(self.pre, _PRE, changed), (self.suf, np.where(spm, 1, _SUF), changed), (self.mid, _MID, changed),
               (self.tokenizer.eos_id, _EOS, changed & (ends == 0))]
        keys = np.concatenate([keys, *(np.where(there, number + at, none) for _, at, there in new)], axis=1)
        values = np.concatenate([tokens, *(np.full((count, most), value) for value, _, _ in new)], axis=1)
        order = np.argsort(keys, axis=1, kind="stable")[:, :width]
        keys = np.take_along_axis(keys, order, axis=1)
        real = keys < none
        targets = np.where(real, np.take_along_axis(values, order, axis=1), 0)
        return targets.astype(np.int32), np.where(real, keys // _STEP + 1, 0).astype(np.int32)

    def prompt(self, prefix: np.ndarray, suffix: np.ndarray, form: str = "psm") -> np.ndarray:
        """The tokens after which the model writes the middle between `prefix` [n] and `suffix` [m], and then eos; form "psm" or "spm"."""
        parts = {"psm": ([self.pre], prefix, [self.suf], suffix, [self.mid]), "spm": ([self.pre, self.suf], suffix, [self.mid], prefix)}
        return np.concatenate(parts[form]).astype(np.int32)

    def uninfill(self, tokens: np.ndarray) -> np.ndarray:
        """The text of one segment's targets [n] in its own order, without eos; `tokens` that were not changed lose their eos alone."""
        tokens = tokens[:-1] if len(tokens) and tokens[-1] == self.tokenizer.eos_id else tokens
        if not len(tokens) or tokens[0] != self.pre:
            return tokens
        suf, mid = (int(np.flatnonzero(tokens == token)[0]) for token in (self.suf, self.mid))
        return np.concatenate([tokens[1:suf], tokens[mid + 1 :], tokens[suf + 1 : mid]])


def _sizes(segments: np.ndarray, is_eos: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 ([B, most], [B, most]): tokens of each segment, and whether it ends with eos."""
    flat = np.arange(len(segments))[:, None] * (most + 1) + segments
    count = lambda chosen: np.bincount(flat[chosen], minlength=len(segments) * (most + 1)).reshape(-1, most + 1)[:, 1:]  # noqa: E731
    return count(np.ones_like(is_eos)), count(is_eos)


def _fitting(segments: np.ndarray, sizes: np.ndarray, ends: np.ndarray, changed: np.ndarray, width: int) -> np.ndarray:
    """The segments [B, T] with 0 for the tokens at the end that have no room when the `changed` segments have grown.

    A changed segment of which not even one token of text has room is left out; of others at least that one stays.
    """
    # Places that a prefix of the row takes when it ends in segment j: all segments before grow as they are, and j as if it lacked eos.
    growth = np.where(changed, 4 - ends, 0)
    before = np.cumsum(growth, axis=1) - growth
    index = np.maximum(segments - 1, 0)
    take = lambda array: np.take_along_axis(array, index, axis=1)  # noqa: E731
    last = np.cumsum(sizes, axis=1)
    place = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    # A changed segment that is cut before its own eos needs one more.
    own = np.where(take(changed), np.where(place + 1 == take(last), take(growth), 4), 0)
    return np.where((segments > 0) & (place + 1 + take(before) + own <= width), segments, 0)


def _token_keys(segments: np.ndarray, is_eos: np.ndarray, changed: np.ndarray, spm: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """int64 [B, T]: what to sort the tokens by; padding comes last."""
    index = np.maximum(segments - 1, 0)
    take = lambda array: np.take_along_axis(array, index, axis=1)  # noqa: E731
    place = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    new = np.concatenate([np.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    within = place - np.maximum.accumulate(np.where(new, place, 0), axis=1)
    part = (within >= take(cuts[0])).astype(np.int64) + (within >= take(cuts[1]))  # 0 prefix, 1 middle, 2 suffix
    at = np.where(take(spm), np.array([5, 6, 3])[part], np.array([1, 5, 3])[part])
    at = np.where(take(changed), np.where(is_eos, _EOS, at), 0)
    return np.where(segments > 0, index * _STEP + at, np.iinfo(np.int64).max)
