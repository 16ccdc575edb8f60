"""What is imported: a folder as the transformers library saves models, or a GGUF file."""

import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lm.data.tokenizers import Tokenizer
from lm.errors import ConfigError, DataError
from lm.interop.checkpoint_files import PICKLED, open_tensors
from lm.interop.tokenizers import read_tokenizer

# Files beside the weights that an export gives back as they were.
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
        "encoder.json", "vocab.bpe")


class Source(NamedTuple):
    """A model of another library: what its config.json says, its tensors by the names and in the layouts of transformers, its tokenizer
    (None where there is none), and the files that an export gives back."""

    description: dict
    tensors: Mapping[str, np.ndarray]
    tokenizer: Tokenizer | None
    files: list[pathlib.Path]


def open_source(path) -> Source:
    """The model in a folder or in a .gguf file. ConfigError or DataError says what is wrong with it."""
    path = pathlib.Path(path)
    if path.suffix == ".gguf" and path.is_file():
        from lm.interop.gguf import open_gguf

        return open_gguf(path)
    if not path.is_dir():
        pickled = path.is_file() and any(path.match(pattern) for pattern in PICKLED)
        raise ConfigError(f"{path} is " + (
            "a pickle, and loading one runs whatever program is in it: give a folder with safetensors" if pickled
            else "neither a folder nor a .gguf file: give what transformers or llama.cpp has saved"))
    description = _description(path / "config.json")
    tensors = open_tensors(path)
    return Source(description, tensors, read_tokenizer(path), [path / name for name in KEPT if (path / name).is_file()])


def _description(path: pathlib.Path) -> dict:
    if not path.is_file():
        raise DataError(f"there is no {path.name} in {path.parent}: name the folder of a model that the transformers library has saved")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): fetch it again") from error
    if not isinstance(description, dict):
        raise DataError(f"{path} is no JSON object: fetch it again")
    return description
