"""A work directory: one trainer at a time, one definition of the result, and a record of where it was made."""

import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

from lm import config, run
from lm.data.tokenizers import ByteTokenizer
from lm.errors import CheckpointError, ConfigError, DiskError

FACTS = config.Facts(1000, 10.0, 1e9)


def start(workdir, data="data-1", **overrides):
    """run.start with overrides; a__b stands for a.b."""
    given = config.override(config.default(), {name.replace("__", "."): text for name, text in overrides.items()})
    prepared = types.SimpleNamespace(fingerprint=data, tokenizer=ByteTokenizer(), source_tokenizer=None)
    return run.start(workdir, given, config.resolve(given, FACTS), prepared)


def test_the_lock_refuses_a_second_holder_until_the_first_is_gone(tmp_path):
    program = "import sys\nfrom lm import run\nheld = run.lock(__import__('pathlib').Path(sys.argv[1]))\nprint('held', flush=True)\ninput()"
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "w")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"another process is training in {re.escape(str(tmp_path / 'w'))}"):
            run.lock(tmp_path / "w")
    finally:
        other.kill()
        other.communicate()
    run.lock(tmp_path / "w").close()
    run.lock(tmp_path / "w").close()


def test_a_work_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot write .*file/run \(not a directory\): free space or mend the folder, then run the same"):
        run.lock(tmp_path / "file" / "run")


def test_a_new_run_records_its_config_data_tokenizer_and_environment(tmp_path):
    assert start(tmp_path, train__steps="5e4 tokens", optim__warmup="10%") == ""
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["config"]["train"]["steps"], stored["config"]["optim"]["warmup"]) == (50, 5)
    assert (stored["given"]["train"]["steps"], stored["given"]["optim"]["warmup"]) == ("5e4 tokens", "10%")
    assert stored["data"] == "data-1" and stored["hash"] == config.fingerprint(config.from_json(stored["config"]))
    assert (tmp_path / "tokenizer" / "tokenizer.json").exists() and (tmp_path / "environment.json").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_same_run_may_go_on(tmp_path):
    start(tmp_path, optim__warmup="10%")
    before = (tmp_path / "config.json").read_text()
    assert start(tmp_path, optim__warmup="10%") == ""
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(("key", "text", "words"), [
    ("model__layers", "5", "model.layers was 4 and is 5"), ("seed", "1", "seed was 0 and is 1"),
    ("optim__warmup", "5%", "optim.warmup was 0 and is '5%'"), ("data__source", "a,b", "data.source was ('sotu',) and is ('a', 'b')"),
])
def test_another_result_in_the_same_directory_is_refused_with_both_values(tmp_path, key, text, words):
    start(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError, match=re.escape(words)):
        start(tmp_path, **{key: text})
    assert (tmp_path / "config.json").read_text() == before, "a refused run leaves the old one as it was"


def test_all_keys_that_differ_are_named(tmp_path):
    start(tmp_path)
    with pytest.raises(ConfigError) as refused:
        start(tmp_path, seed="1", optim__learning_rate="0.5")
    assert "seed was 0 and is 1" in str(refused.value) and "optim.learning_rate was 0.001 and is 0.5" in str(refused.value)


def test_other_data_is_refused(tmp_path):
    start(tmp_path)
    with pytest.raises(ConfigError, match="other data"):
        start(tmp_path, data="data-2")


def test_free_keys_may_change_and_are_recorded(tmp_path):
    start(tmp_path)
    assert start(tmp_path, train__log_every="3", checkpoint__every="7", mesh__fsdp="8", mesh__replica="1", train__accumulate="2") == ""
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (stored["train"]["log_every"], stored["checkpoint"]["every"], stored["mesh"]["fsdp"]) == (3, 7, 8)


@pytest.mark.parametrize(("schedule", "noted"), [("cosine", True), ("linear", True), ("wsd", True), ("constant", False),
                                                 ("inverse_sqrt", False)])
def test_another_length_is_noted_where_it_changes_the_schedule(tmp_path, schedule, noted):
    start(tmp_path, optim__schedule=schedule)
    note = start(tmp_path, optim__schedule=schedule, train__steps="2000")
    assert bool(note) == noted
    if noted:
        assert "train.steps was 1000 and is 2000" in note and schedule in note and "\n" not in note


def test_environment_names_versions_devices_command_and_commit(monkeypatch):
    found = run.environment()
    assert found["packages"]["jax"] == jax.__version__ and set(found["packages"]) == set(run.PACKAGES)
    assert len(found["devices"]) == 8 and all(device.startswith("cpu:") for device in found["devices"])
    assert found["command"] == sys.argv and found["processes"] == 1 and found["python"].startswith("3.")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", found["time"])
    json.dumps(found)


def git(folder, *arguments):
    """Runs git in a folder, as somebody."""
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_recorded_with_a_plus_when_there_are_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run._git_state() is None
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    assert re.fullmatch(r"[0-9a-f]{40}", run._git_state())
    (tmp_path / "file").write_text("2")
    assert re.fullmatch(r"[0-9a-f]{40}\+", run._git_state())


def test_what_is_no_work_directory_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the work directory of a run"):
        run.open_run(tmp_path)


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_an_opened_run_gives_the_parameters_that_were_saved(tmp_path, ema):
    small = {"model__layers": "1", "model__width": "8", "model__heads": "2", "data__context": "4", "train__ema": ema}
    start(tmp_path, **small)
    opened = run.open_run(tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        opened.parameters()
    shapes = opened.abstract_parameters()
    params = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, 1.0, leaf.dtype), shapes)
    mean = jax.tree.map(lambda leaf: 2 * leaf, params)
    writer = run.Checkpoints(pathlib.Path(tmp_path) / "checkpoints")
    writer.save(7, {"params": params} | ({"ema": mean} if ema != "0" else {}), {})
    writer.close()
    got, step = opened.parameters()
    assert step == 7 and all((leaf == (1.0 if ema == "0" else 2.0)).all() for leaf in jax.tree.leaves(got))
    assert opened.tokenizer.vocab_size == opened.model.vocab_size == 259 and opened.config.data.context == 4
