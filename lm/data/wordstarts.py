"""Where words begin among the pieces of a tokenizer, for objectives that treat the pieces of a word alike."""

import re
import unicodedata

import numpy as np

_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class WordStarts:
    """A word begins at a piece that begins with white space, after a newline, and at the start of a document or row.

    A Chinese character, a punctuation mark and a symbol are words of their own (as in Devlin et al. 2019), so that one begins at each and
    after it; where characters are bytes, those of ASCII and of U+4000 to U+9FFF are known. Ids without text (eos, and an objective's own)
    are words by themselves.
    """

    def __init__(self, pieces: list[bytes]):
        """`pieces` are the bytes of every id, empty where an id stands for no text."""
        texts = [piece.decode(errors="replace") for piece in pieces]
        self._opens = np.array([not text or text[0].isspace() or _alone(text[0]) for text in texts])
        self._closes = np.array([not text or text[-1] == "\n" or _alone(text[-1]) for text in texts])
        values = np.array([piece[0] if len(piece) == 1 else 0 for piece in pieces])
        self._lead = (values >= 0xE4) & (values <= 0xE9)
        self._inside = (values >= 0x80) & (values < 0xC0)

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """bool [B, T] of tokens [B, T]: a word begins here. The first token of a row always begins one."""
        starts = self._opens[tokens] | self._lead[tokens]
        starts[:, 1:] |= self._closes[tokens[:, :-1]]
        inside = self._inside[tokens]
        # A character of three bytes that began three tokens ago is over.
        starts[:, 3:] |= self._lead[tokens[:, :-3]] & inside[:, 1:-2] & inside[:, 2:-1]
        starts[:, :1] = True
        return starts


def _alone(character: str) -> bool:
    """Whether a character is a word of its own; U+FFFD, which stands for bytes that are no character, is not."""
    return character != "\ufffd" and bool(_HAN.match(character) or unicodedata.category(character)[0] in "PS")
