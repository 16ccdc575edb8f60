"""The job of a config without its text: what stands for documents and tokenizers until they are read, in their shapes."""

import pathlib

import numpy as np

from lm import objectives
from lm.config.durations import parse
from lm.config.model_keys import COUNTED
from lm.data.prepare import PreparedData, Tokenizers, prepare, stored_tokenizers
from lm.data.sources import split_spec
from lm.data.store import SPLITS, TokenStore
from lm.data.tokenizer_files import is_tokenizer_path, open_tokenizer
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.parallel import layout as layouts
from lm.parallel import make_mesh
from lm.train.job import Job, lay_out

# Batches of documents that stand for a text: enough for an epoch to have several steps.
_BATCHES = 8
# The first ids of a WordPiece trained here (lm/data/tokenizer_training.py): with them a masked model needs no ids of its own.
_WORDPIECE_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Unread:
    """Stands for a tokenizer that text has yet to train: it has the ids that the config asks for, and no pieces."""

    kind, pad_id, bos_id, eos_id = "unread", 0, 1, 2

    def __init__(self, vocab_size: int, marks: tuple[str, ...] = ()):
        self.vocab_size, self._marks = vocab_size, marks

    def id_of(self, token: str) -> int | None:
        """The id of a mark that training will give it; None for anything else."""
        return self._marks.index(token) if token in self._marks else None

    def pieces(self) -> list[bytes]:
        """Nothing is known of them."""
        return [b""] * self.vocab_size


def tokenizers_of(config) -> Tokenizers:
    """The tokenizers of a config, or what stands for them until text is read."""
    data = config.data
    for spec in data.source:
        if split_spec(spec)[0] == "store":
            return stored_tokenizers(spec)
    target = _tokenizer(data, data.tokenizer, data.vocab_size)
    if not objectives.OBJECTIVES[config.objective.name].paired:
        return Tokenizers(target)
    if data.joint_tokenizer:
        return Tokenizers(target, target)
    return Tokenizers(target, _tokenizer(data, data.source_tokenizer or data.tokenizer, data.source_vocab_size or data.vocab_size))


def _tokenizer(data, name: str, vocab_size: int):
    if name == "bytes":
        return ByteTokenizer()
    if name == "words":  # how many there are, and how often, only the text knows
        return prepare(data, data.tokenizer_seed, progress=True).tokenizer
    if is_tokenizer_path(name):
        return open_tokenizer(name, data.allow_lossy, data.eos_token)
    return Unread(vocab_size, _WORDPIECE_MARKS if name == "wordpiece" else ())


def fingerprints(config) -> list[str]:
    """Of the tokenizers that a config names by their files, whose content may change under the same name."""
    data = config.data
    named = [open_tokenizer(name, data.allow_lossy, data.eos_token) for name in (data.tokenizer, data.source_tokenizer)
             if is_tokenizer_path(name)]
    stored = [tokenizer for spec in data.source if split_spec(spec)[0] == "store" for tokenizer in stored_tokenizers(spec) if tokenizer]
    return [tokenizer.fingerprint() for tokenizer in (*named, *stored)]


def absent_data(config) -> PreparedData:
    """Stands for the prepared text of a config: documents of data.context tokens, or pairs of them, which are counted up and not stored."""
    tokenizers, count = tokenizers_of(config), len(config.data.source)
    sides = [_store(config, tokenizer.vocab_size) for tokenizer in tokenizers if tokenizer]
    sources = [[dict.fromkeys(SPLITS, side) for _ in range(count)] for side in sides]
    return PreparedData(tokenizers.target, sources[0], np.full(count, 1 / count), list(config.data.source), "absent", [],
                        source_tokenizer=tokenizers.source, source_sides=sources[1] if tokenizers.source else [])


def known_length(config) -> bool:
    """Whether a run's steps are known without its text: not where train.steps counts epochs, of which what stands for it has others."""
    return parse("train.steps", config.train.steps)[1] != "epochs"


def _store(config, vocab_size: int) -> TokenStore:
    documents, length = _BATCHES * config.data.global_batch, config.data.context

    def fetch(starts, stops):
        return [np.arange(start, stop) % vocab_size for start, stop in zip(starts, stops, strict=True)]

    return TokenStore(fetch, np.arange(documents + 1, dtype=np.int64) * length, np.full(documents, length, np.int64),
                      lambda: [str(number) for number in range(documents)])


def job_of(config, devices) -> Job:
    """A training run set up on devices that may be elsewhere, with its text left out. ConfigError as for a run that starts, and for a
    model that is not trained."""
    if config.model.name in COUNTED:
        raise ConfigError(f"model.name={config.model.name} is made by counting: there is no train step to plan")
    mesh = make_mesh(config.mesh, devices)
    layouts.check(config, dict(mesh.shape))
    return lay_out(config, pathlib.Path(), absent_data(config), mesh)
