"""How n-grams are found in the tables of a model, by NumPy on the host and by JAX inside a compiled loop.

tables is a flat dict of arrays, none wider than 32 bits unless asked for. Of order n with M n-grams, sorted:
    tokens_n     int32 [M], the last token of each; there is no tokens_1, since n-gram i of order 1 is token i
    log_probs_n  [M], natural logarithm of p(last token | the tokens before it)
    back_offs_n  [M], below the highest order: natural logarithm of the weight of shorter histories after these n tokens
    begins_n     int32 [M + 1], below the highest order: the n-grams of order n + 1 with history i are begins_n[i] to begins_n[i + 1]
The log-probability of a token is that of the longest n-gram found plus the back-off weights of all longer histories that are known.
"""

import jax
import jax.numpy as jnp
import numpy as np


def find(xp, tables: dict, n: int, vocab_size: int, histories, tokens):
    """Numbers of n-grams of order n >= 2, from those of their histories and their last tokens, of one shape; -1 where either is unknown.

    `xp` is numpy or jax.numpy. The search is by bisection among the n-grams with the history, of which there are V at most.
    """
    begins, last = tables[f"begins_{n - 1}"], tables[f"tokens_{n}"]
    if not last.size:
        return xp.full(histories.shape, -1, np.int32)
    known = (histories >= 0) & (tokens >= 0)
    low, end = begins[xp.maximum(histories, 0)], begins[xp.maximum(histories, 0) + 1]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) >> 1
        # Where low has met high the middle may lie beyond the last n-gram.
        smaller = (low < high) & (last[xp.minimum(middle, last.size - 1)] < tokens)
        return xp.where(smaller, middle + 1, low), xp.where(smaller, high, middle)

    # A loop that is not unrolled compiles in no time; XLA would fuse the steps of the other and search again for each.
    repeat = jax.lax.fori_loop if xp is jnp else _repeat
    low, _ = repeat(0, int(vocab_size).bit_length(), halve, (low, end))
    found = known & (low < end) & (last[xp.minimum(low, last.size - 1)] == tokens)
    return xp.where(found, low, -1)


def _repeat(first: int, stop: int, body, state):
    """`jax.lax.fori_loop` on the host."""
    for i in range(first, stop):
        state = body(i, state)
    return state


def histories(xp, tables: dict, order: int, vocab_size: int, tokens, begins) -> list:
    """For n = 1 to order - 1, the number [B, T] of the n-gram that ends at each token [B, T]; -1 where there is none.

    `begins` [B, T]: no n-gram goes back beyond such a place. A token of -1 is none.
    """
    found = [xp.where(tokens < 0, -1, tokens)] if order > 1 else []
    for n in range(2, order):
        before = xp.concatenate([xp.full_like(tokens[:, :1], -1), found[-1][:, :-1]], axis=1)
        found.append(find(xp, tables, n, vocab_size, xp.where(begins, -1, before), tokens))
    return found


def log_probs(tables: dict, order: int, vocab_size: int, tokens: np.ndarray, targets: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 [B, T] of targets [B, T], of which tokens [B, T] are the tokens before.

    The history of a place are the last order - 1 tokens up to it, within its segment [B, T]. What padding gets means nothing.
    """
    begins = np.ones(tokens.shape, bool)
    begins[:, 1:] = np.diff(segments, axis=1) != 0
    result = tables["log_probs_1"][targets].astype(np.float64).reshape(-1)
    for n, numbers in enumerate(histories(np, tables, order, vocab_size, tokens, begins), 1):
        known = np.flatnonzero(numbers >= 0)
        numbers = numbers.reshape(-1)[known]
        found = find(np, tables, n + 1, vocab_size, numbers, targets.reshape(-1)[known])
        result[known] += tables[f"back_offs_{n}"][numbers]
        result[known[found >= 0]] = tables[f"log_probs_{n + 1}"][found[found >= 0]]
    return result.reshape(targets.shape)


def distribution(tables: dict, order: int, vocab_size: int, history: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 [B, V] of the token after the last order - 1 tokens [B, order - 1], padded with -1 on the left."""
    result = np.tile(tables["log_probs_1"].astype(np.float64), (len(history), 1))
    for n, numbers in enumerate(histories(np, tables, order, vocab_size, history, np.zeros(history.shape, bool)), 1):
        known = np.flatnonzero(numbers[:, -1] >= 0)
        last = numbers[known, -1]
        result[known] += tables[f"back_offs_{n}"][last, None]
        first, stop = (tables[f"begins_{n}"][last + i].astype(np.int64) for i in (0, 1))
        counts = stop - first
        # The n-grams that go on from these histories, all in one array.
        places = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        result[np.repeat(known, counts), tables[f"tokens_{n + 1}"][places]] = tables[f"log_probs_{n + 1}"][places]
    return result


def traced_distribution(tables: dict, order: int, vocab_size: int, history):
    """`distribution` in float32 for JAX: every id is looked up, since under `jit` no shape may depend on how many n-grams there are."""
    rows = history.shape[0]
    result = jnp.broadcast_to(tables["log_probs_1"].astype(jnp.float32), (rows, vocab_size))
    ids = jnp.broadcast_to(jnp.arange(vocab_size, dtype=jnp.int32), (rows, vocab_size))
    for n, numbers in enumerate(histories(jnp, tables, order, vocab_size, history, jnp.zeros(history.shape, bool)), 1):
        last = numbers[:, -1:]
        weights = jnp.where(last >= 0, tables[f"back_offs_{n}"][jnp.maximum(last, 0)], 0.0)
        found = find(jnp, tables, n + 1, vocab_size, jnp.broadcast_to(last, ids.shape), ids)
        own = tables[f"log_probs_{n + 1}"]
        longer = own[jnp.maximum(found, 0)] if own.size else 0.0
        result = jnp.where(found >= 0, longer, result + weights).astype(jnp.float32)
    return result
