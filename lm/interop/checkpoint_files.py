"""Tensors in safetensors files, one or several with an index, as the transformers library writes them; read and written one at a time.

Files of pickled objects (.bin, .pt) are refused: loading one runs whatever program its author has put into it.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from lm.errors import ConfigError, DataError, writing

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_BYTES = 5_000_000_000


class Tensors(Mapping):
    """{name: array} of some safetensors files, which is read when it is asked for and not kept."""

    def __init__(self, files: dict[str, pathlib.Path]):
        """`files` has the file of each tensor."""
        self._files, self._opened = files, {}

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._files[name]
        if path not in self._opened:
            self._opened[path] = _open(path)
        try:
            return self._opened[path].get_tensor(name)
        except _safetensors().SafetensorError as error:
            raise DataError(f"{path} gives no tensor {name} ({error}): fetch the file again") from error
        except (TypeError, AttributeError) as error:  # what NumPy has no type for
            kind = self._opened[path].get_slice(name).get_dtype()
            raise DataError(f"tensor {name} of {path} is of type {kind}: only float32, float16 and bfloat16 can be read; save the model in "
                            "one of them") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_tensors(folder) -> Tensors:
    """The tensors of a folder with model.safetensors, or model.safetensors.index.json and what it names. DataError or ConfigError."""
    folder = pathlib.Path(folder)
    if (folder / INDEX).is_file():
        return _open_indexed(folder)
    if (folder / SINGLE).is_file():
        return Tensors(dict.fromkeys(_open(folder / SINGLE).keys(), folder / SINGLE))
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ConfigError(f"{folder} has its weights in {pickled[0]}, a pickle, and loading one runs whatever program is in it: have "
                          "transformers write safetensors (model.save_pretrained(FOLDER)) where you trust its author, and give that folder")
    raise DataError(f"there is no {SINGLE} and no {INDEX} in {folder}: name the folder of a model that the transformers library has saved")


def _open_indexed(folder: pathlib.Path) -> Tensors:
    path = folder / INDEX
    try:
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {name: folder / pathlib.PurePosixPath(file).name for name, file in where.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not an index of safetensors files ({error!r}): fetch it again") from error
    for file in sorted(set(files.values())):
        if not file.is_file():
            raise DataError(f"{path} names {file.name}, which is not there: fetch all files of the model")
        named, there = {name for name, its in files.items() if its == file}, set(_open(file).keys())
        if missing := sorted(named - there):  # a tensor that the index does not name is none of the model's
            raise DataError(f"{path} and {file.name} do not belong together: tensor {missing[0]} is in the index alone; fetch both again")
    return Tensors(files)


def _safetensors():
    try:
        import ml_dtypes  # noqa: F401 - NumPy knows bfloat16 by it
        import safetensors
    except ImportError as error:
        raise ConfigError("reading and writing safetensors needs the package safetensors: pip install -r requirements.txt") from error
    return safetensors


def _open(path: pathlib.Path):
    safetensors = _safetensors()
    try:
        return safetensors.safe_open(path, framework="np").__enter__()
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error}): fetch it again") from error


def write_tensors(folder, items: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES) -> int:
    """Writes tensors into files of at most `shard_bytes` (one tensor more where it alone is larger); returns their number of elements.

    One file is model.safetensors, several are model-0000k-of-0000n.safetensors with their index. No more than a shard is in memory.
    """
    folder = pathlib.Path(folder)
    shards, shard, size, elements, total = [], {}, 0, 0, 0
    with writing(folder):
        for name, value in items:
            if shard and size + value.nbytes > shard_bytes:
                shards.append(_write_shard(folder, len(shards), shard))
                shard, size = {}, 0
            shard[name] = value
            size, total, elements = size + value.nbytes, total + value.nbytes, elements + value.size
        shards.append(_write_shard(folder, len(shards), shard))
        _name_shards(folder, shards, total)
    return elements


def _write_shard(folder: pathlib.Path, number: int, shard: dict[str, np.ndarray]) -> list[str]:
    """Writes one file under a name for now; the names of its tensors."""
    _safetensors()
    from safetensors.numpy import save_file

    save_file(shard, _temporary(folder, number), metadata={"format": "pt"})
    _temporary(folder, number).chmod(folder.stat().st_mode & 0o666)  # safetensors lets nobody else read what it writes
    return list(shard)


def _temporary(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"shard-{number}.tmp"


def _name_shards(folder: pathlib.Path, shards: list[list[str]], total: int):
    """Gives the files their names, now that it is known how many there are, and writes the index."""
    for old in folder.iterdir():
        if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", old.name):
            old.unlink()
    if len(shards) == 1:
        _temporary(folder, 0).rename(folder / SINGLE)
        return
    where = {}
    for number, names in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _temporary(folder, number).rename(folder / name)
        where.update(dict.fromkeys(names, name))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
