"""Text to token ids and back: what every tokenizer does, bytes, and SentencePiece (trained here or given as a .model file).

Kudo and Richardson (2018), SentencePiece. Trained models keep every character: identity normaliser, no dummy prefix,
byte fallback, and newline and tab as pieces of their own. SentencePiece writes a space as U+2581, so a literal U+2581
would come back as a space; it is encoded here by its three UTF-8 bytes instead. Tokenizers of Hugging Face are in lm.data.huggingface.
"""

import abc
import copy
import io
import json
import os
import pathlib
import re
import types
from collections.abc import Iterable, Mapping

import numpy as np

from lm.data.files import atomic_file, digest, join, read_bytes, read_json, write_json
from lm.errors import ConfigError, DataError

_SPACE = "\u2581"
_SPACE_BYTES = _SPACE.encode()
_CHUNK = 1024  # characters; a document is encoded in chunks that end at newlines, since BPE slows down on long input
_SENTENCE = 4_000  # characters; SentencePiece drops longer training sentences, so they are cut here
_META = ("<pad>", "<s>", "</s>", "<unk>", "\n", "\t")  # ids 0 to 5 of a model trained here, then the 256 bytes
_REPLACEMENT = "\ufffd".encode()
_TEMPLATE = "chat_template.jinja"

PROBES = (
    ("newlines", "a\nb\n\nc\r\n"),
    ("tabs", "\ta\t\tb"),
    ("repeated spaces", "a  b   c"),
    ("leading and trailing spaces", " a "),
    ("compatibility characters (it normalises)", "\ufb01 \u2460 \u212b e\u0301"),
    ("characters outside its vocabulary (it has no byte fallback)", "\u4e2d\U0001f600\u0e01\x00"),
    ("the character U+2581", "a\u2581b \u2581 \u2581"),
)


