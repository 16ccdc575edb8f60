"""What a sentence VAE can say of a split: bounds on the likelihood of each sentence that fits a row, and what its code carries."""

import math
from collections.abc import Callable

import jax
import numpy as np

from lm.data.sentences import evaluation_rows, fitting
from lm.data.store import TokenStore
from lm.errors import DataError
from lm.evaluate.likelihood import on_devices, whole_documents
from lm.objectives.vae import elbo, importance_bound
from lm.parallel import Layout, batch_sharding, replicated
from lm.parallel.layout import rows_of

SAMPLES = 16  # codes of a sentence for the tighter bound


class Evaluator:
    """`bits_per_byte_bound` is what the ELBO allows at most, `bits_per_byte_sampled` the same from SAMPLES codes of each sentence, which is
    nearer to the likelihood and in expectation above it too. `kl` and `reconstruction` are nats of a sentence; `left_out` sentences are
    longer than a row, and no number is about them. Codes are drawn by the sentence's number: every evaluation draws the same.
    """

    def __init__(self, objective, model, mesh, batch: int, shardings=None, layout: Layout = Layout(), chunk: int = 0):  # noqa: B008
        """`batch` is rounded up to what the mesh and the layout can cut."""
        self.batch = rows_of(batch, mesh, layout)
        self.objective = objective
        self._sharding = batch_sharding(mesh)

        def score(params, batch, sentences):
            noise = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(objective.seed), sentences)
            found = elbo(model, params, batch, noise, chunk)
            return found | {"sampled": importance_bound(model, params, batch, noise, SAMPLES, chunk)}

        self._score = jax.jit(score, in_shardings=(shardings, self._sharding, replicated(mesh)), out_shardings=replicated(mesh))

    def __call__(self, params, stores: list[TokenStore], max_tokens: int = 0, beat: Callable[[], None] = lambda: None) -> dict:
        """The evaluation of some stores together; see the class. `beat` is called after each batch."""
        sums = dict.fromkeys(("elbo", "reconstruction", "kl", "sampled"), 0.0)
        sentences = left_out = tokens = size = 0
        for store in stores:
            stop = whole_documents(store, max_tokens)
            documents = fitting(store, self.objective.context, stop)
            left_out, sentences = left_out + stop - len(documents), sentences + len(documents)
            tokens += int(np.diff(store.offsets)[documents].sum())
            size += int(store.byte_counts[documents].sum())
            for rows in evaluation_rows(store, documents, self.batch, self.objective.context):
                numbers = rows.documents[:, 0]
                batch = on_devices(self.objective.build(rows, np.zeros(len(numbers), np.int64)), self._sharding)
                for name, values in self._score(params, batch, numbers.astype(np.int32)).items():
                    sums[name] += float(np.asarray(values, np.float64)[numbers >= 0].sum())
                beat()
        if not sentences:
            raise DataError(f"no document fits into a row of {self.objective.context} tokens: cut them finer with data.documents=line or "
                            "paragraph, or raise data.context")
        bits = math.log(2) * size
        return {"bits_per_byte_bound": -sums["elbo"] / bits, "bits_per_byte_sampled": -sums["sampled"] / bits, "samples": SAMPLES,
                "kl": sums["kl"] / sentences, "reconstruction": sums["reconstruction"] / sentences, "sentences": sentences,
                "left_out": left_out, "tokens": tokens, "bytes": size}


def headline(result: dict) -> str:
    """What a person wants to see first."""
    return (f"at most {result['bits_per_byte_bound']:.4f} bits per byte ({result['bits_per_byte_sampled']:.4f} by {result['samples']} "
            f"samples), KL {result['kl']:.2f} nats a sentence")
