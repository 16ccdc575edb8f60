"""Pipelines: a stack of equal layers cut over the stage axis, with rows going through it in micro-batches.

One loop makes both schedules. With one repeat it is GPipe (Huang et al. 2019): a stage has consecutive layers. With more it is circular
(the interleaved schedule of Narayanan et al. 2021): a micro-batch goes round the stages several times, each time through a thinner
slice of layers, and the bubble shrinks by as much. The backward pass is the loop's derivative: the same schedule reversed.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.parallel.sharding import constrain, extent


def bubble(stages: int, microbatches: int, repeats: int) -> float:
    """Share of a stage's time in which it has nothing to do."""
    return (stages - 1) / (microbatches * repeats + stages - 1)


def pipeline(run, stacked, x, rows, *, microbatches: int, repeats: int):
    """x [B, T, D] through all layers of `stacked`, whose leaves are [L, ...].

    `run(chunk, x, rows)` takes some rows through the layers of a chunk, [l, ...]; `rows` is a tree of arrays [B, ...] that
    belong to the rows of x. Needs B divisible by microbatches, L by stages x repeats, and microbatches >= stages where repeats > 1.
    """
    stages = extent("stage")
    chunks = jax.tree.map(lambda leaf: _chunks(leaf, stages, repeats), stacked)
    inputs, waiting = micro_batches((x, rows), microbatches)

    def one(chunk, lap, x, index):
        chunk, mine = (jax.tree.map(lambda leaf, at=at: leaf[at], tree) for tree, at in ((chunk, lap), (waiting, index)))
        return run(chunk, x, mine)

    every = jax.vmap(one, spmd_axis_name="stage")

    def turn(carry, now):
        passed, store = carry
        visits = now - jnp.arange(stages)  # of micro-batches to each stage, before this one
        x = jnp.roll(passed, 1, axis=0).at[0].set(store[now % microbatches])
        x = constrain(x, "stage", "batch", "residual_time", "act_width")
        passed = every(chunks, jnp.clip(visits // microbatches, 0, repeats - 1), x, visits % microbatches)
        passed = constrain(passed, "stage", "batch", "residual_time", "act_width")
        # What leaves the last stage waits where its input was, for the next lap or the end.
        last = now - (stages - 1)
        slot = last % microbatches
        return (passed, store.at[slot].set(jnp.where(last >= 0, passed[-1], store[slot]))), None

    start = jnp.zeros((stages, *inputs.shape[1:]), x.dtype), inputs
    (_, store), _ = jax.lax.scan(turn, start, jnp.arange(microbatches * repeats + stages - 1))
    return constrain(jnp.swapaxes(store, 0, 1).reshape(x.shape), "batch", "residual_time", "act_width")


def micro_batches(rows, count: int):
    """A tree of [B, ...] as [M, B / M, ...]: row r goes to micro-batch r mod M, so that each device cuts its own rows and nothing moves."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1), rows)


def _chunks(leaf, stages, repeats):
    """[L, ...] to [S, R, l, ...], of which stage s has the layers (r S + s) l to (r S + s + 1) l - 1.

    Parameters lie in one order whatever the schedule, so checkpoints do not know it: with repeats, stages trade layers once a step.
    """
    cut = jnp.swapaxes(leaf.reshape(repeats, stages, -1, *leaf.shape[1:]), 0, 1)
    spec = PartitionSpec("stage", None, None, *[PartitionSpec.UNCONSTRAINED] * (cut.ndim - 3))
    return jax.lax.with_sharding_constraint(cut, spec)
