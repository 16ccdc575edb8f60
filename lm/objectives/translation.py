"""A target from its source, token by token (Sutskever et al. 2014; Bahdanau et al. 2015), with label smoothing (Szegedy et al. 2016)."""

import math

import numpy as np

from lm import losses
from lm.data.buckets import bucket_lengths
from lm.data.pairs import PairData, PairRows, PairStore
from lm.errors import ConfigError
from lm.objectives.base import Objective


class Translation(Objective):
    """The likelihood of targets given their sources; each row is one pair."""

    measure = "translation"
    paired = True

    def stores(self, prepared, split: str) -> list[PairStore]:
        """The stores of a split. Raises ConfigError where the sources hold texts."""
        return prepared.pair_stores(split)

    def tokens_per_step(self, data: PairData) -> float:
        """Targets of a step, on average."""
        return data.tokens_per_step

    def data(self, prepared, config) -> PairData:
        """The training pairs by buckets of length. Raises ConfigError where the sources hold texts, and for data.weights."""
        if len(config.data.weights):
            raise ConfigError("data.weights is for rows of text: pairs are taken together, each once an epoch; leave it empty")
        lengths = bucket_lengths(tuple(config.data.buckets), self.context)
        return PairData(self.stores(prepared, "train"), lengths, config.data.global_batch, config.seed)

    def build(self, rows: PairRows, examples: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """int32 tokens, targets, segments, positions and float32 weights [B, T]; int32 source_tokens, _segments, _positions [B, S].

        Both sides end with eos, which is scored; targets are read from `bos` on. Segments are 1, and 0 at the padding. Nothing is random.
        """
        target, source = (np.arange(side.shape[1]) < lengths[:, None]
                          for side, lengths in ((rows.target, rows.target_lengths), (rows.source, rows.source_lengths)))
        before = np.concatenate([np.full((len(rows.pairs), 1), self.tokenizer.bos_id), rows.target[:, :-1]], axis=1)
        return {
            "tokens": np.where(target, before, 0).astype(np.int32),
            "targets": rows.target,
            "weights": target.astype(np.float32),
            "segments": target.astype(np.int32),
            "positions": _positions(target),
            "source_tokens": rows.source,
            "source_segments": source.astype(np.int32),
            "source_positions": _positions(source),
        }

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """(sum of smoothed losses with z-loss, sum of plain cross-entropies), in nats."""
        hidden = model.apply(params, batch, noise)
        # A chunk divides data.context, but perhaps not the length of a shorter bucket; 0 leaves it to the losses.
        chunk = math.gcd(chunk, batch["targets"].shape[1]) if chunk else 0
        return losses.loss(hidden, model.unembedding(params), batch["targets"], batch["weights"], z_loss, chunk,
                           self.options.label_smoothing)


def _positions(real: np.ndarray) -> np.ndarray:
    return np.where(real, np.arange(real.shape[1]), 0).astype(np.int32)
