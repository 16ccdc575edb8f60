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
from typing import NamedTuple

import numpy as np

from lm.data import files, shards
from lm.data.pairs import PairStore
from lm.data.sources import Source, open_source, split_spec
from lm.data.splits import Fractions, sample, split_of
from lm.data.store import FORMAT, TokenStore, open_splits, read_manifest, token_dtype
from lm.data.tokenizer_files import is_tokenizer_path, open_tokenizer, with_roles
from lm.data.tokenizer_training import train_bytebpe, train_wordpiece
from lm.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer, train_tokenizer
from lm.data.words import train_words
from lm.errors import ConfigError, DataError

_CHUNK = 1 << 24  # tokens looked at together
_TRAINED = ("bpe", "unigram", "bytebpe", "wordpiece", "words")


class Tokenizers(NamedTuple):
    """Of texts, in pairs the targets, and of the sources of pairs: perhaps the same, None where there are no pairs."""

    target: Tokenizer
    source: Tokenizer | None = None

    def fingerprints(self) -> dict[str, str]:
        """{what it is: fingerprint}."""
        named = {"tokenizer": self.target, "source_tokenizer": self.source}
        return {name: tokenizer.fingerprint() for name, tokenizer in named.items() if tokenizer}


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Open stores of all sources of a run, in the order of data.source.

    `sources[i]` maps split to TokenStore, `weights[i]` is that source's share of the examples (they sum to 1), `validation`
    holds the stores of data.validation_source, and `manifests` those of the sources and then of the validation source.

    Where they hold pairs, these are the targets, `source_tokenizer` is the sources' tokenizer, and `source_sides` are the stores of
    the sources, as `sources` and then of data.validation_source.
    """

    tokenizer: Tokenizer
    sources: list[dict[str, TokenStore]]
    weights: np.ndarray
    names: list[str]
    fingerprint: str
    manifests: list[dict]
    validation: list[TokenStore] | None = None
    source_tokenizer: Tokenizer | None = None
    source_sides: list[dict[str, TokenStore]] = dataclasses.field(default_factory=list)

    def split_stores(self, split: str) -> list[TokenStore]:
        """The stores of a split that hold documents; for train all sources, in order. Raises DataError when there are none."""
        if split == "validation" and self.validation is not None:
            return self.validation
        stores = [source[split] for source in self.sources if source[split].num_documents]
        if not stores:
            also = ", or data.validation_source" if split == "validation" else ""
            raise DataError(f"the {split} split is empty: use data.documents=line or paragraph, a larger data.{split}_fraction{also}")
        return stores

    def pair_stores(self, split: str) -> list[PairStore]:
        """`split_stores` with the sources beside the targets. Raises ConfigError when there are no pairs."""
        if self.source_tokenizer is None:
            raise ConfigError("data.source holds texts, and pairs are needed: use pairs:FILE, or set data.source_field")
        targets = self.split_stores(split)
        if targets is self.validation:
            sources = self.source_sides[-1].values()
        else:
            sources = [side[split] for side in self.source_sides[:len(self.sources)]]
        sources = [store for store in sources if store.num_documents]
        return [PairStore(source, target) for source, target in zip(sources, targets, strict=True)]


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

    def fingerprint(self, tokenizers: Tokenizers) -> str:
        return files.json_digest(self.inputs() | tokenizers.fingerprints())


@files.preparing()
def prepare(data, seed: int, progress: bool = False) -> PreparedData:
    """Opens the stores of a config's `data`, making those that are not in the cache yet.

    `seed` draws the tokenizer's sample where the text is larger than data.tokenizer_sample_bytes, and nothing else. The
    tokenizer is data.tokenizer's, except that a store: source brings its own and then decides for all. Raises ConfigError
    for a bad value or for tokenizers that differ, DataError for input that cannot be read or used, DiskError for a cache that is full.
    """
    root = files.cache_root(data)
    specs = [*data.source, data.validation_source] if data.validation_source else list(data.source)
    if not data.source:
        raise ConfigError("data.source is empty: name at least one source")
    plans = [None if _is_store(spec) else _plan(spec, data, root, index >= len(data.source)) for index, spec in enumerate(specs)]
    stored = {spec: stored_tokenizers(spec) for spec in specs if _is_store(spec)}
    _check_alike(specs, plans, stored)
    tokenizers = next(iter(stored.values()), None)
    if tokenizers:
        tokenizers = Tokenizers(*(each and with_roles(each, data, next(iter(stored))) for each in tokenizers))
    else:
        tokenizers = _make_tokenizers(plans[:len(data.source)], data, seed, root, progress)
    folders = [_store_folder(spec) if plan is None else _ensure(plan, tokenizers, data, root, progress)
               for spec, plan in zip(specs, plans, strict=True)]
    opened = [open_splits(folder) for folder in folders]
    manifests = [read_manifest(folder) | {"directory": str(folder)} for folder in folders]
    sources = opened[:len(data.source)]
    validation = [store for store in opened[-1].values() if store.num_documents] if data.validation_source else None
    return PreparedData(tokenizers.target, sources, _weights(sources, data), _names(data.source),
                        files.json_digest([tokenizers.target.fingerprint(), *(manifest["fingerprint"] for manifest in manifests)]),
                        manifests, validation, tokenizers.source,
                        [open_splits(files.join(folder, "source")) for folder in folders] if tokenizers.source else [])


@files.preparing()
def prepare_into(data, seed: int, directory: str, progress: bool = False) -> dict:
    """Makes the store of the only source in `data` in exactly `directory`. Returns its manifest with "directory".

    Raises DataError when another store, or anything else, is there already.
    """
    if len(data.source) != 1 or data.validation_source or _is_store(data.source[0]):
        raise ConfigError("--out takes the store of one source: give one data.source that is not a store, without data.validation_source")
    root = files.cache_root(data)
    plan = _plan(data.source[0], data, root, False)
    tokenizers = _make_tokenizers([plan], data, seed, root, progress)
    target = pathlib.Path(directory).expanduser().absolute()
    if not (target / "manifest.json").exists() and target.exists() and not _unfinished(target):
        raise DataError(f"{target} is there and is not a token store: give another --out")
    return _build(plan, tokenizers, data, root, target, progress) | {"directory": str(target)}


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


def stored_tokenizers(spec: str) -> Tokenizers:
    """The tokenizers of a store: source."""
    folder = _store_folder(spec)
    source = load_tokenizer(files.join(folder, "source", "tokenizer")) if "pairs" in read_manifest(folder) else None
    return Tokenizers(load_tokenizer(files.join(folder, "tokenizer")), source)


def _check_alike(specs: list[str], plans: list[_Plan | None], stored: dict[str, Tokenizers]) -> None:
    """ConfigError where some sources hold pairs and others texts, or where stores have different tokenizers."""
    paired = [bool(stored[spec].source) if plan is None else plan.source.paired for spec, plan in zip(specs, plans, strict=True)]
    if len(set(paired)) > 1:
        raise ConfigError(f"{specs[paired.index(True)]} holds pairs and {specs[paired.index(False)]} texts: give sources of one kind")
    first = next(iter(stored), None)
    for spec, tokenizers in stored.items():
        if tokenizers.fingerprints() != stored[first].fingerprints():
            raise ConfigError(f"{first} and {spec} have different tokenizers: prepare both with the same one")


def _make_tokenizers(plans: list[_Plan], data, seed: int, root: pathlib.Path, progress: bool) -> Tokenizers:
    """One tokenizer of texts; of pairs one for both sides (data.joint_tokenizer), or one for each."""
    if not plans[0].source.paired:
        return Tokenizers(_make_tokenizer(plans, data, seed, root, progress))
    if data.joint_tokenizer:
        if data.source_tokenizer or data.source_vocab_size:
            raise ConfigError("data.source_tokenizer and data.source_vocab_size are read with data.joint_tokenizer=false alone")
        return Tokenizers(*[_make_tokenizer(plans, data, seed, root, progress, "both")] * 2)
    keys = data.copy_and_resolve_references()
    keys.tokenizer, keys.vocab_size = data.source_tokenizer or data.tokenizer, data.source_vocab_size or data.vocab_size
    return Tokenizers(_make_tokenizer(plans, data, seed, root, progress), _make_tokenizer(plans, keys, seed, root, progress, "source"))


def _make_tokenizer(plans: list[_Plan], data, seed: int, root: pathlib.Path, progress: bool, side: str = "target") -> Tokenizer:
    """data.tokenizer, with the roles that data.* give its tokens: bytes, one at a path, or one trained on the sources' training documents
    and kept in the cache. `side` says what of pairs it learns: target, source or both."""
    if data.tokenizer == "bytes":
        return with_roles(ByteTokenizer(), data)
    if data.tokenizer in _TRAINED:
        return with_roles(_trained(plans, data, seed, root, progress, side), data)
    if not is_tokenizer_path(data.tokenizer):
        raise ConfigError(f"data.tokenizer={data.tokenizer}: use {', '.join(_TRAINED)}, bytes, or a path: of a SentencePiece .model, a "
                          "tokenizer.json, a vocab.txt, or a folder with a tokenizer")
    return with_roles(open_tokenizer(data.tokenizer, data.allow_lossy, data.eos_token), data)


def _trained(plans: list[_Plan], data, seed: int, root: pathlib.Path, progress: bool, side: str) -> Tokenizer:
    """A tokenizer of the cache, trained if it is not there."""
    settings = [data.tokenizer, data.vocab_size, *((data.min_count,) if data.tokenizer == "words" else (data.tokenizer_sample_bytes, seed))]
    if data.tokenizer == "wordpiece":
        settings.append(data.lower_case)
    key = files.json_digest([settings, [plan.inputs() for plan in plans], *([side] if side != "target" else [])])
    folder = root / "tokenizers" / key
    with files.lock(root, f"tokenizer-{key[:16]}"):
        if not (folder / "tokenizer.json").exists():
            if progress:
                print(f"training a {data.tokenizer} tokenizer of {data.vocab_size} pieces", file=sys.stderr, flush=True)
            _train(data, _training_texts(plans, side), seed).save(folder)
        return load_tokenizer(folder)


def _train(data, texts, seed: int) -> Tokenizer:
    """Pieces are learned from a sample; words are counted over the whole text, since their counts are used too."""
    if data.tokenizer == "words":
        return train_words(texts, data.vocab_size, data.min_count)
    texts = sample(texts, data.tokenizer_sample_bytes, seed)
    if data.tokenizer == "bytebpe":
        return train_bytebpe(texts, data.vocab_size)
    if data.tokenizer == "wordpiece":
        return train_wordpiece(texts, data.vocab_size, data.lower_case)
    return train_tokenizer(texts, data.tokenizer, data.vocab_size)


def _training_texts(plans: list[_Plan], side: str):
    for plan in plans:
        for document in plan.source.documents():
            if split_of(document.key.encode(), plan.fractions) == "train":
                if side != "target":
                    yield document.source
                if side != "source":
                    yield document.text


def _ensure(plan: _Plan, tokenizers: Tokenizers, data, root: pathlib.Path, progress: bool) -> pathlib.Path:
    folder = root / "stores" / f"{_slug(plan.source.spec)}-{plan.fingerprint(tokenizers)[:16]}"
    _build(plan, tokenizers, data, root, folder, progress)
    return folder


def _build(plan: _Plan, tokenizers: Tokenizers, data, root: pathlib.Path, folder: pathlib.Path, progress: bool) -> dict:
    """The manifest of the store in `folder`, which is made if it is not there. The manifest is written last."""
    parts = folder / "shards"
    with files.lock(root, f"{folder.name[-40:]}-{files.digest(str(folder).encode())[:8]}"):
        if (folder / "manifest.json").exists():
            manifest = read_manifest(folder)
            _check_same(manifest, plan, tokenizers, folder)
        else:
            manifest = _write(plan, tokenizers, data, folder, parts, progress)
        if parts.exists():
            shutil.rmtree(parts)
    return manifest


def _write(plan: _Plan, tokenizers: Tokenizers, data, folder: pathlib.Path, parts: pathlib.Path, progress: bool) -> dict:
    stamps = [files.stamp(row["path"]) for row in plan.files]
    with files.disk_errors(parts):
        parts.mkdir(parents=True, exist_ok=True)
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink()
    started = time.monotonic()
    fingerprint, cut = plan.fingerprint(tokenizers), plan.source.shards()
    paths = shards.shard_paths(parts, fingerprint, cut)
    job = shards.Job(plan.source, tokenizers.target, plan.fractions, plan.whole, tokenizers.source)
    tokens = shards.tokenize(job, cut, paths, data.workers, progress)
    seconds = time.monotonic() - started
    described = shards.assemble(paths, folder, token_dtype(tokenizers.target.vocab_size))
    if not any(split["documents"] for split in described.values()):
        raise DataError(f"{plan.source.spec} holds no documents: give text that is more than white space")
    if not plan.whole:
        _check_training(plan.source.spec, described["train"]["tokens"])
    for row, before in zip(plan.files, stamps, strict=True):
        if files.stamp(row["path"]) != before:
            raise DataError(f"{row['path']} changed while it was being prepared: run it again")
    manifest = {"format": FORMAT, "fingerprint": fingerprint, "source": plan.source.spec, "files": plan.files,
                "tokenizer": tokenizers.target.describe(), "options": plan.options, "splits": described,
                "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1)}
    if tokenizers.source:
        manifest["pairs"] = {"skipped": shards.skipped(paths), "source_tokenizer": tokenizers.source.describe()}
        if skipped := manifest["pairs"]["skipped"]:
            print(f"{plan.source.spec}: {skipped:,} pairs with an empty side are left out", file=sys.stderr, flush=True)
        _write_sources(manifest, paths, folder / "source", tokenizers.source)
    manifest |= _unknown(tokenizers.target, described, folder)
    tokenizers.target.save(folder / "tokenizer")
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def _unknown(tokenizer: Tokenizer, described: dict, folder: pathlib.Path) -> dict:
    """{"unknown_share": share of the tokens that stand for text which a tokenizer with loss could not encode}, else nothing."""
    if tokenizer.lossless or tokenizer.unk_id is None:
        return {}
    counts = [(split["tokens"], np.memmap(folder / name / "tokens.bin", split["dtype"], "r")) for name, split in described.items()
              if split["tokens"]]
    unknown = sum(int(np.count_nonzero(tokens[start : start + _CHUNK] == tokenizer.unk_id))
                  for count, tokens in counts for start in range(0, count, _CHUNK))
    return {"unknown_share": unknown / sum(count for count, _ in counts)}


def _write_sources(manifest: dict, paths: list[pathlib.Path], folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    """The store of the sources of pairs, whose targets `manifest` describes."""
    described = shards.assemble(paths, folder, token_dtype(tokenizer.vocab_size), shards.SOURCE_SIDE)
    tokenizer.save(folder / "tokenizer")
    own = {"fingerprint": files.json_digest([manifest["fingerprint"], "source"]), "tokenizer": tokenizer.describe(), "splits": described}
    files.write_json(folder / "manifest.json", {key: value for key, value in manifest.items() if key != "pairs"} | own)


def _check_same(manifest: dict, plan: _Plan, tokenizers: Tokenizers, folder: pathlib.Path) -> None:
    """Raises DataError that says what differs when the store that is there is not the one that is wanted."""
    if manifest["fingerprint"] == plan.fingerprint(tokenizers):
        return

    def contents(rows):
        return [(row["name"], row["size"], row["hash"]) for row in rows]

    stored = {"tokenizer": manifest["tokenizer"], "source_tokenizer": manifest.get("pairs", {}).get("source_tokenizer")}
    stored = {name: described["fingerprint"] for name, described in stored.items() if described}
    differs = [name for name, same in (("source files", contents(manifest["files"]) == contents(plan.files)),
                                       ("tokenizer", stored == tokenizers.fingerprints()),
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
