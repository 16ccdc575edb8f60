"""Translation: source texts in, target texts out, by greedy or beam search with the length penalty of Wu et al. (2016).

A source is its tokens and the end of the document, a target is written after `bos` until its own end. Sources of like length are
decoded together, so that few shapes are ever compiled; what a source becomes does not depend on the others.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import ConfigError, DataError
from lm.generate import loops
from lm.generate.generator import bucket
from lm.generate.sampling import banned


class Translation(NamedTuple):
    """A target text, and its log-probability in nats (its end included) divided by the length penalty."""

    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class Sourced:
    """An encoder-decoder as the language model of targets for one batch of sources: what `lm.generate.loops` meets."""

    model: object
    batch: dict
    params: object

    def __getattr__(self, name):
        return getattr(self.model, name)

    def init_decode(self, batch_size: int, max_len: int):
        """The state after the sources."""
        return self.model.start_decode(self.params, self.batch, max_len)


class Translator:
    """Translates with one encoder-decoder; compiled once per bucket of source length, room, number of rows and way of searching.

    `rows` is how many sources are decoded together at most.
    """

    def __init__(self, model, params, tokenizer, source_tokenizer, rows: int = 32):
        self.model, self.params, self.tokenizer, self.source_tokenizer, self.rows = model, params, tokenizer, source_tokenizer, rows
        self._banned = banned(tokenizer, model)
        self._compiled = functools.lru_cache(maxsize=64)(self._compile)

    def __call__(self, texts: list[str], beams: int = 4, alpha: float = 0.6, max_tokens: int | None = None) -> list[Translation]:
        """The best translation of each text, in their order; one beam is greedy search.

        `max_tokens` None allows twice the source's bucket. ConfigError when a source or `max_tokens` does not fit the model.
        """
        if beams < 1 or alpha < 0 or (max_tokens is not None and max_tokens < 1):
            raise ConfigError(f"beams={beams}, alpha={alpha}, max_tokens={max_tokens} are not allowed: use beams and tokens of at least 1, "
                              "and alpha of at least 0")
        sources = [[*self.source_tokenizer.encode(text).tolist(), self.source_tokenizer.eos_id] for text in texts]
        by_bucket: dict[int, list[int]] = {}
        for i, source in enumerate(sources):
            by_bucket.setdefault(self._bucket(len(source)), []).append(i)
        translations = {}
        for width, members in sorted(by_bucket.items()):
            limit = self._limit(max_tokens, width)
            for start in range(0, len(members), self.rows):
                chunk = members[start : start + self.rows]
                found = self._search([sources[i] for i in chunk], width, beams, float(alpha), limit)
                translations.update(zip(chunk, found, strict=True))
        return [translations[i] for i in range(len(texts))]

    def _bucket(self, length: int) -> int:
        most = self.model.max_positions
        if most is not None and length > most:
            raise ConfigError(f"a source has {length - 1} tokens, but the model's context is {most}: cut it into sentences")
        return bucket(length) if most is None else min(bucket(length), most)

    def _limit(self, max_tokens: int | None, width: int) -> int:
        most = self.model.max_positions
        if max_tokens is None:
            return 2 * width if most is None else min(2 * width, most)
        if most is not None and max_tokens > most:
            raise ConfigError(f"max_tokens={max_tokens} is more than the model's context of {most}")
        return max_tokens

    def _search(self, sources, width, beams, alpha, limit) -> list[Translation]:
        # Missing rows are copies: empty ones might never end.
        rows = min(self.rows, 1 << (len(sources) - 1).bit_length())
        batch = source_batch(sources + sources[:1] * (rows - len(sources)), width)
        run = self._compiled(rows, width, self._room(limit), beams, alpha)
        decoded = jax.device_get(run(self.params, batch, np.int32(limit)))
        best = zip(decoded.tokens[::beams], decoded.logprobs[::beams], strict=True)
        return [self._translation(tokens, float(logprob), alpha) for _, (tokens, logprob) in zip(sources, best, strict=False)]

    def _room(self, limit: int) -> int:
        most = self.model.max_positions
        return bucket(limit) if most is None else min(bucket(limit), most)

    def _translation(self, tokens, logprob: float, alpha: float) -> Translation:
        written = tokens[tokens >= 0]
        return Translation(self.tokenizer.decode(written), logprob / loops.penalty(len(written), alpha))

    def _compile(self, rows, width, room, beams, alpha):
        options = {"room": room, "beams": beams, "alpha": alpha, "bos_id": self.tokenizer.bos_id, "eos_id": self.tokenizer.eos_id}
        function = functools.partial(search, model=self.model, banned=self._banned, **options)
        batch = source_batch([[0]] * rows, width)
        return jax.jit(function).lower(self.params, batch, np.int32(0)).compile()


def search(params, batch, limit, *, model, room, beams, alpha, bos_id, eos_id, banned) -> loops.Decoded:
    """At most `limit` <= room tokens for each of B sources, rows [B beams, room], the best of a source first."""
    count = batch["source_tokens"].shape[0]
    prompts, lengths = jnp.full((count, 1), bos_id, jnp.int32), jnp.ones(count, jnp.int32)
    return loops.beam(params, prompts, lengths, limit, 0, (), model=Sourced(model, batch, params), room=room, beams=beams, eos_id=eos_id,
                      banned=banned, length_penalty=alpha, reorder=model.reorder)


def source_batch(sources: list[list[int]], width: int) -> dict[str, np.ndarray]:
    """The source keys of a batch, int32 [B, width], of token ids padded on the right."""
    tokens, lengths = np.zeros((len(sources), width), np.int32), np.array([len(source) for source in sources])
    for row, source in zip(tokens, sources, strict=True):
        row[: len(source)] = source
    real = np.arange(width) < lengths[:, None]
    positions = np.where(real, np.arange(width), 0)
    return {"source_tokens": tokens, "source_segments": real.astype(np.int32), "source_positions": positions.astype(np.int32)}


def bleu(hypotheses: list[str], references: list[str], tokenize: str = "13a") -> float:
    """Corpus BLEU (Papineni et al. 2002), 0 to 100, of one reference each, as sacreBLEU (Post 2018) computes it; see `bleu_of`."""
    if not hypotheses or len(hypotheses) != len(references):
        raise DataError(f"there are {len(hypotheses)} translations for {len(references)} references: give one reference for each")
    return bleu_of(references, tokenize).corpus_score(hypotheses, [references]).score


def bleu_of(references: list[str], tokenize: str = "13a"):
    """sacreBLEU's measure for these references. `tokenize` names its tokenizer: 13a for most languages, zh for Chinese.

    ConfigError where sacrebleu or what its tokenizer needs is not installed, and where no reference has the four tokens without which BLEU
    is 0 whatever the translations.
    """
    try:
        from sacrebleu.metrics import METRICS
    except ImportError as error:
        raise ConfigError("BLEU needs sacrebleu: pip install -e '.[translate]'") from error
    try:
        measure = METRICS["BLEU"](tokenize=tokenize)
    except (KeyError, RuntimeError) as error:  # a name that there is not, or one whose package is not installed
        known = ", ".join(sorted(METRICS["BLEU"].TOKENIZERS))
        raise ConfigError(f"tokenize={tokenize} cannot be used by sacrebleu: use one of {known} that is installed") from error
    if all(len(measure.tokenizer(text).split()) < measure.max_ngram_order for text in references):
        raise ConfigError(f"no reference has {measure.max_ngram_order} tokens by tokenize={tokenize}, and BLEU would be 0 whatever the "
                          "translations: use tokenize=char")
    return measure
