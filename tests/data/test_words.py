"""The word tokenizer: what a word is, which words get ids, and that its file says all of it."""

import collections
import pickle

import numpy as np
import pytest

from lm import config
from lm.data.prepare import prepare
from lm.data.store import TokenStore
from lm.data.tokenizers import load_tokenizer
from lm.data.words import WordTokenizer, split_words, train_words
from lm.errors import DataError

TEXTS = ["The cat saw the dog.", "the DOG saw a bird; the bird flew", "cat"]


@pytest.mark.parametrize(("text", "words"), [
    ("The King's men DON'T run", ["the", "king's", "men", "don't", "run"]),
    ("it\u2019s 'quoted' rock-n-roll", ["it's", "quoted", "rock", "n", "roll"]),
    ("1812 x86_64 3.14", ["1812", "x86", "64", "3", "14"]),
    ("\u6211\u7231NLP\u3002\u3053\u3093", ["\u6211", "\u7231", "nlp", "\u3053", "\u3093"]),
    ("\u00c9t\u00e9 \u0421\u043b\u043e\u0432\u043e \u0395\u03bd", ["\u00e9t\u00e9", "\u0441\u043b\u043e\u0432\u043e", "\u03b5\u03bd"]),
    ("\U00020000\U00020001 \t\n--", ["\U00020000", "\U00020001"]),
    ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092d\u093e\u0937\u093e"]),
    ("\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", ["\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd"]),  # the order of marks is NFC's
    ("CAFE\u0301 caf\u00e9 \u0301x", ["caf\u00e9", "caf\u00e9", "x"]),
    ("", []),
], ids=["apostrophes", "quotes", "digits", "Han and kana", "other alphabets", "rare Han", "vowel signs",
        "points", "one spelling", "nothing"])
def test_what_a_word_is(text, words):
    assert split_words(text) == words


def test_ids_go_to_the_most_frequent_words_and_ties_to_the_first_text():
    counts = collections.Counter(word for text in TEXTS for word in split_words(text))
    tokenizer = train_words(TEXTS, 100, 2)
    assert tokenizer.words[4:] == ["the", "bird", "cat", "dog", "saw"]
    assert tokenizer.counts.tolist()[4:] == [counts[word] for word in tokenizer.words[4:]]
    assert tokenizer.counts[3] == counts.total() - tokenizer.counts[4:].sum() == 2  # a, flew
    assert train_words(TEXTS, 6, 1).words == ["", "", "", "<unk>", "the", "bird"]
    assert train_words(TEXTS[::-1], 100, 2).fingerprint() == tokenizer.fingerprint()


def test_text_goes_to_ids_and_back_to_words():
    tokenizer = train_words(TEXTS, 100, 2)
    ids = tokenizer.encode("The cat, flew; THE saw!")
    assert ids.dtype == np.int32 and ids.tolist() == [4, 6, 3, 4, 8]
    assert tokenizer.decode([1, *ids, 2, 0]) == "the cat <unk> the saw"
    assert tokenizer.encode("").shape == (0,)
    with pytest.raises(DataError, match=r"0\.\.8"):
        tokenizer.decode([9])


def test_a_file_has_all_of_it(tmp_path):
    tokenizer = train_words(TEXTS, 100, 2)
    tokenizer.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(other, WordTokenizer) and other.words == tokenizer.words and other.describe() == tokenizer.describe()
        np.testing.assert_array_equal(other.counts, tokenizer.counts)
    assert train_words([*TEXTS, "cat"], 100, 2).fingerprint() != tokenizer.fingerprint()
    rows = (tmp_path / "words.tsv").read_text().replace("the\t4", "the\t5")
    (tmp_path / "words.tsv").write_text(rows)
    with pytest.raises(DataError, match="does not belong"):
        load_tokenizer(tmp_path)
    (tmp_path / "words.tsv").write_text("no list")
    with pytest.raises(DataError, match="not a list of words"):
        load_tokenizer(tmp_path)


def test_text_without_frequent_words_is_an_error():
    with pytest.raises(DataError, match=r"lower data\.min_count"):
        train_words(["a b c"], 100, 2)


def test_preparation_counts_the_training_text_alone(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"one two two word{number}\n" * 3)
    section = config.default().data
    section.update(source=(f"text:{tmp_path}/*.txt",), tokenizer="words", vocab_size=264, min_count=4, validation_fraction=0.3)
    prepared = prepare(section, 0)
    store = prepared.sources[0]["train"]
    assert 0 < store.num_documents < 40 and isinstance(store, TokenStore)
    tokenizer = prepared.tokenizer
    assert tokenizer.words[4:] == ["two", "one"]
    tokens = store.read(0, store.num_tokens)
    np.testing.assert_array_equal(tokenizer.counts[3:], np.bincount(tokens, minlength=6)[3:])
    section.min_count = 3
    assert prepare(section, 0).tokenizer.vocab_size == 6 + store.num_documents
