"""Tokenizers in folders of other libraries: what the files beside a model say of it, and files that say nonsense."""

import json
import pickle

import pytest

from lm.data.huggingface import HuggingFaceTokenizer
from lm.data.tokenizer_files import open_tokenizer, read_folder, with_roles, wordpiece_description
from lm.data.tokenizers import SentencePieceTokenizer, load_tokenizer
from lm.errors import ConfigError, DataError
from lm.generate.chat import prompt_text
from lm.objectives.masked import own_marks
from tests.data.test_huggingface import BYTEBPE, folder, unigram
from tests.data.test_tokenizers import model_bytes

PARITY = "needs the extra parity: scripts/test.sh --parity"
BERT = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "##b": 6}
PUBLISHED = {"do_lower_case": True, "model_max_length": 512}
HELLO = [{"role": "user", "content": "hi"}]


def written(path, **values):
    """A folder of JSON files."""
    path.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (path / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def roles_of(tokenizer):
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id


def test_bert_as_published_begins_with_cls(tmp_path):
    """Neither file has a cls_token: only the template of tokenizer.json says what stands around a text."""
    described = wordpiece_description(BERT, lower_case=True)
    tokenizer = read_folder(written(tmp_path, tokenizer=described, tokenizer_config=PUBLISHED))
    assert roles_of(tokenizer) == (2, 3, 0) and own_marks(tokenizer) == (4, 2, 3) and tokenizer.prompt_bos
    ends = {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
    several = {"type": "Sequence", "processors": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                                                  described["post_processor"]]}
    for processor in (ends, ends | {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False}, several):
        assert roles_of(read_folder(written(tmp_path, tokenizer=described | {"post_processor": processor}))) == (2, 3, 0)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(BERT))
    assert roles_of(read_folder(tmp_path)) == (2, 3, 0)


def test_a_template_of_one_end_gives_one_role(tmp_path):
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    end = {"type": "TemplateProcessing", "single": [first, {"SpecialToken": {"id": "<unk>", "type_id": 0}}], "pair": [first, second],
           "special_tokens": {"<unk>": {"id": "<unk>", "ids": [2], "tokens": ["<unk>"]}}}
    written(tmp_path, tokenizer=unigram(post_processor=end))
    assert roles_of(read_folder(tmp_path)) == (2, 2, 2)  # not </s>, a well-known end that this file does not use
    written(tmp_path, tokenizer_config={"eos_token": "</s>", "bos_token": "<pad>"})
    assert roles_of(read_folder(tmp_path))[:2] == (0, 1)


def test_sentinels_of_t5_follow_the_pieces(tmp_path):
    model = model_bytes()
    size = SentencePieceTokenizer(model, lossy=True).vocab_size
    (tmp_path / "spiece.model").write_bytes(model)
    assert read_folder(tmp_path).vocab_size == size
    for count, files in ((100, {"config": {"model_type": "t5"}}), (100, {"tokenizer_config": {"tokenizer_class": "T5Tokenizer"}}),
                         (4, {"tokenizer_config": {"tokenizer_class": "T5Tokenizer", "extra_ids": 4}}),
                         (3, {"special_tokens_map": {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(3)]}}),
                         (0, {"tokenizer_config": {"extra_ids": 0, "additional_special_tokens": None}, "config": {
                             "model_type": "mt5", "tokenizer_class": "T5Tokenizer"}})):
        for name in ("config", "tokenizer_config", "special_tokens_map"):
            written(tmp_path, **{name: files.get(name, {})})
        tokenizer = read_folder(tmp_path)
        assert tokenizer.vocab_size == size + count and tokenizer.prompt_bos == ("special_tokens_map" in files)
        assert [tokenizer.id_of(f"<extra_id_{i}>") for i in range(count)] == [size + count - 1 - i for i in range(count)]
        tokenizer.save(tmp_path / "saved")
        for other in (tokenizer, load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
            assert other.encode("the dog").tolist() == SentencePieceTokenizer(model, lossy=True).encode("the dog").tolist()
            assert not count or tokenizer.vocab_size - 1 not in other.encode("the <extra_id_0>")
            assert not count or other.encode_with_specials("<extra_id_0>").tolist() == [size + count - 1]


def test_transformers_gives_sentinels_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers", reason=PARITY)
    (tmp_path / "spiece.model").write_bytes(model_bytes(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, eos_piece="</s>", model_type="unigram"))
    written(tmp_path, config={"model_type": "t5"}, tokenizer_config={"tokenizer_class": "T5Tokenizer"})
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), read_folder(tmp_path)
    tokens = [f"<extra_id_{i}>" for i in (0, 1, 50, 99)]
    assert theirs.convert_tokens_to_ids(tokens) == [ours.id_of(token) for token in tokens]
    assert theirs("a<extra_id_7>", add_special_tokens=False)["input_ids"][-1] == ours.encode_with_specials("a<extra_id_7>")[-1]


