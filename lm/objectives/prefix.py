"""Prefix language models (Raffel et al. 2020): the first part of a document is read in both directions, the rest is predicted.

A batch of the causal objective with `prefix` [B, T], 1 at the tokens that all tokens of their segment see. Each segment (the part of a
document in the row) is split for itself.
"""

import numpy as np

from lm.data.noise import uniforms
from lm.data.packing import Rows
from lm.objectives.causal import Causal, batch_of
from lm.objectives.corrupting import integers

_SPLIT = 240


class Prefix(Causal):
    """The likelihood of each document's second part, given its first.

    Of a segment's n tokens the first k are the prefix, k uniform from 1 to n. A target has weight 1 where no token of the prefix shows
    it: from the k-th of the segment on. With k = 1 that is the causal objective.
    """

    bidirectional_prompts = True

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """The causal batch with int32 `prefix` [B, T], and weight 0 inside the prefix."""
        batch = batch_of(rows, self.tokenizer.bos_id)
        prefix = self.prefixes(rows.segments, rows.positions, examples)
        shown = np.zeros_like(prefix)
        # A target is shown where it is the next token of its segment and that is in the prefix.
        shown[:, :-1] = prefix[:, 1:] & (rows.segments[:, 1:] == rows.segments[:, :-1])
        return batch | {"prefix": prefix.astype(np.int32), "weights": np.where(shown, 0, batch["weights"]).astype(np.float32)}

    def prefixes(self, segments: np.ndarray, positions: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """bool [B, T] of segments and positions [B, T]: the token is in its segment's prefix."""
        count, most = len(segments), max(1, int(segments.max(initial=0)))
        flat = np.arange(count)[:, None] * (most + 1) + segments
        sizes = np.bincount(flat.reshape(-1), minlength=count * (most + 1)).reshape(count, most + 1)[:, 1:]
        split = 1 + integers(uniforms(self.seed, _SPLIT, examples, most), np.maximum(sizes, 1))  # [B, segments]
        return (segments > 0) & (positions < np.take_along_axis(split, np.maximum(segments - 1, 0), axis=1))
