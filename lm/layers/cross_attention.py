"""Attention from the tokens of a target to the states of its source (Vaswani et al. 2017)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.attention import Cache, Mask, attend, attend_heads_first, heads_first, masked_attend, query_scale, unscaled
from lm.layers.dense import Kernel, project
from lm.parallel import constrain

WEIGHTS = "attention_weights"  # the collection that holds them, for who asks for it


class Source(NamedTuple):
    """What a target may read: states [B, S, D], or keys and values made of them before, and which each target token sees, [B, T, S]."""

    states: jax.Array | Cache
    visible: jax.Array


class CrossAttention(nn.Module):
    """[B, T, D] to [B, T, D], reading a source. A token that sees nothing of it gets zeros (before the output's bias)."""

    heads: int
    kv_heads: int
    head_width: int
    width: int
    bias: bool
    output_scale: float
    scaled: bool = True

    def setup(self):
        def kernel(name, heads):
            return Kernel(heads * self.head_width, ("width", "heads"), query_scale(self, name), self.bias)

        self.query, self.key, self.value = kernel("query", self.heads), kernel("key", self.kv_heads), kernel("value", self.kv_heads)
        self.output = Kernel(self.width, ("heads", "width"), self.output_scale, self.bias)

    def __call__(self, x, source: Source):
        batch, length, _ = x.shape
        (q,) = self._heads(x, self.query)
        q = q if self.scaled else unscaled(q)
        if isinstance(source.states, Cache):
            y = attend_heads_first(q, *source.states, source.visible)
        else:
            k, v = self._heads(source.states, self.key, self.value)
            if self.is_mutable_collection(WEIGHTS):
                self.sow(WEIGHTS, "weights", weights_of(q, k, source.visible), init_fn=lambda: None, reduce_fn=lambda _, new: new)
            y = (attend if self.is_initializing() else attend_across)(q, k, v, source.visible)
        y = jnp.where(jnp.any(source.visible, axis=-1)[..., None, None], y, 0)
        y = y.reshape(batch, length, self.heads * self.head_width)
        (y,) = project(y, [self.output(y.shape[-1], x.dtype)], "batch", "time", "act_heads")
        return constrain(y, "batch", "residual_time", "act_width")

    def keys_and_values(self, states) -> Cache:
        """Of source states [B, S, D], once for all tokens that will be decoded."""
        return Cache(*(heads_first(part) for part in self._heads(states, self.key, self.value)))

    def _heads(self, x, *kernels):
        """[B, T, heads, Dh] of x by each of the kernels."""
        parts = project(x, [kernel(x.shape[-1], x.dtype) for kernel in kernels], "batch", "time", "act_width")
        shaped = (part.reshape(*x.shape[:2], -1, self.head_width) for part in parts)
        return [constrain(part, "batch", "time", "act_heads", "act_width") for part in shaped]


def attend_across(q_BTHDh, k_BSKDh, v_BSKDh, visible_BTS):
    """`masked_attend` without an addition to the logits."""
    return masked_attend(q_BTHDh, k_BSKDh, v_BSKDh, Mask(visible_BTS))


def weights_of(q_BTHDh, k_BSKDh, visible_BTS):
    """[B, T, S] in float32: what each query reads of each key, the mean over heads; zeros where it sees nothing."""
    k_BSHDh = jnp.repeat(k_BSKDh, q_BTHDh.shape[2] // k_BSKDh.shape[2], axis=2)
    logits = jnp.einsum("bthd,bshd->bhts", q_BTHDh, k_BSHDh, preferred_element_type=jnp.float32) * q_BTHDh.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1, where=visible_BTS[:, None])
    return jnp.mean(jnp.where(visible_BTS[:, None], weights, 0.0), axis=1)
