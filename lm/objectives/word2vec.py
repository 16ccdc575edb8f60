"""word2vec: skip-gram and CBOW, by negative sampling or hierarchical softmax (Mikolov et al. 2013a, b).

A row of the token store becomes its words that sub-sampling keeps, as if the others and unknown words had not been there; so
windows reach over them. Windows end with their row and with their document. Each centre has a window of 1 to `window`
words to either side, drawn anew in every epoch; the pairs of a row are entries of a T x T matrix of scores, of which a band counts.

Two things differ from word2vec.c. Negative samples are shared by the words of a row (Ji et al. 2016): `shared_negatives` are drawn per
row, and each pair weighs each of them by negatives / shared_negatives, so that it meets `negatives` in expectation. And CBOW's gradient
is that of its mean, which word2vec.c forgets to divide by the number of words (Irsoy et al. 2021).
"""

import abc
import heapq
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.noise import uniforms
from lm.data.packing import Rows
from lm.data.words import WordTokenizer
from lm.errors import ConfigError
from lm.objectives.base import Objective

KEEP, WINDOW, NEGATIVE = 101, 102, 103  # streams of random numbers
_BLOCK = 16  # centres that are scored together at least
NOISE_POWER = 0.75  # of the unigram counts (Mikolov et al. 2013b, section 2.2)


class Word2Vec(Objective):
    """What skip-gram and CBOW share: the words that count, their windows and what they are told apart from."""

    measure = "words"

    def __init__(self, options, tokenizer, context: int, seed: int):
        """ConfigError unless the tokenizer is of words, whose counts it reads."""
        super().__init__(options, tokenizer, context, seed)
        if not isinstance(tokenizer, WordTokenizer):
            raise ConfigError(f"objective.name={options.name} learns vectors of words: set data.tokenizer=words")
        self._keep = keep_probability(tokenizer.counts, tokenizer.first_word, options.subsample)
        self._noise = noise_distribution(tokenizer.counts, tokenizer.first_word)
        self._code = huffman(tokenizer.counts, tokenizer.first_word) if options.hierarchical else None

    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """The words [B, T] that are kept, padded behind, and what is drawn for them.

        `tokens, segments, positions` [B, T], `windows` int32 [B, T] (0 is padding), `weights` float32 [B, T] (see `weigh`), `words` int32
        [B, 1]: words in the row before sub-sampling. `negatives` int32 [B, N]; with hierarchical softmax instead `nodes` and `signs`
        [B, T, L], the inner nodes on each word's path and its branches there (1 or -1; 0 beyond the word's code).
        """
        targets = rows.tokens[:, 1:]
        known = rows.scored & (targets >= self.tokenizer.first_word)
        kept = known & (uniforms(self.seed, KEEP, examples, self.context) < self._keep[targets])
        order = np.argsort(~kept, axis=1, kind="stable")
        real = np.arange(self.context) < kept.sum(axis=1, keepdims=True)
        tokens, segments = (np.where(real, np.take_along_axis(a, order, axis=1), 0).astype(np.int32) for a in (targets, rows.segments))
        positions, after = _around(segments)
        drawn = 1 + (uniforms(self.seed, WINDOW, examples, self.context) * self.options.window).astype(np.int32)
        windows = np.where(real, drawn, 0).astype(np.int32)
        pairs = np.minimum(windows, positions) + np.minimum(windows, after)
        batch = {"tokens": tokens, "segments": segments, "positions": np.where(real, positions, 0).astype(np.int32), "windows": windows,
                 "weights": self.weigh(pairs).astype(np.float32), "words": known.sum(axis=1, keepdims=True, dtype=np.int32)}
        return batch | self._told_apart(tokens, examples)

    def _told_apart(self, tokens, examples):
        if self._code:
            return {"nodes": self._code.nodes[tokens], "signs": self._code.signs[tokens]}
        drawn = uniforms(self.seed, NEGATIVE, examples, self.options.shared_negatives)
        return {"negatives": np.searchsorted(self._noise, drawn, side="right").astype(np.int32)}

    @staticmethod
    @abc.abstractmethod
    def weigh(pairs: np.ndarray) -> np.ndarray:
        """What each centre [B, T] counts, of its number of pairs."""

    def tokens(self, batch):
        """Words of the rows before sub-sampling."""
        return jnp.sum(batch["words"])

    def flops_by_component(self, model) -> dict[str, float]:
        """FLOPs of the scores that count, on average, for each word before sub-sampling; windows are as wide at the ends of texts."""
        counts = self.tokenizer.counts * (np.arange(len(self._keep)) >= self.tokenizer.first_word)
        kept = counts * self._keep
        branches = float(np.abs(self._code.signs).sum(axis=1) @ kept / kept.sum()) if self._code else 0.0
        return {"scores": float(kept.sum() / counts.sum()) * 2.0 * model.spec.width * self.scores(self.options.window + 1.0, branches)}

    @abc.abstractmethod
    def scores(self, pairs: float, branches: float) -> float:
        """Scores of a centre with so many pairs, by paths of so many branches (0: by negative sampling)."""

    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """The sum of -log of the sigmoids in nats, twice; per pair of skip-gram and per centre of CBOW when divided."""
        inputs = model.read(params, "inputs", batch["tokens"])
        nats = (self.hierarchical if "nodes" in batch else self.negative)(model, params, batch, inputs)
        return nats, nats

    @abc.abstractmethod
    def negative(self, model, params, batch, inputs):
        """The sum of losses by negative sampling, of input vectors [B, T, D]."""

    @abc.abstractmethod
    def hierarchical(self, model, params, batch, inputs):
        """The sum of losses by hierarchical softmax."""

    def _outputs(self, model, params, batch):
        """(vectors [B, T, D] of the words as targets, [B, N, D] of the negatives, what a pair weighs a negative), by one lookup."""
        both = jnp.concatenate([batch["tokens"], batch["negatives"]], axis=1)
        vectors = model.read(params, "outputs", both)
        words, negatives = jnp.split(vectors, [batch["tokens"].shape[1]], axis=1)
        return words, negatives, self.options.negatives / self.options.shared_negatives


