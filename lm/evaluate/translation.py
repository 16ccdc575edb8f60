"""The likelihood of targets given their sources: every pair of a split that fits the context, with the true words before each."""

from collections.abc import Callable

import jax
import numpy as np

from lm.data.pairs import PairStore, evaluation_rows, too_long
from lm.errors import DataError
from lm.evaluate.likelihood import on_devices, summary, whole_documents
from lm.objectives import causal
from lm.parallel import Layout, batch_sharding, replicated
from lm.parallel.layout import rows_of


class Evaluator:
    """A compiled scoring function for one model and mesh, for rows of some `lengths`."""

    def __init__(self, objective, model, mesh, lengths: tuple[int, ...], batch: int, shardings=None,
                 layout: Layout = Layout(), chunk: int = 0):  # noqa: B008 - it is immutable
        """`batch` is rounded up to what the mesh and the layout can cut."""
        self.batch = rows_of(batch, mesh, layout)
        self.objective, self.lengths = objective, lengths
        self._sharding = batch_sharding(mesh)
        self._score = jax.jit(lambda params, batch: causal.token_nats(model, params, batch, chunk),
                              in_shardings=(shardings, self._sharding), out_shardings=replicated(mesh))

    def __call__(self, params, stores: list[PairStore], max_tokens: int = 0, beat: Callable[[], None] = lambda: None) -> dict:
        """`likelihood.summary` of the targets, bytes being theirs, and `left_out`, how many pairs are longer than the context.

        The pairs are the first of each store whose targets hold at least `max_tokens` tokens; 0 is all. `beat` is called after each batch.
        """
        nats, sizes, left_out = [], [], 0
        by_position, count = np.zeros(self.lengths[-1]), np.zeros(self.lengths[-1], np.int64)
        for store in stores:
            stop = whole_documents(store.target, max_tokens)
            left_out += too_long(store, self.lengths, stop)
            for rows in evaluation_rows(store, self.batch, self.lengths, stop):
                batch = self.objective.build(rows, rows.pairs)
                scored = np.asarray(self._score(params, on_devices(batch, self._sharding)), np.float64) * batch["weights"]
                real = rows.pairs >= 0
                nats.append(scored.sum(axis=1)[real])
                sizes.append(store.target.byte_counts[rows.pairs[real]].astype(np.float64))
                by_position[: scored.shape[1]] += scored.sum(axis=0)
                count[: scored.shape[1]] += batch["weights"].sum(axis=0).astype(np.int64)
                beat()
        if not nats:
            raise DataError("no pair fits data.context: there is nothing to evaluate")
        return summary(np.concatenate(nats), np.concatenate(sizes), by_position, count) | {"left_out": left_out}
