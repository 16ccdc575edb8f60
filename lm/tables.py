"""The tables of models that are made by counting, on disk: one .npz for each step, sealed with a checksum."""

import hashlib
import json
import pathlib
import zipfile

import numpy as np

from lm.data.files import atomic_file
from lm.errors import CheckpointError

_NAME, _SEAL = "tables.npz", "checksum.json"


class Tables:
    """Nested dicts of NumPy arrays under DIRECTORY/STEP."""

    def __init__(self, directory: pathlib.Path):
        self.directory = pathlib.Path(directory)

    def steps(self) -> list[int]:
        """Steps whose tables are there and sealed, rising."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit() and (path / _SEAL).exists())

    def save(self, step: int, tables: dict, meta: dict):
        """Writes the tables of a step; the seal, written last, says that they are whole. DiskError names the fix."""
        folder = self.directory / str(step)
        with atomic_file(folder / _NAME) as file:
            np.savez(file, **_flat(tables))
        seal = {"sha256": _digest(folder / _NAME), "step": step, **meta}
        with atomic_file(folder / _SEAL) as file:
            file.write(json.dumps(seal).encode())

    def restore(self, step: int | None = None) -> tuple[dict, int, dict]:
        """(tables, step, meta) of a step, by default the last. CheckpointError when there are none or they have changed."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.directory} has no checkpoint yet: train first, or wait for the first one")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(f"{self.directory} has no checkpoint of step {step}: it has {', '.join(map(str, steps))}")
        file = self.directory / str(step) / _NAME
        try:
            seal = json.loads((file.parent / _SEAL).read_text())
            if _digest(file) != seal["sha256"]:
                raise ValueError(f"{file.name} has changed")
            with np.load(file) as arrays:
                return _nested(arrays), step, seal
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"checkpoint {file.parent} is damaged ({error}): delete it and train again") from error


def _digest(file: pathlib.Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _flat(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """{"a/b": array} of {"a": {"b": array}}."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _nested(arrays) -> dict:
    """The inverse of `_flat`."""
    tree: dict = {}
    for path in arrays:
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = arrays[path]
    return tree