class SkipGram(Word2Vec):
    """Each word predicts the words around it; weights count pairs."""

    @staticmethod
    def weigh(pairs):
        """Every pair counts."""
        return pairs

    def scores(self, pairs, branches):
        """Every pair has its own; the negatives are shared."""
        return pairs * branches if branches else pairs + self.options.shared_negatives

    def negative(self, model, params, batch, inputs):
        """A negative that is the very word of a pair is skipped for it, as in word2vec.c."""
        words, negatives, weight = self._outputs(model, params, batch)
        reach, length = self.options.window, inputs.shape[1]
        band = pairs_of(batch["windows"], batch["segments"], reach)
        near_words, centres = blocks(words, reach), blocks(inputs, 0, block_of(length, reach))
        nats = jnp.sum(band * nats_of(dots("bkid,bkjd->bkij", centres, near_words)))
        same = (batch["tokens"][:, :, None] == batch["negatives"][:, None, :]).astype(jnp.float32)
        told_apart = jnp.sum(band, axis=3, keepdims=True) - jnp.einsum("bkij,bkjn->bkin", band, blocks(same, reach))
        told_apart = told_apart.reshape(*inputs.shape[:2], -1)
        return nats + weight * jnp.sum(told_apart * nats_of(-dots("bid,bnd->bin", inputs, negatives)))

    def hierarchical(self, model, params, batch, inputs):
        """The product of the branches on the path to the context word."""
        nodes, signs = _path(model, params, batch)
        reach = self.options.window
        # Word j is predicted from the words i around it, in whose windows it is: a few of the row's, and each product costs a path.
        centres, windows, segments = (around(array, reach) for array in (inputs, batch["windows"], batch["segments"]))
        distance = np.abs(_offsets(reach))
        pairs = (windows >= distance) & (segments == batch["segments"][:, :, None])
        scores = dots("bjkd,bjld->bjkl", centres, nodes)
        return jnp.sum(pairs[..., None] * jnp.abs(signs)[:, :, None] * nats_of(signs[:, :, None] * scores))


