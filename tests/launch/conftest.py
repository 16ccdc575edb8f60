"""A repository with the launchers in it, and a cloud made of fakes on PATH: every call is recorded, workers are folders."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAKES = pathlib.Path(__file__).with_name("fakes")
# What `pip install` would make, and a Python for it: both record how they are called.
INSTALL = 'mkdir -p .venv/bin; ln -sf "$FAKE/bin/python" .venv/bin/python; echo "install with $PYTHON" >>"$FAKE/installed"\n'
PYTHON = f'#!/bin/sh\nif [ "$1" = -m ]; then echo "$*" >>"$FAKE/installed"; else exec {sys.executable} -S -E "$@"; fi\n'


class Cloud:
    """Where the fakes run: `repository` has the launchers, `calls` what the fakes were called with."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.repository = folder, folder / "repository"
        shutil.copytree(ROOT / "scripts/launch", self.repository / "scripts/launch", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(FAKES / "train.py", self.repository / "scripts/train.py")
        (self.repository / "scripts/install.sh").write_text(INSTALL)
        (self.repository / ".gitignore").write_text(".venv/\nruns/\n")
        shutil.copytree(FAKES, folder / "bin")
        for name in ("python", "python3", "python3.13"):
            self.tool(name, PYTHON)
        self.environment = {**os.environ, "FAKE": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
        self.call("git", "init", "--quiet")
        self.call("git", "add", ".")

    def tool(self, name: str, text: str):
        """Puts a command on PATH."""
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def states(self, *states: str):
        """What describe will answer, in this order; the last one for ever."""
        (self.folder / "states").write_text("".join(f"{state}\n" for state in states))

    def call(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs a command in the repository."""
        return subprocess.run(words, cwd=self.repository, env=self.environment | environment, capture_output=True, text=True, timeout=30)

    @property
    def calls(self) -> list[list[str]]:
        """The calls of fakes so far, as lists of words."""
        path = self.folder / "calls"
        return [line.replace("\x1e", "\n").split("\x1f")[1:] for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def kill(self):
        """Ends what a test left running on a worker."""
        for pid in self.folder.glob("workers/*/lm-run/pid"):
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                continue


@pytest.fixture
def cloud(tmp_path):
    """A cloud with nothing in it."""
    cloud = Cloud(tmp_path / "a cloud")  # every path has a space
    yield cloud
    cloud.kill()
