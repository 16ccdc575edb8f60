"""From the data.* keys of a config to open token stores: tokenizer, splits, cache and fingerprints.

A store's folder is named by a fingerprint over format, file contents, options and tokenizer, so it is never stale.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import sys
import time

import numpy as np

from lm.data import files, shards
from lm.data.sources import Source, open_source, split_spec
from lm.data.splits import Fractions, sample, split_of
from lm.data.store import FORMAT, TokenStore, open_splits, read_manifest, token_dtype
from lm.data.tokenizers import ByteTokenizer, Tokenizer, load_model, load_tokenizer, train_tokenizer
from lm.errors import ConfigError, DataError

_TRAINED = ("bpe", "unigram")


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Open stores of all sources of a run, in the order of data.source.

    `sources[i]` maps split to TokenStore, `weights[i]` is that source's share of the examples (they sum to 1), `validation`
    holds the stores of data.validation_source, and `manifests` those of the sources and then of the validation source.
    """

    tokenizer: Tokenizer
    sources: list[dict[str, TokenStore]]
    weights: np.ndarray
    names: list[str]
    fingerprint: str
    manifests: list[dict]
    validation: list[TokenStore] | None = None

    def split_stores(self, split: str) -> list[TokenStore]:
        """The stores of a split that hold documents; for train all sources, in order. Raises DataError when there are none."""
        if split == "validation" and self.validation is not None:
            return self.validation
        stores = [source[split] for source in self.sources if source[split].num_documents]
        if not stores:
            also = ", or data.validation_source" if split == "validation" else ""
            raise DataError(f"the {split} split is empty: use data.documents=line or paragraph, a larger data.{split}_fraction{also}")
        return stores


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A source of documents before it is tokenized; `whole` names the split that takes all of it, if one does."""

    source: Source
    fractions: Fractions
    whole: str
    files: list[dict]

    @property
    def options(self) -> dict:
        if self.whole:
            return self.source.options | {"split": self.whole}
        return self.source.options | {"validation_fraction": self.fractions.validation, "test_fraction": self.fractions.test}

    def inputs(self) -> dict:
        """What decides the documents and their splits."""
        rows = [[row["name"], row["size"], row["hash"]] for row in self.files]
        return {"format": FORMAT, "kind": type(self.source).__name__, "files": rows, "options": self.options}

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        return files.json_digest(self.inputs() | {"tokenizer": tokenizer.fingerprint()})


def prepare(data, seed: int, progress: bool = False) -> PreparedData:
    """Opens the stores of a config's `data`, making those that are not in the cache yet.

    `seed` draws the tokenizer's sample where the text is larger than data.tokenizer_sample_bytes, and nothing else. The
    tokenizer is data.tokenizer's, except that a store: source brings its own and then decides for all. Raises ConfigError
    for a bad value or for tokenizers that differ, DataError for input that cannot be read or used.
    """
    root = files.cache_root(data)
    specs = [*data.source, data.validation_source] if data.validation_source else list(data.source)
    if not data.source:
        raise ConfigError("data.source is empty: name at least one source")
    plans = [None if _is_store(spec) else _plan(spec, data, root, index >= len(data.source)) for index, spec in enumerate(specs)]
    tokenizer = _stored_tokenizer([spec for spec in specs if _is_store(spec)])
    if tokenizer is None:
        tokenizer = _make_tokenizer(plans[:len(data.source)], data, seed, root, progress)
    folders = [_store_folder(spec) if plan is None else _ensure(plan, tokenizer, data, root, progress)
               for spec, plan in zip(specs, plans, strict=True)]
    opened = [open_splits(folder) for folder in folders]
    manifests = [read_manifest(folder) | {"directory": str(folder)} for folder in folders]
    sources = opened[:len(data.source)]
    validation = [store for store in opened[-1].values() if store.num_documents] if data.validation_source else None
    return PreparedData(tokenizer, sources, _weights(sources, data), _names(data.source),
                        files.json_digest([tokenizer.fingerprint(), *(manifest["fingerprint"] for manifest in manifests)]),
                        manifests, validation)


def prepare_into(data, seed: int, directory: str, progress: bool = False) -> dict:
    """Makes the store of the only source in `data` in exactly `directory`. Returns its manifest with "directory".

    Raises DataError when another store, or anything else, is there already.
    """
    if len(data.source) != 1 or data.validation_source or _is_store(data.source[0]):
        raise ConfigError("--out takes the store of one source: give one data.source that is not a store, without data.validation_source")
    root = files.cache_root(data)
    plan = _plan(data.source[0], data, root, False)
    tokenizer = _make_tokenizer([plan], data, seed, root, progress)
    target = pathlib.Path(directory).expanduser().absolute()
    if not (target / "manifest.json").exists() and target.exists() and not _unfinished(target):
        raise DataError(f"{target} is there and is not a token store: give another --out")
    return _build(plan, tokenizer, data, root, target, progress) | {"directory": str(target)}


def _is_store(spec: str) -> bool:
    return split_spec(spec)[0] == "store"


def _store_folder(spec: str) -> str:
    folder = split_spec(spec)[1]
    return folder if files.is_url(folder) else os.path.expanduser(folder)


def _plan(spec: str, data, root: pathlib.Path, whole: bool) -> _Plan:
    source = open_source(spec, data)
    rows = files.hash_files(source.files(), root)
    rows = [row | {"name": name} for row, name in zip(rows, source.names(), strict=True)]
    fractions = Fractions(0.0 if data.validation_source else data.validation_fraction, data.test_fraction)
    return _Plan(source, fractions, "validation" if whole else "", rows)


def _stored_tokenizer(specs: list[str]) -> Tokenizer | None:
    """The tokenizer of all store: sources. Raises ConfigError when they differ."""
    tokenizers = [load_tokenizer(files.join(_store_folder(spec), "tokenizer")) for spec in specs]
    for spec, tokenizer in zip(specs, tokenizers, strict=True):
        if tokenizer.fingerprint() != tokenizers[0].fingerprint():
            raise ConfigError(f"{specs[0]} and {spec} have different tokenizers: prepare both with the same one")
    return tokenizers[0] if tokenizers else None


def _make_tokenizer(plans: list[_Plan], data, seed: int, root: pathlib.Path, progress: bool) -> Tokenizer:
    """data.tokenizer: bytes, a model file, or one trained on the sources' training documents and kept in the cache."""
    if data.tokenizer == "bytes":
        return ByteTokenizer()
    if data.tokenizer.endswith(".model"):
        return load_model(os.path.expanduser(data.tokenizer))
    if data.tokenizer not in _TRAINED:
        raise ConfigError(f"data.tokenizer={data.tokenizer}: use bpe, unigram, bytes or the path of a SentencePiece .model file")
    settings = [data.tokenizer, data.vocab_size, data.tokenizer_sample_bytes, seed]
    key = files.json_digest([settings, [plan.inputs() for plan in plans]])
    folder = root / "tokenizers" / key
    with files.lock(root, f"tokenizer-{key[:16]}"):
        if not (folder / "tokenizer.json").exists():
            if progress:
                print(f"training a {data.tokenizer} tokenizer of {data.vocab_size} pieces", file=sys.stderr, flush=True)
            texts = sample(_training_texts(plans), data.tokenizer_sample_bytes, seed)
            train_tokenizer(texts, data.tokenizer, data.vocab_size).save(folder)
        return load_tokenizer(folder)


