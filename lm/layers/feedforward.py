"""Position-wise feed-forward layers: GELU, squared ReLU (So et al. 2021) and SwiGLU (Shazeer 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import Kernel, fused, matmul
from lm.parallel import constrain


class FeedForward(nn.Module):
    """[B, T, D] to [B, T, D] through F units. `output_scale` shrinks the output matrix at initialisation."""

    ff_width: int
    activation: str
    bias: bool
    output_scale: float

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        up = Kernel(self.ff_width, ("width", "ff"), bias=self.bias, name="up")(width, x.dtype)
        if self.activation == "swiglu":
            gate = Kernel(self.ff_width, ("width", "ff"), bias=self.bias, name="gate")(width, x.dtype)
            gated, linear = fused(x, [gate, up])
            y = nn.silu(gated) * linear
        else:
            (y,) = fused(x, [up])
            y = nn.gelu(y, approximate=True) if self.activation == "gelu" else jnp.square(jax.nn.relu(y))
        y = constrain(y, "batch", "time", "act_ff")
        kernel, bias = Kernel(width, ("ff", "width"), scale=self.output_scale, bias=self.bias, name="down")(self.ff_width, x.dtype)
        y = matmul(y, kernel)
        return y if bias is None else y + bias
