"""Tokenizers of the tokenizers library: trained here, read from files of every kind, and as the library itself encodes."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import config
from lm.data.huggingface import HuggingFaceTokenizer, byte_characters
from lm.data.prepare import prepare
from lm.data.tokenizer_files import open_tokenizer, read_folder
from lm.data.tokenizer_training import train_bytebpe, train_wordpiece
from lm.data.tokenizers import SentencePieceTokenizer, load_tokenizer
from lm.errors import ConfigError, DataError
from tests.data.test_tokenizers import HARD, TEXTS, model_bytes

BYTEBPE, WORDPIECE = train_bytebpe(TEXTS, 340), train_wordpiece(TEXTS, 160)
TWICE = """
from tests.data.test_tokenizers import TEXTS
from lm.data.tokenizer_training import train_bytebpe, train_wordpiece
print(train_bytebpe(TEXTS, 340).fingerprint(), train_wordpiece(TEXTS, 160).fingerprint())
"""


def library(tokenizer):
    """The library's own tokenizer of the same file."""
    return tokenizers.Tokenizer.from_str(tokenizer.model.decode())


def unigram(byte_fallback=False, **changes):
    """A tokenizer.json like T5's: U+2581 for spaces, names of special tokens among the pieces."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", "a", "b", "c", "\u2581a", "ab", "<", "/", "s", ">", "\u2581abc"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    special = [{"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i in range(3)]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, space]} if byte_fallback else space
    return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
                       "pre_tokenizer": space, "post_processor": None, "decoder": decoder,
                       "model": {"type": "Unigram", "unk_id": 2, "vocab": [[piece, 0.0 if i < 3 else -2.0 - i / 100] for i, piece in
                                                                         enumerate(pieces)], "byte_fallback": byte_fallback}} | changes)


@pytest.mark.parametrize("text", HARD)
def test_bytebpe_keeps_hard_texts(text):
    ids = BYTEBPE.encode(text)
    assert ids.dtype == np.int32 and BYTEBPE.decode(ids) == text and BYTEBPE.decode_bytes(ids) == text.encode()


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.text(" \u2581\nab\t\x00中<s>/|", max_size=30)))
def test_bytebpe_keeps_any_text_and_makes_no_special_tokens(text):
    ids = BYTEBPE.encode(text)
    assert BYTEBPE.decode_bytes(ids) == text.encode() and (not len(ids) or ids.min() > 2)
    assert sum(len(BYTEBPE.pieces()[i]) for i in ids.tolist()) == len(text.encode())


def test_trained_tokenizers_are_as_asked_for_and_encode_as_the_library():
    assert (BYTEBPE.vocab_size, BYTEBPE.pad_id, BYTEBPE.bos_id, BYTEBPE.eos_id, BYTEBPE.unk_id) == (340, 0, 1, 2, None)
    assert BYTEBPE.lossless and BYTEBPE.prompt_bos and BYTEBPE.stop_ids == (2,) and len(BYTEBPE.encode(TEXTS[0])) < 0.7 * len(TEXTS[0])
    assert (WORDPIECE.vocab_size, WORDPIECE.pad_id, WORDPIECE.unk_id, WORDPIECE.bos_id, WORDPIECE.eos_id) == (160, 0, 1, 2, 3)
    assert not WORDPIECE.lossless and WORDPIECE.decode(WORDPIECE.encode("The QUICK fox\n jumps")) == "the quick fox jumps"
    assert train_wordpiece(TEXTS, 160, lower_case=False).decode(WORDPIECE.encode("fox")) != ""
    for tokenizer in (BYTEBPE, WORDPIECE):
        for text in (*TEXTS[:20], *(text for text in HARD if "<s>" not in text)):
            assert tokenizer.encode(text).tolist() == library(tokenizer).encode(text, add_special_tokens=False).ids


def test_training_gives_the_same_in_every_process():
    found = {subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert found == {f"{BYTEBPE.fingerprint()} {WORDPIECE.fingerprint()}\n"}


def test_training_needs_text_that_supports_the_vocabulary():
    for train in (train_bytebpe, train_wordpiece):
        with pytest.raises(DataError, match=r"vocab_size=30000 is more than this text supports \(at most \d+\): lower data.vocab_size"):
            train(TEXTS, 30_000)
        with pytest.raises(DataError, match="there is no text to train a tokenizer on"):
            train(["", "\n "], 300)
    with pytest.raises(DataError, match=r"vocab_size=60 cannot hold the characters of this text \(at least \d+\): raise data.vocab_size"):
        train_wordpiece(TEXTS, 60)


def test_special_tokens_are_made_only_where_asked():
    text = "a</s>b<s>"
    assert not np.isin(BYTEBPE.encode(text), [0, 1, 2]).any() and BYTEBPE.decode(BYTEBPE.encode(text)) == text
    assert BYTEBPE.encode_with_specials(text).tolist() == [*BYTEBPE.encode("a"), 2, *BYTEBPE.encode("b"), 1]
    assert BYTEBPE.decode([*BYTEBPE.encode("a"), 2, 1, 0]) == "a" and BYTEBPE.pieces()[:3] == [b""] * 3
    assert (BYTEBPE.id_of("</s>"), BYTEBPE.id_of("nothing"), BYTEBPE.token_of(1)) == (2, None, "<s>")
    # The trie of a Unigram model has the names of special tokens too.
    model = HuggingFaceTokenizer(unigram().encode(), eos_id=1, pad_id=0)
    assert library(model).encode("a</s>", add_special_tokens=False).ids[-1] == 1
    assert [model.token_of(i) for i in model.encode("a</s>")] == ["\u2581a", "<", "/", "s", ">"]
    assert model.encode_with_specials("a</s>").tolist()[-1] == 1


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_pieces_are_the_bytes_of_the_text(byte_fallback):
    model = HuggingFaceTokenizer(unigram(byte_fallback).encode(), eos_id=1, pad_id=0)
    pieces = [model.pieces()[i] for i in model.encode("abc a")]
    assert pieces == [b" abc", b" a"] and model.decode(model.encode("abc a")) == "abc a" and not model.lossless
    assert model.continuation(model.encode("abc a")) == " abc a"
    assert model.unk_id == 2 and (model.encode("z").tolist()[-1] == 2) != byte_fallback
    assert model.decode(model.encode("中")) == ("中" if byte_fallback else "")
    assert [WORDPIECE.pieces()[i] for i in WORDPIECE.encode("fox dog")] == [b" fox", b" dog"]
    assert b"".join(WORDPIECE.pieces()[i] for i in WORDPIECE.encode("foxover")) == b" foxover"
    table = byte_characters()
    assert sorted(table.values()) == list(range(256)) and table["\u0120"] == 0x20 and table["a"] == 0x61
    assert set(table) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_saved_and_pickled_ones_are_the_same(tmp_path):
    made = HuggingFaceTokenizer(BYTEBPE.model, eos_id=2, bos_id=2, stop_ids=(2, 0), prompt_bos=False, chat_template="{{ messages }}")
    for i, tokenizer in enumerate((BYTEBPE, WORDPIECE, made, made.changed(eos_id=1, prompt_bos=True, chat_template="x"))):
        tokenizer.save(tmp_path / str(i))
        for other in (load_tokenizer(tmp_path / str(i)), pickle.loads(pickle.dumps(tokenizer)), open_tokenizer(str(tmp_path / str(i)))):
            names = ("bos_id", "eos_id", "pad_id", "unk_id", "vocab_size", "stop_ids", "prompt_bos", "lossless", "chat_template")
            assert [getattr(other, name) for name in names] == [getattr(tokenizer, name) for name in names]
            assert other.fingerprint() == tokenizer.fingerprint()
            np.testing.assert_array_equal(other.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))
    assert made.stop_ids == (2, 0) and made.fingerprint() != BYTEBPE.fingerprint() != WORDPIECE.fingerprint()
    (tmp_path / "0" / "model.json").write_bytes(WORDPIECE.model)
    with pytest.raises(DataError, match="does not belong to the model beside it"):
        load_tokenizer(tmp_path / "0")


def test_what_truncates_or_pads_for_a_batch_is_no_part_of_a_text():
    description = json.loads(BYTEBPE.model) | {
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                    "pad_token": "<pad>"}}
    made = HuggingFaceTokenizer(json.dumps(description).encode(), eos_id=2)
    np.testing.assert_array_equal(made.encode(TEXTS[0]), BYTEBPE.encode(TEXTS[0]))
    np.testing.assert_array_equal(made.encode_with_specials("a"), BYTEBPE.encode("a"))


def folder(path, **others):
    """A folder with tokenizer.json and what stands beside it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_bytes(BYTEBPE.model)
    for name, value in others.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_roles_come_from_the_files_beside_a_model(tmp_path):
    known = read_folder(folder(tmp_path / "bare"))
    assert (known.eos_id, known.bos_id, known.pad_id, known.prompt_bos) == (2, 2, 2, False)  # </s> is a well-known end
    settings = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "pad_token": "<pad>", "add_bos_token": True, "chat_template": "T"}
    full = read_folder(folder(tmp_path / "full", tokenizer_config=settings, config={"eos_token_id": 5}, generation_config={
        "eos_token_id": [2, 7]}))
    assert (full.bos_id, full.eos_id, full.pad_id, full.stop_ids, full.prompt_bos) == (1, 2, 0, (2, 5, 7), True)
    assert full.chat_template == "T"
    only = read_folder(folder(tmp_path / "only", config={"eos_token_id": [9, 8], "bos_token_id": 3, "pad_token_id": 4}))
    assert (only.bos_id, only.eos_id, only.pad_id, only.stop_ids) == (3, 9, 4, (9, 8))
    pair = read_folder(folder(tmp_path / "pair", config={"is_encoder_decoder": True, "decoder_start_token_id": 0, "eos_token_id": 2}))
    assert (pair.bos_id, pair.eos_id) == (0, 2)
    named = read_folder(folder(tmp_path / "named", tokenizer_config={"eos_token": "</s>", "chat_template": [
        {"name": "tools", "template": "A"}, {"name": "default", "template": "B"}]}, special_tokens_map={"bos_token": "<s>"}))
    assert (named.chat_template, named.bos_id) == ("B", 1)
    (tmp_path / "named" / "chat_template.jinja").write_text("C")
    assert read_folder(tmp_path / "named").chat_template == "C" and read_folder(tmp_path) is None


