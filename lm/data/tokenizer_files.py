"""The tokenizer in a folder of another library: its model, and the ids that begin, end and pad a document.

Models, in the order in which they are looked for: tokenizer.json; SentencePiece (tokenizer.model, spiece.model, ...); byte-level BPE
(vocab.json or encoder.json with merges.txt or vocab.bpe); WordPiece (vocab.txt). Roles come from tokenizer_config.json, then from
special_tokens_map.json, then from config.json and generation_config.json.
"""

import json
import os
import pathlib

from lm.data import files
from lm.data.huggingface import HuggingFaceTokenizer, ends_of_text, parse_model, token_ids
from lm.data.tokenizers import SentencePieceTokenizer, Tokenizer, load_model, load_tokenizer
from lm.errors import ConfigError, DataError

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.model")
SHIFTED = "sentencepiece.bpe.model"  # of XLM-R, CamemBERT, NLLB, mBART, ...
BYTE_LEVEL = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
WORDPIECE = "vocab.txt"
_ROLES = ("bos", "eos", "pad", "unk")
_AGAIN = ("save the tokenizer once more with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...)), which writes a "
          "tokenizer.json with it")
# The ends of documents of well-known models, for a tokenizer.json that comes without any other file.
_ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]", "<eos>", "<|im_end|>")


def is_tokenizer_path(spec: str) -> bool:
    """Whether data.tokenizer names a file or folder."""
    return spec.endswith((".model", ".json", ".txt", ".bpe")) or os.sep in spec or os.path.isdir(os.path.expanduser(spec))


def open_tokenizer(spec: str, lossy: bool = False, eos_token: str = "") -> Tokenizer:
    """data.tokenizer where it is a path: of a .model file, a tokenizer.json, a vocab.txt, or a folder (of a run of ours, or of another
    library). A .model that loses text is refused unless `lossy`; `eos_token` helps where no file says what ends a document. Raises
    ConfigError or DataError."""
    path = pathlib.Path(os.path.expanduser(spec))
    if path.is_dir():
        tokenizer = read_folder(path, eos_token)
        if tokenizer is None:
            raise ConfigError(f"{path} has no tokenizer: it needs tokenizer.json, a SentencePiece .model, vocab.json with merges.txt, or "
                              "vocab.txt")
        return tokenizer
    if path.name == SHIFTED:
        raise _shifted(path)
    if path.suffix == ".model":
        return load_model(path, lossy)
    if not path.is_file():
        raise DataError(f"the tokenizer {spec} does not exist")
    if path.name == "tokenizer.json" and "kind" in files.read_json(path):
        return load_tokenizer(path.parent)
    if path.suffix == ".json" and path.name not in {name for pair in BYTE_LEVEL for name in pair}:
        return _of_model(path.read_bytes(), path, _Beside(path.parent, eos_token))
    if path.suffix == ".txt" and path.name != "merges.txt":
        return _wordpiece(path)
    if (tokenizer := _byte_level(path.parent)) is None:
        raise ConfigError(f"{spec}: byte-level BPE needs vocab.json and merges.txt (or encoder.json and vocab.bpe) in one folder")
    return tokenizer


def with_roles(tokenizer: Tokenizer, data, stored: str = "") -> Tokenizer:
    """`tokenizer` with what data.bos_token, data.eos_token, data.prompt_bos and data.chat_template say. ConfigError for a token that it
    does not have, and for another end of the documents of a store (`stored` names it), which are written."""
    changes = {}
    for role, token in (("bos", data.bos_token), ("eos", data.eos_token)):
        if not token:
            continue
        if (i := tokenizer.id_of(token)) is None:
            raise ConfigError(f"data.{role}_token={token}: the tokenizer (data.tokenizer={data.tokenizer}) has no such token")
        changes |= {f"{role}_id": i, "unnamed": tuple(one for one in changes.get("unnamed", tokenizer.unnamed) if one != role)}
    if stored and changes.get("eos_id", tokenizer.eos_id) != tokenizer.eos_id:
        raise ConfigError(f"data.eos_token={data.eos_token}: the documents of {stored} end with another token: prepare it again")
    if data.prompt_bos:
        changes["prompt_bos"] = data.prompt_bos == "yes"
    if data.chat_template:
        changes["chat_template"] = _template(data.chat_template)
    changes = {name: value for name, value in changes.items() if getattr(tokenizer, name) != value}
    return tokenizer.changed(**changes) if changes else tokenizer


def _template(value: str) -> str:
    """A chat template, given as Jinja or as the path of a file with it."""
    return value if "{" in value else files.read_bytes(os.path.expanduser(value)).decode()


