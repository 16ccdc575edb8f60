"""Norms of trees of arrays."""

import jax
import jax.numpy as jnp


def global_norm(tree) -> jax.Array:
    """Euclidean norm over all entries of all leaves, summed in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
