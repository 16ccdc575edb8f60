"""The tokenizer in a GGUF file's metadata, written as the files that a folder of transformers would have and read from there.

`tokenizer.ggml.pre` names the rule by which text is cut before merges; the rules are those of llama.cpp (llama-vocab.cpp), which are the
original models' own. llama.cpp applies no Unicode normalisation, nor is any applied here.
"""

import json
import pathlib
import tempfile

from lm.data.tokenizers import Tokenizer
from lm.errors import ConfigError, DataError
from lm.interop.gguf_file import Gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_GPT2_CUT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> list[dict]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, {**_GPT2_CUT, "use_regex": False}]


# pre type: (how text is cut, whether a whole piece that is a token skips the merges, whether bos begins a text by default)
_GPT2, _DIGITS = ([_GPT2_CUT], False, False), ([{"type": "Digits", "individual_digits": True}, _GPT2_CUT], False, False)
_LLAMA3, _QWEN2, _DBRX = (_split(_CL100K), True, True), (_split(_QWEN), False, False), (_split(_CL100K), False, False)
PRE_TYPES = {
    "gpt-2": _GPT2, "phi-2": _GPT2, "olmo": _GPT2, "mpt": _GPT2, "smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS,
    "command-r": _DIGITS, "codeshell": _DIGITS, "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "falcon3": _LLAMA3,
    "dbrx": _DBRX, "smaug-bpe": _DBRX, "qwen2": _QWEN2, "stablelm2": _QWEN2, "deepseek-r1-qwen": _QWEN2}


def gguf_tokenizer(file: Gguf) -> Tokenizer | None:
    """The tokenizer of a GGUF file, or None where it has none. ConfigError or DataError where it cannot be read."""
    from lm.interop.tokenizers import read_tokenizer

    kind = file.metadata.get("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise ConfigError(f"{file.path} has tokenizer.ggml.model={kind!r}, but only gpt2 (byte-level BPE) and llama (SentencePiece) can "
                          "be read: import the model's folder with safetensors instead")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        settings = _byte_level(file, folder) if kind == "gpt2" else _sentencepiece(file, folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        ids = {f"{part}_token_id": number for part, number in special_ids(file).items()}
        (folder / "config.json").write_text(json.dumps(ids), encoding="utf-8")
        return read_tokenizer(folder)


def _get(file: Gguf, key: str, default=None):
    return file.metadata.get(f"tokenizer.ggml.{key}", default)


def special_ids(file: Gguf) -> dict[str, int | list[int] | None]:
    """{bos, eos, pad: id} as config.json has them; eos with the token that ends a turn of a chat, where that is another one."""
    eos, turn = _get(file, "eos_token_id"), _get(file, "eot_token_id")
    both = [eos, turn] if turn not in (None, eos) and eos is not None else eos
    return {"bos": _get(file, "bos_token_id"), "eos": both, "pad": _get(file, "padding_token_id")}


def _vocabulary(file: Gguf) -> tuple[list[str], list[int]]:
    """(tokens, their types); DataError where they do not belong together."""
    tokens = _get(file, "tokens") or []
    types = _get(file, "token_type") or [_NORMAL] * len(tokens)
    if not tokens or len(types) != len(tokens):
        raise DataError(f"{file.path} has {len(tokens)} tokens and {len(types)} types of tokens: convert it again with llama.cpp")
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise DataError(f"{file.path} has the token {twice!r} twice: convert it again with llama.cpp")
    return tokens, types


def _settings(file: Gguf, tokens: list[str], add_bos: bool) -> dict:
    """tokenizer_config.json."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                "add_bos_token": _get(file, "add_bos_token", add_bos), "add_eos_token": _get(file, "add_eos_token", False)}
    for part, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (number := _get(file, f"{key}_token_id")) is None:
            continue
        if not 0 <= number < len(tokens):
            raise DataError(f"{file.path} has tokenizer.ggml.{key}_token_id={number}, but {len(tokens)} tokens: it is damaged")
        settings |= {f"{part}_token": tokens[number], f"{part}_token_id": number}
    if template := file.metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings


def _byte_level(file: Gguf, folder: pathlib.Path) -> dict:
    """Writes tokenizer.json of a byte-level BPE."""
    tokens, types = _vocabulary(file)
    pre = _get(file, "pre")
    if pre not in PRE_TYPES:
        raise ConfigError(f"{file.path} has tokenizer.ggml.pre={pre!r}, but only {', '.join(PRE_TYPES)} can be read: import the model's "
                          "folder with safetensors instead")
    cut, whole, add_bos = PRE_TYPES[pre]
    merges = [merge.split(" ") for merge in _get(file, "merges") or []]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise DataError(f"{file.path} has the merge {' '.join(wrong)!r}, which is not of two tokens: convert it again with llama.cpp")
    settings = _settings(file, tokens, add_bos)
    level = {**_GPT2_CUT, "add_prefix_space": True}
    processor = _begins_with(settings, level) if settings["add_bos_token"] and "bos_token" in settings else level
    added = [{"id": number, "content": tokens[number], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": kind == _CONTROL} for number, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": whole, "vocab": {token: i for i, token in enumerate(tokens)},
             "merges": merges}
    description = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                   "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut} if len(cut) > 1 else cut[0], "post_processor": processor,
                   "decoder": level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    return settings


def _begins_with(settings: dict, level: dict) -> dict:
    """A post-processor that puts bos before a text."""
    token, number = settings["bos_token"], settings["bos_token_id"]
    special, first = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [special, first],
                "pair": [special, first, {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}}}
    return {"type": "Sequence", "processors": [level, template]}


def _sentencepiece(file: Gguf, folder: pathlib.Path) -> dict:
    """Writes tokenizer.model of a SentencePiece BPE: the file has its pieces, scores and types, which is all that such a model needs."""
    from sentencepiece import sentencepiece_model_pb2

    tokens, types = _vocabulary(file)
    scores = _get(file, "scores") or []
    if len(scores) != len(tokens):
        raise DataError(f"{file.path} has {len(tokens)} tokens and {len(scores)} scores: convert it again with llama.cpp")
    settings = _settings(file, tokens, add_bos=True)
    model = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(tokens), _BYTE in types
    for part in ("bos", "eos", "unk", "pad"):
        setattr(trainer, f"{part}_id", settings.get(f"{part}_token_id", -1))
        if f"{part}_token" in settings:
            setattr(trainer, f"{part}_piece", settings[f"{part}_token"])
    rule = model.normalizer_spec
    rule.name, rule.add_dummy_prefix = "identity", bool(_get(file, "add_space_prefix", True))
    rule.remove_extra_whitespaces, rule.escape_whitespaces = False, True
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return settings
