"""Position-wise feed-forward layers: GELU, SiLU, ReLU and its square (So et al. 2021), and the gated SwiGLU and GEGLU (Shazeer 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.layers.dense import Kernel, project
from lm.parallel import constrain

GELU_SLOPE, GELU_CUBE = (2 / 3.141592653589793) ** 0.5, 0.044715


@jax.custom_vjp
def gelu(x):
    """GELU (Hendrycks and Gimpel 2016) by its tanh; backward it computes the tanh again, so that x alone is kept."""
    return 0.5 * x * (1 + jnp.tanh(GELU_SLOPE * (x + GELU_CUBE * x**3)))


def _gelu_backward(x, d_y):
    tanh = jnp.tanh(GELU_SLOPE * (x + GELU_CUBE * x**3))
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * GELU_SLOPE * (1 + 3 * GELU_CUBE * x**2)
    return ((d_y * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def gelu_erf(x):
    """GELU as it is defined, by the error function, which BERT uses."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x):
    """GELU by a logistic function (Hendrycks and Gimpel 2016), which CLIP uses."""
    return x * jax.nn.sigmoid(1.702 * x)


PLAIN = {"gelu": gelu, "gelu_erf": gelu_erf, "quick_gelu": quick_gelu, "relu": jax.nn.relu, "relu2": lambda x: jnp.square(jax.nn.relu(x)),
         "silu": nn.silu}
# Of these, one product gates another.
GATED = {"swiglu": nn.silu, "geglu": gelu, "geglu_erf": gelu_erf}


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
        if self.activation in GATED:
            gate = Kernel(self.ff_width, ("width", "ff"), bias=self.bias, name="gate")(width, x.dtype)
            gated, linear = project(x, [gate, up], "batch", "time", "act_width")
            y = GATED[self.activation](checkpoint_name(gated, "ff_gate")) * checkpoint_name(linear, "ff_up")
        else:
            y = checkpoint_name(project(x, [up], "batch", "time", "act_width")[0], "ff_up")
            y = PLAIN[self.activation](y)
        y = constrain(checkpoint_name(y, "ff_hidden"), "batch", "time", "act_ff")
        down = Kernel(width, ("ff", "width"), scale=self.output_scale, bias=self.bias, name="down")(self.ff_width, x.dtype)
        (y,) = project(y, [down], "batch", "time", "act_ff")
        return checkpoint_name(constrain(y, "batch", "residual_time", "act_width"), "ff_output")
