"""Models of other libraries in and out of work directories."""

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping

import jax
import ml_dtypes
import numpy as np

from lm import config as configs
from lm import models, objectives, run
from lm.checkpoint import Checkpoints
from lm.data.tokenizers import ByteTokenizer, Tokenizer
from lm.errors import ConfigError, DataError, writing
from lm.interop import families
from lm.interop.checkpoint_files import SHARD_BYTES, write_tensors
from lm.interop.families import Reading
from lm.interop.source import Source, open_source
from lm.interop.tables import parameters, tensors
from lm.interop.tokenizers import read_tokenizer, write_tokenizer

SOURCE, FACTS = "source", "import.json"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
GENERATION = "generation_config.json"
# Files of a tokenizer that transformers opens by themselves.
OPENED = {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt"}
LONGEST = 2048  # tokens of a row, unless --context says otherwise: the longest that a model can take may be too much for a machine


def import_run(path, workdir, context: int = 0, tokenizer: Tokenizer | None = None) -> dict:
    """Makes `workdir` a run at step 0 with the weights of the model at `path`; {"family", "parameters", "max_abs_diff", "workdir"}.

    `context` is data.context, by default what the model can take but at most `LONGEST`; `tokenizer` stands for that of the model.
    Nothing is written unless all of it fits. ConfigError or DataError, in one line, where something does not.
    """
    workdir = pathlib.Path(workdir)
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"{workdir} is not empty: give --workdir a new folder")
    source = open_source(path)
    family = families.family_of(source.description)
    reading = family.read(source.description, set(source.tensors))
    tokenizer = _starting(tokenizer or source.tokenizer or _bytes_for(reading, path), source.description)
    config, model = _model(reading, tokenizer, context, workdir)
    there = Watched(source.tensors)
    params = _parameters(reading, there, model)
    with whole(workdir) as folder:
        _write_run(folder, config, tokenizer, source, params, _facts(family, reading, there))
    return {"family": family.name, "parameters": _count(params), "max_abs_diff": None, "workdir": str(workdir)}


