"""The tokenizer in a folder of another library: its model, and the ids that begin, end and pad a document.

Models, in the order in which they are looked for: tokenizer.json; SentencePiece (tokenizer.model, spiece.model, ...); byte-level BPE
(vocab.json or encoder.json with merges.txt or vocab.bpe); WordPiece (vocab.txt). Roles come from tokenizer_config.json, then from
special_tokens_map.json, then from config.json and generation_config.json.
"""

import json
import os
import pathlib

from lm.data import files
from lm.data.huggingface import HuggingFaceTokenizer, parse_model, token_ids
from lm.data.tokenizers import SentencePieceTokenizer, Tokenizer, load_model, load_tokenizer
from lm.errors import ConfigError, DataError

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "sentencepiece.model")
BYTE_LEVEL = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
WORDPIECE = "vocab.txt"
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
    if path.suffix == ".model":
        return load_model(path, lossy)
    if not path.is_file():
        raise DataError(f"data.tokenizer={spec} does not exist")
    if path.name == "tokenizer.json" and "kind" in files.read_json(path):
        return load_tokenizer(path.parent)
    if path.suffix == ".json" and path.name not in {name for pair in BYTE_LEVEL for name in pair}:
        return _of_model(path.read_bytes(), path, _Beside(path.parent, eos_token))
    if path.suffix == ".txt" and path.name != "merges.txt":
        return _wordpiece(path)
    if (tokenizer := _byte_level(path.parent)) is None:
        raise ConfigError(f"data.tokenizer={spec}: byte-level BPE needs vocab.json and merges.txt (or encoder.json and vocab.bpe) in one "
                          "folder")
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
        changes[f"{role}_id"] = i
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
    if (tokenizer := _byte_level(folder)) is not None:
        return tokenizer
    return _wordpiece(folder / WORDPIECE) if (folder / WORDPIECE).is_file() else None


class _Beside:
    """What the files beside a tokenizer's model say of it."""

    def __init__(self, folder: pathlib.Path, eos_token: str = ""):
        read = lambda name: files.read_json(folder / name) if (folder / name).is_file() else {}  # noqa: E731
        self.folder, self.settings, self.map = folder, read("tokenizer_config.json"), read("special_tokens_map.json")
        self.config, self.generation = read("config.json"), read("generation_config.json")
        self.eos_token = eos_token

    def token(self, role: str) -> str | None:
        """The text of a token such as eos_token."""
        for place in (self.settings, self.map):
            if (value := place.get(role)) is not None:
                return value["content"] if isinstance(value, dict) else value
        return None

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
        """The chat template, "" where there is none."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        value = self.settings.get("chat_template") or ""
        if isinstance(value, list):  # several, by name
            value = {each["name"]: each["template"] for each in value}.get("default", "")
        return value

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
    if roles["eos_id"] is None:
        added = {token["content"] for token in description.get("added_tokens") or []}
        roles["eos_id"] = next((ids[end] for end in _ENDS if end in added), None)
    if roles["eos_id"] is None:
        raise ConfigError(f"nothing says which token of {path} ends a document: set data.eos_token, or put a tokenizer_config.json with "
                          "eos_token beside it")
    prompt_bos = beside.begins()
    return HuggingFaceTokenizer(model, **roles, prompt_bos=prompt_bos, chat_template=beside.template(), name=str(path))


def _sentencepiece(path: pathlib.Path) -> SentencePieceTokenizer:
    """A SentencePiece model of another library: what it loses is its own affair, and `lossless` says so."""
    beside, tokenizer = _Beside(path.parent), load_model(path, lossy=True)
    missing = [token for token in _added(beside) if tokenizer.id_of(token) is None]
    if missing:
        raise ConfigError(f"{path.parent} adds {missing[0]!r} to {path.name}, which has no such piece: save the tokenizer once more with "
                          "transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...)), which writes a tokenizer.json with it")
    roles = beside.roles(tokenizer.id_of, tokenizer.vocab_size, path)
    values = {name: value for name, value in roles.items() if value is not None and name != "stop_ids"}
    values |= {"_stops": roles["stop_ids"], "chat_template": beside.template()}
    begins = beside.begins()
    # Llama's tokenizers begin a text with bos, T5's do not; both may leave it unsaid.
    values["prompt_bos"] = begins if begins is not None else not beside.settings.get("tokenizer_class", "").startswith(("T5", "MT5"))
    changes = {name: value for name, value in values.items() if getattr(tokenizer, name) != value}
    return tokenizer.changed(**changes) if changes else tokenizer


def _added(beside: _Beside) -> list[str]:
    path = beside.folder / "added_tokens.json"
    listed = list(files.read_json(path)) if path.is_file() else []
    return [*listed, *(token["content"] for token in beside.settings.get("added_tokens_decoder", {}).values())]


def special(token: str, i: int) -> dict:
    """An entry of added_tokens."""
    return {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _byte_level(folder: pathlib.Path) -> HuggingFaceTokenizer | None:
    """vocab.json and merges.txt, as GPT-2 and RoBERTa have them; None where they are not there."""
    names = next((names for names in BYTE_LEVEL if all((folder / name).is_file() for name in names)), None)
    if names is None:
        return None
    path, beside = folder / names[0], _Beside(folder)
    vocab = files.read_json(path)
    lines = files.read_bytes(folder / names[1]).decode().split("\n")
    merges = [line.rstrip("\r").split(" ") for line in lines if line.rstrip("\r") and not line.startswith("#version")]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise ConfigError(f"{folder / names[1]}: {' '.join(wrong)!r} is not two pieces with a space between them: copy it again")
    roberta = all(token in vocab for token in ("<s>", "</s>", "<pad>", "<mask>"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} if roberta else {"eos_token": "<|endoftext|>"}
    specials = [*roles.values(), *(("<unk>", "<mask>") if roberta else ()), *_added(beside)]
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
    tokens = files.read_bytes(path).decode().split("\n")
    tokens = [token.rstrip("\r") for token in (tokens[:-1] if tokens and not tokens[-1] else tokens)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocab]:
        raise ConfigError(f"{path} is not a WordPiece vocabulary: it has no {missing[0]}")
    settings = beside.settings
    described = wordpiece_description(vocab, settings.get("do_lower_case", True), settings.get("strip_accents"),
                                      settings.get("tokenize_chinese_chars", True))
    for role, token in (("cls_token", "[CLS]"), ("sep_token", "[SEP]"), ("pad_token", "[PAD]")):
        if beside.token(role) is None and token in vocab:
            settings[role] = token
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
