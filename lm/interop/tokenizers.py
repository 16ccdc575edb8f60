"""Tokenizers as other libraries have them: read from a folder (lm.data.tokenizer_files), written so that transformers opens them.

A SentencePiece model becomes a tokenizer.json in which a space is a space. The library's own conversions write it as U+2581 and so take
a U+2581 of the text for a space; here it is spelled by its bytes, as our encoder does. Merges are tried in the order of the scores.
"""

import json
import pathlib
import re
import types
from collections.abc import Mapping

from lm.data.files import atomic_file, write_json
from lm.data.huggingface import HuggingFaceTokenizer, byte_characters
from lm.data.tokenizer_files import byte_level_description, special
from lm.data.tokenizer_files import read_folder as read_tokenizer
from lm.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from lm.errors import ConfigError

__all__ = ["huggingface_model", "read_tokenizer", "write_tokenizer"]

_SPACE = "\u2581"
_NEVER = -1e4  # a log-probability
_UNIGRAM, _BPE = 1, 2  # of SentencePiece's trainer_spec.model_type


def write_tokenizer(tokenizer: Tokenizer, folder, longest: int = 0, marks: Mapping[str, int] = types.MappingProxyType({})) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json that transformers opens (AutoTokenizer), with the same ids.

    Without special tokens it encodes as `tokenizer` does, with them it begins as a prompt of ours does. `longest` is its model_max_length,
    in tokens. A SentencePiece model is written beside them as tokenizer.model, for programs that read no tokenizer.json. Raises ConfigError
    for a tokenizer that the library has no counterpart of.

    `marks` are the ids after the tokenizer's that a masked model (BERT) has for mask_token, cls_token and sep_token: with special tokens
    a text then stands between cls and eos, and a pair of texts has sep after each, as such a model has met them.
    """
    folder = pathlib.Path(folder)
    model = _marked(huggingface_model(tokenizer), tokenizer, marks) if marks else huggingface_model(tokenizer)
    with atomic_file(folder / "tokenizer.json") as file:
        file.write(model)
    if isinstance(tokenizer, SentencePieceTokenizer):
        with atomic_file(folder / "tokenizer.model") as file:
            file.write(tokenizer.model)
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id, "unk_token": tokenizer.unk_id}
    roles = {role: token for role, i in ids.items() if i is not None and (token := tokenizer.token_of(i))} | _texts(marks)
    if "bos" in tokenizer.unnamed and not tokenizer.prompt_bos:
        roles.pop("bos_token", None)  # another stands for it, and a chat template is not to write that
    begins = tokenizer.prompt_bos and not marks
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "add_bos_token": begins,
                "add_eos_token": False, **roles}
    settings |= {"model_max_length": longest} if longest else {}
    settings |= {"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    write_json(folder / "special_tokens_map.json", roles)
    write_json(folder / "tokenizer_config.json", settings)


def huggingface_model(tokenizer: Tokenizer) -> bytes:
    """The tokenizer.json that gives the ids of `tokenizer`: the one that it was read from unless its prompts were made to begin otherwise.

    Raises ConfigError where there is none.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.begins_with_bos() == tokenizer.prompt_bos:
        return tokenizer.model
    if isinstance(tokenizer, HuggingFaceTokenizer):
        description = json.loads(tokenizer.model) | {"post_processor": None}
    elif isinstance(tokenizer, ByteTokenizer):
        description = _bytes(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        description = _sentencepiece(tokenizer)
    else:
        raise ConfigError(f"a tokenizer of kind {tokenizer.kind} has no counterpart in the transformers library: use bpe, unigram, "
                          "bytebpe, wordpiece or bytes")
    if tokenizer.prompt_bos:
        description["post_processor"] = _begins_with(tokenizer.token_of(tokenizer.bos_id), tokenizer.bos_id)
    return json.dumps(description, ensure_ascii=False).encode()


def _texts(marks: Mapping[str, int]) -> dict[str, str]:
    """{role: text} of a masked model's own tokens, such as <mask>."""
    return {role: f"<{role.removesuffix('_token')}>" for role in marks}


def _marked(model: bytes, tokenizer: Tokenizer, marks: Mapping[str, int]) -> bytes:
    """A tokenizer.json with a masked model's own tokens, which stand around a text as in training."""
    description, texts = json.loads(model), _texts(marks)
    for role, token in texts.items():
        if tokenizer.id_of(token) is not None:
            raise ConfigError(f"the tokenizer has a token {token} of its own, and cannot be written with that of the model")
        description.setdefault("added_tokens", []).append(special(token, marks[role]))
    cls, sep, eos = texts["cls_token"], texts["sep_token"], tokenizer.token_of(tokenizer.eos_id)
    ids = {cls: marks["cls_token"], sep: marks["sep_token"], eos: tokenizer.eos_id}

    def token(name, kind=0):
        return {"SpecialToken": {"id": name, "type_id": kind}}

    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    description["post_processor"] = {
        "type": "TemplateProcessing", "single": [token(cls), first, token(eos)],
        "pair": [token(cls), first, token(sep), second, token(sep, 1)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()}}
    return json.dumps(description, ensure_ascii=False).encode()


def _begins_with(token: str, i: int) -> dict:
    """A post-processor that puts bos before a text."""
    bos, text, other = {"SpecialToken": {"id": token, "type_id": 0}}, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, bos, other],
            "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}}}


