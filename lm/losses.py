"""Cross-entropy over the vocabulary: a dense form to check against and one by chunks, which need not hold [B, T, V] logits.

Both return sums, in float32 whatever the type of the hidden states; whoever calls them divides once, by the global sum of
the weights. The z-loss (Chowdhery et al. 2022) is weight * log_normaliser^2 per token. Label smoothing (Szegedy et al. 2016)
trains on targets of which a share `smoothing` is spread over the whole vocabulary; what is reported is never smoothed.
"""

import functools

import jax
import jax.numpy as jnp

from lm.models import logits_of
from lm.parallel import alone_on_cpu, constrain, extent

# Rows whose logits a CPU makes at once: few enough to stay in its caches, enough to keep matrix products fast (scripts/bench.py train).
CPU_ROWS = 512


def _logits(hidden, unembedding):
    return constrain(logits_of(constrain(hidden, "batch", "time", "act_width"), unembedding), "batch", "time", "act_vocab")


def _of_logits(logits, targets, z_loss):
    """(cross-entropy, z-loss, log-normaliser), each [..., T]."""
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    if extent("act_vocab") == 1:
        target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    else:  # each device looks among its own columns; to look one up, all would be gathered
        target_logits = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0.0), axis=-1)
    return log_normaliser - target_logits, z_loss * jnp.square(log_normaliser), log_normaliser


def token_losses(hidden, unembedding, targets, z_loss: float = 0.0):
    """(cross-entropy [..., T], z-loss [..., T]) in nats per token, of hidden [..., T, D] and unembedding [D, V]."""
    return _of_logits(_logits(hidden, unembedding), targets, z_loss)[:2]


def _smoothed(cross_entropy, logits, log_normaliser, smoothing):
    """(1 - smoothing) * cross-entropy + smoothing * mean over the vocabulary of -log p, [..., T]."""
    if not smoothing:
        return cross_entropy
    return (1 - smoothing) * cross_entropy + smoothing * (log_normaliser - jnp.mean(logits, axis=-1))


def dense_loss(hidden, unembedding, targets, weights, z_loss: float = 0.0, smoothing: float = 0.0):
    """(sum of weighted losses, smoothed and with z-loss, sum of weighted cross-entropies), from all logits at once."""
    logits = _logits(hidden, unembedding)
    cross_entropy, z, log_normaliser = _of_logits(logits, targets, z_loss)
    return _sums(weights, cross_entropy, z, _smoothed(cross_entropy, logits, log_normaliser, smoothing))


def _sums(weights, cross_entropy, z, smoothed):
    return jnp.sum(weights * (smoothed + z)), jnp.sum(weights * cross_entropy)


def loss(hidden, unembedding, targets, weights, z_loss: float = 0.0, chunk: int = 0, smoothing: float = 0.0):
    """`dense_loss` with the logits of at most `chunk` positions per row at once; `chunk` divides T.

    0 is the whole row, but on one CPU: there, logits that stay in the caches are faster.
    """
    chunk = chunk_of(chunk, *targets.shape)
    if chunk == targets.shape[1]:
        return dense_loss(hidden, unembedding, targets, weights, z_loss, smoothing)
    return _chunked(hidden, unembedding, targets, weights, z_loss, smoothing, chunk)


def chunked_token_nats(hidden, unembedding, targets, chunk: int = 0):
    """Cross-entropy [B, T] in nats per token, by chunks as in `loss`; not for gradients."""
    chunk = chunk_of(chunk, *targets.shape)
    parts = jax.lax.map(lambda part: token_losses(part[0], unembedding, part[1])[0], _chunks(chunk, hidden, targets))
    return _joined(parts, targets.shape)


def chunk_of(chunk: int, rows: int, length: int) -> int:
    """Positions per row whose logits exist at once, where a config leaves it at 0."""
    if chunk or not alone_on_cpu():
        return min(chunk, length) or length
    most = max(1, CPU_ROWS // rows)
    return max(size for size in range(1, length + 1) if length % size == 0 and size <= most)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _chunked(hidden, unembedding, targets, weights, z_loss, smoothing, chunk):
    def add(sums, part):
        loss = dense_loss(part[0], unembedding, part[1], part[2], z_loss, smoothing)
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


def _chunked_forward(hidden, unembedding, targets, weights, z_loss, smoothing, chunk):
    """The gradient is taken here, chunk by chunk while the logits exist, and only scaled later: nothing is computed twice."""
    matrix = unembedding.astype(hidden.dtype)

    def add(carry, part):
        sums, d_unembedding = carry
        hidden_part = constrain(part[0], "batch", "time", "act_width")
        loss, d_logits = _with_gradient(hidden_part, matrix, *part[1:], z_loss, smoothing)
        d_hidden = jnp.einsum("btv,dv->btd", d_logits, matrix)
        d_matrix = jnp.einsum("btd,btv->dv", hidden_part, d_logits, preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, sums, loss), d_unembedding + d_matrix), d_hidden

    zero = jnp.zeros((), jnp.float32)
    start = ((zero, zero), jnp.zeros_like(unembedding))
    (sums, d_unembedding), d_hidden = jax.lax.scan(add, start, _chunks(chunk, hidden, targets, weights))
    return sums, (_joined(d_hidden, hidden.shape), d_unembedding)


def _with_gradient(hidden, matrix, targets, weights, z_loss, smoothing):
    """(the sums of `dense_loss`, the gradient of the first by the logits [B, T, V] in hidden's type).

    With p the softmax and n its log-normaliser: weight * (p - share of v + 2 z_loss n p), where the share is smoothing / V, and
    1 - smoothing more at the target. One pass over the logits makes it.
    """
    logits = _logits(hidden, matrix)
    cross_entropy, z, log_normaliser = _of_logits(logits, targets, z_loss)
    d_logits = jnp.exp(logits - log_normaliser[..., None]) * (weights * (1 + 2 * z_loss * log_normaliser))[..., None]
    target_share = (1 - smoothing) * weights if smoothing else weights
    d_logits = d_logits - jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], target_share[..., None], 0.0)
    if smoothing:
        d_logits = d_logits - (smoothing / logits.shape[-1]) * weights[..., None]
    return _sums(weights, cross_entropy, z, _smoothed(cross_entropy, logits, log_normaliser, smoothing)), d_logits.astype(hidden.dtype)


def _chunked_backward(z_loss, smoothing, chunk, residuals, cotangents):
    d_hidden, d_unembedding = residuals
    scale = cotangents[0]  # the second sum is for reports: its gradient is not supported and nobody takes it
    return (scale * d_hidden).astype(d_hidden.dtype), scale * d_unembedding, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
