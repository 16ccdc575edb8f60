"""Byte-level BPE (Radford et al. 2019) and WordPiece (Wu et al. 2016) trained by the `tokenizers` library."""

import collections
import json
import re
from collections.abc import Iterable

from lm.data.huggingface import HuggingFaceTokenizer
from lm.data.tokenizer_files import wordpiece_description
from lm.errors import DataError

_ROLES = ("<pad>", "<s>", "</s>")  # ids 0 to 2 of byte-level BPE; then the 256 bytes, then what was merged
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4 of WordPiece
_MOST_CHARACTERS = 1000  # that WordPiece keeps, as its trainer does; rarer ones are [UNK]


def train_bytebpe(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """Byte-level BPE of exactly `vocab_size` ids: 0 pad, 1 bos, 2 eos, the 256 bytes, then merges. It loses nothing.

    Raises DataError when the text does not support so many pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(_some(texts), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_ROLES), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    _check_size(tokenizer, vocab_size)
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), eos_id=2, bos_id=1, pad_id=0, prompt_bos=True)


def train_wordpiece(texts: Iterable[str], vocab_size: int, lower_case: bool = True) -> HuggingFaceTokenizer:
    """WordPiece of exactly `vocab_size` ids: 0 pad, 1 unknown, 2 bos [CLS], 3 eos [SEP], 4 [MASK], then pieces.

    White space is lost, case and accents too with `lower_case`, and what its characters cannot spell is [UNK]: `lossless` is False.
    Raises DataError when the text does not support so many pieces.
    """
    from tokenizers import Tokenizer, trainers

    blank = wordpiece_description({token: i for i, token in enumerate(_BERT)}, lower_case)
    tokenizer = Tokenizer.from_str(json.dumps(blank))
    texts = list(_some(texts))
    first, inner = _characters(texts, tokenizer)
    # Characters are numbered here: the trainer numbers them in the order of a hash table, which changes from run to run.
    specials = [*_BERT, *(f"##{character}" for character in inner)]
    if len(specials) + len(first) > vocab_size:
        raise DataError(f"vocab_size={vocab_size} cannot hold the characters of this text (at least {len(specials) + len(first)}): raise "
                        "data.vocab_size")
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=first, limit_alphabet=len(first), show_progress=False))
    _check_size(tokenizer, vocab_size)
    vocab = dict(sorted(json.loads(tokenizer.to_str())["model"]["vocab"].items(), key=lambda item: item[1]))
    return HuggingFaceTokenizer(json.dumps(wordpiece_description(vocab, lower_case), ensure_ascii=False).encode(), eos_id=3, bos_id=2,
                                pad_id=0, prompt_bos=True)


def _some(texts: Iterable[str]):
    """The texts in pieces of some lines: the library holds a whole one with its offsets. DataError where there is nothing."""
    found = False
    for text in texts:
        for piece in re.findall(r".{1,20000}(?:\n|\Z)|.{20000}", text, re.DOTALL):
            found |= bool(piece.strip())
            yield piece
    if not found:
        raise DataError("there is no text to train a tokenizer on: give more data or data.tokenizer=bytes")


def _characters(texts: list[str], tokenizer) -> tuple[list[str], list[str]]:
    """The most frequent characters of words, and those of them that stand inside one, both in the order of their code points."""
    counts, inside = collections.Counter(), set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            counts.update(word)
            inside.update(word[1:])
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:_MOST_CHARACTERS]
    return sorted(frequent), sorted(inside & set(frequent))


def _check_size(tokenizer, vocab_size: int) -> None:
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        raise DataError(f"vocab_size={vocab_size} is more than this text supports (at most {size}): lower data.vocab_size")