def test_vocabularies_in_files_of_their_own(tmp_path):
    model = json.loads(BYTEBPE.model)["model"]
    merges = "#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"]) + "\n"
    for vocab, rules in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        place = tmp_path / vocab
        place.mkdir()
        renamed = {"<|endoftext|>" if token == "</s>" else token: i for token, i in model["vocab"].items()}
        (place / vocab).write_text(json.dumps(renamed))
        (place / rules).write_text(merges)
        for spec in (place, place / vocab, place / rules):
            read = open_tokenizer(str(spec))
            assert (read.eos_id, read.bos_id, read.prompt_bos, read.lossless) == (2, 2, False, True)
            for text in (*TEXTS[:5], *HARD):
                np.testing.assert_array_equal(read.encode(text), BYTEBPE.encode(text))
    words = json.loads(WORDPIECE.model)["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    read = open_tokenizer(str(tmp_path / "vocab.txt"))
    assert (read.bos_id, read.eos_id, read.pad_id, read.unk_id, read.prompt_bos) == (2, 3, 0, 1, True)
    for text in TEXTS[:5]:
        np.testing.assert_array_equal(read.encode(text), WORDPIECE.encode(text))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert read.unk_id not in read.encode("The") and read.unk_id in open_tokenizer(str(tmp_path)).encode("QUICK")


def test_a_sentencepiece_model_in_a_folder(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "eos_token": "</s>", "chat_template": "T"}))
    read = read_folder(tmp_path)
    assert isinstance(read, SentencePieceTokenizer) and read.lossless and (read.prompt_bos, read.chat_template) == (False, "T")
    assert (read.bos_id, read.eos_id, read.unk_id) == (1, 2, 0)
    read.save(tmp_path / "saved")
    for other in (load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(read))):
        assert (other.prompt_bos, other.chat_template, other.fingerprint()) == (False, "T", read.fingerprint())
    (tmp_path / "tokenizer.model").write_bytes(model_bytes(byte_fallback=False, vocab_size=60))
    lossy = read_folder(tmp_path)
    assert not lossy.lossless and lossy.encode("\U0001f600").tolist()[-1] == lossy.unk_id
    assert lossy.decode(lossy.encode("the\u2581dog")) == "the dog"
    lossy.save(tmp_path / "lossy")
    assert not load_tokenizer(tmp_path / "lossy").lossless
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": 60}))
    with pytest.raises(ConfigError, match=r"adds '<new>' to tokenizer.model, which has no such piece"):
        read_folder(tmp_path)


