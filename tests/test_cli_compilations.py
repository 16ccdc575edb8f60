"""What JAX compiles is kept on disk: where, for which processor, how much of it, and what happens when it cannot be read."""

import os
import pathlib
import re
import stat
import subprocess
import sys

import pytest

from lm import cli

ROOT = pathlib.Path(__file__).parents[1]
FOLDER, LEAST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    """A cache of its own for each test, and an environment that is as before at its end."""
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    for name in (FOLDER, LEAST):
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)


def test_programs_are_kept_in_a_folder_that_is_the_users_and_the_processors_alone(tmp_path):
    cli.keep_compilations()
    folder = pathlib.Path(os.environ[FOLDER])
    assert folder == tmp_path / "cache" / f"xla-{os.getuid()}" / cli.processor() and os.environ[LEAST] == "0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mine", ["mine", ""])
def test_a_folder_of_the_users_is_left_alone(monkeypatch, tmp_path, mine):
    monkeypatch.setenv(FOLDER, mine)
    cli.keep_compilations()
    assert os.environ[FOLDER] == mine and LEAST not in os.environ and not (tmp_path / "cache").exists()


CORE = "processor\t: 0\nmodel name\t: EPYC\ncpu MHz\t\t: 2400.0\nflags\t\t: fpu avx avx512f\n\n"


@pytest.mark.parametrize(("told", "same"), [
    (CORE.replace("2400.0", "3100.0"), True), (CORE + CORE, True), (CORE.replace(" avx512f", ""), False),
    (CORE.replace("EPYC", "Xeon"), False), (CORE.replace("model name", "cpu family\t: 25\nmodel name"), False)])
def test_processors_that_differ_in_kind_or_instructions_have_names_that_differ(tmp_path, told, same):
    for name, text in (("before", CORE), ("after", told)):
        (tmp_path / name).write_text(text)
    assert (cli.processor(tmp_path / "before") == cli.processor(tmp_path / "after")) == same


def test_programs_for_another_number_of_cores_are_apart(monkeypatch, tmp_path):
    names = set()
    for cores in ({0}, {0, 1}, {2, 3}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        names |= {cli.processor(), cli.processor(tmp_path / "not Linux")}
    assert len(names) == 4


def unwritable(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)


def of_somebody_else(monkeypatch, tmp_path):
    cli.keep_compilations()
    monkeypatch.delenv(FOLDER)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    (tmp_path / "cache" / f"xla-{me}").rename(tmp_path / "cache" / f"xla-{me + 1}")


def no_folder(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("")


def no_home(monkeypatch, tmp_path):
    monkeypatch.setenv("LM_CACHE", "~nobody-of-this-name/cache")


@pytest.mark.parametrize("trouble", [unwritable, of_somebody_else, no_folder, no_home], ids=lambda trouble: trouble.__name__)
def test_where_nothing_can_be_kept_a_warning_names_the_fix_and_the_script_goes_on(monkeypatch, tmp_path, trouble):
    trouble(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match=r"^compiled programs are not kept \(.+\): set LM_CACHE to a folder of yours"):
        cli.keep_compilations()
    assert FOLDER not in os.environ


def test_beyond_a_size_the_oldest_go_until_half_is_left(monkeypatch, tmp_path):
    folder = tmp_path / "cache" / f"xla-{os.getuid()}" / "another processor"
    folder.mkdir(parents=True)
    for age in range(6):
        (folder / f"{age}").write_bytes(b"x" * 10)
        os.utime(folder / f"{age}", (1e9 - age, 1e9 - age))
    monkeypatch.setattr(cli, "MOST_KEPT_BYTES", 60)
    cli.keep_compilations()
    assert len(list(folder.iterdir())) == 6
    monkeypatch.delenv(FOLDER)
    monkeypatch.setattr(cli, "MOST_KEPT_BYTES", 59)
    cli.keep_compilations()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"], "29 bytes at most"


# Compiles a program, or has it compiled before, as a script would.
PROGRAM = """
import sys
from lm import cli
def main(argv):
    cli.keep_compilations()
    import jax, numpy as np
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
    result = jax.jit(lambda x: jax.nn.softmax(x @ x.T) @ x)(np.linspace(-3, 3, 640, dtype=np.float32).reshape(64, 10))
    print(sum("cache_hits" in name for name in hits), np.asarray(result).tobytes().hex())
cli.run(main)
"""


def test_a_later_process_finds_what_was_compiled_and_one_that_cannot_read_it_says_so_and_compiles(tmp_path):
    def run():
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 0, done.stderr
        return *done.stdout.split(), done.stderr

    cold = run()
    warm = run()
    [file] = (tmp_path / "cache").rglob("jit__lambda-*-cache")
    assert (cold[0], warm[0]) == ("0", "1") and warm[1] == cold[1], "bit for bit"
    assert cold[2] == warm[2] == ""
    file.write_bytes(file.read_bytes()[:-100])  # as a full disk, or the end of its writer, leaves it
    hits, result, said = run()
    assert (hits, result) == ("0", cold[1])
    assert re.fullmatch(rf"warning: Error reading persistent compilation cache entry .*; free space, or delete {file.parent} .*\n", said)
