"""Parameters under other names: a table says which tensors of another library make which of ours, and is read both ways."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np

from lm.errors import DataError

LAYER = "{layer}"
FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Transform(NamedTuple):
    """What becomes of a layer's tensors on the way here and back: two functions of arrays to tuples of arrays, each other's inverse."""

    ours: Callable[..., tuple]
    theirs: Callable[..., tuple]


class Row(NamedTuple):
    """Tensors by their names there and the parameters of ours that they make; `{layer}` stands for a layer's number in all of them."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform


SAME = Transform(lambda *arrays: arrays, lambda *arrays: arrays)
# A matrix of PyTorch's Linear is [outputs, inputs], one of ours [inputs, outputs].
TRANSPOSED = Transform(lambda *arrays: tuple(array.T for array in arrays), lambda *arrays: tuple(array.T for array in arrays))


def parts(sizes: Iterable[int]) -> Transform:
    """One array of theirs, cut along its first axis into several of ours."""
    stops = np.cumsum(list(sizes))[:-1]
    return Transform(lambda array: tuple(np.split(array, stops)), lambda *arrays: (np.concatenate(arrays),))


def columns(sizes: Iterable[int]) -> Transform:
    """One matrix [sum(sizes), D] of theirs, and the matrices [D, size] of ours that it holds one after the other."""
    cut = parts(sizes)
    return Transform(lambda matrix: tuple(part.T for part in cut.ours(matrix)),
                     lambda *matrices: cut.theirs(*(matrix.T for matrix in matrices)))


def row(theirs: str | tuple[str, ...], ours: str | tuple[str, ...], transform: Transform = SAME) -> Row:
    """A row of a table; a single name may stand without its tuple."""
    return Row(*((names,) if isinstance(names, str) else tuple(names) for names in (theirs, ours)), transform)


def dense(theirs: str, ours: str, bias: bool = True) -> tuple[Row, ...]:
    """The rows of a dense layer."""
    kernel = row(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED)
    return (kernel, row(f"{theirs}.bias", f"{ours}/bias")) if bias else (kernel,)


def norm(theirs: str, ours: str, bias: bool = True) -> tuple[Row, ...]:
    """The rows of a LayerNorm, or without a bias of an RMSNorm."""
    scale = row(f"{theirs}.weight", f"{ours}/scale")
    return (scale, row(f"{theirs}.bias", f"{ours}/bias")) if bias else (scale,)


def parameters(table: Iterable[Row], tensors: Mapping[str, np.ndarray], shapes, ignored: Iterable[str] = ()):
    """The tree of float32 parameters that has these tensors, each of which is read once.

    `shapes` is a tree as `jax.eval_shape(model.init, key)` gives it; its layers are stacked, or layer_0, layer_1, ... DataError where
    a tensor is missing, does not fit, is not made of 16- or 32-bit floats, or is neither used nor matched by a pattern in `ignored`.
    """
    tree = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    places, used, filled = _places(tree), set(), set()
    for entry in table:
        for layer in places[entry.ours[0]]:
            names = [name.replace(LAYER, str(layer)) for name in entry.theirs]
            made = entry.transform.ours(*(_float(tensors, name) for name in names))
            for path, value in zip(entry.ours, made, strict=True):
                _put(places[path][layer], value, names)
                filled.add((path, layer))
            used.update(names)
    if missing := {(path, layer) for path, layers in places.items() for layer in layers} - filled:
        raise ValueError(f"the table makes no {sorted(missing, key=str)[0]} of the model")
    unknown = sorted(name for name in set(tensors) - used if not any(re.fullmatch(pattern, name) for pattern in ignored))
    if unknown:
        raise DataError(f"tensor {unknown[0]} (of {len(unknown)} such) has no place in this model: is this another kind of model, or does "
                        "its config.json not belong to it?")
    return tree


def _float(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise DataError(f"there is no tensor {name}: is this another model, or a part of one?")
    value = tensors[name]
    if value.dtype not in FLOATS:
        raise DataError(f"tensor {name} is of type {value.dtype}: only float32, float16 and bfloat16 can be read; save the model in one of "
                        "them")
    return value


def _put(place: np.ndarray, value: np.ndarray, names: list[str]):
    if value.shape != place.shape:
        raise DataError(f"tensor {' + '.join(names)} makes an array {value.shape}, but {place.shape} is meant: is this another model's "
                        "config.json?")
    place[...] = value


def tensors(table: Iterable[Row], params) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of `parameters`: (name there, array), one after the other, of a tree of parameters."""
    places = _places(params)
    for entry in table:
        for layer in places[entry.ours[0]]:
            made = entry.transform.theirs(*(np.asarray(places[path][layer]) for path in entry.ours))
            for name, value in zip(entry.theirs, made, strict=True):
                yield name.replace(LAYER, str(layer)), np.ascontiguousarray(value)


def _places(tree) -> dict[str, dict]:
    """{path with `{layer}`: {layer's number, or None: the array, or the part of a stacked one}}."""
    places: dict[str, dict] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, layer = _without_layer(jax.tree_util.keystr(path, simple=True, separator="/"))
        where = places.setdefault(name, {})
        if layer == "layers":
            where.update({number: leaf[number, ...] for number in range(leaf.shape[0])})
        else:
            where[int(layer.removeprefix("layer_")) if layer else None] = leaf
    return places


def _without_layer(path: str) -> tuple[str, str]:
    """A path with `{layer}` for the name of its layer, and that name ("" where there is none)."""
    steps = path.split("/")
    for index, step in enumerate(steps):
        if step == "layers" or (step.startswith("layer_") and step.removeprefix("layer_").isdigit()):
            return "/".join([*steps[:index], LAYER, *steps[index + 1 :]]), step
    return path, ""
