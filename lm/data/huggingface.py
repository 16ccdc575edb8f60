"""The tokenizers of Hugging Face's `tokenizers` library: a tokenizer.json, and byte-level BPE and WordPiece trained here.

A tokenizer.json holds the model, its normalisation and the added tokens; which of them begin and end a document stands in the files
beside it (lm.data.tokenizer_files reads those).
"""

import functools
import json
import pathlib
import re

import numpy as np

from lm.data.files import atomic_file, digest, join, read_bytes
from lm.data.tokenizers import PROBES, Tokenizer
from lm.errors import ConfigError, DataError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"
MODEL_FILE = "model.json"  # in a folder of ours, where tokenizer.json is a description


@functools.cache
def byte_characters() -> dict[str, int]:
    """{character: byte} of byte-level BPE (Radford et al. 2019): printable bytes of Latin-1 are themselves, the others are moved to
    U+0100 and beyond."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _steps(part: dict | None) -> list[dict]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder, in their order."""
    if not part:
        return []
    inner = next((part[name] for name in ("normalizers", "pretokenizers", "decoders", "processors") if name in part), None)
    return [part] if inner is None else [step for each in inner for step in _steps(each)]


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, given as its bytes, with the ids that have a role.

    eos_id ends a document and begins and pads one too where bos_id and pad_id are None. `encode` never makes special tokens of text;
    added tokens that are not special are ordinary text of their own. `vocab_size` is the largest id + 1, so that it counts added tokens.
    `prompt_bos` None is what the file's own template does. Raises ConfigError for a file that `tokenizers` cannot read.
    """

    kind = "huggingface"

    def __init__(self, model: bytes, eos_id: int, bos_id: int | None = None, pad_id: int | None = None, unk_id: int | None = None,
                 prompt_bos: bool | None = None, stop_ids: tuple[int, ...] = (), chat_template: str = "", name: str = "tokenizer.json"):
        self._model, self._name = model, name
        self._load()
        self.eos_id = eos_id
        self.bos_id = eos_id if bos_id is None else bos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.unk_id = self._unknown() if unk_id is None else unk_id
        self._stops, self.chat_template = tuple(stop_ids), chat_template
        for role, i in (("eos", self.eos_id), ("bos", self.bos_id), ("pad", self.pad_id), *(("end", i) for i in self._stops)):
            if not 0 <= i < self.vocab_size:
                raise ConfigError(f"{name}: the {role} id {i} is outside its {self.vocab_size} tokens")
        self.prompt_bos = self.begins_with_bos() if prompt_bos is None else prompt_bos
        self.lossless = all(self.decode(self.encode(probe)) == probe for _, probe in PROBES)

    def _load(self) -> None:
        self._description = parse_model(self._model, self._name)
        self._tokenizer = _open(self._model, self._name)
        self._plain = _open(json.dumps(_unreachable_specials(self._description)).encode(), self._name)
        self._plain.encode_special_tokens = True
        self._vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        added = self._description.get("added_tokens") or []
        self.special_tokens = {token["content"]: token["id"] for token in added if token.get("special")}
        self._pieces = self._all_pieces({token["content"] for token in added})
        first = self._plain.encode("a", add_special_tokens=False).ids[:1]
        self._dummy_prefix = bool(first) and self._pieces[first[0]].startswith(b" ")

    def _all_pieces(self, added: set[str]) -> list[bytes]:
        piece = _piece_reader(self._description, self._name)
        pieces = [b""] * self.vocab_size
        for token, i in self._vocabulary.items():
            if token not in self.special_tokens:
                pieces[i] = token.encode() if token in added else piece(token)
        return pieces

    def _unknown(self) -> int | None:
        model = self._description["model"]
        if model["type"] == "Unigram":
            return model.get("unk_id")
        return self._vocabulary.get(model.get("unk_token"))

    def begins_with_bos(self) -> bool:
        """Whether the file's own template puts bos before a text."""
        return self._tokenizer.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id]

    def __reduce__(self):
        arguments = (self._model, self.eos_id, self.bos_id, self.pad_id, self.unk_id, self.prompt_bos, self._stops, self.chat_template,
                     self._name)
        return HuggingFaceTokenizer, arguments, {"unnamed": self.unnamed}

    @property
    def model(self) -> bytes:
        """The tokenizer.json."""
        return self._model

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [n]; text that looks like a special token is text."""
        # The batched call is the one that computes no offsets.
        return np.array(self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int32)

    def encode_with_specials(self, text: str) -> np.ndarray:
        """int32 ids [n]; the texts of special tokens become their ids."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode_bytes(self, ids) -> bytes:
        """The bytes of `ids` [n], special ids dropped, and the space with them that the encoder puts before a text, if it does."""
        value = super().decode_bytes(ids)
        return value[1:] if self._dummy_prefix and value.startswith(b" ") else value

    def id_of(self, token: str) -> int | None:
        """The id of any token by its text; None where there is none."""
        return self._vocabulary.get(token)

    def token_of(self, i: int) -> str:
        """The text of any token by its id, as the library has it; "" where there is none."""
        return self._tokenizer.id_to_token(i) or ""

    def fingerprint(self) -> str:
        """Hex hash of the file, and of the ids that begin and end a document."""
        return digest(b"huggingface", self._model, json.dumps([self.bos_id, self.eos_id]).encode())

    def describe(self) -> dict:
        """See Tokenizer; with unk_id."""
        return super().describe() | {"unk_id": self.unk_id}

    def save(self, directory) -> None:
        """Writes model.json, which is the library's tokenizer.json, and then ours."""
        with atomic_file(pathlib.Path(directory) / MODEL_FILE) as file:
            file.write(self._model)
        super().save(directory)


