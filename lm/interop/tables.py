"""Parameters under other names: a table says what a tensor of another library is called here, and is read both ways."""

from typing import NamedTuple

import jax
import numpy as np

from lm.errors import DataError

LAYER = "{layer}"


class Row(NamedTuple):
    """A tensor by its name there and its path here; `{layer}` stands for a layer's number in both. Matrices of PyTorch are transposed."""

    theirs: str
    ours: str
    transpose: bool = False


def dense(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a dense layer with a bias."""
    return Row(f"{theirs}.weight", f"{ours}/kernel", transpose=True), Row(f"{theirs}.bias", f"{ours}/bias")


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a LayerNorm with a bias."""
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")


def parameters(table: tuple[Row, ...], tensors: dict[str, np.ndarray], shapes, ignored: tuple[str, ...] = ()):
    """The tree of parameters that has these tensors, in float32.

    `shapes` is a tree as `jax.eval_shape(model.init, key)` gives it; its layers are stacked, or layer_0, layer_1, ... DataError where
    a tensor is missing, does not fit, or is neither used nor in `ignored`.
    """
    by_path, used = {row.ours: row for row in table}, set()

    def take(name, row, shape):
        if name not in tensors:
            raise DataError(f"there is no tensor {name}: is this another model, or a part of one?")
        used.add(name)
        value = np.asarray(tensors[name], np.float32)
        value = value.T if row.transpose else value
        if value.shape != shape:
            raise DataError(f"tensor {name} is {value.shape}, but {shape} is meant: is this another model's config?")
        return value

    def leaf(path, abstract):
        keys, layer = _without_layer(jax.tree_util.keystr(path, simple=True, separator="/"))
        row = by_path[keys]
        if layer == "layers":
            stack = [take(row.theirs.replace(LAYER, str(i)), row, abstract.shape[1:]) for i in range(abstract.shape[0])]
            return np.stack(stack)
        return take(row.theirs.replace(LAYER, layer.removeprefix("layer_")), row, abstract.shape)

    tree = jax.tree_util.tree_map_with_path(leaf, shapes)
    unknown = sorted(set(tensors) - used - set(ignored))
    if unknown:
        raise DataError(f"tensor {unknown[0]} (of {len(unknown)}) has no place in this model: is this another kind of model?")
    return tree


def tensors(table: tuple[Row, ...], params) -> dict[str, np.ndarray]:
    """The inverse of `parameters`: {name there: array} of a tree of parameters."""
    by_path, named = {row.ours: row for row in table}, {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        keys, layer = _without_layer(jax.tree_util.keystr(path, simple=True, separator="/"))
        row, value = by_path[keys], np.asarray(value)
        parts = enumerate(value) if layer == "layers" else [(layer.removeprefix("layer_"), value)]
        for number, part in parts:
            named[row.theirs.replace(LAYER, str(number))] = np.ascontiguousarray(part.T if row.transpose else part)
    return named


def _without_layer(path: str) -> tuple[str, str]:
    """A path with `{layer}` for the name of its layer, and that name ("" where there is none)."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if part == "layers" or (part.startswith("layer_") and part.removeprefix("layer_").isdigit()):
            return "/".join([*parts[:index], LAYER, *parts[index + 1 :]]), part
    return path, ""