class Cbow(Word2Vec):
    """The mean of the words around it predicts each word; weights count centres with a word around them."""

    @staticmethod
    def weigh(pairs):
        """A centre counts once, and only with a word around it."""
        return pairs > 0

    def scores(self, pairs, branches):
        """Those of the centre itself, and of the negatives."""
        return branches or 1.0 + self.options.shared_negatives

    def negative(self, model, params, batch, inputs):
        """A negative that is the centre itself is skipped, as in word2vec.c."""
        words, negatives, weight = self._outputs(model, params, batch)
        context = _mean(inputs, batch, self.options.window)
        told_apart = batch["weights"][:, :, None] * (batch["tokens"][:, :, None] != batch["negatives"][:, None, :])
        nats = jnp.sum(batch["weights"] * nats_of(dots("bid,bid->bi", context, words)))
        return nats + weight * jnp.sum(told_apart * nats_of(-dots("bid,bnd->bin", context, negatives)))

    def hierarchical(self, model, params, batch, inputs):
        """The product of the branches on the path to the centre."""
        nodes, signs = _path(model, params, batch)
        scores = dots("bid,bild->bil", _mean(inputs, batch, self.options.window), nodes)
        return jnp.sum(batch["weights"][..., None] * jnp.abs(signs) * nats_of(signs * scores))


def dots(form: str, *vectors):
    """Scores in float32, whatever the type of the vectors."""
    return jnp.einsum(form, *vectors, preferred_element_type=jnp.float32)


@jax.custom_jvp
def nats_of(scores):
    """-log sigmoid(scores), to 1e-7; without log1p, which takes XLA's CPU backend twice as long."""
    return jnp.log(1 + jnp.exp(-jnp.abs(scores))) + jnp.maximum(-scores, 0)


# Written out, since the slopes of its parts at 0, where all scores of word2vec start, do not add up to -1/2.
nats_of.defjvps(lambda tangent, _, scores: -jax.nn.sigmoid(-scores) * tangent)


def _offsets(reach: int) -> np.ndarray:
    """[2 reach]: -reach .. -1, 1 .. reach."""
    return np.concatenate([np.arange(-reach, 0), np.arange(1, reach + 1)])


def around(x, reach: int):
    """[B, T, 2 reach, ...]: what x [B, T, ...] holds up to `reach` places before and behind each place; 0 beyond the row."""
    padded, length = jnp.pad(x, ((0, 0), (reach, reach), *(((0, 0),) * (x.ndim - 2)))), x.shape[1]
    return jnp.stack([padded[:, reach + offset : reach + offset + length] for offset in _offsets(reach)], axis=2)


def block_of(length: int, reach: int) -> int:
    """How many centres of a row of `length` are scored together: few, since what lies far from all of them is scored in vain."""
    return min(size for size in range(1, length + 1) if length % size == 0 and (size >= max(reach, _BLOCK) or size == length))


def blocks(x, reach: int, size: int = 0):
    """[B, T / S, S + 2 reach, ...]: x [B, T, ...] in blocks of S = `size`, with `reach` places to either side; 0 beyond the row.

    By default S is what `block_of` says.
    """
    length = x.shape[1]
    size = size or block_of(length, reach)
    own = x.reshape(x.shape[0], length // size, size, *x.shape[2:])
    if not reach:
        return own
    # A row that is one block may be shorter than its reach.
    own = jnp.pad(own, ((0, 0), (1, 1), *(((0, 0),) * (own.ndim - 2))))
    side = min(reach, size)
    left, right = own[:, :-2, size - side :], own[:, 2:, :side]
    lacking = [(0, 0)] * own.ndim
    lacking[2] = (reach - side, 0)
    left, right = jnp.pad(left, lacking), jnp.pad(right, [pair[::-1] for pair in lacking])
    return jnp.concatenate([left, own[:, 1:-1], right], axis=2)


def _mean(inputs, batch, reach: int):
    """The mean [B, T, D] of the vectors around each centre; 0 where there are none."""
    band = pairs_of(batch["windows"], batch["segments"], reach)
    shares = (band / jnp.maximum(jnp.sum(band, axis=3, keepdims=True), 1.0)).astype(inputs.dtype)
    return jnp.einsum("bkij,bkjd->bkid", shares, blocks(inputs, reach)).reshape(inputs.shape)


def _path(model, params, batch):
    """(vectors [B, T, L, D] of the inner nodes on each word's path, the signs [B, T, L] of its branches)."""
    shape, signs = batch["nodes"].shape, batch["signs"].astype(jnp.float32)
    return model.read(params, "outputs", batch["nodes"].reshape(shape[0], -1)).reshape(*shape, -1), signs


def pairs_of(windows, segments, reach: int):
    """[B, K, S, S + 2 reach] in float32, by `blocks`: 1 where word j lies in the window of centre i, in the same document, and is not i."""
    size = block_of(windows.shape[1], reach)
    distance = np.abs(np.arange(size)[:, None] - (np.arange(size + 2 * reach) - reach))
    near = (distance > 0) & (distance <= blocks(windows, 0, size)[..., None])
    return (near & (blocks(segments, 0, size)[..., None] == blocks(segments, reach)[:, :, None])).astype(jnp.float32)


def _around(segments):
    """(words of the same document before each, behind each) within a row, both [B, T]."""
    places = np.arange(segments.shape[1])
    changes = segments[:, 1:] != segments[:, :-1]
    edge = np.ones((len(segments), 1), bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, changes], axis=1), places, 0), axis=1)
    ends = np.where(np.concatenate([changes, edge], axis=1), places, segments.shape[1])
    last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return places - first, last - places