def load_huggingface(directory, description: dict) -> HuggingFaceTokenizer:
    """What `save` wrote into a local folder or URL, of which `description` is our tokenizer.json."""
    location = join(directory, MODEL_FILE)
    roles = {name: description.get(name) for name in ("eos_id", "bos_id", "pad_id", "unk_id")}
    if roles["eos_id"] is None:
        raise DataError(f"{directory}: tokenizer.json has no eos_id: copy it again")
    return HuggingFaceTokenizer(read_bytes(location), **roles, prompt_bos=description.get("prompt_bos", True),
                                stop_ids=tuple(description.get("stop_ids", ())), name=location)


def parse_model(model: bytes, name: str) -> dict:
    """The JSON of a tokenizer.json. ConfigError when it is none."""
    try:
        description = json.loads(model)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid JSON ({error}): copy it again") from error
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise ConfigError(f"{name} is not a tokenizer.json of the tokenizers library (it has no model)")
    # Files of early versions do not name the kind of their model.
    model = description["model"]
    if "type" not in model:
        model["type"] = "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"
    _check_tokens(description, name)
    return description


def _check_tokens(description: dict, name: str) -> None:
    """ConfigError unless every token has a text and an id."""
    vocab, added = description["model"].get("vocab") or {}, description.get("added_tokens") or []
    if isinstance(vocab, dict):
        whole = all(isinstance(i, int) for i in vocab.values())
    else:
        whole = isinstance(vocab, list) and all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in vocab)
    if not whole:
        raise ConfigError(f"{name} has a model whose vocab is neither {{token: id}} nor a list of [token, score]: copy it again")
    parts = {"content": str, "id": int}
    if not isinstance(added, list) or not all(
            isinstance(token, dict) and all(isinstance(token.get(part), kind) for part, kind in parts.items()) for token in added):
        raise ConfigError(f"{name} has an entry of added_tokens without content or id: copy it again")


def ends_of_text(description: dict) -> tuple[int | None, int | None]:
    """The ids that the template of a tokenizer.json puts before and after a text, such as [CLS] and [SEP]; None where it puts none."""
    first = last = None
    try:
        for step in _steps(description.get("post_processor")):
            if step["type"] in ("BertProcessing", "RobertaProcessing"):
                first, last = step["cls"][1], step["sep"][1]
            elif step["type"] == "TemplateProcessing":
                texts = {name: token["ids"] for name, token in step["special_tokens"].items()}
                ends = [texts[part["SpecialToken"]["id"]] if "SpecialToken" in part else [] for part in step["single"]]
                first, last = next(iter(ends[0]), None), next(reversed(ends[-1]), None)
    except (LookupError, TypeError, AttributeError, ValueError):
        return None, None  # the library says what is wrong with it when it opens the file
    return first, last


def token_ids(description: dict) -> dict[str, int]:
    """{token: id} of a tokenizer.json, added tokens included."""
    vocab = description["model"].get("vocab") or {}
    vocab = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in description.get("added_tokens") or []}


def _open(model: bytes, name: str):
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(model)
    except Exception as error:
        raise ConfigError(f"{name} cannot be read by tokenizers {tokenizers.__version__}: {' '.join(str(error).split())[:200]}") from error
    # What a caller once set for its own batches is no part of a text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unreachable_specials(description: dict) -> dict:
    """The same with special pieces that a Unigram model would find in text under names that no text has (U+FDD0 is no character)."""
    model = description["model"]
    if model["type"] != "Unigram":
        return description
    special = {token["content"] for token in description.get("added_tokens") or [] if token.get("special")}
    vocab = [["\ufdd0" * 4 + piece if piece in special else piece, score] for piece, score in model["vocab"]]
    return description | {"model": model | {"vocab": vocab}}


def _piece_reader(description: dict, name: str):
    """What gives the bytes that a token of the model stands for."""
    decoders = {step["type"]: step for step in _steps(description.get("decoder"))}
    splits = {step["type"] for step in _steps(description.get("pre_tokenizer"))}
    model = description["model"]
    if "ByteLevel" in decoders or "ByteLevel" in splits:
        table = byte_characters()
        return lambda token: b"".join([bytes([table[c]]) if c in table else c.encode() for c in token])
    if model["type"] == "WordPiece":
        prefix = model.get("continuing_subword_prefix", "##")
        return lambda token: token.removeprefix(prefix).encode() if token.startswith(prefix) else b" " + token.encode()
    if suffix := decoders.get("BPEDecoder", {}).get("suffix"):
        return lambda token: token.replace(suffix, " ").encode()
    if model["type"] not in ("BPE", "Unigram"):
        raise ConfigError(f"{name} has a model of type {model['type']!r}, but only BPE, Unigram and WordPiece can be read")
    space = decoders.get("Metaspace", {}).get("replacement", _SPACE)
    literal = not ({"Metaspace", "Replace"} & set(decoders))  # spaces stand as spaces: written by lm.interop.tokenizers

    def piece(token: str) -> bytes:
        if (found := _BYTE.fullmatch(token)) and (model.get("byte_fallback") or "ByteFallback" in decoders):
            return bytes([int(found[1], 16)])
        return (token if literal else token.replace(space, " ")).encode()

    return piece
