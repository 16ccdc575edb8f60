"""Tokenizers: nothing is ever lost, training is deterministic, foreign models are accepted only when they keep text."""

import io
import pickle
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import tokenizers
from lm.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, load_model, load_tokenizer, train_tokenizer
from lm.errors import ConfigError, DataError

_RANDOM = random.Random(0)
_WORDS = ["".join(_RANDOM.choices("aeinorst", k=_RANDOM.randint(2, 7))) for _ in range(300)]
TEXTS = [" ".join(_RANDOM.choices(_WORDS, k=20)) +
         f" The quick brown fox number {i} jumps over\n\n\tthe lazy dog, 一二三 times.\n" for i in range(200)]
# One space in 6,000 characters: by their frequency it would get no piece.
SPACELESS = ["".join(_RANDOM.choices("的一是不了人我在有他这中大来上国", k=30)) + " " * (i == 0) for i in range(200)]
HARD = ["", " ", "\n", "  two  spaces  ", "a\r\nb\r", "\t\tx\n\n\n",
        "中文和😀👩‍👩‍👧", "\u2581", "a\u2581b", " \u2581 \u2581\u2581 x \u2581", "\x00a\x00",
        "e\u0301 \u00e9 \ufb01 \u2460", "\ufeffx\u2028y\u00a0z\u3000", "<s></s><pad><unk><0x41>",
        "\u2585 \u2047 \ufffd", "\U0010ffff\ue000"]


def model_bytes(**changes):
    model = io.BytesIO()
    settings = {"vocab_size": 330, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False, "minloglevel": 2} | changes
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, **settings)
    return model.getvalue()


ALL = {
    "bytes": ByteTokenizer(),
    "bpe": train_tokenizer(TEXTS, "bpe", 340),
    "unigram": train_tokenizer(TEXTS, "unigram", 340),
    "spaceless bpe": train_tokenizer(SPACELESS, "bpe", 300),
    "spaceless unigram": train_tokenizer(SPACELESS, "unigram", 300),
    "llama_style": SentencePieceTokenizer(model_bytes()),  # has a dummy prefix, and no pad
}


@pytest.fixture(params=ALL)
def tokenizer(request):
    return ALL[request.param]


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.text(" \u2581\nab\t\x00中", max_size=30)))
def test_any_text_comes_back(name, text):
    ids = ALL[name].encode(text)
    assert ALL[name].decode(ids) == text
    assert ALL[name].decode_bytes(ids) == text.encode()
    assert not np.isin(ids, [ALL[name].bos_id, ALL[name].eos_id]).any()


def test_saved_and_pickled_tokenizers_are_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    text = "The quick\n\u2581 fox 中"
    for other in (load_tokenizer(tmp_path / "t"), pickle.loads(pickle.dumps(tokenizer))):
        assert (other.fingerprint(), other.vocab_size, other.pad_id, other.bos_id, other.eos_id) == (
            tokenizer.fingerprint(), tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
        np.testing.assert_array_equal(other.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_changed_roles_are_kept_and_told_apart_where_they_matter(name, tmp_path):
    tokenizer = ALL[name]
    for changes, other_tokens in (({"eos_id": 0}, True), ({"bos_id": 0}, True), ({"prompt_bos": False, "chat_template": "T"}, False)):
        made = tokenizer.changed(**changes)
        assert (made.fingerprint() != tokenizer.fingerprint()) == other_tokens
        made.save(tmp_path)
        for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(made)), made.changed(_stops=(5,))):
            assert {key: getattr(other, key) for key in changes} == changes and other.fingerprint() == made.fingerprint()
    assert tokenizer.changed(_stops=(7, 2)).stop_ids == (tokenizer.eos_id, *(i for i in (7, 2) if i != tokenizer.eos_id))
    assert tokenizer.prompt_bos and tokenizer.chat_template == "" and tokenizer.stop_ids == (tokenizer.eos_id,)


def test_special_tokens_are_made_only_where_asked(tokenizer):
    token = tokenizer.token_of(tokenizer.eos_id)
    text = f"a{token}b"
    assert tokenizer.eos_id not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.encode_with_specials(text) == tokenizer.eos_id).sum() == 1
    assert tokenizer.id_of(token) == tokenizer.eos_id and tokenizer.id_of("no such token") is None


def test_fingerprints_differ():
    assert len({tokenizer.fingerprint() for tokenizer in ALL.values()}) == len(ALL)


