"""What objectives that are no likelihood of the text can report: sums of their scores over a split, under names that say what they are.

The rows of a split are corrupted as those of training are, as a function of the seed and their place in the split, so that every evaluation
asks the same. Sums are kept on the host in float64 and divided once.
"""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from lm.data.packing import Rows, count_rows, read_rows
from lm.data.store import TokenStore
from lm.evaluate.likelihood import on_devices, whole_documents
from lm.parallel import Layout, batch_sharding, replicated
from lm.parallel.layout import rows_of


class Corrupted:
    """Scores of a model on the rows of a split as its objective corrupts them; see the subclasses for the keys."""

    def __init__(self, objective, model, mesh, batch: int, shardings=None, layout: Layout = Layout(), chunk: int = 0,  # noqa: B008
                 pseudo_tokens: int = 0):
        """`batch` is rounded up to what the mesh and the layout can cut; `pseudo_tokens`: see MaskedText."""
        self.batch = rows_of(batch, mesh, layout)
        self.objective, self.pseudo_tokens = objective, pseudo_tokens
        self._sharding = batch_sharding(mesh)
        self._score = jax.jit(lambda params, batch: self.sums(model, params, batch, chunk), in_shardings=(shardings, self._sharding),
                              out_shardings=replicated(mesh))

    def sums(self, model, params, batch, chunk: int) -> dict:
        """Sums over a batch, by name: those of the loss that the objective reports."""
        total = self.objective.loss(model, params, batch, chunk=chunk)[1]
        return {"nats": total, "targets": batch["weights"].sum()}

    def rows(self, store: TokenStore, tokens: int) -> Iterator[tuple[Rows, np.ndarray]]:
        """(rows, their places in the split) until `tokens` of a store are covered; the last batch is filled with padding."""
        for first in range(0, count_rows(tokens, self.objective.raw), self.batch):
            places = first + np.arange(self.batch)
            yield self.objective.read(store, places, places), places

    def score(self, params, batch: dict) -> dict[str, float]:
        """`sums` of a batch of NumPy arrays."""
        return {name: float(value) for name, value in self._score(params, on_devices(batch, self._sharding)).items()}

    def __call__(self, params, stores: list[TokenStore], max_tokens: int = 0, beat: Callable[[], None] = lambda: None) -> dict:
        """The evaluation of some stores together. `beat` is called after each batch."""
        sums: dict[str, float] = {}
        tokens = size = 0
        for store in stores:
            documents = whole_documents(store, max_tokens)
            stop = int(store.offsets[documents])
            tokens, size = tokens + stop, size + int(store.byte_counts[:documents].sum())
            for rows, places in self.rows(store, stop):
                for name, value in self.score(params, self.objective.build(rows, places)).items():
                    sums[name] = sums.get(name, 0.0) + value
                beat()
        return self.summary(sums) | {"tokens": tokens, "bytes": size}

    def summary(self, sums: dict[str, float]) -> dict:
        """The keys: `loss` is nats per target of the objective that `objective` names; it is no likelihood of the text."""
        return {"objective": self.objective.options.name, "loss": sums["nats"] / sums["targets"], "targets": round(sums["targets"])}

    @staticmethod
    def headline(result: dict) -> str:
        """What a person wants to see first."""
        return f"{result['loss']:.4f} nats per target of the {result['objective']} objective"