def _bytes(tokenizer: ByteTokenizer) -> dict:
    vocab = byte_characters() | dict(tokenizer.special_tokens)
    description = byte_level_description(vocab, [], list(tokenizer.special_tokens))
    description["pre_tokenizer"] = description["pre_tokenizer"] | {"use_regex": False}
    return description | {"post_processor": None}


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    kinds, rule = sentencepiece_model_pb2.ModelProto.SentencePiece, proto.normalizer_spec
    if proto.trainer_spec.model_type not in (_UNIGRAM, _BPE) or rule.precompiled_charsmap or rule.remove_extra_whitespaces:
        raise ConfigError("this SentencePiece model normalises text, and such a one is not written as tokenizer.json: keep the folder "
                          "that it came from, or train one (data.tokenizer=bpe)")
    texts = [_text(piece, kinds) for piece in proto.pieces]
    if len(set(texts)) != len(texts):
        raise ConfigError("this SentencePiece model has a piece twice, with a space and with U+2581: train one (data.tokenizer=bpe)")
    rows = enumerate(zip(proto.pieces, texts, strict=True))
    names = (kinds.CONTROL, kinds.UNKNOWN)
    added = [special(text, i) | {"special": piece.type in names} for i, (piece, text) in rows
             if piece.type in names or (piece.type == kinds.USER_DEFINED and len(text) > 1)]
    scores = [piece.score for piece in proto.pieces]
    normal = [piece.type in (kinds.NORMAL, kinds.USER_DEFINED) for piece in proto.pieces]
    model = (_bpe if proto.trainer_spec.model_type == _BPE else _unigram)(texts, scores, normal, proto)
    alone = "".join(sorted({c for text, is_text in zip(texts, normal, strict=True) if not is_text for c in text} - set(texts)))
    # A character without a piece is spelled in bytes whatever stands beside it; cut off, it cannot be the < of <s> or <0x41> either.
    cut = {"type": "Split", "pattern": {"Regex": f"[{re.escape(alone)}]"}, "behavior": "Isolated", "invert": False} if alone else None
    prefix = [{"type": "Prepend", "prepend": " "}] if tokenizer.dummy_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.dummy_prefix else []
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": prefix[0] if prefix else None,
            "pre_tokenizer": cut, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}, "model": model}


def _text(piece, kinds) -> str:
    """A piece with spaces for U+2581; control pieces are names and no text."""
    return piece.piece.replace(_SPACE, " ") if piece.type in (kinds.NORMAL, kinds.USER_DEFINED) else piece.piece


def _bpe(texts: list[str], scores: list[float], normal: list[bool], proto) -> dict:
    """Merges of every two pieces that make a third, best score first, as SentencePiece tries them."""
    ids = {text: i for i, text in enumerate(texts) if normal[i]}
    merges = []
    for text, i in ids.items():
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in ids and text[cut:] in ids]
        merges += [(-scores[i], i, ids[left], ids[right]) for left, right in pairs]
    return {"type": "BPE", "dropout": None, "unk_token": texts[proto.trainer_spec.unk_id], "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": proto.trainer_spec.byte_fallback, "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [[texts[left], texts[right]] for *_, left, right in sorted(merges)]}


def _unigram(texts: list[str], scores: list[float], normal: list[bool], proto) -> dict:
    """Pieces with their log-probabilities; names such as <s> and <0x41> are so unlikely that no text is taken for one.

    Where two ways to cut a text are as likely (a row of 13 signs as 12 and 1, or 1 and 12) rounding chooses, in float32 there and in
    float64 here, so that a few tokens in a million differ.
    """
    rows = [[text, score if is_text else _NEVER] for text, score, is_text in zip(texts, scores, normal, strict=True)]
    return {"type": "Unigram", "unk_id": proto.trainer_spec.unk_id, "vocab": rows, "byte_fallback": proto.trainer_spec.byte_fallback}
