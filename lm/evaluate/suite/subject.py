"""What a suite evaluates: a checkpoint of a run that gives texts a likelihood, or a masked one that gives them a pseudo-likelihood."""

import dataclasses
import functools

import jax
import numpy as np

from lm.errors import ConfigError, DataError
from lm.evaluate.continuations import Request, Scorer, encode_pair
from lm.evaluate.likelihood import on_devices
from lm.models import LanguageModel
from lm.objectives.masked import Masked
from lm.parallel import AXES, batch_sharding, make_mesh, replicated
from lm.run import Run, open_run


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run's checkpoint over all local devices. `limit`: items of a file, 0 for all; `stride`: see `continuations.rolling`."""

    run: Run
    params: object
    mesh: jax.sharding.Mesh
    step: int
    batch: int = 0
    stride: int = 0
    limit: int = 0
    max_length: int = 0

    @property
    def masked(self) -> bool:
        """Whether it fills gaps, and gives no likelihood."""
        return self.run.objective.measure == "masked"

    @property
    def context(self) -> int:
        """Tokens that the model reads at most: `max_length`, or all it can; where there is no such limit, as many as in training."""
        return self.max_length or self.run.model.max_positions or self.run.config.data.context

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Scores requests; see `lm.evaluate.continuations`."""
        return Scorer(self.run.model, self.params, self.mesh, self.context, self.batch, replicated(self.mesh))

    def sentences(self, texts: list[str]) -> tuple[np.ndarray, dict]:
        """(log-probability [n] in nats of each text, what was counted); of a masked model the pseudo-log-likelihood."""
        if self.masked:
            return pseudo_log_likelihoods(self, texts)
        scores = self.scorer([encode_pair(self.run.tokenizer, "", text) for text in texts])
        return scores.logprobs, scores.counts

    def request(self, context: str, continuation: str) -> Request:
        """The request of two texts."""
        return encode_pair(self.run.tokenizer, context, continuation)


def open_subject(workdir, step: int | None = None, batch: int | None = None, stride: int | None = None,
                 limit: int | None = None, max_length: int | None = None) -> Subject:
    """The checkpoint of a run (default: the latest) for a suite. ConfigError for an objective that gives texts no likelihood."""
    for name, value in (("batch", batch), ("stride", stride), ("limit", limit), ("max_length", max_length)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} is not allowed: it must be at least 1")
    run = open_run(workdir)
    most = run.model.max_positions
    if most and max_length and max_length > most:
        raise ConfigError(f"max_length={max_length} is not allowed: the model reads at most {most} tokens")
    measure = run.objective.measure
    if measure != "masked" and (measure != "likelihood" or not isinstance(run.model, LanguageModel)):
        raise ConfigError(f"{workdir} has model.name={run.config.model.name} and objective.name={run.config.objective.name}, which give a "
                          "text no likelihood: --suite is for next-token models, and minimal_pairs for masked ones too")
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1})
    params, step = run.parameters(replicated(mesh), step)
    subject = Subject(run, params, mesh, step, batch or 0, stride or 0, limit or 0, max_length or 0)
    if subject.stride > subject.context:
        raise ConfigError(f"stride={stride} is not allowed: it must be from 1 to the model's context of {subject.context}")
    return subject


def pseudo_log_likelihoods(subject: Subject, texts: list[str]) -> tuple[np.ndarray, dict]:
    """(sum over tokens of log p(token | all others of the text) in nats, [n], what was counted) (Salazar et al. 2020).

    A row is <cls>, a text and what ends a segment, with one token hidden; each token of text takes a row.
    """
    objective: Masked = subject.run.objective
    end = objective.sep if objective.pairs else objective.tokenizer.eos_id
    sequences = []
    for text in texts:
        ids = [objective.cls, *objective.tokenizer.encode(text).tolist(), end]
        if not 2 < len(ids) <= objective.context:
            raise DataError(f"{text[:40]!r} has {len(ids) - 2} tokens, and a row takes from 1 to {objective.context - 2}: leave it out")
        sequences.append(ids)
    rows = subject.batch or max(1, 4096 // objective.context)
    rows *= subject.mesh.shape["replica"]
    sharding = batch_sharding(subject.mesh)
    score = jax.jit(lambda params, batch: objective.scores(subject.run.model, params, batch)["nats"].sum(axis=1),
                    in_shardings=(replicated(subject.mesh), sharding), out_shardings=replicated(subject.mesh))
    order = sorted(range(len(texts)), key=lambda i: len(sequences[i]))
    hidden = [(i, place) for i in order for place in range(1, len(sequences[i]) - 1)]
    totals = np.zeros(len(texts))
    with jax.set_mesh(subject.mesh):
        for first in range(0, len(hidden), rows):
            part = hidden[first : first + rows]
            batch = _hidden_alone(objective, [(sequences[i], place) for i, place in part], rows)
            nats = np.asarray(score(subject.params, on_devices(batch, sharding)), np.float64)
            np.subtract.at(totals, [i for i, _ in part], nats[: len(part)])
    return totals, {"requests": len(texts), "tokens_scored": len(hidden), "context": objective.context}


def _hidden_alone(objective: Masked, chosen: list[tuple[list[int], int]], rows: int) -> dict[str, np.ndarray]:
    """A batch of the objective's in which row i has a sequence with one place hidden; rows beyond have weight 0."""
    longest = max(len(ids) for ids, _ in chosen)
    width = min(objective.context, 1 << max(4, (longest - 1).bit_length()))
    tokens, targets, segments = np.zeros((3, rows, width), np.int32)
    weights = np.zeros((rows, width), np.float32)
    for i, (ids, place) in enumerate(chosen):
        tokens[i, : len(ids)] = targets[i, : len(ids)] = ids
        segments[i, : len(ids)] = 1
        tokens[i, place], weights[i, place] = objective.mask, 1
    positions = np.where(segments > 0, np.arange(width, dtype=np.int32), 0)
    batch = {"tokens": tokens, "targets": targets, "weights": weights, "segments": segments, "positions": positions,
             "types": np.zeros_like(tokens)}
    return batch | {"next": np.full_like(tokens, -1)} if objective.pairs else batch
