"""Scripts: exit codes, one line of error, overrides, and no JAX before a command line and its config are right."""

import pathlib
import resource
import subprocess
import sys

import pytest

from lm import cli
from lm.errors import ConfigError, DataError

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = str(ROOT / "scripts/train.py")
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"

# Runs a script as `python SCRIPT ...` would, and says on the last line of standard error whether it imported JAX.
PROBE = """
import atexit, runpy, sys
atexit.register(lambda: print('jax' in sys.modules, file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def cpu_seconds_of_children():
    """CPU time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def script(*arguments):
    """(exit code, standard output, lines of standard error, whether JAX was imported, seconds of CPU: others may use the machine)."""
    start = cpu_seconds_of_children()
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
    *errors, imported = done.stderr.splitlines()
    return done.returncode, done.stdout, errors, imported == "True", cpu_seconds_of_children() - start


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_help_is_quick_and_needs_no_jax(path):
    code, out, errors, jax_imported, seconds = script(str(path), "--help")
    assert (code, errors, jax_imported) == (0, [], False)
    assert out.startswith("usage:") and f"python scripts/{path.name}" in out
    assert seconds < 0.5


@pytest.mark.parametrize(("arguments", "words"), [
    ([QUICKSTART], "--workdir"),
    (["--workdir=w"], "--config"),
    ([QUICKSTART, "--workdir=w", "--frobnicate"], "--frobnicate"),
    ([QUICKSTART, "--workd=w"], "--workd"),
    ([QUICKSTART, "--workdir=w", "--config.train.step=3"], "train.step; did you mean train.steps?"),
    ([QUICKSTART, "--workdir=w", "--config.data.context", "1.5"], "data.context='1.5' is not a whole number"),
    ([QUICKSTART, "--workdir=w", "--config.optim.learning_rate=-1"], "optim.learning_rate=-1.0 is not allowed: it must be above 0"),
    ([QUICKSTART, "--workdir=w", "--config.model.dtype=float16"], "use bfloat16"),
    ([QUICKSTART, "--workdir=w", "--config.train.accumulate=3"], "train.accumulate=3"),
    ([QUICKSTART, "--workdir=w", "--config.train.steps"], "--config.train.steps has no value"),
    (["--config=configs/nope.py", "--workdir=w"], "configs/nope.py"),
])
def test_a_wrong_command_line_exits_2_with_one_line_at_once_and_before_jax(arguments, words):
    code, out, errors, jax_imported, seconds = script(TRAIN, *arguments)
    assert (code, out, jax_imported) == (2, "", False)
    assert len(errors) == 1 and errors[0].startswith("error: ") and words in errors[0]
    assert seconds < 1.0


def test_debug_shows_the_traceback_and_keeps_the_exit_code():
    code, _, errors, _, _ = script(TRAIN, "--config=configs/nope.py", "--workdir=w", "--debug")
    assert code == 2 and errors[0].startswith("Traceback") and "ConfigError" in errors[-1]


def exit_of(monkeypatch, capsys, main, *flags):
    """(exit code, standard error) of cli.run(main)."""
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [
    (ConfigError("wrong"), 2), (DataError("wrong"), 1), (FileNotFoundError("wrong"), 1), (OSError(28, "wrong"), 1),
    (DataError("so\nwrong"), 1)])
def test_errors_become_exit_codes_and_one_line(monkeypatch, capsys, error, code):
    def main(argv):
        raise error

    got, text = exit_of(monkeypatch, capsys, main)
    assert got == code
    assert text.startswith("error: ") and "wrong" in text and text.count("\n") == 1
    got, text = exit_of(monkeypatch, capsys, main, "--debug")
    assert got == code and text.startswith("Traceback")


def test_success_exits_0_and_a_bug_1_with_one_line_or_its_traceback(monkeypatch, capsys):
    assert exit_of(monkeypatch, capsys, lambda argv: None)[0] == 0
    bug = "error: ZeroDivisionError: division by zero (--debug shows where)\n"
    assert exit_of(monkeypatch, capsys, lambda argv: 1 / 0) == (1, bug)
    code, errors = exit_of(monkeypatch, capsys, lambda argv: 1 / 0, "--debug")
    assert code == 1 and errors.startswith("Traceback") and "1 / 0" in errors


def test_keeping_memory_restarts_once_and_respects_the_user(monkeypatch):
    started = []
    monkeypatch.setattr(cli.os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(cli.os.path, "exists", lambda path: False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "train.py", "--config=x"])
    monkeypatch.setenv("GLIBC_TUNABLES", "mine")
    cli.keep_memory()
    assert started == []
    monkeypatch.delenv("GLIBC_TUNABLES")
    cli.keep_memory()
    assert started == [(sys.executable, [sys.executable, "-X", "dev", "train.py", "--config=x"])]
    cli.keep_memory()
    assert len(started) == 1


def test_interrupt_exits_130(monkeypatch, capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert exit_of(monkeypatch, capsys, main) == (130, "interrupted\n")


def test_overrides_in_both_forms_with_any_value():
    parser = cli.Parser()
    parser.add_config()
    arguments, overrides = parser.parse_with_overrides(
        ["--config.a.b", "1", "--config=f.py:x", "--config.c=2=3", "--config.mesh.replica", "-1", "--config.d=", "--debug"])
    assert overrides == {"a.b": "1", "c": "2=3", "mesh.replica": "-1", "d": ""}
    assert arguments.config == "f.py:x" and arguments.debug


def test_the_result_is_one_json_line(capsys):
    cli.print_result({"step": 1, "loss": None})
    assert capsys.readouterr().out == '{"step": 1, "loss": null}\n'


def test_a_table_is_aligned_and_has_every_column_of_any_row():
    rows = [{"side": "ours", "speed": 12345.678, "share": 0.123456}, {"side": "b", "count": 1234567, "ok": True, "share": None}]
    assert cli.table(rows) == ("side   speed   share      count    ok\n"
                                   "ours  12,346  0.1235\n"
                                   "b                     1,234,567  True")