def keep_probability(counts: np.ndarray, first_word: int, threshold: float) -> np.ndarray:
    """[V]: how likely an occurrence of each word is kept; all are for a threshold of 0.

    min(1, sqrt(t / f) + t / f) of a word's share f of the words, as word2vec.c and gensim have it; in the paper it is
    sqrt(t / f) (Mikolov et al. 2013b, equation 5).
    """
    if not threshold:
        return np.ones(len(counts))
    share = counts / counts[first_word:].sum()
    ratio = threshold / np.maximum(share, 1e-300)
    return np.minimum(1.0, np.sqrt(ratio) + ratio)


def noise_distribution(counts: np.ndarray, first_word: int) -> np.ndarray:
    """Cumulative probabilities [V] of the words as negatives: their counts to the power of 0.75; special ids have none."""
    powers = np.where(np.arange(len(counts)) < first_word, 0.0, counts.astype(np.float64) ** NOISE_POWER)
    cumulative = np.cumsum(powers) / powers.sum()
    cumulative[-1] = 1.0  # whatever rounding says
    return cumulative


class Code(NamedTuple):
    """A binary code: `nodes` int32 [V, L] are the inner nodes from the root to each word, `signs` int8 [V, L] its branches (1 or -1).

    Beyond a word's code, and for special ids, both are 0.
    """

    nodes: np.ndarray
    signs: np.ndarray


def huffman(counts: np.ndarray, first_word: int) -> Code:
    """The Huffman code of the words by their counts [V] (Huffman 1952); of equal counts later words go first, then earlier nodes."""
    leaves = len(counts) - first_word
    heap = [(int(count), -i if i < leaves else i, i) for i, count in enumerate(counts[first_word:])]
    heapq.heapify(heap)
    parents, branches = np.zeros(2 * leaves - 1, np.int64), np.zeros(2 * leaves - 1, np.int8)
    for node in range(leaves, 2 * leaves - 1):
        (low, _, left), (high, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        parents[[left, right]], branches[left], branches[right] = node, 1, -1
        heapq.heappush(heap, (low + high, node, node))
    depths = np.zeros(2 * leaves - 1, np.int64)
    for node in range(2 * leaves - 3, -1, -1):  # parents come behind their children
        depths[node] = depths[parents[node]] + 1
    shape = (len(counts), max(1, int(depths[:leaves].max())))
    nodes, signs = np.zeros(shape, np.int32), np.zeros(shape, np.int8)
    at, words = np.arange(leaves), np.arange(leaves)
    while len(words):
        on = depths[at] > 0
        at, words = at[on], words[on]
        place = depths[at] - 1
        nodes[first_word + words, place], signs[first_word + words, place] = parents[at] - leaves, branches[at]
        at = parents[at]
    return Code(nodes, signs)
