"""What users get wrong, through the real commands: each gives one clear line, the right exit code, and loses nothing."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from lm import config as configs
from lm.data.tokenizers import train_tokenizer
from lm.train import train

SMALL = {
    "model.width": "16", "model.layers": "1", "model.heads": "2", "data.documents": "line", "data.tokenizer": "bytes", "data.context": "16",
    "data.global_batch": "8", "data.validation_fraction": "0.3", "train.steps": "2", "metrics.tensorboard": "false",
    "metrics.peak_flops": "1e9", "data.workers": "1",
}
TEXT = "".join(f"this is line number {number} of a small text about nothing\n" for number in range(40))


def command(script, *arguments, limit=None):
    """(exit code, standard output, error lines) of a script; `limit` is the largest file in bytes that it may write."""
    code = (f"import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2); sys.argv = {[f'scripts/{script}', *map(str, arguments)]!r}; "
            f"runpy.run_path('scripts/{script}', run_name='__main__')")
    start = [sys.executable, f"scripts/{script}", *map(str, arguments)] if limit is None else [sys.executable, "-c", code]
    done = subprocess.run(start, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}, timeout=120)
    return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if line.startswith("error")]


def train_on(source, workdir, **overrides):
    """`train.py` on a source with a small config."""
    keys = SMALL | {name.replace("__", "."): str(value) for name, value in overrides.items()}
    flags = [f"--config.{name}={value}" for name, value in keys.items()]
    return command("train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", f"--config.data.source={source}", *flags)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small corpus."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """The work directory of a tiny trained run."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    keys = SMALL | {"data.source": f"text:{text}"}
    train(configs.load("configs/quickstart.py", keys), workdir)
    return workdir


@pytest.mark.parametrize(("content", "overrides", "code", "words"), [
    (b"", {}, 1, "is empty"),
    (b"caf\xe9 au lait\n" * 20, {}, 1, "is not UTF-8"),
    (b"too short\n", {"data__validation_fraction": 0}, 1, "fewer than the 16 of one row"),
    (TEXT.encode(), {"data__tokenizer": "bpe", "data__vocab_size": 5000}, 1, "data.vocab_size"),
    (TEXT.encode(), {"model__widht": 16}, 2, "did you mean model.width"),
    (TEXT.encode(), {"data__documents": "file", "data__validation_fraction": 0.0}, 1, "the validation split is empty"),
    (TEXT.encode(), {"data__global_batch": 0}, 2, "data.global_batch=0"),
])
def test_training_text_and_config(tmp_path, content, overrides, code, words):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    returned, out, errors = train_on(f"text:{path}", tmp_path / "run", **overrides)
    assert (returned, len(errors), out) == (code, 1, ""), errors
    assert words in errors[0]


def test_a_document_longer_than_every_row_is_trained_on(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(TEXT.replace("\n", " "))
    code, out, errors = train_on(f"text:{path}", tmp_path / "run", data__documents="file", data__validation_fraction=0, eval__split="none")
    assert (code, errors) == (0, []) and json.loads(out.splitlines()[-1])["step"] == 2


def test_a_missing_source_is_named(tmp_path):
    code, _, errors = train_on(f"text:{tmp_path}/nothing-*.txt", tmp_path / "run")
    assert code == 1 and len(errors) == 1 and "nothing-*.txt" in errors[0]


def test_the_work_directory_of_another_model(trained, text):
    before = {path: path.read_bytes() for path in pathlib.Path(trained).rglob("*") if path.is_file() and path.name != "lock"}
    code, _, errors = train_on(f"text:{text}", trained, model__width=32)
    assert code == 2 and len(errors) == 1 and "model.width was 16 and is 32" in errors[0]
    assert before == {path: path.read_bytes() for path in pathlib.Path(trained).rglob("*") if path.is_file() and path.name != "lock"}


def test_no_space_for_a_checkpoint_keeps_the_one_before(trained, text, tmp_path):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", str(trained), str(workdir)], check=True)
    keys = SMALL | {"data.source": f"text:{text}", "train.steps": "4"}
    flags = [f"--config.{name}={value}" for name, value in keys.items()]
    code, _, errors = command("train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags, limit=4096)
    assert code == 1 and len(errors) == 1, errors
    assert "2" in [path.name for path in (workdir / "checkpoints").iterdir()]
    code, out, errors = command("eval.py", f"--workdir={workdir}", "--step=2")
    assert (code, errors) == (0, []) and json.loads(out.splitlines()[-1])["step"] == 2


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "--prompt"),
    (["--prompt=" + "far too long " * 20], "the model's context is 16: shorten the prompt"),
    (["--prompt=this", "--max_tokens=50"], "use at most"),
    (["--prompt=this", "--beams=2", "--num=3"], "num=3"),
    (["--prompt=this", "--top_p=0"], "top_p"),
    (["--prompt=this", "--drafts=-1"], "--drafts=-1"),
    (["--prompt=this", "--drafts=2", "--beams=2"], "0 with --beams"),
    (["--prompt=this", "--draft=W", "--drafts=0"], "at least 1 with --draft"),
])
def test_generation(trained, arguments, words):
    code, _, errors = command("generate.py", f"--workdir={trained}", *arguments)
    assert code == 2 and len(errors) == 1 and words in errors[0], errors


def test_drafts_by_a_run_or_by_lookup_change_no_greedy_text(trained):
    asked = (f"--workdir={trained}", "--prompt=th", "--max_tokens=8", "--temperature=0")
    plain, *drafted = [command("generate.py", *asked, *more) for more in ((), (f"--draft={trained}",), ("--drafts=3",))]
    assert plain[0] == 0 and "tokens_per_pass" not in json.loads(plain[1].splitlines()[-1])
    for code, out, errors in drafted:
        result = json.loads(out.splitlines()[-1])
        assert (code, errors) == (0, [])
        assert result["completions"][0]["text"] == json.loads(plain[1].splitlines()[-1])["completions"][0]["text"]
        assert result["tokens_per_pass"] >= 1


def test_a_draft_needs_the_same_tokenizer(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    train_tokenizer([TEXT], "bpe", 300).save(other / "tokenizer")
    code, _, errors = command("generate.py", f"--workdir={trained}", "--prompt=th", f"--draft={other}")
    assert code == 2 and len(errors) == 1 and "another tokenizer" in errors[0], errors


def test_evaluating_what_is_not_there(trained, tmp_path):
    for arguments, code, words in [([f"--workdir={tmp_path}"], 2, "not the work directory of a run"),
                                   ([f"--workdir={trained}", "--step=77"], 1, "has no checkpoint of step 77"),
                                   ([f"--workdir={trained}", f"--data={tmp_path}/none.txt"], 1, "none.txt")]:
        returned, _, errors = command("eval.py", *arguments)
        assert returned == code and len(errors) == 1 and words in errors[0], errors
