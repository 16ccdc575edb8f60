"""Every shell script is clean under shellcheck, says what it does, and stays short."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.sh"))
LAUNCHERS = sorted((ROOT / "scripts/launch").glob("*.sh"))
MOST_LINES = 250


def shellcheck(path, *flags):
    """What shellcheck has to say of a script."""
    program = pathlib.Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([program, "--shell=bash", "--external-sources", "--source-path=SCRIPTDIR", *flags, path], cwd=ROOT,
                          capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    # SC2164: a script that is sourced leaves `set -e` to the one that sources it.
    sourced = not path.read_text().startswith("#!")
    assert shellcheck(path, *(["--exclude=SC2164"] if sourced else [])) == ""


@pytest.mark.parametrize("name", ["slurm_node", "slurm_gpu"])
def test_nor_of_the_job_script_of_slurm(name):
    # SC2016: the arguments of this case have a $ that is meant as one.
    assert shellcheck(ROOT / f"tests/launch/goldens/{name}.txt", "--exclude=SC2016") == ""


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_launchers_stop_at_the_first_error_and_are_short(path):
    text = path.read_text()
    assert text.count("\n") < MOST_LINES
    assert "\nset -euo pipefail\n" in text or path.name == "common.sh"


@pytest.mark.parametrize("path", [path for path in LAUNCHERS if path.name != "common.sh"], ids=lambda path: path.name)
def test_help_is_the_comment_at_the_top(path):
    done = subprocess.run([path, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"scripts/launch/{path.name}" in done.stdout and "set -e" not in done.stdout and "shellcheck" not in done.stdout