class Tokenizer(abc.ABC):
    """Maps text to ids in [0, vocab_size) and back. encode adds neither bos nor eos. Instances can be pickled.

    `lossless`: decode(encode(text)) is `text`, whatever it holds. `prompt_bos`: a prompt begins with bos_id. `unk_id` is what stands for
    text that cannot be encoded, None where there is no such id. `special_tokens` are the texts of ids that `encode` never makes.
    `chat_template` is Jinja for lm.generate.chat, "" for none; the roles in `unnamed` ("bos", "eos", "pad", "unk") have no token of their
    own in it, as where eos stands for bos too.
    """

    kind: str
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    lossless: bool = True
    prompt_bos: bool = True
    unk_id: int | None = None
    special_tokens: Mapping[str, int] = types.MappingProxyType({})
    chat_template: str = ""
    unnamed: tuple[str, ...] = ()
    _stops: tuple[int, ...] = ()
    _changed: Mapping = types.MappingProxyType({})  # what `changed` has set
    _pieces: list[bytes]  # the bytes that each id stands for; empty for pad, bos and eos

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int32 ids [n] of `text`; text that looks like a special token is text."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex hash of everything that decides which ids a text gets."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a document in generation, eos_id first."""
        return (self.eos_id, *(i for i in self._stops if i != self.eos_id))

    def encode_with_specials(self, text: str) -> np.ndarray:
        """int32 ids [n] of a rendered chat template: the texts of special tokens become their ids."""
        if not self.special_tokens:
            return self.encode(text)
        cut = re.compile("(" + "|".join(re.escape(token) for token in sorted(self.special_tokens, key=len, reverse=True)) + ")")
        parts = [[self.special_tokens[part]] if part in self.special_tokens else self.encode(part) for part in cut.split(text) if part]
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)

    def id_of(self, token: str) -> int | None:
        """The id of a special token by its text; None where there is none."""
        return self.special_tokens.get(token)

    def token_of(self, i: int) -> str:
        """The text of a special token by its id; "" where there is none."""
        return next((token for token, other in self.special_tokens.items() if other == i), "")

    def changed(self, **values) -> "Tokenizer":
        """A copy with another bos_id, eos_id, prompt_bos, chat_template, unnamed or _stops. `save` keeps them."""
        other = copy.copy(self)
        other._changed = {**self._changed, **values}
        other.__dict__.update(values)
        return other

    def _roles(self) -> list[bytes]:
        """What a fingerprint has beside the model: eos stands in the stores, bos begins their documents."""
        roles = {name: value for name, value in self._changed.items() if name in ("bos_id", "eos_id")}
        return [json.dumps(roles, sort_keys=True).encode()] if roles else []

    def decode_bytes(self, ids) -> bytes:
        """The bytes that `ids` [n] stand for, special ids dropped. Raises DataError for an id outside the vocabulary."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise DataError(f"token ids must lie in 0..{self.vocab_size - 1}, found {ids.min()}..{ids.max()}")
        return b"".join([self._pieces[i] for i in ids.tolist()])

    def pieces(self) -> list[bytes]:
        """The bytes that each id [V] stands for; empty for pad, bos and eos."""
        return self._pieces

    def decode(self, ids) -> str:
        """The text of `ids` [n], special ids dropped; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def continuation(self, ids) -> str:
        """The text of `ids` [n] in the middle of a document, where no space is dropped that an encoder puts before a text."""
        return Tokenizer.decode_bytes(self, ids).decode("utf-8", errors="replace")

    def describe(self) -> dict:
        """{kind, vocab_size, fingerprint, pad_id, bos_id, eos_id} and what is not as usual, as in tokenizer.json."""
        names = ("kind", "vocab_size", "pad_id", "bos_id", "eos_id")
        unusual = {"lossless": (self.lossless, True), "prompt_bos": (self.prompt_bos, True), "stop_ids": (self.stop_ids, (self.eos_id,)),
                   "unnamed": (self.unnamed, ())}
        described = {name: value for name, (value, usual) in unusual.items() if value != usual}
        template = {"chat_template": _TEMPLATE} if self.chat_template else {}
        return {name: getattr(self, name) for name in names} | described | template | {"fingerprint": self.fingerprint()}

    def save(self, directory) -> None:
        """Writes tokenizer.json (last, so that it marks a complete folder) into a local `directory`, and a chat template beside it."""
        if self.chat_template:
            with atomic_file(pathlib.Path(directory) / _TEMPLATE) as file:
                file.write(self.chat_template.encode())
        write_json(pathlib.Path(directory) / "tokenizer.json", self.describe())


class ByteTokenizer(Tokenizer):
    """One token a UTF-8 byte: ids 0..255 are the bytes, 256 pad, 257 bos, 258 eos."""

    kind = "bytes"
    vocab_size, pad_id, bos_id, eos_id = 259, 256, 257, 258
    special_tokens = types.MappingProxyType({"<pad>": 256, "<s>": 257, "</s>": 258})
    _pieces = [bytes([i]) for i in range(256)] + [b""] * 3

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [n], n the number of UTF-8 bytes."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def fingerprint(self) -> str:
        """Hex hash; the same for all instances with the same bos and eos."""
        return digest(b"bytes", *self._roles())


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, given as the bytes of its .model file.

    pad falls back to eos, bos to eos and eos to unk where the model lacks them (a padding id only ever stands under
    weight 0). Raises ConfigError when the bytes are not a model, or when the model cannot give back every text and is not allowed to
    (`lossy`): then `lossless` is False.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, name: str = "the SentencePiece model", lossy: bool = False):
        self._model = model
        self._load(name)
        lost = self._lost(name)
        if lost and not lossy:
            raise ConfigError(f"{lost}: use a model that keeps text as it is, let lm train one (data.tokenizer=bpe), or set "
                              "data.allow_lossy=true")
        self.lossless = not lost

    def _lost(self, name: str) -> str:
        if len(self._bytes) != 256:
            return f"{name} has no byte fallback, so it loses characters outside its vocabulary"
        for lost, probe in PROBES:
            if (got := self.decode(self.encode(probe))) != probe:
                return f"{name} loses {lost} ({probe!r} comes back as {got!r})"
        return ""

    def _load(self, name: str) -> None:
        import sentencepiece

        try:
            self._processor = model = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise ConfigError(f"{name} is not a SentencePiece model") from error
        self.vocab_size = model.vocab_size()
        self.eos_id = model.eos_id() if model.eos_id() >= 0 else model.unk_id()
        self.bos_id = model.bos_id() if model.bos_id() >= 0 else self.eos_id
        self.pad_id = model.pad_id() if model.pad_id() >= 0 else self.eos_id
        self.unk_id = model.unk_id() if model.unk_id() >= 0 else None
        self.special_tokens = {model.id_to_piece(i): i for i in range(self.vocab_size) if model.is_control(i)}
        self._bytes = {}
        self._pieces = [self._piece_bytes(i) for i in range(self.vocab_size)]
        first = tuple(model.id_to_piece(i) for i in range(min(len(_META), self.vocab_size)))
        # In a model trained here no piece crosses a newline, so text may be cut after one.
        self._cut_at_newlines = first == _META
        self._dummy_prefix = model.encode("a", out_type=str)[:1] not in (["a"], ["<0x61>"])

    def _piece_bytes(self, i: int) -> bytes:
        model = self._processor
        if model.is_byte(i):
            value = int(model.id_to_piece(i)[1:-1], 16)
            self._bytes[value] = i
            return bytes([value])
        if model.is_control(i):
            return b""
        return _REPLACEMENT if model.is_unknown(i) else model.id_to_piece(i).replace(_SPACE, " ").encode()

    def __reduce__(self):
        return SentencePieceTokenizer, (self._model, "the SentencePiece model", True), {**self._changed, "_changed": dict(self._changed)}

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [n]; decode gives back exactly `text`, whatever it holds, where the tokenizer is lossless."""
        if len(self._bytes) != 256:
            return self._processor.encode_as_numpy(text)
        first, *rest = text.split(_SPACE)
        parts = [self._encode_run(first)]
        for run in rest:
            parts.append(self._encode_bytes(_SPACE_BYTES))
            parts.append(self._encode_after(run))
        return np.concatenate(parts)

    def _encode_run(self, text: str) -> np.ndarray:
        if not self._cut_at_newlines or len(text) <= _CHUNK:
            return self._processor.encode_as_numpy(text)
        parts, start = [], 0
        while start < len(text):
            stop = text.find("\n", start + _CHUNK) + 1 or len(text)
            parts.append(self._processor.encode_as_numpy(text[start:stop]))
            start = stop
        return np.concatenate(parts)

    def _encode_after(self, text: str) -> np.ndarray:
        """Ids of text in the middle of a document: a model with a dummy prefix would put a space before it."""
        if not self._dummy_prefix:
            return self._encode_run(text)
        head, _, tail = text.partition(" ")
        if not tail:
            return self._encode_bytes(text.encode())
        # The prefix stands for the space that was taken out.
        return np.concatenate([self._encode_bytes(head.encode()), self._encode_run(tail)])

    def _encode_bytes(self, value: bytes) -> np.ndarray:
        return np.array([self._bytes[byte] for byte in value], np.int32)

    def decode_bytes(self, ids) -> bytes:
        """The bytes of `ids` [n], special ids dropped, and the model's dummy prefix with them if it has one."""
        value = super().decode_bytes(ids)
        return value[1:] if self._dummy_prefix and value.startswith(b" ") else value

    def fingerprint(self) -> str:
        """Hex hash of the model."""
        return digest(b"sentencepiece", self._model, *self._roles())

    def id_of(self, token: str) -> int | None:
        """The id of any piece by its text; None where there is none."""
        i = self._processor.piece_to_id(token)
        return i if self._processor.id_to_piece(i) == token else None

    def token_of(self, i: int) -> str:
        """The text of any piece by its id."""
        return self._processor.id_to_piece(i)

    @property
    def model(self) -> bytes:
        """The .model file."""
        return self._model

    @property
    def dummy_prefix(self) -> bool:
        """Whether the model puts a space before a text."""
        return self._dummy_prefix

    def save(self, directory) -> None:
        """Writes tokenizer.model and then tokenizer.json."""
        with atomic_file(pathlib.Path(directory) / "tokenizer.model") as file:
            file.write(self._model)
        super().save(directory)