def test_bad_files_are_one_line_each(tmp_path):
    def fails(kind, match, spec, **options):
        with pytest.raises(kind, match=match) as caught:
            open_tokenizer(str(spec), **options)
        assert "\n" not in str(caught.value)

    fails(ConfigError, "has no tokenizer: it needs", tmp_path)
    fails(DataError, "missing.json does not exist", tmp_path / "missing.json")
    (tmp_path / "x.json").write_text("{nonsense")
    fails(ConfigError, r"x\.json is not valid JSON", tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]")
    fails(ConfigError, "is not a tokenizer.json of the tokenizers library", tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}))
    fails(ConfigError, "nothing says which token .* ends a document: set data.eos_token", tmp_path / "x.json")
    (tmp_path / "x.json").write_text(BYTEBPE.model.decode().replace('"BPE"', '"Magic"'))
    fails(ConfigError, "cannot be read by tokenizers", tmp_path / "x.json", eos_token="a")
    fails(ConfigError, "eos_token is 'nowhere', which tokenizer.json does not have", folder(tmp_path / "a", tokenizer_config={
        "eos_token": "nowhere"}))
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    fails(ConfigError, "is not a WordPiece vocabulary: it has no", tmp_path / "vocab.txt")
    (tmp_path / "merges.txt").write_text("")
    fails(ConfigError, "byte-level BPE needs vocab.json and merges.txt", tmp_path / "merges.txt")
    with pytest.raises(ConfigError, match="the eos id 999 is outside its 340 tokens"):
        HuggingFaceTokenizer(BYTEBPE.model, eos_id=999)


