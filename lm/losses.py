"""Cross-entropy over the vocabulary: a dense form to check against and a chunked one that never holds [B, T, V] logits.

Both return sums, in float32 whatever the type of the hidden states; whoever calls them divides once, by the global sum of
the weights. The z-loss (Chowdhery et al. 2022) is weight * log_normaliser^2 per token.
"""

import functools

import jax
import jax.numpy as jnp

from lm.models import logits_of
from lm.parallel import constrain, extent


def token_losses(hidden, unembedding, targets, z_loss: float = 0.0):
    """(cross-entropy [..., T], z-loss [..., T]) in nats per token, of hidden [..., T, D] and unembedding [D, V]."""
    logits = constrain(logits_of(constrain(hidden, "batch", "time", "act_width"), unembedding), "batch", "time", "act_vocab")
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    if extent("act_vocab") == 1:
        target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    else:  # each device looks among its own columns; to look one up, all would be gathered
        target_logits = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0.0), axis=-1)
    return log_normaliser - target_logits, z_loss * jnp.square(log_normaliser)


def dense_loss(hidden, unembedding, targets, weights, z_loss: float = 0.0):
    """(sum of weighted losses with z-loss, sum of weighted cross-entropies), from all logits at once."""
    cross_entropy, z = token_losses(hidden, unembedding, targets, z_loss)
    return jnp.sum(weights * (cross_entropy + z)), jnp.sum(weights * cross_entropy)


def chunked_loss(hidden, unembedding, targets, weights, z_loss: float, chunk: int):
    """`dense_loss` with the logits of at most `chunk` positions per row at once; `chunk` divides T."""
    return _chunked(hidden, unembedding, targets, weights, z_loss, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(hidden, unembedding, targets, weights, z_loss, chunk):
    def add(sums, part):
        loss = dense_loss(part[0], unembedding, part[1], part[2], z_loss)
        return jax.tree.map(jnp.add, sums, loss), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), _chunks(chunk, hidden, targets, weights))[0]


def _chunks(chunk, *arrays):
    """Each [B, T, ...] cut along time into [T / chunk, B, chunk, ...], so that each device cuts its own stretch of its own rows."""
    devices = extent("time")

    def cut(a):
        a = a.reshape(a.shape[0], devices, -1, chunk // devices, *a.shape[2:])
        return jnp.moveaxis(a, 2, 0).reshape(-1, a.shape[0], chunk, *a.shape[4:])

    return tuple(cut(a) for a in arrays)


def _joined(chunks, shape):
    """The inverse of `_chunks`, for one array."""
    devices = extent("time")
    parts = chunks.reshape(chunks.shape[0], shape[0], devices, -1, *shape[2:])
    return jnp.moveaxis(parts, 0, 2).reshape(shape)


def _chunked_forward(hidden, unembedding, targets, weights, z_loss, chunk):
    """The gradient is taken here, chunk by chunk while the logits exist, and only scaled later: nothing is computed twice."""

    def add(carry, part):
        sums, d_unembedding = carry
        hidden_part, targets_part, weights_part = part
        (d_hidden, d_matrix), loss = jax.grad(
            lambda h, w: _with_aux(dense_loss(h, w, targets_part, weights_part, z_loss)), argnums=(0, 1), has_aux=True,
        )(hidden_part, unembedding)
        return (jax.tree.map(jnp.add, sums, loss), d_unembedding + d_matrix), d_hidden

    zero = jnp.zeros((), jnp.float32)
    start = ((zero, zero), jnp.zeros_like(unembedding))
    (sums, d_unembedding), d_hidden = jax.lax.scan(add, start, _chunks(chunk, hidden, targets, weights))
    return sums, (_joined(d_hidden, hidden.shape), d_unembedding)


def _with_aux(sums):
    return sums[0], sums


def _chunked_backward(z_loss, chunk, residuals, cotangents):
    d_hidden, d_unembedding = residuals
    scale = cotangents[0]  # the second sum is for reports: its gradient is not supported and nobody takes it
    return (scale * d_hidden).astype(d_hidden.dtype), scale * d_unembedding, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