def test_what_is_added_to_a_model_must_be_there_with_that_id(tmp_path):
    places = {"model": written(tmp_path / "model"), "vocab": written(tmp_path / "vocab", vocab=BERT | {"<|endoftext|>": 7}),
              "words": written(tmp_path / "words")}
    (places["model"] / "tokenizer.model").write_bytes(model_bytes())
    (places["vocab"] / "merges.txt").write_text("")
    (places["words"] / "vocab.txt").write_text("\n".join(BERT))
    for place in places.values():
        name = {"vocab": "vocab.json", "words": "vocab.txt"}.get(place.name, "tokenizer.model")
        for files in ({"tokenizer_config": {"additional_special_tokens": ["<new>"]}}, {"added_tokens": {"<new>": 60}},
                      {"special_tokens_map": {"additional_special_tokens": [{"content": "<new>"}]}},
                      {"tokenizer_config": {"added_tokens_decoder": {"60": {"content": "<new>"}}}}):
            written(place, **({"tokenizer_config": {}, "special_tokens_map": {}, "added_tokens": {}} | files))
            with pytest.raises(ConfigError, match=f"adds '<new>' to {name}, which has no such piece: save"):
                read_folder(place)
        token = "<s>" if place.name == "model" else "a"
        written(place, tokenizer_config={}, added_tokens={token: 77})
        with pytest.raises(ConfigError, match=f"says that '{token}' is 77, but in {name} it is"):
            read_folder(place)


def test_pieces_of_xlm_r_are_refused_without_their_ids(tmp_path):
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(model_bytes())
    for spec in (tmp_path, path):
        with pytest.raises(ConfigError, match=r"by other ids .* save the tokenizer once more with transformers") as caught:
            open_tokenizer(str(spec), lossy=True)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_bytes(BYTEBPE.model)
    assert isinstance(open_tokenizer(str(tmp_path)), HuggingFaceTokenizer)


def test_a_template_sees_the_special_tokens_that_have_a_name(tmp_path):
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}"
    named = read_folder(folder(tmp_path / "a", tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}))
    # As Qwen has it: what begins a document stands in config.json alone.
    null = read_folder(folder(tmp_path / "b", tokenizer_config={"bos_token": None, "eos_token": "</s>", "chat_template": template}, config={
        "bos_token_id": 0}))
    assert (null.bos_id, null.unnamed) == (0, ("bos", "pad", "unk"))
    (place := tmp_path / "c").mkdir()
    (place / "tokenizer.model").write_bytes(model_bytes())
    written(place, tokenizer_config={"chat_template": template})
    pieces = read_folder(place)  # a model without padding
    assert BYTEBPE.unnamed == () and pieces.unnamed == ("pad",)
    null.save(tmp_path / "saved")
    for tokenizer in (null, load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(null))):
        assert prompt_text(tokenizer, HELLO) == "|</s>|False"
    assert prompt_text(named, HELLO) == prompt_text(pieces, HELLO) == "<s>|</s>|False"
    from lm import config

    data = config.default().data
    data.bos_token = "<s>"
    assert prompt_text(with_roles(null, data), HELLO) == "<s>|</s>|False"
    written(place, tokenizer_config={"chat_template": template, "bos_token": None})
    assert prompt_text(read_folder(place), HELLO) == "|</s>|False"


def test_transformers_shows_a_template_the_same_tokens(tmp_path):
    transformers = pytest.importorskip("transformers", reason=PARITY)
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{% if tools is not none %}T{% elif documents is none %}D{% endif %}"
    for i, roles in enumerate(({"bos_token": None}, {"bos_token": "<s>"}, {"bos_token": None, "pad_token": "<pad>"})):
        place = folder(tmp_path / str(i), tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>",
                                                            "chat_template": template} | roles, config={"bos_token_id": 1})
        theirs = transformers.AutoTokenizer.from_pretrained(place)
        assert prompt_text(read_folder(place), HELLO) == theirs.apply_chat_template(HELLO, tokenize=False)


