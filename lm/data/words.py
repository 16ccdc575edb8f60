"""Text to words and back, with loss: the units of word vectors (Mikolov et al. 2013a; Pennington et al. 2014).

A word is a run of letters, with their marks, and digits of any script in lower case, with apostrophes inside (`don't`, `king's`), in
Unicode's composed form (NFC), so that one word has one spelling; the Han characters and kana of texts that put no spaces between
words are words one by one. Everything else (punctuation, spaces, case) is lost, and so are rare words, which become `<unk>`: `decode`
gives words with spaces between them, and not the text. Bits per byte of such tokens would leave out what was lost, so objectives that
score a text must not use them.
"""

import collections
import functools
import pathlib
import re
import sys
import unicodedata
from collections.abc import Iterable

import numpy as np

from lm.data.files import atomic_file, digest, join, read_bytes
from lm.data.tokenizers import Tokenizer
from lm.errors import DataError

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and Han
_UNKNOWN = "<unk>"
_SPECIAL = 3  # pad, bos and eos; then <unk>, then the words


@functools.cache
def _word() -> re.Pattern:
    """Matches a word. A letter may have marks (vowel signs of Indic scripts, points of Hebrew), which `re` takes for no part of a word."""
    ranges = []
    for mark in (i for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)).startswith("M")):
        if not ranges or mark > ranges[-1][1] + 1:
            ranges.append([mark, mark])
        ranges[-1][1] = mark
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    letters = rf"[^\W_{_ALONE}]"
    # Most words end before a character below U+0300, where no marks are: looking at that first halves the time.
    part = f"{letters}+(?:(?=[\u0300-\U0010ffff])[{marks}]+{letters}*)*"
    return re.compile(f"[{_ALONE}]|{part}(?:'{part})*")


def split_words(text: str) -> list[str]:
    """The words of a text, in its order."""
    return _word().findall(unicodedata.normalize("NFC", text.lower()).replace("\u2019", "'"))


class WordTokenizer(Tokenizer):
    """Words with the number of times that each occurred in the training text.

    ids: 0 pad, 1 bos, 2 eos, 3 `<unk>`, then the words, the most frequent first. `words` [V] are their texts (`words[3]` is `<unk>`;
    the first three are empty), `counts` int64 [V] their occurrences (of `<unk>`: of all words that are not in the vocabulary).
    """

    kind = "words"
    pad_id, bos_id, eos_id, unk_id, first_word = 0, 1, 2, _SPECIAL, _SPECIAL + 1

    def __init__(self, words: list[str], counts: list[int], unknown: int):
        """`words` [V - 4] with their `counts`, in the order of their ids; `unknown` words were left out."""
        self.words = [""] * _SPECIAL + [_UNKNOWN, *words]
        self.counts = np.array([0] * _SPECIAL + [unknown, *counts], np.int64)
        self.vocab_size = len(self.words)
        self.ids = {word: i for i, word in enumerate(self.words) if i >= self.first_word}

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [n], one a word."""
        return np.array([self.ids.get(word, self.unk_id) for word in split_words(text)], np.int32)

    def decode_bytes(self, ids) -> bytes:
        """The words of `ids` [n] with a space between them, in UTF-8, special ids dropped. DataError for an id outside the vocabulary."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise DataError(f"token ids must lie in 0..{self.vocab_size - 1}, found {ids.min()}..{ids.max()}")
        return " ".join([self.words[i] for i in ids.tolist() if i >= _SPECIAL]).encode()

    def _file(self) -> bytes:
        rows = zip(self.words[_SPECIAL:], self.counts[_SPECIAL:].tolist(), strict=True)
        return "".join(f"{word}\t{count}\n" for word, count in rows).encode()

    def fingerprint(self) -> str:
        """Hex hash of the words and their counts: noise and sub-sampling follow from the counts."""
        return digest(b"words", self._file())

    def save(self, directory) -> None:
        """Writes words.tsv (a word, a tab, its count a line) and then tokenizer.json."""
        with atomic_file(pathlib.Path(directory) / "words.tsv") as file:
            file.write(self._file())
        super().save(directory)


def load_words(directory) -> WordTokenizer:
    """What `save` wrote into a local folder or URL. Raises DataError when it is not there or not in that form."""
    location = join(directory, "words.tsv")
    rows = [line.split("\t") for line in read_bytes(location).decode().splitlines()]
    if not rows or rows[0][0] != _UNKNOWN or any(len(row) != 2 or not row[1].isdecimal() for row in rows):
        raise DataError(f"{location} is not a list of words with their counts: copy it again, or delete {directory} and prepare it again")
    return WordTokenizer([word for word, _ in rows[1:]], [int(count) for _, count in rows[1:]], int(rows[0][1]))


def train_words(texts: Iterable[str], vocab_size: int, min_count: int) -> WordTokenizer:
    """The most frequent words of all texts that occur at least `min_count` times: at most `vocab_size` ids, the four special ones included.

    Words that are as frequent stand in the order of their text. Raises DataError when no word is left.
    """
    counts = collections.Counter()
    for text in texts:
        counts.update(split_words(text))
    frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)[: vocab_size - _SPECIAL - 1]
    if not frequent:
        raise DataError(f"no word of the training text occurs {min_count} times: lower data.min_count or give more text")
    kept = [-count for count, _ in frequent]
    return WordTokenizer([word for _, word in frequent], kept, counts.total() - sum(kept))