def options(root, **values):
    (root / "in").mkdir(exist_ok=True)
    for i, text in enumerate(TEXTS[:60]):
        (root / "in" / f"{i}.txt").write_text(text)
    (root / "in" / "unknown.txt").write_text("one \U0001f600")
    data = config.default().data
    data.update({"source": (f"text:{root}/in/*.txt",), "cache_dir": str(root / "cache"), "workers": 1, "validation_fraction": 0.2} | values)
    return data


def test_preparation_trains_them_and_counts_what_is_unknown(tmp_path):
    prepared = prepare(options(tmp_path, tokenizer="bytebpe", vocab_size=320), 0)
    assert prepared.tokenizer.vocab_size == 320 and "unknown_share" not in prepared.manifests[0]
    assert prepare(options(tmp_path, tokenizer="bytebpe", vocab_size=320), 0).fingerprint == prepared.fingerprint
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in json.loads(WORDPIECE.model)["model"]["vocab"] if word != "jumps"))
    given = prepare(options(tmp_path, tokenizer=str(tmp_path / "vocab.txt")), 0)
    tokens = np.concatenate([store.read(0, store.num_tokens) for store in given.sources[0].values()])
    assert given.manifests[0]["unknown_share"] == np.mean(tokens == 1) and not given.manifests[0]["tokenizer"]["lossless"]
    (tmp_path / "lossy.model").write_bytes(model_bytes(byte_fallback=False, vocab_size=60))
    with pytest.raises(ConfigError, match=r"data\.allow_lossy=true"):
        prepare(options(tmp_path, tokenizer=str(tmp_path / "lossy.model")), 0)
    lossy = prepare(options(tmp_path, tokenizer=str(tmp_path / "lossy.model"), allow_lossy=True), 0)
    assert not lossy.tokenizer.lossless and lossy.manifests[0]["unknown_share"] > 0
    cased = [prepare(options(tmp_path, tokenizer="wordpiece", vocab_size=264, lower_case=lower), 0).tokenizer for lower in (True, False)]
    assert [tokenizer.decode(tokenizer.encode("The")) for tokenizer in cased] == ["the", "The"]


def test_config_gives_tokens_other_roles(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    prepared = prepare(options(tmp_path, tokenizer="bytebpe", vocab_size=320, eos_token="<s>", bos_token="</s>", prompt_bos="no",
                               chat_template=str(tmp_path / "t.jinja")), 0)
    tokenizer = prepared.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.prompt_bos) == (2, 1, False) and "messages" in tokenizer.chat_template
    store = prepared.sources[0]["train"]
    assert {int(store.read(int(end) - 1, int(end))[0]) for end in store.offsets[1:]} == {1}
    plain = prepare(options(tmp_path, tokenizer="bytebpe", vocab_size=320), 0)
    assert plain.fingerprint != prepared.fingerprint
    assert load_tokenizer(prepared.manifests[0]["directory"] + "/tokenizer").chat_template == tokenizer.chat_template
    with pytest.raises(ConfigError, match=r"data\.eos_token=<end>: the tokenizer .* has no such token"):
        prepare(options(tmp_path, tokenizer="bytebpe", vocab_size=320, eos_token="<end>"), 0)
    stored = f"store:{plain.manifests[0]['directory']}"
    assert not prepare(options(tmp_path, source=(stored,), prompt_bos="no"), 0).tokenizer.prompt_bos
    with pytest.raises(ConfigError, match="end with another token: prepare it again"):
        prepare(options(tmp_path, source=(stored,), eos_token="<s>"), 0)
