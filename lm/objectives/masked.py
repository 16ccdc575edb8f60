"""Masked language models (Devlin et al. 2019): some tokens of a row are hidden, and predicted from all the others.

`tokens` [B, T] are the corrupted row and `targets` the original at the SAME positions; weights are 1 where a token is to be
predicted. Any token of text may be chosen (eos is none: it ends each document as BERT's [SEP] does); see lm/objectives/masking.py.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import losses
from lm.data.noise import uniforms
from lm.data.packing import Rows, read_rows
from lm.data.store import TokenStore
from lm.data.wordstarts import WordStarts
from lm.errors import ConfigError
from lm.models import logits_of
from lm.objectives import masking, sentence_pairs
from lm.objectives.corrupting import MULTIPLE, Corruption, by_chunks, chunk_within
from lm.parallel import extent

_CHOICE, _KIND, _OTHER = range(200, 203)
MASKS = ("[MASK]", "<mask>")  # of BERT, DistilBERT and ELECTRA, and of RoBERTa


class Laid(NamedTuple):
    """Rows laid out for the encoder, before anything is hidden; all [B, T].

    `source` is the place of a position's token in the raw row, -1 where it has none; `eligible` may be chosen. `types` are 0 and 1 for
    the two halves of a pair.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    types: np.ndarray
    source: np.ndarray
    eligible: np.ndarray


