"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019), computed in float32."""

import flax.linen as nn
import jax.numpy as jnp

EPSILON = 1e-6


class Norm(nn.Module):
    """Normalises the last axis; `kind` is rmsnorm or layernorm, `bias` adds an offset to layernorm, `epsilon` is added to the variance."""

    kind: str
    bias: bool = False
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        # A product with rsqrt, not a quotient: one reduction and one multiplication per element.
        y = y * (jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon) ** -0.5 * scale
        if self.bias and self.kind == "layernorm":
            y = y + self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), (x.shape[-1],), jnp.float32)
        return y.astype(x.dtype)
