"""Spans of noise and what becomes of them (Raffel et al. 2020), as functions of arrays; rows are [B, R], with n real tokens first.

Inputs are the row with each span of noise replaced by a sentinel of its own, targets the spans, each after its sentinel; both end with
eos. Sentinels are numbered from the left, so that the two together hold every token of the row.
"""

import numpy as np

from lm.objectives.corrupting import integers, ranks


def counts(length, density, mean):
    """(tokens of noise, spans of them): round(length * density) and round(noise / mean), both at least 1 and leaving as many kept ones.

    Arrays or numbers, halves to the even number; a row of fewer than 2 tokens has neither.
    """
    length = np.asarray(length)
    noise = np.clip(np.rint(length * density).astype(np.int64), 1, np.maximum(length - 1, 1))
    spans = np.clip(np.rint(noise / mean).astype(np.int64), 1, np.minimum(noise, np.maximum(length - noise, 1)))
    real = length >= 2
    return np.where(real, noise, 0), np.where(real, spans, 0)


def sizes(length: int, density: float, mean: float) -> tuple[int, int]:
    """(tokens of inputs, tokens of targets) of a row of `length`, eos included."""
    noise, spans = (int(count) for count in counts(length, density, mean))
    return length - noise + spans + 1, noise + spans + 1


def lengths(inputs: int, density: float, mean: float) -> tuple[int, int]:
    """(tokens R of the longest row whose inputs have at most `inputs` tokens, tokens of its targets); ValueError where none of 2 fits."""
    raw = longest(lambda length: sizes(length, density, mean)[0], inputs)
    return raw, sizes(raw, density, mean)[1]


def longest(size, limit: int) -> int:
    """The largest length whose `size`, which does not fall as the length grows, is at most `limit`. ValueError where none of 2 fits."""
    if size(2) > limit:
        raise ValueError(f"{limit} tokens hold no row of 2")
    low, high = 2, 4
    while size(high) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low


def noise_mask(length: np.ndarray, noise: np.ndarray, spans: np.ndarray, kept_order: np.ndarray, noise_order: np.ndarray) -> np.ndarray:
    """bool [B, R]: spans of kept tokens and of noise by turns, beginning with kept ones and ending with noise.

    Both the `noise` [B] and the kept tokens are cut into `spans` [B] parts of at least one token, every way of cutting being equally
    likely; `kept_order` and `noise_order` [B, R] are uniform.
    """
    place = np.arange(kept_order.shape[1])[None]
    # As many tokens before the k-th span of noise as there are in the first k parts of either kind.
    kept_part = _parts(length - noise, spans, kept_order)
    noise_part = _parts(noise, spans, noise_order)
    most = int(spans.max(initial=0))
    kept_sizes, noise_sizes = _part_sizes(kept_part, most), _part_sizes(noise_part, most)
    ends = np.cumsum(kept_sizes + noise_sizes, axis=1)  # [B, most]
    starts = ends - noise_sizes
    mark = np.zeros((len(length), kept_order.shape[1] + 1), np.int64)
    row = np.broadcast_to(np.arange(len(length))[:, None], starts.shape)
    used = np.arange(most)[None] < spans[:, None]
    np.add.at(mark, (row[used], starts[used]), 1)
    np.add.at(mark, (row[used], ends[used]), -1)
    return (np.cumsum(mark, axis=1)[:, :-1] > 0) & (place < length[:, None])


def _parts(total: np.ndarray, parts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """int64 [B, R]: the part, from 0, of each of the `total` [B] items of a row, cut at random into `parts` [B]; -1 beyond them."""
    place = np.arange(order.shape[1])[None]
    # Parts - 1 of the total - 1 gaps between items are cut.
    gap = place < (total - 1)[:, None]
    cut = gap & (ranks(np.where(gap, order, 2.0)) < (parts - 1)[:, None])
    part = np.cumsum(cut, axis=1) - cut  # the gap after an item is cut: the next item is in the next part
    return np.where(place < total[:, None], part, -1)


def _part_sizes(part: np.ndarray, most: int) -> np.ndarray:
    """int64 [B, most]: items of each part."""
    flat = np.arange(len(part))[:, None] * (most + 1) + np.where(part < 0, most, part)
    return np.bincount(flat.reshape(-1), minlength=len(part) * (most + 1)).reshape(len(part), most + 1)[:, :most]


def suffixes(length: np.ndarray, density: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """int64 [B]: tokens of a suffix, uniform from 1 to round(2 * density * length), at most length - 1; `density` of the row on average."""
    most = np.clip(np.rint(2 * density * length).astype(np.int64), 1, np.maximum(length - 1, 1))
    return np.where(length >= 2, 1 + integers(uniform, most), 0)


def split(tokens: np.ndarray, length: np.ndarray, noise: np.ndarray, sentinel: int, eos: int, first: np.ndarray | None = None):
    """(inputs [B, R + 2], their lengths [B], targets [B, R + 2], their lengths [B]); 0 beyond the lengths.

    tokens and noise [B, R]; `sentinel` is the first of the sentinels. `first` [B] are tokens that stand before the inputs. A row without
    noise has no inputs and no targets.
    """
    count = len(tokens)
    real = np.arange(tokens.shape[1])[None] < length[:, None]
    begins = noise.copy()
    begins[:, 1:] &= ~noise[:, :-1]
    number = np.cumsum(begins, axis=1) - 1
    some = noise.any(axis=1)
    width = tokens.shape[1] + 2 + int(begins.sum(axis=1).max(initial=0))
    inputs, targets = np.zeros((2, count, width), np.int64)
    before = 0 if first is None else 1
    kept = real & (~noise | begins)
    at = np.cumsum(kept, axis=1) - 1 + before
    row = np.broadcast_to(np.arange(count)[:, None], tokens.shape)
    inputs[row[kept], at[kept]] = np.where(begins, sentinel + number, tokens)[kept]
    if first is not None:
        inputs[:, 0] = first
    input_length = kept.sum(axis=1) + before
    inputs[np.arange(count), input_length] = eos
    # A token of noise stands after as many sentinels as spans have begun.
    at = np.cumsum(noise, axis=1) + number
    targets[row[noise], at[noise]] = tokens[noise]
    targets[row[begins], at[begins] - 1] = (sentinel + number)[begins]
    target_length = noise.sum(axis=1) + begins.sum(axis=1)
    targets[np.arange(count), target_length] = eos
    inputs[~some], targets[~some] = 0, 0
    return inputs, np.where(some, input_length + 1, 0), targets, np.where(some, target_length + 1, 0)


def invert(inputs: np.ndarray, targets: np.ndarray, sentinel: int, sentinels: int) -> np.ndarray:
    """The tokens of a row [n] from its inputs and targets without padding, each with the eos at its end, and without a mode token."""
    is_sentinel = lambda token: sentinel <= token < sentinel + sentinels  # noqa: E731
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in targets[:-1].tolist():
        if is_sentinel(token):
            current = spans[token] = []
        else:
            current.append(token)
    tokens = [piece for token in inputs[:-1].tolist() for piece in (spans[token] if is_sentinel(token) else [token])]
    return np.array(tokens, np.int64)
