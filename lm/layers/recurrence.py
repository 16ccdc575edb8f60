"""Recurrent layers over packed rows: Elman (1990), LSTM (Hochreiter and Schmidhuber 1997), GRU (Cho et al. 2014).

The input products of all times are one matrix product before the scan; only the recurrent product is inside it. A state is
reset at the start of every document. The GRU applies its reset gate after the product, as cuDNN and PyTorch do.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import matmul

# Gates of each cell, that is the width of its products in units of the cell's width.
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def rnn_step(state, projected, recurrent):
    """Elman: h = tanh(x + h W). `state` is (h,)."""
    (h,) = state
    return (jnp.tanh(projected + h @ recurrent),)


def lstm_step(state, projected, recurrent):
    """LSTM with gates in the order input, forget, cell, output. `state` is (h, c)."""
    h, c = state
    i, f, g, o = jnp.split(projected + h @ recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_step(state, projected, recurrent, recurrent_bias):
    """GRU with gates in the order reset, update, new; h = (1 - z) n + z h. `state` is (h,)."""
    (h,) = state
    x_r, x_z, x_n = jnp.split(projected, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h @ recurrent, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + recurrent_bias))
    return ((1 - z) * n + z * h,)


class Recurrence(nn.Module):
    """One recurrent layer, [B, T, N] to [B, T, D]. States are tuples of [B, D] in float32."""

    cell: str
    width: int
    unroll: int

    @nn.compact
    def __call__(self, x, state, restart, valid=None):
        """`restart` [B, T] empties the state before a token; where `valid` [B, T] is False the state stays as it is."""
        inputs, gates = x.shape[-1], GATES[self.cell] * self.width
        kernel = self._matrix("input", nn.initializers.normal(inputs**-0.5), ("width", "cell"), (inputs, gates))
        recurrent = self._matrix("recurrent", _orthogonal_gates, ("width", "cell"), (self.width, gates)).astype(x.dtype)
        bias = self._matrix("bias", nn.initializers.zeros, ("cell",), (gates,))
        if self.cell == "lstm":  # the forget gate starts open (Jozefowicz et al. 2015)
            bias = bias + jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), self.width)
        projected = matmul(x, kernel.astype(x.dtype)) + bias.astype(x.dtype)
        extra = ()
        if self.cell == "gru":
            extra = (self._matrix("recurrent_bias", nn.initializers.zeros, ("cell",), (self.width,)).astype(x.dtype),)
        step = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}[self.cell]

        def advance(state, now):
            projected, keep, valid = now
            before = tuple(part * keep for part in state)
            after = step(tuple(part.astype(x.dtype) for part in before), projected, recurrent, *extra)
            after = tuple(part.astype(jnp.float32) for part in after)
            if valid is not None:
                after = tuple(jnp.where(valid, new, old) for new, old in zip(after, state, strict=True))
            return after, after[0].astype(x.dtype)

        time_major = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (projected, 1.0 - restart[..., None].astype(jnp.float32),
                                                                    None if valid is None else valid[..., None]))
        state, outputs = jax.lax.scan(advance, state, time_major, unroll=min(self.unroll, x.shape[1]))
        return jnp.swapaxes(outputs, 0, 1), state

    def _matrix(self, name, init, axes, shape):
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def _orthogonal_gates(rng, shape, dtype):
    """An orthogonal matrix per gate: the state neither explodes nor vanishes at the start (Saxe et al. 2014)."""
    width, gates = shape[0], shape[1] // shape[0]
    blocks = [nn.initializers.orthogonal()(key, (width, width), dtype) for key in jax.random.split(rng, gates)]
    return jnp.concatenate(blocks, axis=1)


def empty_state(cell: str, batch_size: int, width: int) -> tuple[jax.Array, ...]:
    """The state before the first token."""
    return tuple(jnp.zeros((batch_size, width), jnp.float32) for _ in range(2 if cell == "lstm" else 1))
