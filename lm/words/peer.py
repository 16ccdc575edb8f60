"""gensim's word2vec on the same text with the same settings, to compare with (extra `parity`)."""

import os
import time
from collections.abc import Iterator

import numpy as np

from lm.errors import ConfigError
from lm.metrics.writers import read_lines
from lm.run import Run
from lm.words.vectors import Vectors

_SENTENCE = 1_000  # words; gensim drops what comes after ten thousand of one sentence


def gensim_vectors(run: Run) -> tuple[Vectors, dict]:
    """(vectors, {"words_per_second", "epochs", "workers"}) of gensim's Word2Vec over the training text of a run of model.name=word2vec.

    Width, window, negatives, sub-sampling, passes over the text, vocabulary and algorithm are the run's; the learning rate is gensim's own.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise ConfigError("--against=gensim needs gensim: pip install gensim") from error
    config = run.config
    if config.model.name != "word2vec":
        raise ConfigError(f"{run.workdir} has model.name={config.model.name}: gensim has word2vec alone")
    prepared = run.prepare()
    sentences = [sentence for store in prepared.split_stores("train") for sentence in _sentences(store, run.tokenizer)]
    data = run.objective.data(prepared, config)
    epochs, options, workers = max(1, round(config.train.steps / data.steps_per_epoch)), config.objective, os.cpu_count() or 1
    model = Word2Vec(vector_size=config.model.width, window=options.window, sg=int(options.name == "skipgram"), min_count=1,
                     hs=int(options.hierarchical), negative=0 if options.hierarchical else options.negatives, sample=options.subsample,
                     workers=workers, seed=config.seed)
    model.build_vocab(sentences)
    start = time.perf_counter()
    model.train(sentences, total_examples=len(sentences), epochs=epochs)
    seconds = time.perf_counter() - start
    count = epochs * sum(map(len, sentences))
    vectors = Vectors(list(model.wv.index_to_key), np.asarray(model.wv.vectors, np.float32))
    return vectors, {"words_per_second": count / seconds, "epochs": epochs, "workers": workers}


def words_per_second(run: Run) -> float:
    """Words of text that the run's training took in a second of its steps."""
    last = [line for line in read_lines(run.workdir / "metrics.jsonl") if line["kind"] == "train"][-1]
    return last["tokens"] / (last["time"]["step"] + last["time"].get("data", 0.0))


def _sentences(store, tokenizer) -> Iterator[list[str]]:
    """The words of a store's documents that have a vector, cut where gensim would drop the rest."""
    names = np.array(tokenizer.words, object)
    for tokens in store.read_documents(np.arange(store.num_documents)):
        words = names[tokens[tokens >= tokenizer.first_word]].tolist()
        for first in range(0, len(words), _SENTENCE):
            yield words[first : first + _SENTENCE]