def train_tokenizer(texts: Iterable[str], algorithm: str, vocab_size: int) -> SentencePieceTokenizer:
    """Trains a SentencePiece model ('bpe' or 'unigram') of exactly `vocab_size` pieces.

    ids: 0 pad, 1 bos, 2 eos, 3 unk, 4 newline, 5 tab, 6..261 the bytes, then pieces. Raises DataError when the text
    does not support so many pieces, or has more distinct characters than they could hold.
    """
    import sentencepiece

    texts, model = list(texts), io.BytesIO()
    # Of a script without spaces: a character that is as good as never seen would get no piece, and decoding would lose it.
    spaces = sum(text.count(" ") for text in texts) >= 0.01 * sum(map(len, texts))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts), model_writer=model, model_type=algorithm, vocab_size=vocab_size,
            pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="<pad>", user_defined_symbols=["\n", "\t"], byte_fallback=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True,
            character_coverage=0.9995, hard_vocab_limit=True, max_sentence_length=8 * _SENTENCE, num_threads=os.cpu_count() or 1,
            minloglevel=2, **({} if spaces else {"required_chars": _SPACE}))
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from error
    return SentencePieceTokenizer(model.getvalue())


def _sentences(texts: Iterable[str]):
    """Lines, cut at a space where they are long. Newlines are pieces of their own and need no statistics."""
    pieces = re.compile(rf".{{1,{_SENTENCE}}}(?:\s|$)|.{{1,{_SENTENCE}}}", re.DOTALL)
    for text in texts:
        # SentencePiece stops at NUL and uses U+2585 inside its trainer; neither needs a piece, byte fallback has them.
        for line in text.replace("\x00", "\n").replace("\u2585", "\n").split("\n"):
            yield from pieces.findall(line)


