"""Dense layers and embeddings: float32 parameters with logical axes, products in the compute type."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.parallel import constrain


def matmul(x, kernel):
    """x [..., N] times kernel [N, M], over flattened rows.

    The gradient of the kernel then contracts one dimension instead of two, which XLA's CPU backend runs about twice as fast.
    """
    flat = x.reshape(-1, x.shape[-1])
    return (flat @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Kernel(nn.Module):
    """A weight matrix [inputs, outputs], normal with standard deviation scale / sqrt(inputs)."""

    outputs: int
    axes: tuple[str, str]
    scale: float = 1.0
    bias: bool = False

    @nn.compact
    def __call__(self, inputs: int, dtype) -> tuple[jax.Array, jax.Array | None]:
        init = nn.initializers.normal(self.scale / inputs**0.5)
        kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes), (inputs, self.outputs), jnp.float32)
        if not self.bias:
            return kernel.astype(dtype), None
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, (self.axes[1],)), (self.outputs,), jnp.float32)
        return kernel.astype(dtype), bias.astype(dtype)


def fused(x, kernels: list[tuple[jax.Array, jax.Array | None]]) -> list[jax.Array]:
    """[x @ kernel + bias for each], as one product: one pass over x, and large enough to fill the machine."""
    widths = [kernel.shape[1] for kernel, _ in kernels]
    joined = kernels[0][0] if len(kernels) == 1 else jnp.concatenate([kernel for kernel, _ in kernels], axis=1)
    outputs = matmul(x, joined)
    stops = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    parts = jnp.split(outputs, stops, axis=-1)
    return [part if bias is None else part + bias for part, (_, bias) in zip(parts, kernels, strict=True)]


class Embedding(nn.Module):
    """Rows [V, D] of a table; looked up in the compute type."""

    rows: int
    width: int
    axes: tuple[str, str] = ("vocab", "width")
    std: float = 0.02

    @nn.compact
    def __call__(self, indices, dtype) -> jax.Array:
        """indices [B, T] to [B, T, D]."""
        table = self.param("embedding", nn.with_logical_partitioning(nn.initializers.normal(self.std), self.axes),
                           (self.rows, self.width), jnp.float32)
        return constrain(jnp.take(table, indices, axis=0).astype(dtype), "batch", "time", "act_width")


class Unembedding(nn.Module):
    """The output matrix of an untied model, kept as rows [V, D] like an embedding: its products run faster that way round on CPUs."""

    rows: int
    width: int

    @nn.compact
    def __call__(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(self.width**-0.5), ("vocab", "width"))
        return self.param("kernel", init, (self.rows, self.width), jnp.float32)


class Dropout(nn.Module):
    """Dropout with the mask shared over the axes in `shared` (Gal and Ghahramani 2016 share it over time)."""

    rate: float
    shared: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dropout(self.rate, broadcast_dims=self.shared)(x, deterministic=not train) if self.rate else x
