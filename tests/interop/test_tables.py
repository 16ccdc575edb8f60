"""Tables of names: both ways, each tensor once, and what is said of tensors that do not fit."""

import jax
import ml_dtypes
import numpy as np
import pytest

from lm.errors import DataError
from lm.interop.tables import SAME, TRANSPOSED, Transform, columns, dense, norm, parameters, parts, row, tensors

TABLE = (
    row("wte", "inputs/embedding"),
    *dense("h.{layer}.up", "body/{layer}/up"),
    *norm("h.{layer}.ln", "body/{layer}/norm", bias=False),
    row("h.{layer}.qkv", ("body/{layer}/query", "body/{layer}/key"), columns((4, 2))),
    row("h.{layer}.qkv_bias", ("body/{layer}/query_bias", "body/{layer}/key_bias"), parts((4, 2))),
)


def layer(rng):
    """Their tensors of one layer, by what follows its number."""
    shapes = {"up.weight": (5, 3), "up.bias": (5,), "ln.weight": (3,), "qkv": (6, 3), "qkv_bias": (6,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def theirs():
    """All tensors of a model of two layers."""
    rng = np.random.default_rng(0)
    named = {f"h.{i}.{name}": value for i in range(2) for name, value in layer(rng).items()}
    return named | {"wte": rng.standard_normal((7, 3)).astype(np.float32)}


def shapes_of(stacked: bool):
    """Our tree for them."""
    one = {"up": {"kernel": (3, 5), "bias": (5,)}, "norm": {"scale": (3,)}, "query": (3, 4), "key": (3, 2), "query_bias": (4,),
           "key_bias": (2,)}
    leaf = lambda shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    if stacked:
        body = {"layers": jax.tree.map(lambda shape: leaf((2, *shape)), one, is_leaf=is_shape)}
    else:
        body = {f"layer_{i}": jax.tree.map(leaf, one, is_leaf=is_shape) for i in range(2)}
    return {"inputs": {"embedding": leaf((7, 3))}, "body": body}


@pytest.mark.parametrize("stacked", [True, False])
def test_a_table_is_read_both_ways(theirs, stacked):
    params = parameters(TABLE, theirs, shapes_of(stacked))
    second = jax.tree.map(lambda x: x[1], params["body"]["layers"]) if stacked else params["body"]["layer_1"]
    np.testing.assert_array_equal(second["up"]["kernel"], theirs["h.1.up.weight"].T)
    np.testing.assert_array_equal(second["query"], theirs["h.1.qkv"][:4].T)
    np.testing.assert_array_equal(second["key"], theirs["h.1.qkv"][4:].T)
    np.testing.assert_array_equal(second["key_bias"], theirs["h.1.qkv_bias"][4:])
    back = list(tensors(TABLE, params))
    assert sorted(name for name, _ in back) == sorted(theirs)  # each once
    for name, value in back:
        assert value.flags.c_contiguous and value.tobytes() == theirs[name].tobytes(), name


def test_every_transform_is_undone_by_its_inverse():
    rng = np.random.default_rng(1)
    for transform, shape in ((SAME, (4, 3)), (TRANSPOSED, (4, 3)), (columns((1, 3)), (4, 3)), (parts((1, 3)), (4,))):
        value = rng.standard_normal(shape)
        (again,) = transform.theirs(*transform.ours(value))
        np.testing.assert_array_equal(again, value)


def test_half_precision_becomes_float32_and_other_types_are_refused(theirs):
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in theirs.items()}
    params = parameters(TABLE, half, shapes_of(True))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    for name, value in tensors(TABLE, params):
        assert value.astype(ml_dtypes.bfloat16).tobytes() == half[name].tobytes()
    with pytest.raises(DataError, match=r"tensor wte is of type float64: only float32, float16 and bfloat16"):
        parameters(TABLE, theirs | {"wte": theirs["wte"].astype(np.float64)}, shapes_of(True))


@pytest.mark.parametrize(("change", "message"), [
    (lambda named: named.pop("h.1.up.bias"), r"there is no tensor h\.1\.up\.bias"),
    (lambda named: named.update({"h.2.up.bias": np.zeros(5, np.float32)}), r"tensor h\.2\.up\.bias \(of 1 such\) has no place"),
    (lambda named: named.update({"h.0.qkv": np.zeros((7, 3), np.float32)}),
     r"tensor h\.0\.qkv makes an array \(3, 3\), but \(3, 2\) is meant"),
    (lambda named: named.update({"wte": np.zeros((3, 7), np.float32)}), r"tensor wte makes an array \(3, 7\), but \(7, 3\)"),
])
def test_tensors_that_are_missing_extra_or_of_another_shape_are_named(theirs, change, message):
    change(theirs)
    with pytest.raises(DataError, match=message):
        parameters(TABLE, theirs, shapes_of(True))


def test_buffers_are_left_out_by_pattern(theirs):
    theirs["h.0.attn.mask"] = np.zeros(1, np.float32)
    parameters(TABLE, theirs, shapes_of(True), ignored=(r"h\.\d+\.attn\.mask",))


def test_a_table_that_leaves_a_parameter_out_is_a_mistake(theirs):
    with pytest.raises(ValueError, match="the table makes no"):
        parameters(TABLE[1:], theirs, shapes_of(True), ignored=("wte",))


def test_tensors_are_read_one_at_a_time(theirs):
    read = []

    class Watched(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    parameters(TABLE, Watched(theirs), shapes_of(True))
    assert sorted(read) == sorted(theirs)
    assert isinstance(SAME, Transform)