def _training_error(message: str, vocab_size: int) -> DataError:
    if found := re.search(r"value <= (\d+)", message):
        return DataError(f"vocab_size={vocab_size} is more than this text supports (at most {found[1]}): lower data.vocab_size")
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return DataError(f"vocab_size={vocab_size} cannot hold the characters of this text (at least {found[1]}): raise data.vocab_size")
    if "sentences_.empty()" in message:
        return DataError("there is no text to train a tokenizer on: give more data or data.tokenizer=bytes")
    return DataError(f"SentencePiece could not train on this text ({message}): try another data.vocab_size or data.tokenizer=bytes")


def load_model(path, lossy: bool = False) -> SentencePieceTokenizer:
    """The SentencePiece model in a .model file. Raises DataError, or ConfigError (also where it loses text, unless it may: `lossy`)."""
    return SentencePieceTokenizer(read_bytes(path), str(path), lossy)


def _load_words(directory, description) -> Tokenizer:
    from lm.data.words import load_words  # which builds on this file

    return load_words(directory)


def _load_huggingface(directory, description) -> Tokenizer:
    from lm.data.huggingface import load_huggingface  # which builds on this file

    return load_huggingface(directory, description)


_LOADERS = {
    "bytes": lambda directory, description: ByteTokenizer(),
    "sentencepiece": lambda directory, description: load_model(join(directory, "tokenizer.model"), not description.get("lossless", True)),
    "words": _load_words,
    "huggingface": _load_huggingface,
}


def load_tokenizer(directory) -> Tokenizer:
    """What `save` wrote into a local folder or URL. Raises DataError when it is not there or does not match itself."""
    description = read_json(join(directory, "tokenizer.json"))
    load = _LOADERS.get(description.get("kind"))
    if load is None:
        raise DataError(f"{directory}: unknown kind of tokenizer in {json.dumps(description)[:200]}")
    tokenizer = load(directory, description)
    stored = {name: description[name] for name in ("bos_id", "eos_id", "prompt_bos") if name in description}
    if "stop_ids" in description:
        stored["_stops"] = tuple(description["stop_ids"])
    if "unnamed" in description:
        stored["unnamed"] = tuple(description["unnamed"])
    if "chat_template" in description:
        stored["chat_template"] = read_bytes(join(directory, _TEMPLATE)).decode()
    changes = {name: value for name, value in stored.items() if getattr(tokenizer, name) != value}
    tokenizer = tokenizer.changed(**changes) if changes else tokenizer
    if tokenizer.fingerprint() != description.get("fingerprint"):
        raise DataError(f"{directory}: tokenizer.json does not belong to the model beside it; copy both files from the same run")
    return tokenizer