def _training_texts(plans: list[_Plan]):
    for plan in plans:
        for document in plan.source.documents():
            if split_of(document.text.encode(), plan.fractions) == "train":
                yield document.text


def _ensure(plan: _Plan, tokenizer: Tokenizer, data, root: pathlib.Path, progress: bool) -> pathlib.Path:
    folder = root / "stores" / f"{_slug(plan.source.spec)}-{plan.fingerprint(tokenizer)[:16]}"
    _build(plan, tokenizer, data, root, folder, progress)
    return folder


def _build(plan: _Plan, tokenizer: Tokenizer, data, root: pathlib.Path, folder: pathlib.Path, progress: bool) -> dict:
    """The manifest of the store in `folder`, which is made if it is not there. The manifest is written last."""
    parts = folder / "shards"
    with files.lock(root, f"{folder.name[-40:]}-{files.digest(str(folder).encode())[:8]}"):
        if (folder / "manifest.json").exists():
            manifest = read_manifest(folder)
            _check_same(manifest, plan, tokenizer, folder)
        else:
            manifest = _write(plan, tokenizer, data, folder, parts, progress)
        if parts.exists():
            shutil.rmtree(parts)
    return manifest


def _write(plan: _Plan, tokenizer: Tokenizer, data, folder: pathlib.Path, parts: pathlib.Path, progress: bool) -> dict:
    stamps = [files.stamp(row["path"]) for row in plan.files]
    with files.disk_errors(parts):
        parts.mkdir(parents=True, exist_ok=True)
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink()
    started = time.monotonic()
    fingerprint, cut = plan.fingerprint(tokenizer), plan.source.shards()
    paths = shards.shard_paths(parts, fingerprint, cut)
    job = shards.Job(plan.source, tokenizer, plan.fractions, plan.whole)
    tokens = shards.tokenize(job, cut, paths, data.workers, progress)
    seconds = time.monotonic() - started
    described = shards.assemble(paths, folder, token_dtype(tokenizer.vocab_size))
    if not any(split["documents"] for split in described.values()):
        raise DataError(f"{plan.source.spec} holds no documents: give text that is more than white space")
    if not plan.whole:
        _check_training(plan.source.spec, described["train"]["tokens"])
    for row, before in zip(plan.files, stamps, strict=True):
        if files.stamp(row["path"]) != before:
            raise DataError(f"{row['path']} changed while it was being prepared: run it again")
    tokenizer.save(folder / "tokenizer")
    manifest = {"format": FORMAT, "fingerprint": fingerprint, "source": plan.source.spec, "files": plan.files,
                "tokenizer": tokenizer.describe(), "options": plan.options, "splits": described,
                "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1)}
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def _check_same(manifest: dict, plan: _Plan, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Raises DataError that says what differs when the store that is there is not the one that is wanted."""
    if manifest["fingerprint"] == plan.fingerprint(tokenizer):
        return

    def contents(rows):
        return [(row["name"], row["size"], row["hash"]) for row in rows]

    differs = [name for name, same in (("source files", contents(manifest["files"]) == contents(plan.files)),
                                       ("tokenizer", manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint()),
                                       ("options", manifest["options"] == plan.options)) if not same]
    raise DataError(f"{folder} holds another store ({', '.join(differs) or 'kind of source'} differ): "
                    "give another --out, or delete it")


def _unfinished(folder: pathlib.Path) -> bool:
    """True for an empty folder and for one that an interrupted job of ours left."""
    return folder.is_dir() and ((folder / "shards").is_dir() or not any(folder.iterdir()))


def _check_training(spec: str, tokens: int) -> None:
    if not tokens:
        raise DataError(f"{spec} has no training documents: lower data.validation_fraction and data.test_fraction, "
                        "or cut it finer with data.documents=line or paragraph")


def _weights(sources: list[dict[str, TokenStore]], data) -> np.ndarray:
    """Shares that sum to 1: data.weights, or by the number of training tokens."""
    tokens = np.array([source["train"].num_tokens for source in sources], np.float64)
    for spec, count in zip(data.source, tokens, strict=True):
        _check_training(spec, count)
    weights = np.array(data.weights, np.float64) if len(data.weights) else tokens
    if len(weights) != len(sources):
        raise ConfigError(f"data.weights has {len(weights)} numbers for {len(sources)} sources: give one each, or none")
    if not np.all(np.isfinite(weights)) or np.any(weights < 0) or weights.sum() <= 0:
        raise ConfigError(f"data.weights={tuple(data.weights)}: give finite numbers, none negative, at least one above 0")
    return weights / weights.sum()


def _slug(spec: str) -> str:
    """The end of a spec as a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", spec).strip("-.")[-40:].strip("-.") or "source"


def _names(specs) -> list[str]:
    """A short name for each source, no two the same."""
    slugs = [_slug(spec) for spec in specs]
    return [slug if slugs.count(slug) == 1 else f"{slug}-{i}" for i, slug in enumerate(slugs)]
