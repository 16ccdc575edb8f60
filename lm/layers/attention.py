"""Causal self-attention over packed rows (Vaswani et al. 2017), with grouped key/value heads (Ainslie et al. 2023) and a decoding cache."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import Kernel, fused, matmul
from lm.layers.norms import Norm
from lm.layers.positions import rotate
from lm.parallel import constrain


class Cache(NamedTuple):
    """Keys and values of the tokens so far, each [B, S, K, Dh]; rows fill from the left."""

    keys: jax.Array
    values: jax.Array


def causal_mask(segments):
    """[B, T, T]: query t sees key s of the same document when s <= t. Padding (segment 0) sees only its own row's padding."""
    times = jnp.arange(segments.shape[1])
    return (segments[:, :, None] == segments[:, None, :]) & (times[:, None] >= times[None, :])


def attend(q_BTHDh, k_BSKDh, v_BSKDh, mask_BTS):
    """Softmax attention, [B, T, H, Dh]. Logits and softmax in float32; every query must see at least one key."""
    batch, length, heads, head_width = q_BTHDh.shape
    kv_heads = k_BSKDh.shape[2]
    q = q_BTHDh.reshape(batch, length, kv_heads, heads // kv_heads, head_width) * head_width**-0.5
    logits = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKDh, preferred_element_type=jnp.float32)
    logits = jnp.where(mask_BTS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BSKDh.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v_BSKDh).reshape(batch, length, heads, head_width)


class Attention(nn.Module):
    """[B, T, D] to [B, T, D]. With a cache, the T new tokens are written at `starts` [B] and see all that came before."""

    heads: int
    kv_heads: int
    head_width: int
    bias: bool
    qk_norm: bool
    output_scale: float

    @nn.compact
    def __call__(self, x, mask, angles, cache: Cache | None = None, starts=None) -> tuple[jax.Array, Cache | None]:
        batch, length, width = x.shape
        q, k, v = self._project(x)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            cache = Cache(write(cache.keys, k, starts), write(cache.values, v, starts))
            k, v = cache
        y = attend(q, k, v, mask).reshape(batch, length, self.heads * self.head_width)
        kernel, bias = Kernel(width, ("heads", "width"), scale=self.output_scale, bias=self.bias, name="output")(y.shape[-1], x.dtype)
        y = matmul(y, kernel)
        return (y if bias is None else y + bias), cache

    def _project(self, x):
        batch, length, width = x.shape
        names = (("query", self.heads), ("key", self.kv_heads), ("value", self.kv_heads))
        kernels = [Kernel(heads * self.head_width, ("width", "heads"), bias=self.bias, name=name)(width, x.dtype) for name, heads in names]
        q, k, v = (
            constrain(part.reshape(batch, length, heads, self.head_width), "batch", "time", "act_heads", "act_width")
            for part, (_, heads) in zip(fused(x, kernels), names, strict=True)
        )
        if self.qk_norm:
            q, k = Norm("rmsnorm", name="query_norm")(q), Norm("rmsnorm", name="key_norm")(k)
        return q, k, v


def write(cache, new, starts):
    """cache [B, S, K, Dh] with new [B, n, K, Dh] written at row b's starts[b]."""
    return jax.vmap(lambda row, part, start: jax.lax.dynamic_update_slice(row, part, (start, 0, 0)))(cache, new, starts)
