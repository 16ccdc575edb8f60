"""What the benchmark of data measures: `lm.data.prepare` on real text, the feed that a training run has, and its step beside it."""

import itertools
import pathlib
import shutil
import time
from collections.abc import Iterator

import jax

from lm.bench.shapes import Shape, config_of
from lm.data.feed import Feed
from lm.data.prepare import prepare
from lm.data.sources import open_source
from lm.data.tokenizers import train_tokenizer
from lm.parallel import batch_sharding
from lm.train.job import set_up

TINY_DOCUMENTS = 8  # for tests
LEAST_VOCABULARY = 512  # that holds the characters of the corpus


def config_in(folder: pathlib.Path, shape: Shape, copies: int, cache: str):
    """The config of a shape whose text is the corpus in `folder`, so many times over, with the tokenizer there."""
    config = config_of(shape)
    config.data.source = (f"text:{folder}/texts/{copies}/**/*.txt",)
    config.data.tokenizer, config.data.cache_dir = f"{folder}/tokenizer/tokenizer.model", str(folder / cache)
    return config


class Preparation:
    """Makes token stores of the embedded corpus in a folder; see `lm.bench.worker`. `info`: its bytes and documents, and how long
    the tokenizer of the shape's vocabulary took to train on it."""

    def __init__(self, shape: list, folder: str, tiny: bool = False):
        self._shape, self._folder = Shape(*shape), pathlib.Path(folder)
        source = open_source("sotu", config_of(self._shape).data)
        self._files = source.files()[:TINY_DOCUMENTS if tiny else None]
        self._texts = [pathlib.Path(file).read_text(encoding="utf-8") for file in self._files]
        start = time.perf_counter()
        self._tokenizer = train_tokenizer(self._texts, "bpe", max(LEAST_VOCABULARY, self._shape.vocab_size))
        seconds = time.perf_counter() - start
        self._tokenizer.save(self._folder / "tokenizer")
        self._bytes = sum(len(text.encode()) for text in self._texts)
        self.info = {"bytes": self._bytes, "documents": len(self._texts), "vocab_size": self._tokenizer.vocab_size, "seconds": seconds}
        self._write(1)  # for the feed

    def prepare(self, copies: int) -> dict:
        """Seconds from files to open stores, with what was in them."""
        self._write(copies)
        config = config_in(self._folder, self._shape, copies, "cache")
        shutil.rmtree(config.data.cache_dir, ignore_errors=True)
        start = time.perf_counter()
        prepared = prepare(config.data, 0)
        seconds = time.perf_counter() - start
        tokens = sum(store.num_tokens for store in prepared.sources[0].values())
        return {"seconds": seconds, "tokens": tokens, "bytes": self._bytes * copies}

    def encode(self) -> dict:
        """Seconds that this process takes to encode the corpus alone."""
        start = time.perf_counter()
        tokens = sum(len(self._tokenizer.encode(text)) for text in self._texts)
        return {"seconds": time.perf_counter() - start, "tokens": tokens, "bytes": self._bytes}

    def _write(self, copies: int):
        for copy in range(copies):
            folder = self._folder / "texts" / str(copies) / str(copy)
            if not folder.exists():
                folder.mkdir(parents=True)
                for file in self._files:
                    shutil.copy(file, folder)


class Feeding:
    """Trains a shape on the corpus that `Preparation` wrote; see `lm.bench.worker`."""

    def __init__(self, shape: list, folder: str):
        folder = pathlib.Path(folder)
        self._job = set_up(config_in(folder, Shape(*shape), 1, "run"), folder / "run")
        self._at = 0
        self._step, self._state = self._job.compiled()

    def _feed(self, count: int) -> Feed:
        """The next batches, made as `lm.train.loop` makes them."""
        job, first = self._job, self._at
        self._at += count
        return Feed(job.batch, first, self._at, batch_sharding(job.mesh), job.data.shape, job.config.data.prefetch)

    def load(self, count: int) -> dict:
        """Seconds of some batches that nothing else happens to, once the first is there."""
        batches = iter(self._feed(count + 1))
        jax.block_until_ready(next(batches))
        start = time.perf_counter()
        for _, batch in batches:
            last = batch
        jax.block_until_ready(last)
        return {"seconds": time.perf_counter() - start, "count": count}

    def steps(self, count: int) -> dict:
        """Seconds of some steps, each and in all, and how long they waited for data. Two come before that are not counted: for the first
        of a run alone nothing is made ahead."""
        stamps = list(self._trained(self._feed(count + 2)))[1:]
        each = [after[0] - before[0] for before, after in itertools.pairwise(stamps)]
        return {"seconds": sum(each), "waited": stamps[-1][1] - stamps[0][1], "each": each}

    def _trained(self, feed: Feed) -> Iterator[tuple[float, float]]:
        """(time, seconds waited so far) after each step, whose metrics are fetched when the next one runs already."""
        pending = None
        for _, batch in feed:
            self._state, metrics = self._step(self._state, batch)
            if pending:
                jax.device_get(pending)
            pending = metrics
            yield time.perf_counter(), feed.waited
        jax.device_get(pending)