def test_several_chat_templates_without_a_default_are_named(tmp_path):
    several = [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]
    tokenizer = read_folder(folder(tmp_path, tokenizer_config={"eos_token": "</s>", "chat_template": several}))
    with pytest.raises(ConfigError, match=r"called rag, tool_use, and none is the default: put .* into chat_template\.jinja") as caught:
        prompt_text(tokenizer, HELLO)
    assert "\n" not in str(caught.value)
    (tmp_path / "chat_template.jinja").write_bytes(b"C\r\nD")
    assert prompt_text(read_folder(tmp_path), HELLO) == "C\nD"
    folder(tmp_path / "none", tokenizer_config={"eos_token": "</s>", "chat_template": []})
    assert read_folder(tmp_path / "none").chat_template == ""


@pytest.mark.parametrize(("name", "value", "words"), [
    ("tokenizer_config", [1], "tokenizer_config.json is no JSON object"),
    ("generation_config", [], "generation_config.json is no JSON object"),
    ("config", "null", "config.json is no JSON object"),
    ("special_tokens_map", {"eos_token": {"lstrip": False}}, "eos_token is {\"lstrip\": false}, which has no text"),
    ("tokenizer_config", {"bos_token": 7}, "bos_token is 7, which has no text"),
    ("tokenizer_config", {"chat_template": 7}, "chat_template is 7, which is neither a text nor a list"),
    ("tokenizer_config", {"chat_template": [{"name": "default"}]}, "neither a text nor a list of named ones"),
    ("tokenizer", {"added_tokens": [{"id": 0}]}, "an entry of added_tokens without content or id"),
    ("tokenizer", {"added_tokens": [{"content": "<s>"}]}, "an entry of added_tokens without content or id"),
    ("tokenizer", {"added_tokens": 3}, "an entry of added_tokens without content or id"),
    ("tokenizer", {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}, "neither {token: id} nor a list"),
    ("tokenizer", {"model": {"type": "Unigram", "vocab": [["a"]]}}, "neither {token: id} nor a list"),
    ("tokenizer", {"post_processor": {"type": "BertProcessing", "cls": 3, "sep": 4}}, "cannot be read by tokenizers"),
    ("tokenizer", {"post_processor": "x"}, "cannot be read by tokenizers"),
])
def test_files_that_say_nonsense(tmp_path, name, value, words):
    folder(tmp_path)
    written(tmp_path, **{name: json.loads(BYTEBPE.model) | value if name == "tokenizer" else value})
    with pytest.raises((ConfigError, DataError)) as caught:
        read_folder(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("files", "words"), [
    ({"vocab.json": "[1]", "merges.txt": ""}, "vocab.json is no JSON object"),
    ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "'a' is \"b\", which is no id"),
    ({"vocab.json": "{}", "merges.txt": b"\xff"}, "merges.txt is not UTF-8"),
    ({"vocab.txt": b"[PAD]\n\xff"}, "vocab.txt is not UTF-8"),
    ({"spiece.model": model_bytes(), "added_tokens.json": "[]"}, "added_tokens.json is no JSON object"),
    ({"spiece.model": model_bytes(), "tokenizer_config.json": '{"added_tokens_decoder": []}'}, None),
    ({"spiece.model": model_bytes(), "tokenizer_config.json": '{"added_tokens_decoder": [1]}'}, "added_tokens_decoder is not {id: token}"),
    ({"spiece.model": model_bytes(), "tokenizer_config.json": '{"added_tokens_decoder": {"x": {}}}'}, "added_tokens_decoder is not"),
    ({"spiece.model": model_bytes(), "tokenizer_config.json": '{"extra_ids": "many"}'}, "extra_ids is \"many\", which is no count"),
    ({"spiece.model": model_bytes(), "tokenizer_config.json": '{"tokenizer_class": null}'}, None),
])
def test_vocabularies_that_are_none(tmp_path, files, words):
    for name, value in files.items():
        (tmp_path / name).write_bytes(value if isinstance(value, bytes) else value.encode())
    if words is None:
        assert read_folder(tmp_path).prompt_bos
        return
    with pytest.raises((ConfigError, DataError)) as caught:
        read_folder(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)