def test_special_ids_are_dropped_and_broken_bytes_replaced(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("中 a"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "中 a"
    if tokenizer.kind == "bytes":
        assert tokenizer.decode([0xE4, 0xB8]) == "\ufffd" and tokenizer.decode_bytes([0xE4, 0xB8]) == b"\xe4\xb8"
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match="token ids must lie in"):
            tokenizer.decode([bad])


def test_trained_layout_and_size():
    trained = ALL["bpe"]
    assert (trained.pad_id, trained.bos_id, trained.eos_id, trained.vocab_size) == (0, 1, 2, 340)
    assert trained.encode("\n\t").tolist() == [4, 5] and trained.encode("\x00\xff").tolist() == [6, 6 + 0xC3, 6 + 0xBF]
    assert len(trained.encode(TEXTS[0])) < 0.7 * len(TEXTS[0])


def test_long_documents_are_cut_without_changing_tokens(monkeypatch):
    text = "".join(TEXTS) + "no newline " * 50 + "\n" * 70 + "end"
    whole = ALL["bpe"].encode(text)
    monkeypatch.setattr(tokenizers, "_CHUNK", 37)
    np.testing.assert_array_equal(ALL["bpe"].encode(text), whole)
    np.testing.assert_array_equal(whole, ALL["bpe"]._processor.encode(text))
    llama = ALL["llama_style"]
    np.testing.assert_array_equal(llama.encode(text), llama._processor.encode(text))


def test_training_is_deterministic_and_loses_no_long_line():
    assert train_tokenizer(reversed(TEXTS), "bpe", 340).fingerprint() == ALL["bpe"].fingerprint()
    assert train_tokenizer(TEXTS, "unigram", 340).fingerprint() == ALL["unigram"].fingerprint()
    # One line of 200,000 characters: SentencePiece alone would drop it and have nothing to learn from.
    long = train_tokenizer([" ".join(TEXTS).replace("\n", " ") * 15], "bpe", 340)
    assert len(long.encode("quick brown fox")) < 10
    words = list(tokenizers._sentences(["word " * 5000 + "\n" + "x" * 9000 + "\x00y\u2585z"]))
    assert max(map(len, words)) <= 4001 and "".join(words) == "word " * 5000 + "x" * 9000 + "yz"
    assert all(word.startswith("word") for word in words[:6])


def test_vocabulary_must_fit_the_text():
    with pytest.raises(DataError, match=r"vocab_size=8192 is more than this text supports \(at most \d+\): lower data.vocab_size"):
        train_tokenizer(TEXTS, "bpe", 8192)
    with pytest.raises(DataError, match=r"vocab_size=8192 is more than this text supports \(at most \d+\): lower data.vocab_size"):
        train_tokenizer(TEXTS, "unigram", 8192)
    with pytest.raises(DataError, match=r"vocab_size=270 cannot hold the characters of this text \(at least \d+\): raise data.vocab_size"):
        train_tokenizer(TEXTS, "bpe", 270)
    for nothing in ([], [""], ["\n\n", ""]):
        with pytest.raises(DataError, match="there is no text to train a tokenizer on"):
            train_tokenizer(nothing, "bpe", 300)


def test_foreign_models_must_keep_text(tmp_path):
    for changes, lost in (({"byte_fallback": False, "vocab_size": 60}, "has no byte fallback"),
                          ({"normalization_rule_name": "nmt_nfkc"}, "loses "),
                          ({"remove_extra_whitespaces": True}, "loses repeated spaces")):
        path = tmp_path / "m.model"
        path.write_bytes(model_bytes(**changes))
        with pytest.raises(ConfigError, match=lost) as caught:
            load_model(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "no.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"no\.model is not a SentencePiece model"):
        load_model(tmp_path / "no.model")
    with pytest.raises(DataError, match="does not exist"):
        load_model(tmp_path / "missing.model")


def test_foreign_models_without_special_pieces_borrow_others():
    bare = SentencePieceTokenizer(model_bytes(bos_id=-1, eos_id=-1, pad_id=-1, unk_id=0))
    assert (bare.pad_id, bare.bos_id, bare.eos_id) == (0, 0, 0)
    llama = ALL["llama_style"]
    assert (llama.bos_id, llama.eos_id, llama.pad_id) == (1, 2, 2)


def test_a_folder_whose_files_do_not_belong_together_is_refused(tmp_path):
    ALL["bpe"].save(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.model").write_bytes(model_bytes())
    with pytest.raises(DataError, match="does not belong to the model beside it"):
        load_tokenizer(tmp_path / "a")
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path / "nothing")
