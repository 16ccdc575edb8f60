"""Models of transformers as models of ours, without files between them."""

import functools
import json
from typing import NamedTuple

import jax
import numpy as np

from lm import config, models, objectives, run
from lm.checkpoint import Checkpoints
from lm.data.tokenizers import ByteTokenizer
from lm.interop.families import Reading, family_of
from lm.interop.tables import parameters

PARITY = "needs the extra parity: scripts/test.sh --parity"
# Compiling costs more than running here.
fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


class Imported(NamedTuple):
    """A model of theirs as one of ours: the reading of its description, its tensors by name, our model and its parameters."""

    reading: Reading
    named: dict[str, np.ndarray]
    model: models.Model
    params: dict


def settings(reading, **others):
    """Our config of a reading, with other keys of the section model."""
    whole = config.default()
    for key, value in reading.keys.items():
        section, leaf = key.split(".")
        whole[section][leaf] = value
    whole.model.update(others)
    return config.validate(whole)


def imported(theirs, **others):
    """`Imported` of a model of transformers, whose tied tensors are left out."""
    description = json.loads(theirs.config.to_json_string())
    description["architectures"] = [type(theirs).__name__]
    named = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    reading = family_of(description).read(description, set(named) - _tied(theirs))
    named = {name: array for name, array in named.items() if name not in reading.tied and name not in _tied(theirs)}
    model = build(reading, **others)
    return Imported(reading, named, model, parameters(reading.table, named, jax.eval_shape(model.init, jax.random.key(0))))


def read(description, names=()):
    """The reading of a config.json, with the names of its tensors where they are known."""
    return family_of(description).read(description, set(names))


def same_trees(one, other):
    """Asserts that two trees of parameters are one, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for mine, yours in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(mine, yours)


def build(reading, **others):
    """Our model of a reading."""
    section = settings(reading, **others).model
    return models.build(section, section.vocab_rows, section.max_positions or 64, source_vocab=section.vocab_rows)


def _tied(theirs):
    """Names of the parameters that are others once more, as a file leaves them out."""
    first = {}
    for name, tensor in theirs.state_dict().items():
        first.setdefault(tensor.data_ptr(), name)
    return {name for name, tensor in theirs.state_dict().items() if first[tensor.data_ptr()] != name}


def padded(lengths, vocab, rng, least=0):
    """(tokens, segments, positions) [B, T] in int32 of random rows, padded on the right with 0."""
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    tokens = np.where(real, rng.integers(least, vocab, real.shape), 0)
    positions = np.broadcast_to(np.arange(max(lengths)), real.shape)
    return tuple(np.asarray(x, np.int32) for x in (tokens, real, positions))


def random_tree(model, seed=0):
    """Random values for every parameter of a model of ours."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), jax.eval_shape(model.init, jax.random.key(0)))


def own_run(workdir, name, objective, context=48, **section):
    """A run of ours at `workdir` as training leaves one, with random parameters of a small model that knows bytes."""
    whole = config.default()
    whole.model.update({"name": name, "layers": 2, "width": 24, "heads": 3, "ff_width": 40, **section})
    whole.objective.name, whole.data.context, whole.data.tokenizer = objective, context, "bytes"
    whole = config.validate(whole)
    tokenizer = ByteTokenizer()
    source = tokenizer if objectives.OBJECTIVES[objective].paired else None
    model = objectives.make(whole, tokenizer, source).model(whole)
    run.write(workdir, whole, whole, tokenizer, source, None)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape) * (leaf.shape[-2] ** -0.5 if path[-1].key == "kernel" and len(leaf.shape) > 1 else 0.3)
        return jax.numpy.asarray(value + (path[-1].key == "scale"), np.float32)

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(0, {"params": params}, {"tokens": 0, "seconds": 0.0, "skipped": 0})
    checkpoints.close()
    return workdir
