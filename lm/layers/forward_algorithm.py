"""The forward and the Viterbi algorithm of hidden Markov models (Rabiner 1989) over packed rows, as scans over time.

The state is a distribution over K classes in logs, whose largest entry is taken out before the product with the transitions,
so that a step is a matrix product [B, K] x [K, K]. Everything is float32. The backward pass is autodiff's: it is the backward
algorithm (Eisner 2016), and takes as long as the forward pass does.
"""

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST  # accelerators would round the factors of float32 products


def predictive(log_transition, read, restart):
    """log p(class at t | what was read up to t), [T, B, K].

    log_transition [K, K], from class to class. read [T, B, K]: log p(token read at t | class before it), or, where a sequence
    starts (`restart` [T, B]; it must at the first time), log p(first class). None of them needs to be normalised.
    """
    transition = jnp.exp(log_transition)

    def step(before, now):
        read, restart = now
        after = jnp.where(restart[:, None], read, advance(transition, before, read))
        return after, after

    return jax.lax.scan(step, jnp.zeros_like(read[0]), (read, restart))[1]


def advance(transition, before, read):
    """One step of `predictive`: log of (softmax(before + read) times the transition matrix), [B, K]."""
    joint = before + read
    shifted = jnp.exp(joint - jax.lax.stop_gradient(jnp.max(joint, axis=-1, keepdims=True)))
    return jnp.log(jnp.matmul(shifted, transition, precision=EXACT)) - jnp.log(jnp.sum(shifted, axis=-1, keepdims=True))


def best_path(log_transition, start, emitted, restart):
    """The most probable classes [T, B] int32 of whole sequences (Viterbi 1967); of equal paths, the one with the lower class at the
    last place where they differ.

    start [T, B, K]: log p(first class), read where a sequence starts (`restart` [T, B]). emitted [T, B, K]: log p(token at t | class).
    """

    def step(score, now):
        start, emitted, restart = now
        arriving = score[:, :, None] + log_transition
        parents = jnp.argmax(arriving, axis=1)
        score = jnp.where(restart[:, None], start, jnp.max(arriving, axis=1)) + emitted
        # What ended before a start is settled there: its best last class is the parent of every class.
        return score, (score, parents)

    _, (scores, parents) = jax.lax.scan(step, jnp.zeros_like(start[0]), (start, emitted, restart))

    def back(later, now):
        """`later` [B] is the class at the next time."""
        score, parents, ends = now
        own = jnp.where(ends, jnp.argmax(score, axis=-1), jnp.take_along_axis(parents, later[:, None], axis=1)[:, 0])
        return own, own

    ends = jnp.concatenate([restart[1:], jnp.ones_like(restart[:1])])
    following = jnp.concatenate([parents[1:], parents[:1]])
    _, classes = jax.lax.scan(back, jnp.zeros(start.shape[1], parents.dtype), (scores, following, ends), reverse=True)
    return classes.astype(jnp.int32)
