"""Configs as values: files, overrides from text, JSON and back, fingerprints and differences."""

import pathlib
import re

import pytest

from lm import config
from lm.config.schema import SCHEMA
from lm.errors import ConfigError

# continued.py goes on from a run that is not there (tests/train/test_init.py has one).
CONFIGS = [path for path in sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py")) if path.stem != "continued"]

FILE = """
from lm.config import default

def get_config(argument="4"):
    config = default()
    if argument == "none":
        return None
    if argument == "raise":
        raise RuntimeError("this is broken")
    config.model.layers = int(argument)
    return config
"""


@pytest.fixture
def file(tmp_path):
    """A config file that takes an argument."""
    (tmp_path / "some.py").write_text(FILE)
    return str(tmp_path / "some.py")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_of_the_project_loads_and_says_its_command_and_what_to_expect(path):
    config.load(str(path))
    doc = re.match(r'"""(.*?)"""', path.read_text(), re.DOTALL)[1]
    assert f"scripts/train.py --config=configs/{path.name}" in doc, "the docstring needs the exact command"
    assert re.search(r"[Ee]xpect", doc), "the docstring needs the expected result"


def test_there_is_a_quickstart():
    assert "quickstart" in [path.stem for path in CONFIGS]


def test_load_passes_the_argument_and_then_the_overrides(file):
    assert config.load(file).model.layers == 4
    assert config.load(f"{file}:7").model.layers == 7
    model = config.load(f"{file}:7", {"model.layers": "9", "model.width": "64"}).model
    assert (model.layers, model.width) == (9, 64)


@pytest.mark.parametrize(("argument", "message"), [("raise", "RuntimeError: this is broken"), ("x", "ValueError"), ("none", "NoneType")])
def test_whatever_goes_wrong_in_a_config_file_is_a_config_error_that_names_the_file(file, argument, message):
    with pytest.raises(ConfigError, match=f"some.py: .*{message}"):
        config.load(f"{file}:{argument}")


@pytest.mark.parametrize("text", ["def get_config(:", "import not_a_module", "x = 1", "def get_config(a):\n    return a"])
def test_a_file_that_is_no_config_is_a_config_error(tmp_path, text):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=r"bad.py"):
        config.load(str(tmp_path / "bad.py"))


def test_a_missing_or_other_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config file configs/nope.py"):
        config.load("configs/nope.py")
    with pytest.raises(ConfigError, match=r"no config file"):
        config.load(str(tmp_path))
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"not a Python file"):
        config.load(str(tmp_path / "c.txt"))


@pytest.mark.parametrize(("name", "text", "value"), [
    ("data.context", "128", 128), ("optim.learning_rate", "3e-4", 3e-4), ("optim.learning_rate", "1", 1.0), ("model.name", "gru", "gru"),
    ("model.bias", "true", True), ("model.bias", "1", True), ("model.bias", "True", True), ("model.tie_embeddings", "false", False),
    ("model.tie_embeddings", "0", False), ("data.source", "a,b", ("a", "b")), ("data.source", "a", ("a",)),
    ("data.weights", "1,2.5", (1.0, 2.5)),
    ("data.weights", "", ()), ("train.steps", "100", 100), ("train.steps", "2e6 tokens", "2e6 tokens"), ("optim.warmup", "5%", "5%"),
    ("mesh.replica", "-1", -1), ("data.cache_dir", "", ""),
])
def test_overrides_are_read_by_the_type_of_their_key(name, text, value):
    got = config.flatten(config.override(config.default(), {name: text}))[name]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(("name", "text", "words"), [
    ("data.context", "1.5", "whole number"), ("data.context", "x", "whole number"), ("data.context", "", "whole number"),
    ("optim.learning_rate", "fast", "a number"), ("model.bias", "yes", "true or false"), ("data.weights", "1,x", "a number"),
    ("train.steps", "--5", "duration"), ("train.steps", "\u00b2", "duration"), ("train.steps", "-5", "duration"),
    ("train.steps", "", "duration"),
])
def test_overrides_that_do_not_fit_their_key_are_refused_by_name(name, text, words):
    with pytest.raises(ConfigError, match=rf"{name}=.*{words}"):
        config.validate(config.override(config.default(), {name: text}))


def test_override_leaves_its_argument_alone():
    base = config.default()
    config.override(base, {"data.context": "1"})
    assert base == config.default()


def other_value(name):
    """A value of a key that is not its default."""
    key = SCHEMA[name]
    if key.kind == "duration":
        return 7
    if key.kind in ("strings", "floats"):
        return ("a", "b") if key.kind == "strings" else (0.5, 1.5)
    if key.choices:
        return next((choice for choice in key.choices if choice != key.default), key.default)
    if isinstance(key.default, bool):
        return not key.default
    return key.default + "x" if isinstance(key.default, str) else key.default + 2 if isinstance(key.default, int) else key.default + 0.01


@pytest.mark.parametrize("name", SCHEMA)
def test_fingerprint_and_differences_see_exactly_the_keys_that_define_the_result(name):
    base, flat = config.default(), config.flatten(config.default())
    made = config._build(flat | {name: other_value(name)})
    same, is_other = SCHEMA[name].resume == "same", other_value(name) != flat[name]
    assert (config.fingerprint(made) != config.fingerprint(base)) == (is_other and (same or name == "train.steps"))
    assert config.differences(base, made) == ({name: (flat[name], other_value(name))} if is_other and same else {})


def test_json_and_back_is_the_same_config():
    made = config.override(config.default(), {"data.source": "a,b", "data.weights": "1,2", "optim.warmup": "5%", "model.bias": "true"})
    tree = config.to_json(made)
    assert config.from_json(tree) == made and config.fingerprint(config.from_json(tree)) == config.fingerprint(made)
    assert tree["data"]["source"] == ["a", "b"]


def test_a_stored_config_that_is_invalid_today_is_refused():
    tree = config.to_json(config.default())
    tree["model"]["dtype"] = "float16"
    with pytest.raises(ConfigError, match=r"float16"):
        config.from_json(tree)
