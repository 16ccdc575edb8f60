"""Attention of a recurrent decoder to the states of its source: additive (Bahdanau et al. 2015) and multiplicative (Luong et al. 2015).

Additive scores are v . tanh(W q + U k); multiplicative ones are q . (W k) ("general") or q . k ("dot"). What depends on the source
alone, the second product, is computed once for all steps: it is what `Memory` keeps as keys.

With input feeding (Luong et al. 2015, section 3.3) the first layer reads, beside its own input, the attentional state of the step before:
no product of the decoder but that of its inputs can then be made for all times at once.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.dense import Kernel, project
from lm.layers.recurrence import GATES, Recurrence, gate_matrix, step
from lm.parallel import constrain


class Memory(NamedTuple):
    """What a decoder reads of its source: values [B, S, M], keys [B, S, A] and which of them are tokens, `real` [B, S]."""

    values: jax.Array
    keys: jax.Array
    real: jax.Array


def additive_scores(queries, keys, energy):
    """energy . tanh(query + key), [B, T, S] in float32, of queries [B, T, A], keys [B, S, A] and energy [A]."""
    hidden = jnp.tanh(queries[:, :, None] + keys[:, None])
    return jnp.einsum("btsa,a->bts", hidden, energy, preferred_element_type=jnp.float32)


def multiplicative_scores(queries, keys):
    """query . key, [B, T, S] in float32, of queries [B, T, A] and keys [B, S, A]."""
    return jnp.einsum("bta,bsa->bts", queries, keys, preferred_element_type=jnp.float32)


def softmax_over(real, scores):
    """Softmax of scores [B, T, S] over the real [B, S]: exactly 0 elsewhere, and 0 everywhere in a row without any."""
    real = real[:, None]
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, where=real, initial=jnp.finfo(scores.dtype).min))
    weights = jnp.where(real, jnp.exp(jnp.where(real, scores - largest, 0.0)), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def read(memory: Memory, weights):
    """The mean of the values by weights [B, T, S]: [B, T, M] in the type of the values."""
    mean = jnp.einsum("bts,bsm->btm", weights.astype(memory.values.dtype), memory.values, preferred_element_type=jnp.float32)
    return mean.astype(memory.values.dtype)


def remembered(values, real, keys: Kernel | None) -> Memory:
    """A memory of values [B, S, M] whose keys are made by a layer; None takes the values themselves."""
    if keys is None:
        return Memory(values, values, real)
    (made,) = project(values, [keys(values.shape[-1], values.dtype)], "batch", "scan_time", "act_width")
    return Memory(values, constrain(made, "batch", "scan_time", "act_width"), real)


class AttentiveRecurrence(Recurrence):
    """A recurrent layer whose input at every step is its own and what it then reads of the source, by additive attention.

    The state before the step asks. Parameters are those of a `Recurrence` over [x; context], and of the attention.
    """

    remat: bool = False

    @nn.compact
    def __call__(self, x, state, memory: Memory, valid=None):
        """(outputs [B, T, D], contexts [B, T, M], weights [B, T, S], state); where `valid` [B, T] is False the state stays as it is."""
        own, dtype = x.shape[-1], x.dtype
        kernel, recurrent, bias, recurrent_bias = self._parameters(own + memory.values.shape[-1])
        query = Kernel(memory.keys.shape[-1], ("width", "cell"), name="query")(self.width, dtype)
        energy = Kernel(1, ("width", "norm"), name="energy")(memory.keys.shape[-1], dtype).kernel[:, 0]
        # Of the input product only the part of the context must wait for the state.
        projected = self._project(x, kernel[:own], bias)
        of_context = gate_matrix(kernel[own:].astype(dtype), GATES[self.cell])
        recurrent = gate_matrix(recurrent, GATES[self.cell])

        def advance(state, now):
            projected_now, valid_now = now
            (asked,) = project(state[0][:, None].astype(dtype), [query], "batch", "scan_time", "act_width")
            weights = softmax_over(memory.real, additive_scores(asked, memory.keys, energy))
            context = read(memory, weights)[:, 0]
            product = jnp.einsum("bm,mgd->bgd", context, of_context, preferred_element_type=jnp.float32)
            after = step(self.cell, dtype, state, projected_now.astype(jnp.float32) + product, recurrent, recurrent_bias)
            if valid_now is not None:
                after = tuple(jnp.where(valid_now, new, old) for new, old in zip(after, state, strict=True))
            return after, (after[0].astype(dtype), context, weights[:, 0])

        steps = projected, None if valid is None else valid.T[..., None]
        state, parts = jax.lax.scan(jax.checkpoint(advance) if self.remat else advance, state, steps, unroll=min(self.unroll, x.shape[1]))
        return *(jnp.swapaxes(part, 0, 1) for part in parts), state


class Layer(NamedTuple):
    """A recurrent layer in pieces: products of its own input, the matrix [M, G, D] of what is read at each step alone, and the rest.

    `own` is [T, B, G, D], or the bias [G, D] of a layer without an input of its own.
    """

    own: jax.Array
    of_step: jax.Array
    recurrent: jax.Array
    recurrent_bias: jax.Array | None


class SteppedLayer(Recurrence):
    """The parameters of a `Recurrence` over [x; y], of which y [.., M] is known at each step alone."""

    @nn.compact
    def __call__(self, x, inputs: int, dtype) -> Layer:
        """`x` [B, T, N] or None, and M = `inputs`."""
        own = 0 if x is None else x.shape[-1]
        kernel, recurrent, bias, recurrent_bias = self._parameters(own + inputs)
        projected = bias if x is None else self._project(x, kernel[:own], bias)
        of_step, recurrent = (gate_matrix(matrix, GATES[self.cell]) for matrix in (kernel[own:].astype(dtype), recurrent))
        return Layer(projected, of_step, recurrent, recurrent_bias)


class Feeding(NamedTuple):
    """How a decoder with input feeding steps: its cell, whether layers add their input, and how its scan is unrolled and recomputed."""

    cell: str
    residual: bool
    unroll: int
    remat: bool


def fed_decoder(how: Feeding, layers: list[Layer], attentional, memory: Memory, states, masks, valid=None):
    """(attentional states [B, T, O], weights [B, T, S], states) of recurrent layers with Luong's attention and input feeding.

    `states` are those of the layers and last (the attentional state [B, O] before,); `attentional` is the matrix of [context; state];
    `masks` [B, T, D] multiply the outputs of each layer, None is all ones. Where `valid` [B, T] is False all states stay as they are.
    """
    dtype = memory.values.dtype

    def advance(state, now):
        *before, (fed,) = state
        own, masks_now, valid_now = now
        after, x = [], fed.astype(dtype)
        for number, (layer, cell_state) in enumerate(zip(layers, before, strict=True)):
            product = jnp.einsum("bm,mgd->bgd", x, layer.of_step, preferred_element_type=jnp.float32)
            inputs = (layer.own if number else own).astype(jnp.float32) + product
            after.append(step(how.cell, dtype, cell_state, inputs, layer.recurrent, layer.recurrent_bias))
            y = after[-1][0].astype(dtype)
            y = y if masks_now[number] is None else y * masks_now[number]
            x = x + y if how.residual and number else y
        weights = softmax_over(memory.real, multiplicative_scores(x[:, None], memory.keys))
        both = jnp.concatenate([read(memory, weights), x[:, None]], axis=-1)
        hidden = jnp.tanh(project(both, [attentional], "batch", "scan_time", "act_width")[0])[:, 0]
        after.append((hidden.astype(jnp.float32),))
        if valid_now is not None:
            after = jax.tree.map(lambda new, old: jnp.where(valid_now, new, old), tuple(after), state)
        return tuple(after), (hidden, weights[:, 0])

    by_time = [None if mask is None else jnp.swapaxes(mask, 0, 1) for mask in masks]
    steps = layers[0].own, by_time, None if valid is None else valid.T[..., None]
    states, parts = jax.lax.scan(jax.checkpoint(advance) if how.remat else advance, tuple(states), steps,
                                 unroll=min(how.unroll, len(layers[0].own)))
    return *(jnp.swapaxes(part, 0, 1) for part in parts), states