def read_folder(folder, eos_token: str = "") -> Tokenizer | None:
    """The tokenizer in a folder, ours or of another library; None where there is none. Raises ConfigError or DataError.

    `eos_token` ends a document where no file says what does."""
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        return load_tokenizer(folder) if "kind" in files.read_json(path) else _of_model(path.read_bytes(), path, _Beside(folder, eos_token))
    for name in SENTENCEPIECE:
        if (folder / name).is_file():
            return _sentencepiece(folder / name)
    if (folder / SHIFTED).is_file():
        raise _shifted(folder / SHIFTED)
    if (tokenizer := _byte_level(folder)) is not None:
        return tokenizer
    return _wordpiece(folder / WORDPIECE) if (folder / WORDPIECE).is_file() else None


def _shifted(path: pathlib.Path) -> ConfigError:
    return ConfigError(f"{path} holds pieces by other ids than the models that it comes with (XLM-R moves them by one): {_AGAIN}; for a "
                       "new model, give the file another name")


def _object(path: pathlib.Path) -> dict:
    """The JSON object in a file. Raises DataError."""
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} is no JSON object: copy it again")
    return value


def _text(path: pathlib.Path) -> str:
    try:
        return files.read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): copy it again") from error


class _Beside:
    """What the files beside a tokenizer's model say of it."""

    def __init__(self, folder: pathlib.Path, eos_token: str = ""):
        read = lambda name: _object(folder / name) if (folder / name).is_file() else {}  # noqa: E731
        self.folder, self.settings, self.map = folder, read("tokenizer_config.json"), read("special_tokens_map.json")
        self.config, self.generation = read("config.json"), read("generation_config.json")
        self.eos_token = eos_token

    def _content(self, value, role: str) -> str:
        """The text of a token, which may stand in an object."""
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise DataError(f"{self.folder}: {role} is {json.dumps(value)[:100]}, which has no text: copy the tokenizer's files again")
        return text

    def token(self, role: str) -> str | None:
        """The text of a token such as eos_token."""
        return next((self._content(place[role], role) for place in (self.settings, self.map) if place.get(role) is not None), None)

    def unnamed(self) -> tuple[str, ...]:
        """The roles that get no token."""
        return tuple(role for role in _ROLES if self.token(f"{role}_token") is None)

    def added(self) -> dict[str, int | None]:
        """{token: its id, None where it is not said} of what is added to the model."""
        path = self.folder / "added_tokens.json"
        found: dict[str, int | None] = {}
        for place in (self.settings, self.map):
            several = place.get("additional_special_tokens") or []
            found |= {self._content(value, "additional_special_tokens"): None
                      for value in (several if isinstance(several, list) else [several])}
        found |= _object(path) if path.is_file() else {}
        listed = self.settings.get("added_tokens_decoder") or {}
        if not isinstance(listed, dict) or not all(key.isdecimal() for key in listed):
            raise DataError(f"{self.folder / 'tokenizer_config.json'}: added_tokens_decoder is not {{id: token}}: copy it again")
        return found | {self._content(value, "added_tokens_decoder"): int(key) for key, value in listed.items()}

    def check_added(self, id_of, path: pathlib.Path) -> None:
        """ConfigError where the model in `path`, which knows the ids of tokens, lacks one that is added."""
        for token, i in self.added().items():
            if (there := id_of(token)) is None:
                raise ConfigError(f"{self.folder} adds {token!r} to {path.name}, which has no such piece: {_AGAIN}")
            if i not in (None, there):
                raise ConfigError(f"{self.folder} says that {token!r} is {i}, but in {path.name} it is {there}: {_AGAIN}")

    def kind(self) -> str:
        """The class of the tokenizer, or else the kind of the model; "" where nothing says so."""
        named = (self.settings.get("tokenizer_class"), self.config.get("tokenizer_class"), self.config.get("model_type"))
        return next((name for name in named if isinstance(name, str)), "").lower()

    def extra_ids(self) -> int:
        """How many sentinels <extra_id_0>, ... T5's tokenizer adds to the pieces: 100 unless a file says so; mT5 has its own pieces."""
        usual = 100 if self.kind().startswith("t5") and self.config.get("model_type") != "mt5" else 0
        usual = sum(token.startswith("<extra_id_") for token in self.added()) or usual
        count = usual if self.settings.get("extra_ids") is None else self.settings["extra_ids"]
        if not isinstance(count, int) or not 0 <= count <= 10_000:
            raise DataError(f"{self.folder / 'tokenizer_config.json'}: extra_ids is {json.dumps(count)[:100]}, which is no count: copy it "
                            "again")
        return count

    def ids(self, role: str) -> list[int]:
        """The ids that the configs of the model give a role such as eos_token_id; none where they say nothing."""
        found = []
        for place in (self.config, self.generation):
            value = place.get(role)
            found += value if isinstance(value, list) else [] if value is None else [value]
        return [i for i in found if isinstance(i, int) and i >= 0]

    def begins(self) -> bool | None:
        """tokenizer_config.json's add_bos_token; None where it does not say."""
        value = self.settings.get("add_bos_token")
        return None if value is None else bool(value)

    def template(self) -> str:
        """The chat template, "" where there is none, and where there is none by default one that says so."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return _text(path).replace("\r\n", "\n")
        value, where = self.settings.get("chat_template"), self.folder / "tokenizer_config.json"
        several = value if isinstance(value, list) else [{"name": "default", "template": "" if value is None else value}]
        if not all(isinstance(each, dict) and all(isinstance(each.get(part), str) for part in ("name", "template")) for each in several):
            raise DataError(f"{where}: chat_template is {json.dumps(value)[:100]}, which is neither a text nor a list of named ones: copy "
                            "it again")
        named = {each["name"]: each["template"] for each in several}
        if not named or "default" in named:
            return named.get("default", "")
        # The model is of use without it, so that only a conversation fails.
        message = (f"this model's are called {', '.join(sorted(named))}, and none is the default: put the one that is meant into "
                   f"{path.name} beside {where.name}")
        return f"{{{{ raise_exception({json.dumps(message)}) }}}}"

    def roles(self, id_of, size: int, name) -> dict:
        """{bos_id, eos_id, pad_id, stop_ids} as far as these files say, of a tokenizer that knows the ids of tokens."""
        def of(*roles):
            for role in roles:
                token = self.token(role)
                if token is not None and (i := id_of(token)) is not None:
                    return i
                if token is not None:
                    raise ConfigError(f"{self.folder}: {role} is {token!r}, which {pathlib.Path(name).name} does not have: add it there")
            return None

        def first(role):
            return next((i for i in self.ids(role) if i < size), None)

        # The id that a decoder's text begins with, where there is an encoder.
        start = self.config.get("decoder_start_token_id") if self.config.get("is_encoder_decoder") else None
        eos, bos, pad = of("eos_token", "sep_token"), of("bos_token", "cls_token"), of("pad_token")
        eos = first("eos_token_id") if eos is None else eos
        eos = id_of(self.eos_token) if eos is None else eos
        bos = start if start is not None else first("bos_token_id") if bos is None else bos
        return {"eos_id": eos, "bos_id": bos, "pad_id": first("pad_token_id") if pad is None else pad,
                "stop_ids": tuple(dict.fromkeys(i for i in self.ids("eos_token_id") if i < size))}


def _of_model(model: bytes, path: pathlib.Path, beside: _Beside) -> HuggingFaceTokenizer:
    """A tokenizer.json, given as bytes, with what the files beside `path` say of it."""
    description = parse_model(model, str(path))
    ids = token_ids(description)
    roles = beside.roles(ids.get, max(ids.values(), default=-1) + 1, path)
    # What stands around a text begins and ends it: [CLS] and [SEP] of BERT, whose files say no more than this.
    for role, i in zip(("bos_id", "eos_id"), ends_of_text(description), strict=True):
        roles[role] = i if roles[role] is None else roles[role]
    if roles["pad_id"] is None and description["model"]["type"] == "WordPiece":
        roles["pad_id"] = ids.get("[PAD]")
    if roles["eos_id"] is None:
        added = {token["content"] for token in description.get("added_tokens") or []}
        roles["eos_id"] = next((ids[end] for end in _ENDS if end in added), None)
    if roles["eos_id"] is None:
        raise ConfigError(f"nothing says which token of {path} ends a document: set data.eos_token, or put a tokenizer_config.json with "
                          "eos_token beside it")
    tokenizer = HuggingFaceTokenizer(model, **roles, prompt_bos=beside.begins(), chat_template=beside.template(), name=str(path))
    return tokenizer.changed(unnamed=beside.unnamed())


def _sentencepiece(path: pathlib.Path) -> SentencePieceTokenizer:
    """A SentencePiece model of another library: what it loses is its own affair, and `lossless` says so."""
    beside, tokenizer = _Beside(path.parent), load_model(path, lossy=True)
    if (extra := beside.extra_ids()) and tokenizer.id_of("<extra_id_0>") is None:
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra))]
        tokenizer = SentencePieceTokenizer(_with_pieces(tokenizer.model, sentinels), str(path), lossy=True)
    beside.check_added(tokenizer.id_of, path)
    roles = beside.roles(tokenizer.id_of, tokenizer.vocab_size, path)
    values = {name: value for name, value in roles.items() if value is not None and name != "stop_ids"}
    values |= {"_stops": roles["stop_ids"], "chat_template": beside.template()}
    begins = beside.begins()
    # Llama's tokenizers begin a text with bos, T5's do not; both may leave it unsaid.
    values["prompt_bos"] = begins if begins is not None else not beside.kind().startswith(("t5", "mt5"))
    changes = {name: value for name, value in values.items() if getattr(tokenizer, name) != value}
    made = tokenizer.changed(**changes) if changes else tokenizer
    # Of a role that no file speaks of, the class of the tokenizer takes the model's own, if that has one.
    unnamed = tuple(role for role in beside.unnamed()
                    if f"{role}_token" in beside.settings or (role in ("bos", "pad") and getattr(made, f"{role}_id") == made.eos_id))
    return made.changed(unnamed=unnamed) if unnamed else made


def _with_pieces(model: bytes, names: list[str]) -> bytes:
    """A SentencePiece model with more pieces, which no text is encoded by."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for name in names:
        proto.pieces.add(piece=name, score=0.0, type=proto.SentencePiece.CONTROL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def special(token: str, i: int) -> dict:
    """An entry of added_tokens."""
    return {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _byte_level(folder: pathlib.Path) -> HuggingFaceTokenizer | None:
    """vocab.json and merges.txt, as GPT-2 and RoBERTa have them; None where they are not there."""
    names = next((names for names in BYTE_LEVEL if all((folder / name).is_file() for name in names)), None)
    if names is None:
        return None
    path, beside = folder / names[0], _Beside(folder)
    vocab, lines = _object(path), _text(folder / names[1]).split("\n")
    if wrong := next((token for token, i in vocab.items() if not isinstance(i, int)), None):
        raise ConfigError(f"{path} is not a vocabulary: {wrong!r} is {json.dumps(vocab[wrong])[:100]}, which is no id")
    merges = [line.rstrip("\r").split(" ") for line in lines if line.rstrip("\r") and not line.startswith("#version")]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise ConfigError(f"{folder / names[1]}: {' '.join(wrong)!r} is not two pieces with a space between them: copy it again")
    roberta = all(token in vocab for token in ("<s>", "</s>", "<pad>", "<mask>"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} if roberta else {"eos_token": "<|endoftext|>"}
    beside.check_added(vocab.get, path)
    specials = [*roles.values(), *(("<unk>", "<mask>") if roberta else ()), *beside.added()]
    specials = [token for token in dict.fromkeys(specials) if token in vocab]
    described = byte_level_description(vocab, merges, specials, bool(beside.settings.get("add_prefix_space", False)), roberta)
    for role, token in roles.items():
        if beside.token(role) is None and token in vocab:
            beside.settings[role] = token
    return _of_model(json.dumps(described).encode(), path, beside)


def byte_level_description(vocab: dict[str, int], merges: list, specials: list[str], prefix_space: bool = False,
                           roberta: bool = False) -> dict:
    """The tokenizer.json of byte-level BPE (Radford et al. 2019); `roberta` puts its texts between <s> and </s>."""
    level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges}
    ends = {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": prefix_space}
    processor = ends | {"sep": ["</s>", vocab["</s>"]], "cls": ["<s>", vocab["<s>"]]} if roberta else level
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special(token, vocab[token]) for token in specials],
            "normalizer": None, "pre_tokenizer": level, "post_processor": processor, "decoder": level, "model": model}


def _wordpiece(path: pathlib.Path) -> HuggingFaceTokenizer:
    """vocab.txt of BERT, a token a line; tokenizer_config.json says whether it is lower case (do_lower_case, by default true)."""
    beside = _Beside(path.parent)
    tokens = _text(path).split("\n")
    tokens = [token.rstrip("\r") for token in (tokens[:-1] if tokens and not tokens[-1] else tokens)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocab]:
        raise ConfigError(f"{path} is not a WordPiece vocabulary: it has no {missing[0]}")
    settings = beside.settings
    described = wordpiece_description(vocab, settings.get("do_lower_case", True), settings.get("strip_accents"),
                                      settings.get("tokenize_chinese_chars", True))
    beside.check_added(vocab.get, path)
    return _of_model(json.dumps(described).encode(), path, beside)


def wordpiece_description(vocab: dict[str, int], lower_case: bool, strip_accents: bool | None = None, chinese: bool = True) -> dict:
    """The tokenizer.json of a WordPiece vocabulary, with BERT's normalisation and its [CLS] text [SEP] (Devlin et al. 2019)."""
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    template = {"type": "TemplateProcessing", "single": [cls, first, sep],
                "pair": [cls, first, sep, second, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")}}
    specials = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special(token, vocab[token]) for token in specials],
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": chinese, "strip_accents": strip_accents,
                           "lowercase": lower_case},
            "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": template,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                      "vocab": vocab}}