class Masked(Corruption):
    """BERT's objective. The ids of its own are <mask>, <cls> and <sep>, unless the tokenizer has them (`own_marks`).

    objective.sentences=none: a row is <cls> and T - 1 consecutive tokens, whose documents are segments of their own (<cls> is of the
    first). next: a row is <cls> A <sep> B <sep>, one segment, where B follows A or comes from elsewhere (see
    lm/objectives/sentence_pairs.py); `types` tell the two apart, and `next` [B, T] is 0 in all of a row where B follows A, 1 where not,
    -1 where there is no B.
    """

    measure = "masked"

    def __init__(self, options, tokenizer, context: int, seed: int):
        super().__init__(options, tokenizer, context, seed)
        marks = own_marks(tokenizer)
        self.extra_tokens = 0 if marks else 3
        self.mask, self.cls, self.sep = marks or (tokenizer.vocab_size + i for i in range(3))
        self.pairs = self._sentences() == "next"
        self.raw, self.width = context - (3 if self.pairs else 1), context
        if self.raw < 2:
            raise ConfigError(f"data.context={context} leaves no room for text beside <cls> and <sep>: raise it")
        self.most = masking.most(self.raw, options.mask_rate)
        self.others = np.setdiff1d(np.arange(tokenizer.vocab_size), [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, self.mask])
        self.shares = self._shares()
        if self.shares[0] + self.shares[1] > 1:
            raise ConfigError(f"objective.mask_share + objective.random_share = {sum(self.shares)} is more than 1: lower one of them")
        if options.whole_words and tokenizer.kind == "words":
            raise ConfigError("objective.whole_words is for tokens that are pieces of words: turn it off with data.tokenizer=words")
        self.word_starts = WordStarts([*tokenizer.pieces(), *[b""] * self.extra_tokens]) if options.whole_words else None

    def marks(self) -> dict[str, int]:
        """Its three ids, unless they are the tokenizer's."""
        return {"mask_token": self.mask, "cls_token": self.cls, "sep_token": self.sep} if self.extra_tokens else {}

    def _sentences(self) -> str:
        return self.options.sentences

    def _shares(self) -> tuple[float, float]:
        """Shares of chosen positions at which the model sees <mask>, and a random token."""
        return self.options.mask_share, self.options.random_share

    def flops_by_component(self, model) -> dict[str, float]:
        """FLOPs of a forward pass for each token; only as many of them as may be hidden go through the prediction's layers."""
        predicted = min(self.width, -(-self.most // MULTIPLE) * MULTIPLE) / self.width
        return model.flops_by_component(self.width) | {name: predicted * flops for name, flops in model.prediction_flops().items()}

    def read(self, store: TokenStore, rows: np.ndarray, examples: np.ndarray) -> Rows:
        """The rows [B] of a store; for pairs with their second halves from elsewhere where `examples` [B] say so."""
        starts = np.asarray(rows, np.int64) * self.raw
        found = read_rows(store, starts, self.raw)
        return sentence_pairs.with_other_halves(found, store, starts, self.seed, examples) if self.pairs else found

    def lay_out(self, rows: Rows) -> Laid:
        """The rows with <cls>, and <sep> for pairs."""
        tokens, segments, positions, types, source = (sentence_pairs.lay_out if self.pairs else _lay_out)(rows, self.cls, self.sep)
        raw = np.maximum(source, 0)
        scored = np.take_along_axis(rows.scored, raw, axis=1)
        eligible = (source >= 0) & (tokens != self.tokenizer.eos_id) & scored
        return Laid(tokens, segments, positions, types, source, eligible)

    def choose(self, laid: Laid, examples: np.ndarray) -> np.ndarray:
        """bool [B, T]: what is to be predicted in rows with the indices `examples` [B]."""
        choice = uniforms(self.seed, _CHOICE, examples, self.context)
        if self.word_starts is None:
            return masking.choose(laid.eligible, self.options.mask_rate, choice)
        return masking.choose_words(laid.eligible, self.word_starts(laid.tokens), self.options.mask_rate, choice)

    def corrupt(self, tokens: np.ndarray, chosen: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """What the model sees of tokens [B, T]."""
        kind, other = (uniforms(self.seed, stream, examples, self.context) for stream in (_KIND, _OTHER))
        return masking.replace(tokens, chosen, self.mask, self.shares, self.others, kind, other)

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """int32 tokens, targets, segments, positions, types (for pairs next too) and float32 weights, each [B, T]."""
        laid = self.lay_out(rows)
        chosen = self.choose(laid, examples)
        labels = sentence_pairs.labels(rows, self.seed, examples) if self.pairs else None
        return self._batch(laid, self.corrupt(laid.tokens, chosen, examples), chosen, labels)

    def _batch(self, laid: Laid, tokens, weights, labels) -> dict[str, np.ndarray]:
        batch = {"tokens": tokens.astype(np.int32), "targets": laid.tokens.astype(np.int32), "weights": weights.astype(np.float32),
                 "segments": laid.segments.astype(np.int32), "positions": laid.positions.astype(np.int32),
                 "types": laid.types.astype(np.int32)}
        return batch | {"next": np.broadcast_to(labels[:, None], laid.tokens.shape).astype(np.int32)} if self.pairs else batch

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """Sums over rows; the second is of the nats of hidden tokens alone.

        The first adds the z-loss, and for pairs w * c of each row, with w the row's sum of weights and c the cross-entropy of `next` in
        nats: divided by the sum of all weights that is the mean of c over rows (weighed by their hidden tokens, whose number is nearly
        the same), however the batch is cut.
        """
        encoded = model.encode(params, batch, noise)
        (at_targets, targets, weights), _ = gathered(self.most, encoded, batch["targets"], batch["weights"])
        chunk = chunk_within(chunk, targets.shape[1], self.width)
        hidden = model.predict(params, at_targets)
        total, nats = losses.loss(hidden, model.unembedding(params), targets, weights, z_loss=z_loss, chunk=chunk)
        return (total + next_sentence_sum(model.follows(params, encoded), batch) if self.pairs else total), nats

    def scores(self, model, params, batch, chunk: int = 0) -> dict[str, jax.Array]:
        """For evaluation: `nats` and `correct` [B, T], 1 where the likeliest token is the right one; both are 0 where nothing is hidden.

        For pairs also `next_correct` [B, 1]: the model tells whether B follows A. `chunk` as in the loss.
        """
        encoded = model.encode(params, batch)
        (at_targets, targets, weights), places = gathered(self.most, encoded, batch["targets"], batch["weights"])
        chunk = chunk_within(chunk, targets.shape[1], self.width)
        nats, correct = _token_scores(model.predict(params, at_targets), model.unembedding(params), targets, chunk)
        rows, real = jnp.arange(len(targets))[:, None], weights > 0
        zero = jnp.zeros(batch["targets"].shape, jnp.float32)
        result = {"nats": zero.at[rows, places].set(jnp.where(real, nats, 0)), "correct": zero.at[rows, places].set(real & correct)}
        if self.pairs:
            told = jnp.argmax(model.follows(params, encoded), axis=-1)
            result["next_correct"] = (told[:, None] == batch["next"][:, :1]).astype(jnp.float32)
        return result

    def pseudo_batches(self, rows: Rows, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Every token of text of some rows hidden alone, as pseudo-log-likelihoods need it (Salazar et al. 2020).

        Yields (index of the row [n], place in the raw row [n], batch of `size` rows): row i of a batch hides that token alone, and the
        rows from n on have weight 0. `scores` then gives the token's nats. Pairs are taken as they are in `rows`, as following each other.
        """
        laid = self.lay_out(rows)
        owners, places = np.nonzero(laid.eligible)
        for first in range(0, len(owners), size):
            owner, place = owners[first : first + size], places[first : first + size]
            count = np.arange(len(owner))
            part = Laid(*(field[np.resize(owner, size)] for field in laid))  # the last batch is filled with rows of weight 0
            tokens, weights = part.tokens.copy(), np.zeros(part.tokens.shape, np.float32)
            tokens[count, place], weights[count, place] = self.mask, 1
            yield owner, laid.source[owner, place], self._batch(part, tokens, weights, np.zeros(size, np.int64))


def own_marks(tokenizer) -> tuple[int, int, int] | None:
    """The ids of <mask>, <cls> and <sep> of a tokenizer that comes from a masked model, whose documents they begin and end; else None."""
    mask = next((i for token in MASKS if (i := tokenizer.id_of(token)) is not None), None)
    return None if mask is None else (mask, tokenizer.bos_id, tokenizer.eos_id)


def _lay_out(rows: Rows, cls: int, sep: int):
    """(tokens, segments, positions, types, source) [B, T] of <cls> before R = T - 1 tokens; there is no <sep>."""
    first = lambda value, array: np.concatenate([np.full((len(array), 1), value, array.dtype), array], axis=1)  # noqa: E731
    tokens, segments = first(cls, rows.tokens[:, 1:]), np.concatenate([rows.segments[:, :1], rows.segments], axis=1)
    # The first document's part has <cls> before it.
    positions = first(0, rows.positions + (rows.segments == 1))
    source = np.where(segments > 0, np.arange(tokens.shape[1]) - 1, -1)
    return tokens, segments, positions, np.zeros_like(segments), source


def gathered(most: int, hidden, targets, weights):
    """((hidden [B, M, D], targets [B, M], weights [B, M]) of the positions with the largest weights, those places [B, M]).

    M is at least `most`, above which no row has weights above 0: only positions of weight 0 are left out, and with them most of
    the work of the output layer. Where devices hold stretches of time, all positions stay where they are.
    """
    length = targets.shape[1]
    if extent("time") > 1:
        return (hidden, targets, weights), jnp.broadcast_to(jnp.arange(length), targets.shape)
    places = jax.lax.top_k(weights, min(length, -(-most // MULTIPLE) * MULTIPLE))[1]
    take = lambda array: jnp.take_along_axis(array, places, axis=1)  # noqa: E731
    return (jnp.take_along_axis(hidden, places[..., None], axis=1), take(targets), take(weights)), places


def next_sentence_sum(logits, batch):
    """Sum over rows of (sum of the row's weights) * (cross-entropy in nats of `next` under logits [B, 2]); rows of label -1 count 0."""
    label, weight = batch["next"][:, 0], jnp.sum(batch["weights"], axis=1)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    nats = -jnp.take_along_axis(log_p, jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
    return jnp.sum(jnp.where(label >= 0, weight * nats, 0.0))


def _token_scores(hidden, unembedding, targets, chunk: int):
    """(nats, whether the likeliest token is the target), [B, M] each, with the logits of `chunk` positions per row at once."""

    def score(hidden, targets):
        logits = logits_of(hidden, unembedding)
        at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - at_target, jnp.argmax(logits, axis=-1) == targets

    return by_chunks(score, chunk, hidden, targets)
