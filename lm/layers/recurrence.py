"""Recurrent layers over packed rows: Elman (1990), LSTM (Hochreiter and Schmidhuber 1997), GRU (Cho et al. 2014).

The input products of all times are one matrix product before the scan; only the recurrent product is inside it, and its
weight gradient is one product after the backward scan. States are float32 and are reset at the start of every document.
The GRU applies its reset gate after the product, as cuDNN and PyTorch do.

Gates have an axis of their own, [..., G, D], so that tensor parallelism cuts every gate alike: a device has some units of
the state with all their gates, and only the state is gathered at each time.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import again, matmul
from lm.parallel import constrain, extent, gathered, gathers

# Gates of each cell, that is the width of its products in units of the cell's width.
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def rnn_step(state, projected, product, _):
    """Elman: h = tanh(x + h W), from the products x [B, 1, D] and h W [B, 1, D]. `state` is (h,)."""
    return (jnp.tanh(projected + product)[:, 0],)


def lstm_step(state, projected, product, _):
    """LSTM with gates in the order input, forget, cell, output, each product [B, 4, D]. `state` is (h, c)."""
    i, f, g, o = jnp.unstack(projected + product, axis=1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_step(state, projected, product, bias):
    """GRU with gates in the order reset, update, new, each product [B, 3, D]; h = (1 - z) n + z h. `state` is (h,)."""
    x_r, x_z, x_n = jnp.unstack(projected, axis=1)
    h_r, h_z, h_n = jnp.unstack(product, axis=1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + bias))
    return ((1 - z) * n + z * state[0],)


STEPS = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}
# Cells that only see the sum of both products: it is kept for the backward pass, and its gradient is that of either.
OF_SUMS = ("rnn", "lstm")


def _product(form, a, b, dtype):
    """einsum of a and b, multiplied in `dtype` and added up in float32.

    States, and backward their gradients, add up over time: in bfloat16 they would lose what is small.
    """
    return jnp.einsum(form, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _advance(cell, dtype, recurrent, bias, state, projected, keep):
    """(state after a token, state before it, recurrent product)."""
    before = tuple(part * keep for part in state)
    product = _product("bd,dgk->bgk", constrain(before[0], "batch", "act_width"), recurrent, dtype)
    return STEPS[cell](before, projected.astype(jnp.float32), product, bias), before, product


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_cell(cell: str, unroll: int, state, projected, keep, recurrent, bias):
    """(state after the last token, outputs [T, B, D] in float32) of a cell over projected inputs [T, B, G, D].

    `keep` [T, B, 1] is 0 where the state starts anew before a token, else 1. `recurrent` [D, G D] and `bias` (of the GRU's
    recurrent product, None for the others) are float32; products run in the type of `projected`.
    """

    recurrent = gate_matrix(recurrent, GATES[cell])

    def advance(state, now):
        after, _, _ = _advance(cell, projected.dtype, recurrent, bias, state, *now)
        return after, after[0]

    return jax.lax.scan(advance, state, (projected, keep), unroll=unroll)


def _scan_forward(cell, unroll, state, projected, keep, parameter, bias):
    recurrent = gate_matrix(parameter, GATES[cell])

    def advance(state, now):
        after, before, product = _advance(cell, projected.dtype, recurrent, bias, state, *now)
        return after, (after[0], before, now[0].astype(jnp.float32) + product if cell in OF_SUMS else product)

    state, (outputs, befores, products) = jax.lax.scan(advance, state, (projected, keep), unroll=unroll)
    like = jnp.zeros((), projected.dtype)  # carries the type of the products
    return (state, outputs), (befores, like if cell in OF_SUMS else projected, products, keep, parameter, bias)


def _scan_backward(cell, unroll, residuals, cotangents):
    befores, projected, products, keep, parameter, bias = residuals
    if gathers():  # and not what the forward pass gathered: it would have to wait until now
        parameter = jax.lax.optimization_barrier(parameter)
    recurrent, to_parameter = jax.vjp(lambda p: gate_matrix(p, GATES[cell]), parameter)
    transposed = recurrent.astype(projected.dtype).transpose(1, 2, 0)  # once, and not in the body of the loop
    d_state, d_outputs = cotangents
    dtype = projected.dtype

    def retreat(carry, now):
        d_after, d_bias = carry
        before, projected, product, keep, d_output = now
        d_after = (d_after[0] + d_output, *d_after[1:])
        if cell in OF_SUMS:
            _, pull = jax.vjp(lambda before, total: STEPS[cell](before, total, 0.0, None), before, product)
            (d_before, d_product), d_projected, d_bias_now = pull(d_after), None, None
        else:
            _, pull = jax.vjp(STEPS[cell], before, projected.astype(jnp.float32), product, bias)
            d_before, d_projected, d_product, d_bias_now = pull(d_after)
            d_projected = d_projected.astype(dtype)
        d_state = constrain(_product("bgk,gkd->bd", d_product, transposed, dtype), "batch", "act_cell")
        d_before = (d_before[0] + d_state, *d_before[1:])
        carry = tuple(part * keep for part in d_before), jax.tree.map(jnp.add, d_bias, d_bias_now)
        return carry, (d_projected, d_product)

    start = d_state, jax.tree.map(jnp.zeros_like, bias)
    xs = befores, None if cell in OF_SUMS else projected, products, keep, d_outputs
    (d_state, d_bias), (d_projected, d_products) = jax.lax.scan(retreat, start, xs, unroll=unroll, reverse=True)
    if cell in OF_SUMS:
        d_projected = d_products.astype(dtype)
    # One large product over all times and rows, where autodiff would add up T small ones.
    if extent("batch") == 1:
        rows = d_products.shape[0] * d_products.shape[1]
        d_recurrent = _product("nd,nk->dk", befores[0].reshape(rows, -1), d_products.reshape(rows, -1), dtype).reshape(recurrent.shape)
    else:  # rows that are cut over devices do not lie in one piece
        d_recurrent = _product("tbd,tbgk->dgk", constrain(befores[0], "scan_time", "batch", "act_width"), d_products, dtype)
    return d_state, d_projected, None, *to_parameter(d_recurrent), d_bias


scan_cell.defvjp(_scan_forward, _scan_backward)


def scan_valid(cell: str, state, projected, recurrent, bias, valid):
    """`scan_cell` for decoding: where `valid` [T, B, 1] is False the state stays as it is."""

    recurrent = gate_matrix(recurrent, GATES[cell])

    def advance(state, now):
        projected_now, valid_now = now
        after, _, _ = _advance(cell, projected.dtype, recurrent, bias, state, projected_now, 1.0)
        after = tuple(jnp.where(valid_now, new, old) for new, old in zip(after, state, strict=True))
        return after, after[0]

    return jax.lax.scan(advance, state, (projected, valid))


def step(cell: str, dtype, state, projected, recurrent, bias):
    """The state after one token, from its input products [B, G, D]: for a layer whose input depends on its state.

    `recurrent` [D, G, D] is as `gate_matrix` gives it; products run in `dtype`.
    """
    return _advance(cell, dtype, recurrent, bias, state, projected, 1.0)[0]


class Recurrence(nn.Module):
    """One recurrent layer, [B, T, N] to [B, T, D]. States are tuples of [B, D] in float32."""

    cell: str
    width: int
    unroll: int

    @nn.compact
    def __call__(self, x, state, restart, valid=None):
        """`restart` [B, T] empties the state before a token; where `valid` [B, T] is False the state stays as it is."""
        kernel, recurrent, bias, recurrent_bias = self._parameters(x.shape[-1])
        projected = self._project(x, kernel, bias)
        if valid is None:
            keep = 1.0 - restart.T[..., None].astype(jnp.float32)
            state, outputs = scan_cell(self.cell, min(self.unroll, x.shape[1]), state, projected, keep, recurrent, recurrent_bias)
        else:
            state, outputs = scan_valid(self.cell, state, projected, recurrent, recurrent_bias, valid.T[..., None])
        return jnp.swapaxes(outputs, 0, 1).astype(x.dtype), state

    @nn.nowrap
    def _parameters(self, inputs: int):
        """(input matrix [N, G D], recurrent matrix [D, G D], biases of the gates [G, D], the GRU's bias inside its reset gate)."""
        gates = GATES[self.cell]
        kernel = self._matrix("input", nn.initializers.normal(inputs**-0.5), (inputs, gates * self.width))
        recurrent = self._matrix("recurrent", _orthogonal_gates, (self.width, gates * self.width))
        bias = self._vector("bias", gates * self.width).reshape(gates, self.width)
        if self.cell == "lstm":  # the forget gate starts open (Jozefowicz et al. 2015)
            bias = bias + jnp.array([0.0, 1.0, 0.0, 0.0])[:, None]
        return kernel, recurrent, bias, self._vector("recurrent_bias", self.width) if self.cell == "gru" else None

    @nn.nowrap
    def _project(self, x, kernel, bias):
        """The input products of all times, [T, B, G, D]."""
        # Time first before the product, whose result is several times as large. Rows over devices do not lie in one piece.
        product = matmul if extent("batch") == 1 else functools.partial(jnp.tensordot, axes=1)
        gates = GATES[self.cell]
        projected = again(lambda x, kernel: product(x, gate_matrix(kernel, gates)))(jnp.swapaxes(x, 0, 1), kernel.astype(x.dtype))
        return constrain(projected + bias.astype(x.dtype), "scan_time", "batch", "gates", "act_cell")

    def _matrix(self, name, init, shape):
        return self.param(name, nn.with_logical_partitioning(init, ("width", "cell")), shape, jnp.float32)

    def _vector(self, name, size):
        return self.param(name, nn.with_logical_partitioning(nn.initializers.zeros, ("cell",)), (size,), jnp.float32)


def gate_matrix(parameter, gates: int):
    """A parameter [N, G D] as it is multiplied, [N, G, D]: whole along its inputs, and every gate cut alike."""
    parameter = gathered(parameter, "width", "cell")
    return constrain(parameter.reshape(parameter.shape[0], gates, -1), None, "gates", "cell")


def _orthogonal_gates(rng, shape, dtype):
    """An orthogonal matrix per gate: the state neither explodes nor vanishes at the start (Saxe et al. 2014)."""
    width, gates = shape[0], shape[1] // shape[0]
    blocks = jax.lax.map(lambda key: nn.initializers.orthogonal()(key, (width, width), dtype), jax.random.split(rng, gates))
    return jnp.concatenate(blocks, axis=1)


def empty_state(cell: str, batch_size: int, width: int) -> tuple[jax.Array, ...]:
    """The state before the first token."""
    return tuple(jnp.zeros((batch_size, width), jnp.float32) for _ in range(2 if cell == "lstm" else 1))
