"""Documents to a token store: shards are tokenized in parallel into files of their own, then put together in order.

A shard file appears only when it is complete, so an interrupted job goes on where it stopped, and the result does not
depend on interruptions or on the number of processes.
"""

import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import types
import zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from lm.data.files import atomic_file, json_digest
from lm.data.splits import Fractions, split_of
from lm.data.store import SPLITS, token_dtype
from lm.errors import DataError

_PARTS = ("tokens", "lengths", "bytes", "ids")


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere, nothing unless `wanted`."""

    def __init__(self, name: str, total: int, wanted: bool):
        self._name, self._total, self._done, self._printed = name, total, 0, time.monotonic()
        self._lines, self._bar = wanted and not sys.stderr.isatty(), None
        if wanted and not self._lines:
            import tqdm

            self._bar = tqdm.tqdm(total=total, desc=name, unit="shard")

    def add(self, count: int = 1) -> None:
        """`count` more shards are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and (self._done == self._total or time.monotonic() - self._printed > 10):
            self._printed = time.monotonic()
            print(f"{self._name}: {self._done} of {self._total} shards", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


# What the parts of a shard of pairs that belong to the sources begin with.
SOURCE_SIDE = "source."


class Job:
    """What a worker must know: source, tokenizers and fractions. `whole` puts every document into that split instead.

    Of pairs `tokenizer` is the targets'; `source_tokenizer` is None where there are no pairs.
    """

    def __init__(self, source, tokenizer, fractions: Fractions, whole: str = "", source_tokenizer=None):
        self.source, self.tokenizer, self.fractions, self.whole = source, tokenizer, fractions, whole
        self.source_tokenizer = source_tokenizer

    def run(self, shard, path: pathlib.Path) -> int:
        """Tokenizes one shard into the file `path`. Returns its number of tokens."""
        sides = {"": self.tokenizer} | ({SOURCE_SIDE: self.source_tokenizer} if self.source_tokenizer else {})
        held = {f"{side}{split}": {part: [] for part in _PARTS} for side in sides for split in SPLITS}
        skipped = 0
        for document in self.source.records(shard):
            if document.empty:
                skipped += 1
                continue
            split = self.whole or split_of(document.key.encode(), self.fractions)
            for (side, tokenizer), text in zip(sides.items(), (document.text, document.source), strict=False):
                tokens = np.append(tokenizer.encode(text), tokenizer.eos_id).astype(token_dtype(tokenizer.vocab_size))
                for part, item in zip(_PARTS, (tokens, len(tokens), len(text.encode()), json.dumps(document.id)), strict=True):
                    held[f"{side}{split}"][part].append(item)
        arrays = {"skipped": np.array(skipped, np.int64)}
        for side, tokenizer in sides.items():
            for split in SPLITS:
                arrays |= _arrays(f"{side}{split}", held[f"{side}{split}"], token_dtype(tokenizer.vocab_size))
        with atomic_file(path) as file:
            np.savez(file, **arrays)
        return sum(len(value) for name, value in arrays.items() if name.endswith(".tokens"))


def _arrays(name: str, row: dict, dtype: np.dtype) -> dict[str, np.ndarray]:
    return {f"{name}.tokens": np.concatenate([np.zeros(0, dtype), *row["tokens"]]),
            f"{name}.lengths": np.array(row["lengths"], np.int64),
            f"{name}.bytes": np.array(row["bytes"], np.int64),
            f"{name}.ids": np.frombuffer("".join(line + "\n" for line in row["ids"]).encode(), np.uint8)}


def shard_paths(folder: pathlib.Path, fingerprint: str, shards: list) -> list[pathlib.Path]:
    """One file a shard; the name says whose and which, so that another store's or another cut is never taken for it."""
    return [folder / f"{i:06d}-{json_digest([fingerprint, repr(shard)])[:12]}.npz" for i, shard in enumerate(shards)]


def tokenize(job: Job, shards: list, paths: list[pathlib.Path], workers: int, progress: bool) -> int:
    """Writes the shard files that are not there yet, on `workers` processes (0: one a core). Returns the tokens written."""
    missing = [(shard, path) for shard, path in zip(shards, paths, strict=True) if not zipfile.is_zipfile(path)]
    workers = min(workers or os.cpu_count() or 1, len(missing))
    bar = Progress(job.source.spec, len(shards), progress)
    bar.add(len(shards) - len(missing))
    tokens = 0
    try:
        for count in _results(job, missing, workers):
            tokens += count
            bar.add()
    finally:
        bar.close()
    return tokens


def _results(job: Job, missing: list, workers: int):
    if workers <= 1:
        for shard, path in missing:
            yield job.run(shard, path)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (job,))
    try:
        with _hidden_main():
            futures = [pool.submit(_run_in_worker, shard, path) for shard, path in missing]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise DataError("a process that tokenizes died, perhaps for want of memory: lower data.workers and run it again") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _hidden_main():
    """Keeps spawned processes from importing the running script: it may import jax, or be a notebook or standard input."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_job: Job


def _start_worker(job: Job) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # A parent that is killed cannot stop its workers, and their queue stays open: watch for its end.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_in_worker(shard, path: pathlib.Path) -> int:
    return _job.run(shard, path)


def assemble(paths: list[pathlib.Path], directory: pathlib.Path, dtype: np.dtype, side: str = "") -> dict:
    """Joins one side of shard files into the splits of a store. Returns {split: {documents, tokens, bytes, dtype}}."""
    lengths = {split: [] for split in SPLITS}
    byte_counts = {split: [] for split in SPLITS}
    with contextlib.ExitStack() as stack:
        tokens = {split: stack.enter_context(atomic_file(directory / split / "tokens.bin")) for split in SPLITS}
        ids = {split: stack.enter_context(atomic_file(directory / split / "ids.txt")) for split in SPLITS}
        for path in paths:
            with _shard(path) as shard:
                for split in SPLITS:
                    tokens[split].write(shard[f"{side}{split}.tokens"].tobytes())
                    ids[split].write(shard[f"{side}{split}.ids"].tobytes())
                    lengths[split].append(shard[f"{side}{split}.lengths"])
                    byte_counts[split].append(shard[f"{side}{split}.bytes"])
    described = {}
    for split in SPLITS:
        counts = np.concatenate(byte_counts[split])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths[split]))])
        for name, array in (("offsets.npy", offsets), ("bytes.npy", counts)):
            with atomic_file(directory / split / name) as file:
                np.save(file, array)
        described[split] = {"documents": len(counts), "tokens": int(offsets[-1]), "bytes": int(counts.sum()), "dtype": dtype.str}
    return described


def skipped(paths: list[pathlib.Path]) -> int:
    """How many records of these shards were left out for want of text."""
    total = 0
    for path in paths:
        with _shard(path) as shard:
            total += int(shard["skipped"])
    return total


@contextlib.contextmanager
def _shard(path: pathlib.Path):
    """An open shard file; one that is damaged is deleted, so that the next run makes it again."""
    try:
        with np.load(path) as shard:
            yield shard
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
        path.unlink()
        raise DataError(f"{path} was damaged and has been deleted: run the same command again") from error
