"""Where plans are written, and whether they can be, which is asked before minutes of compiling."""

import pathlib
import tempfile

from lm import cli
from lm.errors import writing


def plans_folder() -> pathlib.Path:
    """The folder of the cache that has all plans."""
    return cli.cache_folder() / "plans"


def check_writable(*folders: pathlib.Path):
    """DiskError for the first of some folders that files cannot be made in, or that cannot be made itself; nothing is left behind."""
    for folder in folders:
        with writing(folder):
            there = folder.absolute()
            while not there.exists():
                there = there.parent
            tempfile.TemporaryFile(dir=there).close()