@contextlib.contextmanager
def whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill that becomes `folder` at the end; nothing is left of it when something goes wrong before."""
    place = folder.parent / f"{folder.name}.unfinished"
    with writing(folder):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            yield place
            if folder.exists():
                folder.rmdir()
            place.rename(folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _bytes_for(reading: Reading, path) -> Tokenizer:
    """The tokenizer of a model that came without one: its ids may be bytes. ConfigError where there are too few or too many of them."""
    if reading.keys.get("model.vocab_rows") == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    raise ConfigError(f"{path} has no tokenizer: put its tokenizer.json or .model file there, or name one with --tokenizer")


def _starting(tokenizer: Tokenizer, description: dict) -> Tokenizer:
    """The tokenizer with the bos that the decoder of an encoder-decoder begins with (T5's is padding)."""
    start = description.get("decoder_start_token_id") if description.get("is_encoder_decoder") else None
    return tokenizer if start in (None, tokenizer.bos_id) else tokenizer.changed(bos_id=start)


def _count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _model(reading: Reading, tokenizer: Tokenizer, context: int, workdir: pathlib.Path):
    """(config of the run, its model)."""
    config = configs.default()
    for key, value in reading.keys.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    config.data.context = context or min(config.model.max_positions or LONGEST, LONGEST)
    config.data.tokenizer = str(workdir / "tokenizer")
    config = configs.validate(config)
    objective = objectives.make(config, tokenizer, tokenizer if objectives.OBJECTIVES[config.objective.name].paired else None)
    return config, objective.model(config)


def _parameters(reading: Reading, there: Mapping[str, np.ndarray], model: models.Model):
    for name, other in reading.tied.items():
        if name in there and other in there and not np.array_equal(there[name], there[other]):
            raise DataError(f"tensors {name} and {other} differ, and config.json says that they are one: set its tie_word_embeddings to "
                            "false if both are meant")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return parameters(reading.table, there, shapes, (*reading.ignored, *map(re.escape, reading.tied)))


class Watched(Mapping):
    """Tensors, and in `types` the types of those that were read: reading one again would cost as much again."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors, self.types = tensors, {}

    def __getitem__(self, name: str) -> np.ndarray:
        value = self._tensors[name]
        self.types[name] = value.dtype.name
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _facts(family: families.Family, reading: Reading, there: Watched) -> dict:
    """What an export must know of the model that came in, beside its config.json: names and types of the tensors."""
    common = max(DTYPES, key=list(there.types.values()).count)
    return {"family": family.name, "dtype": common, "other_dtypes": {name: kind for name, kind in there.types.items() if kind != common},
            "names": sorted(there), "tied": sorted(reading.tied.keys() & set(there))}


def _write_run(workdir: pathlib.Path, config, tokenizer: Tokenizer, source: Source, params, facts: dict):
    with writing(workdir):
        folder = workdir / SOURCE
        folder.mkdir(parents=True)
        for file in source.files:
            shutil.copyfile(file, folder / file.name)
        (folder / "config.json").write_text(json.dumps(source.description, indent=2) + "\n", encoding="utf-8")
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        checkpoints.save(0, {"params": jax.tree.map(jax.numpy.asarray, params)}, {"tokens": 0, "seconds": 0.0, "skipped": 0})
    finally:
        checkpoints.close()
    paired = objectives.OBJECTIVES[config.objective.name].paired
    run.write(workdir, config, config, tokenizer, tokenizer if paired else None, None)


def export_run(workdir, folder, dtype: str = "", shard_bytes: int = SHARD_BYTES, step: int | None = None) -> dict:
    """Writes a run as a folder that the transformers library opens; {"family", "parameters", "dtype", "max_abs_diff", "folder"}.

    An imported model goes out under the names, and unless `dtype` says otherwise in the types, in which it came. ConfigError where
    the family of models has no counterpart, or the folder is not empty.
    """
    folder, opened = pathlib.Path(folder), run.open_run(workdir)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: give --to a new folder")
    source = opened.workdir / SOURCE
    family, reading, description, facts = _way_out(opened, source)
    params, _ = opened.parameters(step=step)
    types = (lambda name: DTYPES[dtype]) if dtype else lambda name: DTYPES[facts["other_dtypes"].get(name, facts["dtype"])]
    kind = dtype or facts["dtype"]
    with whole(folder) as place:
        write_tensors(place, _typed(reading, params, facts["tied"], types), shard_bytes)
        _write_beside(place, description | {"dtype": kind, "torch_dtype": kind}, source, opened)  # by its newer and its older name
    return {"family": family.name, "parameters": _count(params), "dtype": kind, "max_abs_diff": None,
            "folder": str(folder)}


def _way_out(opened: run.Run, source: pathlib.Path) -> tuple[families.Family, Reading, dict, dict]:
    """(family, how it stores this model, config.json, what `_facts` has kept of it) of a run, as it came in if it still is what came in."""
    facts = {"dtype": "float32", "other_dtypes": {}, "names": [], "tied": []}
    if (source / FACTS).is_file():
        description, facts = (json.loads((source / name).read_text(encoding="utf-8")) for name in ("config.json", FACTS))
        family = families.family_of(description)
        reading = family.read(description, set(facts["names"]))
        model = {key: value for key, value in reading.keys.items() if key.startswith("model.")}
        if all(opened.config.model[key.removeprefix("model.")] == value for key, value in model.items()):
            return family, reading, description, facts
    description = families.written(opened.config, _sizes(opened))
    for role in ("bos", "eos", "pad"):
        if description.get(f"{role}_token_id") is None:
            description[f"{role}_token_id"] = getattr(opened.tokenizer, f"{role}_id")
    family = families.family_of(description)
    return family, family.read(description, set()), description, facts | {"other_dtypes": {}, "tied": []}


def _sizes(opened: run.Run) -> models.Sizes:
    model = opened.model
    return models.Sizes(model.vocab_size, model.max_positions or opened.config.data.context, opened.objective.source_vocab_size,
                        opened.tokenizer.bos_id)


def _typed(reading: Reading, params, tied: list[str], types) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in their types, each tied one after the tensor that it repeats."""
    copies = {}
    for name in tied:
        copies.setdefault(reading.tied[name], []).append(name)
    for name, value in tensors(reading.table, params):
        for copy in (name, *copies.get(name, ())):
            yield copy, value.astype(types(copy))


def _write_beside(folder: pathlib.Path, description: dict, source: pathlib.Path, opened: run.Run):
    """config.json, generation_config.json where one came in, and the tokenizer: its files as they came while it is still that one."""
    kept = [path for path in source.iterdir() if path.name not in ("config.json", FACTS)] if source.is_dir() else []
    own = not _came_with(source, opened, {path.name for path in kept})
    for path in kept:
        if path.name == GENERATION or not own:
            shutil.copyfile(path, folder / path.name)
    if own:
        write_tokenizer(opened.tokenizer, folder, marks=opened.objective.marks())
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _came_with(source: pathlib.Path, opened: run.Run, names: set[str]) -> bool:
    """Whether a run's tokenizer is the one that came in, in files that transformers opens."""
    if not (names & OPENED or {"vocab.json", "merges.txt"} <= names):
        return False
    there = read_tokenizer(source)
    if there is None:
        return False
    there = _starting(there, json.loads((source / "config.json").read_text(encoding="utf-8")))
    says = lambda tokenizer: (tokenizer.fingerprint(), tokenizer.prompt_bos, tokenizer.stop_ids, tokenizer.chat_template)  # noqa: E731
    return says(there) == says(opened.tokenizer)
