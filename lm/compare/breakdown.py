"""Where a model loses: its nats by document, by position in the row, by how frequent a token is in the training text, and by whether it
has been in the row before."""

import numpy as np

from lm.data.files import atomic_file, cache_root
from lm.data.packing import Rows
from lm.data.prepare import PreparedData
from lm.data.store import TokenStore

GROUPS = 10
SEEN = ("new", "seen token", "seen bigram")  # what `seen` numbers
_CHUNK = 1 << 24  # tokens counted at once


def token_shares(prepared: PreparedData, vocab_size: int, data) -> np.ndarray:
    """Share of each id [vocab_size] in the training text, float64, its sources weighed as training does; they sum to 1.

    `data` is the config's section, whose cache keeps what was counted.
    """
    file = cache_root(data) / "token_shares" / f"{prepared.fingerprint}-{vocab_size}.npy"
    if file.exists():
        return np.load(file)
    shares = np.zeros(vocab_size)
    for splits, weight in zip(prepared.sources, prepared.weights, strict=True):
        store = splits["train"]
        if store.num_tokens:
            shares += weight * token_counts(store, vocab_size) / store.num_tokens
    shares /= shares.sum()
    with atomic_file(file) as opened:
        np.save(opened, shares)
    return shares


def token_counts(store: TokenStore, vocab_size: int) -> np.ndarray:
    """How often each id [vocab_size] stands in a store, int64."""
    counts = np.zeros(vocab_size, np.int64)
    for first in range(0, store.num_tokens, _CHUNK):
        counts += np.bincount(store.read(first, min(first + _CHUNK, store.num_tokens)), minlength=vocab_size)
    return counts


def frequency_groups(shares: np.ndarray) -> np.ndarray:
    """The decile, 1 to 10, of each id: ids from the most to the least frequent, cut where their shares reach a tenth, two tenths, ...

    An id is where the middle of its share lies, so that a very frequent one can leave deciles empty; ids never seen are in the last.
    """
    order = np.argsort(-shares, kind="stable")
    middles = np.cumsum(shares[order]) - shares[order] / 2
    groups = np.empty(len(shares), np.int64)
    groups[order] = np.clip((GROUPS * middles).astype(np.int64) + 1, 1, GROUPS)
    return groups


def seen(rows: Rows) -> np.ndarray:
    """Which of SEEN each target [B, T] is, int64: 2 where its bigram (the token before, it) stands earlier in what a model has read of the
    same document in the row, 1 where the target alone does, 0 where neither does.

    Bigrams seen are the recall hits of Arora et al. 2023 ("Zoology"), who count of them only those that are rare in training: here all
    count, and as what is said twice is often common, a model without memory has less loss on them too. What tells models apart is how
    far they differ on them and not on the others. Windows of counted models overlap (`lm.evaluate.likelihood`) and so begin elsewhere than
    those of others: their counts differ a little. What `rows` pad is void.
    """
    targets, before = (part.astype(np.int64) for part in (rows.tokens[:, 1:], rows.tokens[:, :-1]))
    before = np.where(rows.starts, -1, before)  # bos is no token of the document
    document = np.arange(targets.size).reshape(targets.shape) - rows.positions  # the place of the document's first target, in the row
    # A document that began before the row has one token in it that is no target.
    carried = (rows.segments == rows.segments[:, :1]) & (targets == before[:, :1])
    known = _repeated(document, targets) | carried
    return known.astype(np.int64) + _repeated(document, targets, before)


def _repeated(*keys: np.ndarray) -> np.ndarray:
    """Whether the values of all `keys` [B, T] at a place have stood together at an earlier one, in the order of memory."""
    together = np.zeros(keys[0].size, np.int64)
    for key in keys:
        number = np.unique(key.ravel(), return_inverse=True)[1]  # less than the places, as `together` is: their product is an int64
        _, first, together = np.unique(together * len(number) + number, return_index=True, return_inverse=True)
    return (first[together] < np.arange(len(together))).reshape(keys[0].shape)


class Breakdown:
    """Sums of an evaluation's nats, to be called with each of its batches (`lm.evaluate.likelihood.Evaluator.__call__`)."""

    def __init__(self, groups: np.ndarray):
        """`groups` [V] is the group, from 1, of each id; see `frequency_groups`."""
        self._groups = groups
        self._by_group, self._tokens = np.zeros(GROUPS), np.zeros(GROUPS, np.int64)
        self._by_seen, self._tokens_seen = np.zeros(len(SEEN)), np.zeros(len(SEEN), np.int64)
        self._stores: dict[int, tuple[TokenStore, np.ndarray]] = {}

    def __call__(self, store: TokenStore, rows: Rows, nats: np.ndarray):
        """Adds the scored tokens of a batch of rows [B, T] of a store with their nats [B, T]."""
        scored = rows.scored
        values = nats[scored].astype(np.float64)
        group = self._groups[rows.tokens[:, 1:][scored]] - 1
        self._by_group += np.bincount(group, values, minlength=GROUPS)
        self._tokens += np.bincount(group, minlength=GROUPS)
        kind = seen(rows)[scored]
        self._by_seen += np.bincount(kind, values, minlength=len(SEEN))
        self._tokens_seen += np.bincount(kind, minlength=len(SEEN))
        _, documents = self._stores.setdefault(id(store), (store, np.zeros(store.num_documents)))
        documents += np.bincount(rows.documents[scored], values, minlength=len(documents))

    def frequency(self) -> list[dict]:
        """[{"decile" from 1 (most frequent), "tokens", "nats_per_token"}] of the deciles that have tokens."""
        return [{"decile": i + 1, "tokens": int(tokens), "nats_per_token": float(nats / tokens)}
                for i, (nats, tokens) in enumerate(zip(self._by_group, self._tokens, strict=True)) if tokens]

    def recall(self) -> list[dict]:
        """[{"target": one of SEEN, "tokens", "nats_per_token"}] of those that have tokens."""
        return [{"target": name, "tokens": int(tokens), "nats_per_token": float(nats / tokens)}
                for name, nats, tokens in zip(SEEN, self._by_seen, self._tokens_seen, strict=True) if tokens]

    def documents(self) -> dict[str, np.ndarray]:
        """{"nats", "bytes"} [documents] of the stores in the order in which they were evaluated, float64 and int64."""
        parts = list(self._stores.values())
        return {"nats": np.concatenate([nats for _, nats in parts]),
                "bytes": np.concatenate([np.asarray(store.byte_counts, np.int64) for store, _ in parts])}


def positions(loss_by_position: dict[str, float]) -> list[dict]:
    """[{"from", "to", "nats_per_token"}] of an evaluation's loss by position of a document's token in the row, from 1, in octaves."""
    found = []
    for name, nats in loss_by_position.items():
        first, _, last = name.partition("-")
        found.append({"from": int(first), "to": int(last or first), "nats_per_token": nats})
    return found
