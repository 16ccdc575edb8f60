"""Next-token prediction within a document: every token of the store is a target once, its document's first one after `bos`."""

import numpy as np

from lm import losses
from lm.data.packing import Rows


def build(rows: Rows, bos_id: int) -> dict[str, np.ndarray]:
    """The batch of some rows: int32 tokens, targets, segments, positions and float32 weights, each [B, T]."""
    return {
        "tokens": np.where(rows.starts, bos_id, rows.tokens[:, :-1]).astype(np.int32),
        "targets": rows.tokens[:, 1:].astype(np.int32),
        "weights": rows.scored.astype(np.float32),
        "segments": rows.segments,
        "positions": rows.positions,
    }


def loss(model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
    """(sum of losses to minimise, sum of weighted cross-entropies in nats); divide by the sum of the batch's weights.

    With `noise`, a random key per row, the model drops units.
    """
    hidden = model.apply(params, batch, noise)
    matrix = model.unembedding(params)
    return losses.loss(hidden, matrix, batch["targets"], batch["weights"], z_loss, chunk)


def token_nats(model, params, batch, chunk: int = 0):
    """Cross-entropy of each target, [B, T] in float32 nats, without dropout."""
    hidden = model.apply(params, batch)
    return losses.chunked_token_nats(hidden, model.unembedding(params), batch["targets"], chunk)
