"""The two kinds of error a user can cause or meet; scripts turn them into one line and an exit code."""

import contextlib
import os


class LmError(Exception):
    """Something failed that the user can understand and mend (exit code 1)."""


class ConfigError(LmError):
    """A bad argument, config key or value, found before anything is compiled (exit code 2)."""


class DataError(LmError):
    """Input that cannot be read or used (exit code 1)."""


class CheckpointError(LmError):
    """A checkpoint that cannot be written, read or used here (exit code 1)."""


class NonFiniteError(LmError):
    """A loss or gradient that is not finite stopped the run (exit code 1)."""


class ProcessError(LmError):
    """A process of a job is missing, gone, stuck or not like the others (exit code 1)."""


class BenchError(LmError):
    """A benchmark, or the program that it compares with, did not run (exit code 1)."""


class PlanError(LmError):
    """A plan that cannot be made, read or launched here (exit code 1)."""


class DiskError(LmError):
    """A folder that cannot be written, because the disk is full or read-only (exit code 1)."""


@contextlib.contextmanager
def writing(path):
    """Turns what the disk says while `path` is written into one line that names the fix."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        raise DiskError(f"cannot write {path} ({why}): free space or mend the folder, then run the same command again") from error
