"""A config explained before anything runs: parameters, what is done to them, FLOPs and memory. No text is read, but where words are to
be counted.
"""

import math

import jax
import numpy as np

from lm import config as configs
from lm import models, objectives, optim
from lm.data.prepare import prepare, stored_tokenizers
from lm.data.sources import split_spec
from lm.data.tokenizer_files import is_tokenizer_path, open_tokenizer
from lm.data.tokenizers import ByteTokenizer
from lm.parallel.sharding import partition_spec, table

# Models of up to so many parameters are drawn, to show what they begin with.
MOST_DRAWN = 50_000_000


class Unread:
    """Stands for a tokenizer that text has yet to train: it has the ids that the config asks for, and no pieces."""

    kind, pad_id, bos_id, eos_id = "unread", 0, 1, 2

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def pieces(self) -> list[bytes]:
        """Nothing is known of them."""
        return [b""] * self.vocab_size


def tokenizers_of(config) -> tuple:
    """(tokenizer, that of sources or None) of a config, or what stands for them until text is read."""
    data = config.data
    for spec in data.source:
        if split_spec(spec)[0] == "store":
            stored = stored_tokenizers(spec)
            return stored.target, stored.source
    target = _tokenizer(data, data.tokenizer, data.vocab_size)
    if not objectives.OBJECTIVES[config.objective.name].paired:
        return target, None
    if data.joint_tokenizer:
        return target, target
    return target, _tokenizer(data, data.source_tokenizer or data.tokenizer, data.source_vocab_size or data.vocab_size)


def _tokenizer(data, name: str, vocab_size: int):
    if name == "bytes":
        return ByteTokenizer()
    if name == "words":  # how many there are, and how often, only the text knows
        return prepare(data, data.tokenizer_seed, progress=True).tokenizer
    return open_tokenizer(name, data.allow_lossy, data.eos_token) if is_tokenizer_path(name) else Unread(vocab_size)


def parameters(config, model) -> list[dict]:
    """Each parameter: path, shape, logical axes, mesh axes that may cut them, optimizer group, whether it decays, entries, and `init`:
    mean and standard deviation of its first values, null for models of more than MOST_DRAWN entries."""
    if isinstance(model, models.CountedModel):
        return []
    rows, rules = [], table(config.layout.zero)
    boxed = jax.eval_shape(model.init_boxed, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda leaf: hasattr(leaf, "names")):
        name, names = jax.tree_util.keystr(path, simple=True, separator="/"), getattr(leaf, "names", ())
        shape, group = jax.tree.leaves(leaf)[0].shape, optim.group_of(name)
        rows.append({"name": name, "shape": list(shape), "axes": list(names), "mesh": _mesh_axes(names, rules), "group": group,
                     "decays": group == "matrix" and config.optim.weight_decay > 0, "entries": math.prod(shape), "init": None})
    if sum(row["entries"] for row in rows) <= MOST_DRAWN:
        drawn = jax.jit(model.init)(jax.random.key(config.seed))
        for row, leaf in zip(rows, jax.tree.leaves(drawn), strict=True):
            row["init"] = [float(np.mean(leaf)), float(np.std(leaf))]
    return rows


def _mesh_axes(names, rules) -> list:
    return ["x".join(axis) if isinstance(axis, tuple) else axis for axis in partition_spec(tuple(names), rules)]


def model_of(config) -> tuple:
    """(objective, model) of a config."""
    objective = objectives.make(config, *tokenizers_of(config))
    return objective, objective.model(config)


def describe(config) -> dict:
    """{"config", "parameters": see `parameters`, "totals"} of a config; bytes and FLOPs are of the whole model, over all devices."""
    objective, model = model_of(config)
    rows = parameters(config, model)
    tokens, per_token = config.data.global_batch * objective.row_tokens, objective.train_flops(model)
    totals = {
        "model": config.model.name, "objective": config.objective.name, "vocab_size": objective.vocab_size,
        "parameters": sum(row["entries"] for row in rows),
        "embedding_parameters": sum(row["entries"] for row in rows if row["group"] == "embedding"),
        "decayed_parameters": sum(row["entries"] for row in rows if row["decays"]),
        "forward_flops_per_token": objective.forward_flops(model), "train_flops_per_token": per_token,
        "tokens_per_step": tokens, "train_flops_per_step": per_token * tokens, "bytes": _bytes(config, model),
    }
    return {"config": configs.to_json(config), "parameters": rows, "totals": totals}


def _bytes(config, model) -> dict[str, int]:
    """What training keeps between steps, and the gradients; activations come on top (scripts/bench.py memory measures them)."""
    if isinstance(model, models.CountedModel):
        return {}
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = _size(shapes)
    state = _size(jax.eval_shape(optim.optimizer(config.optim).init, shapes))
    return {"parameters": params, "optimizer": state, "ema": params if config.train.ema else 0, "gradients": params}


def _size(tree) -> int:
    return int(sum(np.dtype(leaf.dtype).itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)))


def text_of(description: dict) -> str:
    """A description as a table for people."""
    rows = [("parameter", "shape", "logical axes", "mesh axes", "init", "group", "decays", "entries")]
    for row in description["parameters"]:
        init = "{:.3g} +- {:.3g}".format(*row["init"]) if row["init"] else "-"
        rows.append((row["name"], " x ".join(map(str, row["shape"])), ", ".join(map(str, row["axes"])),
                     ", ".join(str(axis or "-") for axis in row["mesh"]), init, row["group"], "yes" if row["decays"] else "no",
                     f"{row['entries']:,}"))
    return "\n".join([*_table(rows), "", *_facts(description["totals"])])


def _facts(totals: dict) -> list[str]:
    if not totals["parameters"]:
        return [f"{totals['model']}: made by counting; its size follows from the text"]
    sizes = ", ".join(f"{name} {_human(size)}B" for name, size in totals["bytes"].items() if size)
    return [f"{totals['parameters']:,} parameters, {totals['embedding_parameters']:,} of them in embeddings; {totals['vocab_size']:,} ids",
            f"{_human(totals['train_flops_per_token'])}FLOPs for a token, {_human(totals['train_flops_per_step'])}FLOPs for a step of "
            f"{totals['tokens_per_step']:,.0f} tokens", f"between steps and for gradients: {sizes}"]


def _human(number: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 1000 or unit == "P":
            return f"{number:.4g} {unit}"
        number /= 1000


def _table(rows: list[tuple]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def compare(config, other) -> dict:
    """{"config": {key: [a, b]}, "parameters": {path: [shape of a or null, of b]}, "totals": {name: [a, b]}} where two configs differ."""
    a, b = describe(config), describe(other)
    flat = configs.flatten(config), configs.flatten(other)
    shapes = [{row["name"]: row["shape"] for row in each["parameters"]} for each in (a, b)]
    return {
        "config": {name: [flat[0][name], flat[1][name]] for name in flat[0] if flat[0][name] != flat[1][name]},
        "parameters": {name: [each.get(name) for each in shapes] for name in sorted(shapes[0].keys() | shapes[1].keys())
                       if shapes[0].get(name) != shapes[1].get(name)},
        "totals": {name: [a["totals"][name], b["totals"][name]] for name in a["totals"] if a["totals"][name] != b["totals"][name]},
    }


def text_of_difference(difference: dict) -> str:
    """A difference as a table for people."""
    rows = [("what", "first", "second")]
    for part, values in difference.items():
        rows += [(name if part == "config" else f"{part[:-1]} {name}", str(first), str(second)) for name, (first, second) in values.items()]
    return "\n".join(_table(rows)) if len(rows) > 1 else "no difference"
