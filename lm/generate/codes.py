"""What a sentence VAE makes of its codes: texts written again, drawn, and on the way from one to another; and the classes of an HMM."""

import jax
import numpy as np

from lm.data.packing import Rows
from lm.data.sentences import read_sentences
from lm.data.store import TokenStore
from lm.errors import ConfigError
from lm.generate.sampling import banned
from lm.models.hmm import HiddenMarkovModel
from lm.models.vae import SentenceVAEModel
from lm.objectives.causal import batch_of
from lm.run import Run, open_run


def rows_of(run: Run, texts: list[str]) -> Rows:
    """A row for each text. ConfigError for an empty one, and where one does not fit data.context."""
    context = run.config.data.context
    if not all(text.strip() for text in texts):
        raise ConfigError("a text is empty: give some words")
    store = TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], run.tokenizer)
    for text, size in zip(texts, np.diff(store.offsets), strict=True):
        if size > context:
            raise ConfigError(f"{text[:40]!r} has {size - 1} tokens, and data.context={context} holds {context - 1}: shorten it")
    return read_sentences(store, np.arange(len(texts)), context)


class Codes:
    """The sentence VAE of a run, from texts to texts; what it writes is the likeliest next token after each, given a code."""

    def __init__(self, workdir, step: int | None = None):
        self.run = open_run(workdir)
        if not isinstance(self.run.model, SentenceVAEModel):
            raise ConfigError(f"{workdir} has model.name={self.run.config.model.name}, which has no codes: use a run with model.name=vae")
        self.params, _ = self.run.parameters(step=step)
        tokenizer = self.run.tokenizer
        self._end = {"max_len": self.run.config.data.context, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id,
                     "banned": banned(tokenizer, self.run.model)}

    def _batch(self, texts: list[str]) -> dict:
        return batch_of(rows_of(self.run, texts), self.run.tokenizer.bos_id)

    def _texts(self, tokens) -> list[str]:
        return [self.run.tokenizer.decode(row[(row >= 0) & (row != self.run.tokenizer.eos_id)]) for row in np.asarray(tokens)]

    def reconstruct(self, texts: list[str]) -> list[str]:
        """Each text from its mean code."""
        return self._texts(self.run.model.reconstruct(self.params, self._batch(texts), **self._end))

    def sample(self, count: int, seed: int = 0) -> list[str]:
        """Texts of `count` codes of the prior."""
        if count < 1:
            raise ConfigError(f"sample={count} is not allowed: it must be at least 1")
        return self._texts(self.run.model.sample(self.params, jax.random.key(seed), count, **self._end))

    def interpolate(self, first: str, last: str, steps: int = 5) -> list[str]:
        """Texts of `steps` codes in equal steps from the one's to the other's."""
        if steps < 2:
            raise ConfigError(f"steps={steps} is not allowed: it must be at least 2")
        return self._texts(self.run.model.interpolate(self.params, self._batch([first]), self._batch([last]), steps, **self._end))


def tags(workdir, texts: list[str], step: int | None = None) -> list[list[tuple[str, int]]]:
    """(token as text, class) of each token of each text, by the best path through a hidden Markov model (Viterbi 1967)."""
    run = open_run(workdir)
    if not isinstance(run.model, HiddenMarkovModel):
        raise ConfigError(f"{workdir} has model.name={run.config.model.name}, which has no classes: use a run with model.name=hmm")
    params, _ = run.parameters(step=step)
    rows = rows_of(run, texts)
    classes = np.asarray(jax.jit(run.model.viterbi)(params, batch_of(rows, run.tokenizer.bos_id)))
    ends = rows.scored.sum(axis=1) - 1  # eos is no text
    return [[(run.tokenizer.decode(row[i : i + 1]), int(found[i])) for i in range(end)]
            for row, found, end in zip(rows.tokens[:, 1:], classes, ends, strict=True)]
