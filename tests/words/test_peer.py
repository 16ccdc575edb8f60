"""What gensim is given to learn from is the text of a run."""

import types

import numpy as np

from lm.data.store import TokenStore
from lm.data.words import train_words
from lm.words import peer


def test_sentences_are_the_known_words_of_each_document_in_pieces():
    texts = ["The cat sat on the mat", "a dog " * 900, "the unseen cat"]
    tokenizer = train_words(texts[:2], 264, 1)
    store = TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], tokenizer)
    sentences = list(peer._sentences(store, tokenizer))
    assert sentences[0] == ["the", "cat", "sat", "on", "the", "mat"] and sentences[-1] == ["the", "cat"]
    assert [len(sentence) for sentence in sentences[1:-1]] == [1000, 800] and set(np.concatenate(sentences[1:-1])) == {"a", "dog"}


def test_words_per_second_is_over_the_steps_alone(tmp_path):
    line = '{"step": 9, "kind": "train", "tokens": 600, "time": {"compile": 50, "step": 2.0, "data": 1.0}}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    assert peer.words_per_second(types.SimpleNamespace(workdir=tmp_path)) == 200
