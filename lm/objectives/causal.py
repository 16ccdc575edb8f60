"""Next-token prediction within a document: every token of the store is a target once, its document's first one after `bos`."""

import jax.numpy as jnp
import numpy as np

from lm import losses
from lm.data.packing import Rows
from lm.models.base import ProbabilityModel
from lm.objectives.base import Objective


def batch_of(rows: Rows, bos_id: int) -> dict[str, np.ndarray]:
    """int32 tokens, targets, segments, positions and float32 weights, each [B, T]."""
    return {
        "tokens": np.where(rows.starts, bos_id, rows.tokens[:, :-1]).astype(np.int32),
        "targets": rows.tokens[:, 1:].astype(np.int32),
        "weights": rows.scored.astype(np.float32),
        "segments": rows.segments,
        "positions": rows.positions,
    }


class Causal(Objective):
    """The likelihood of text, token by token."""

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """See `batch_of`; nothing is random."""
        return batch_of(rows, self.tokenizer.bos_id)

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """Sums of weighted cross-entropies in nats, the first with z-loss."""
        if isinstance(model, ProbabilityModel):
            nats = jnp.sum(batch["weights"] * model.token_nats(params, batch))
            return nats, nats
        hidden = model.apply(params, batch, noise)
        return losses.loss(hidden, model.unembedding(params), batch["targets"], batch["weights"], z_loss, chunk)


def token_nats(model, params, batch, chunk: int = 0):
    """-log p of each target, [B, T] in float32 nats, without dropout."""
    if isinstance(model, ProbabilityModel):
        return model.token_nats(params, batch)
    hidden = model.apply(params, batch)
    return losses.chunked_token_nats(hidden, model.unembedding(params), batch["targets"], chunk)
