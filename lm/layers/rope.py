"""Rotary positions (Su et al. 2021) and how their wavelengths are stretched for rows longer than those of training.

linear: positions divided by a factor (Chen et al. 2023). dynamic: the base grows with the document (NTK-aware). yarn: long wavelengths
are stretched, short ones are not (Peng et al. 2023). llama3: the same with other ends (Grattafiori et al. 2024). longrope: a factor for
each wavelength, of which long documents have others (Ding et al. 2024). The numbers are those of Hugging Face's `modeling_rope_utils`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.layers.positions import rotary_angles


class Rope(NamedTuple):
    """The rotation of a head's first `width` units; the fields after `base` are the keys model.rope_* of these names."""

    width: int
    base: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    mscale: float = 0.0
    mscale_all: float = 0.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def by_length(self) -> bool:
        """Whether wavelengths depend on the length of the document."""
        return self.scaling in ("dynamic", "longrope")

    def angles(self, positions, lengths=None):
        """(cos, sin), each [B, T, 1, width / 2] in float32, of positions [B, T]; queries and keys grow by their common factor.

        `lengths`, [B, T] or [B, 1], are the tokens of a token's document; dynamic and longrope read them.
        """
        if self.scaling == "none":
            return rotary_angles(positions, self.width, self.base)
        frequencies = self._by_length(lengths[..., None, None]) if self.by_length else jnp.asarray(FREQUENCIES[self.scaling](self))
        angles = positions[..., None, None].astype(jnp.float32) * frequencies
        scale = ATTENTION.get(self.scaling, lambda rope: 1.0)(self)
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale

    def _by_length(self, lengths):
        """Frequencies [B, T or 1, 1, width / 2] for documents of `lengths` tokens."""
        if self.scaling == "longrope":
            short, long = (plain(self) / np.asarray(factors, np.float32) for factors in (self.short_factors, self.long_factors))
            return jnp.where(lengths > self.original_context, long, short)
        longer = jnp.maximum(lengths, self.original_context).astype(jnp.float32) / self.original_context
        base = self.base * (self.factor * longer - (self.factor - 1)) ** (self.width / (self.width - 2))
        return base ** (-jnp.arange(0, self.width, 2, dtype=jnp.float32) / self.width)


def plain(rope: Rope) -> np.ndarray:
    """Frequencies [width / 2] in float32, in radians a token, before any scaling."""
    return 1 / rope.base ** (np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width))


def _linear(rope):
    return plain(rope) / np.float32(rope.factor)


def _llama3(rope):
    """Wavelengths that turn less than `low_frequency` times in the original context are stretched, those above `high_frequency` are not."""
    frequencies = plain(rope)
    turns = rope.original_context * frequencies / np.float32(2 * math.pi)
    share = np.clip((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0, 1)
    return (share * frequencies + (1 - share) * frequencies / np.float32(rope.factor)).astype(np.float32)


def _yarn(rope):
    """The number of a unit decides, linearly from the one that turns `beta_fast` times to the one that turns `beta_slow` times."""
    def unit(turns):
        return rope.width * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = unit(rope.beta_fast), unit(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    stretched = np.clip((np.arange(rope.width // 2, dtype=np.float32) - low) / ((high - low) or 0.001), 0, 1)
    frequencies = plain(rope)
    return (frequencies / np.float32(rope.factor) * stretched + frequencies * (1 - stretched)).astype(np.float32)


def _yarn_attention(rope) -> float:
    def grown(weight):
        return 0.1 * weight * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0

    if rope.attention_factor:
        return rope.attention_factor
    return grown(rope.mscale) / grown(rope.mscale_all) if rope.mscale and rope.mscale_all else grown(1.0)


def _longrope_attention(rope) -> float:
    if rope.attention_factor:
        return rope.attention_factor
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_context)) if rope.factor > 1 else 1.0


FREQUENCIES = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
ATTENTION = {"yarn": _yarn_attention, "longrope": _longrope_attention}


def document_lengths(positions, segments) -> jax.Array:
    """[B, T]: of each token of packed rows, the tokens of its document up to the last one in the row, by that one's position."""
    count = segments.shape[1]
    last = jnp.concatenate([segments[:, 1:] != segments[:, :-1], jnp.ones_like(segments[:, :1], bool)], axis=1)
    ends = jax.lax.cummin(jnp.where(last, jnp.arange(count), count - 1), axis=1, reverse=True)
    return jnp.take_along_axis(positions, ends, axis=1) + 1
