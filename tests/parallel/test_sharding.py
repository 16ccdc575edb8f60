"""Logical axes: unknown ones are errors, constraints are really there, and no matrix stays whole on an fsdp mesh."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from lm import config, models
from lm.errors import ConfigError
from lm.parallel import AXES, batch_sharding, check_replication, constrain, make_mesh, parameter_shardings
from lm.parallel.sharding import RULES, partition_spec


def mesh_of(**changes):
    """A mesh of the eight devices."""
    return make_mesh(dict.fromkeys(AXES, 1) | changes)


def model_of(**changes):
    """A small model."""
    section = config.default().model
    with section.unlocked():
        section.update({"layers": 3, "width": 64, "heads": 2} | changes)
    return models.build(section, 32, 16)


FAMILIES = [
    {}, {"scan_layers": False}, {"positions": "learned", "tie_embeddings": False}, {"activation": "swiglu", "qk_norm": True},
    {"name": "rnn"}, {"name": "lstm", "embedding_width": 32}, {"name": "gru", "tie_embeddings": False, "layer_norm": True},
]
named = pytest.mark.parametrize("changes", FAMILIES, ids=lambda changes: "-".join(map(str, changes.values())) or "default")


def test_an_unknown_logical_axis_is_an_error_and_no_replication():
    with pytest.raises(ConfigError, match="unknown logical axis 'widht'"):
        partition_spec(("batch", "widht"))
    with pytest.raises(ConfigError, match="unknown logical axis 'widht'"):
        constrain(jnp.ones((2, 2)), "batch", "widht")
    boxed = {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((8, 8), jnp.float32), ("width", "widht"))}
    with pytest.raises(ConfigError, match="unknown logical axis 'widht'"):
        parameter_shardings(boxed, mesh_of(fsdp=8))


def test_a_parameter_without_logical_axes_is_an_error():
    with pytest.raises(ConfigError, match="has no logical axes"):
        parameter_shardings({"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}, mesh_of(fsdp=8))


def test_every_rule_names_axes_of_the_mesh():
    assert {axis for axes in RULES.values() for axis in axes} <= set(AXES)
    assert partition_spec(("batch", "time", None, "width")) == PartitionSpec(("replica", "fsdp"), None, None, "fsdp")


def test_constrain_wants_a_name_for_every_axis():
    with pytest.raises(ValueError, match="1 logical axes"):
        constrain(jnp.ones((2, 2)), "batch")


def constraints(jaxpr):
    """Sharding constraints in a jaxpr and all that it calls."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "sharding_constraint"
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            count += constraints(inner) if hasattr(inner, "eqns") else 0
    return count


# The embedding, and in a layer: query, key, value, the feed-forward units and the layer's output. A scan has its layer once.
# In a recurrent layer: its recurrent matrix and its output.
@pytest.mark.parametrize(("changes", "expected"), [
    ({"scan_layers": False}, 1 + 3 * 5), ({"scan_layers": True}, 1 + 5), ({"scan_layers": False, "positions": "learned"}, 2 + 3 * 5),
    ({"scan_layers": True, "remat": "full"}, 1 + 5), ({"name": "lstm"}, 1 + 3 * 2),
])
def test_constraints_are_in_the_forward_pass_under_a_mesh_and_only_there(changes, expected):
    model = model_of(**changes)
    params = jax.eval_shape(model.init, jax.random.key(0))
    row = jax.ShapeDtypeStruct((8, 16), jnp.int32)
    batch = {"tokens": row, "segments": row, "positions": row}
    assert constraints(jax.make_jaxpr(model.apply)(params, batch).jaxpr) == 0
    with jax.set_mesh(mesh_of(fsdp=8)):
        # Another function: JAX would give back the trace from before.
        traced = jax.make_jaxpr(lambda params, batch: model.apply(params, batch))(params, batch)
    assert constraints(traced.jaxpr) == expected


def test_a_constraint_lays_the_batch_out_over_the_devices():
    with jax.set_mesh(mesh_of(replica=2, fsdp=4)):
        y = jax.jit(lambda x: constrain(x * 2, "batch", "time"))(jnp.ones((8, 3)))
    assert y.addressable_shards[0].data.shape == (1, 3)
    assert jax.device_put(jnp.ones((8, 3)), batch_sharding(mesh_of(fsdp=8))).addressable_shards[0].data.shape == (1, 3)


@named
def test_every_matrix_is_cut_in_eight_on_an_fsdp_mesh(changes):
    model, mesh = model_of(**changes), mesh_of(fsdp=8)
    shardings = parameter_shardings(jax.eval_shape(model.init_boxed, jax.random.key(0)), mesh)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(shardings) == jax.tree.structure(params)
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True):
        vector = path[-1].key in ("scale", "bias", "recurrent_bias")
        assert math.prod(sharding.shard_shape(leaf.shape)) == leaf.size // (1 if vector else 8), jax.tree_util.keystr(path)
    check_replication(params, shardings, mesh)


@named
def test_a_replica_mesh_copies_everything_and_is_not_refused(changes):
    model, mesh = model_of(**changes), mesh_of(replica=8)
    shardings = parameter_shardings(jax.eval_shape(model.init_boxed, jax.random.key(0)), mesh)
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))
    check_replication(jax.eval_shape(model.init, jax.random.key(0)), shardings, mesh)


@pytest.mark.parametrize(("changes", "named"), [({"width": 60}, "layers/feed_forward/"), ({"name": "lstm", "width": 60}, "layer_0/")])
def test_a_width_that_fsdp_does_not_divide_is_refused_with_the_largest_parameter(changes, named):
    model, mesh = model_of(**changes), mesh_of(fsdp=8)
    shardings = parameter_shardings(jax.eval_shape(model.init_boxed, jax.random.key(0)), mesh)
    with pytest.raises(ConfigError, match=rf"mesh.fsdp=8 leaves 100.0% of the parameter bytes on every device \(largest: {named}"):
        check_replication(jax.eval_shape(model.init, jax.random.key(0)), shardings, mesh)
