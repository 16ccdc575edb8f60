"""Where words begin, against texts split by hand."""

import numpy as np
import pytest

from lm.data.tokenizers import ByteTokenizer, train_tokenizer
from lm.data.wordstarts import WordStarts

TEXTS = {
    "spaces": ("the quick  brown fox", ["the", " quick", " ", " brown", " fox"]),
    "newlines": ("one two\nthree\n\n four", ["one", " two", "\n", "three", "\n", "\n", " four"]),
    "tabs": ("a\tb", ["a", "\tb"]),
    "accents": ("café été", ["café", " été"]),
    "punctuation": ("war, don't (so-called) $5.", ["war", ",", " don", "'", "t", " ", "(", "so", "-", "called", ")", " ", "$", "5", "."]),
    "chinese": ("中文字ab中c", ["中", "文", "字", "ab", "中", "c"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_words_of_bytes(name):
    text, words = TEXTS[name]
    tokenizer = ByteTokenizer()
    starts = WordStarts(tokenizer.pieces())(tokenizer.encode(text)[None])[0]
    assert np.flatnonzero(starts).tolist() == np.cumsum([0] + [len(word.encode()) for word in words])[:-1].tolist()


def test_words_of_pieces_are_those_of_their_text():
    texts = [text for text, _ in TEXTS.values()] * 5 + [f"the quick brown fox number {i} sees a dog" for i in range(50)]
    tokenizer = train_tokenizer(texts, "bpe", 310)
    of_pieces, of_bytes = WordStarts(tokenizer.pieces()), WordStarts(ByteTokenizer().pieces())
    some = 0
    for text in texts:
        ids = tokenizer.encode(text)
        lengths = [len(tokenizer.pieces()[i]) for i in ids]
        places = np.cumsum([0, *lengths])[:-1]
        expected = of_bytes(ByteTokenizer().encode(text)[None])[0][places]
        np.testing.assert_array_equal(of_pieces(ids[None])[0], expected)
        some += int((np.array(lengths) > 1).sum())
    assert some > 100  # pieces are longer than bytes


def test_marks_of_any_script_are_words_in_pieces():
    starts = WordStarts([b"we", "\uff0c".encode(), "…".encode(), b"x", "é".encode(), b"\xc3", b"\xa9"])
    assert starts(np.array([[0, 3, 1, 3, 2, 4, 3]]))[0].tolist() == [True, False, True, True, True, True, False]
    assert starts(np.array([[0, 5, 6, 3]]))[0].tolist() == [True, False, False, False], "half a character is no mark"


def test_ids_without_text_are_words_by_themselves():
    tokens = np.array([[97, 98, ByteTokenizer.eos_id, 99, 100, 259, 101]])
    starts = WordStarts([*ByteTokenizer().pieces(), b""])(tokens)[0]
    assert starts.tolist() == [True, False, True, True, False, True, True]