class MaskedText(Corrupted):
    """`masked_nats_per_token` and `masked_accuracy` of the hidden tokens, and the pseudo-log-likelihood of the first rows.

    `pseudo_bits_per_byte` (Salazar et al. 2020) sums -log2 of each token's probability given all others of its row, over the bytes of those
    tokens: it is no bits_per_byte, since these probabilities do not multiply to that of the text. It takes a pass for each token, and so
    covers `pseudo_tokens` tokens alone, none for 0.
    """

    def sums(self, model, params, batch, chunk: int) -> dict:
        """Sums of the objective's scores."""
        scores = self.objective.scores(model, params, batch, chunk)
        sums = {name: value.sum() for name, value in scores.items()} | {"targets": (batch["weights"] > 0).sum()}
        if "next_correct" in sums:
            labelled = batch["next"][:, :1] >= 0
            sums |= {"next_correct": (scores["next_correct"] * labelled).sum(), "pairs": labelled.sum()}
        return sums

    def __call__(self, params, stores, max_tokens=0, beat=lambda: None) -> dict:
        """See the class and `Corrupted`."""
        result = super().__call__(params, stores, max_tokens, beat)
        return result | (self._pseudo(params, stores[0], beat) if self.pseudo_tokens else {})

    def _pseudo(self, params, store, beat) -> dict:
        lengths = np.array([len(piece) for piece in self.objective.tokenizer.pieces()])
        nats = tokens = size = 0
        raw = self.objective.raw
        for first in range(0, count_rows(store.num_tokens, raw), self.batch):
            rows = read_rows(store, (first + np.arange(self.batch)) * raw, raw)  # text as it stands: no second half from elsewhere
            for owners, places, batch in self.objective.pseudo_batches(rows, self.batch):
                kept = min(len(owners), self.pseudo_tokens - tokens)
                batch = batch | {"weights": batch["weights"] * (np.arange(self.batch) < kept)[:, None]}
                nats += self.score(params, batch)["nats"]
                tokens, size = tokens + kept, size + int(lengths[rows.tokens[:, 1:][owners[:kept], places[:kept]]].sum())
                beat()
                if tokens == self.pseudo_tokens:
                    break
            if tokens == self.pseudo_tokens:
                break
        return {"pseudo_bits_per_byte": nats / math.log(2) / size, "pseudo_tokens": tokens}

    def summary(self, sums: dict[str, float]) -> dict:
        """The keys but for the pseudo-log-likelihood."""
        count = sums["targets"]
        result = {"masked_nats_per_token": sums["nats"] / count, "masked_accuracy": sums["correct"] / count, "masked_tokens": int(count)}
        return result | ({"next_sentence_accuracy": sums["next_correct"] / sums["pairs"]} if sums.get("pairs") else {})

    @staticmethod
    def headline(result: dict) -> str:
        """What a person wants to see first."""
        told = f"{result['masked_accuracy']:.2%} of the hidden tokens right, {result['masked_nats_per_token']:.4f} nats for each"
        told += f", {result['pseudo_bits_per_byte']:.4f} pseudo-bits per byte" if "pseudo_bits_per_byte" in result else ""
        return told + (f", {result['next_sentence_accuracy']:.2%} of next sentences right" if "next_sentence_accuracy" in result else "")


class ReplacedTokens(MaskedText):
    """What ELECTRA's discriminator tells apart, and its generator's masked nats."""

    def sums(self, model, params, batch, chunk: int) -> dict:
        """Sums of the objective's scores; `hits` are replaced tokens that were detected. `logits` and `replaced_at` [B, T] stay whole."""
        scores = self.objective.scores(model, params, batch, chunk)
        logits = scores.pop("logits")
        sums = {name: value.sum() for name, value in scores.items()}
        return sums | {"hits": (scores["replaced"] * scores["detected"]).sum(), "targets": batch["weights"].sum(),
                       "masked": batch["masked"].sum(), "logits": logits, "replaced_at": scores["replaced"]}

    def score(self, params, batch: dict) -> dict[str, float]:
        """`sums` of a batch; the logits of its tokens of text are kept until all are there to be ranked."""
        found = jax.device_get(self._score(params, on_devices(batch, self._sharding)))
        logits, replaced = (found.pop(name)[batch["weights"] > 0] for name in ("logits", "replaced_at"))
        self._decided.append((logits, replaced > 0))
        return {name: float(value) for name, value in found.items()}

    def __call__(self, params, stores, max_tokens=0, beat=lambda: None) -> dict:
        """See the class and `Corrupted`."""
        self._decided: list[tuple[np.ndarray, np.ndarray]] = []
        return super().__call__(params, stores, max_tokens, beat)

    def summary(self, sums: dict[str, float]) -> dict:
        """Accuracy over all tokens beside the share that was replaced, precision and recall of the replaced ones, and `discriminator_auc`.

        The last needs no threshold: it is 0.5 for a discriminator that knows nothing, however few tokens are replaced.
        """
        count = sums["targets"]
        logits, replaced = (np.concatenate(parts) for parts in zip(*self._decided, strict=True))
        return {"discriminator_accuracy": sums["correct"] / count, "discriminator_nats": sums["nats"] / count,
                "discriminator_auc": area_under_curve(logits, replaced),
                "replaced_share": sums["replaced"] / count, "replaced_recall": sums["hits"] / max(1.0, sums["replaced"]),
                "replaced_precision": sums["hits"] / max(1.0, sums["detected"]),
                "generator_nats_per_token": sums["generator_nats"] / sums["masked"]}

    @staticmethod
    def headline(result: dict) -> str:
        """What a person wants to see first."""
        area = "" if result["discriminator_auc"] is None else f", area under the curve {result['discriminator_auc']:.4f}"
        return (f"{result['discriminator_accuracy']:.2%} of the tokens told right, {result['replaced_recall']:.2%} of the replaced ones "
                f"({result['replaced_share']:.2%} of all) detected{area}")


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: how likely a positive has a higher score than a negative, equal ones counting half; both arrays [n].

    Exact, by the sum of the positives' ranks (Mann and Whitney 1947); None where there are only positives or only negatives.
    """
    hits = int(positive.sum())
    if not 0 < hits < len(positive):
        return None
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1, equal scores sharing their mean
    return float((ranks[which[positive]].sum() - hits * (hits + 1) / 2) / (hits * (len(positive) - hits)))
