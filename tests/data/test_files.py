"""Files that are written: whole or not at all, by several machines at once, and what a disk that takes nothing says."""

import errno
import os
import socket

import pytest

from lm.data import files
from lm.errors import DiskError


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_takes_nothing_is_an_error_of_the_disk_and_of_no_cache(tmp_path, monkeypatch, code):
    def full(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(DiskError, match=r"score\.json.*run the same command again") as caught:
        files.write_json(tmp_path / "score.json", {})
    assert "cache_dir" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_what_else_is_read_while_a_file_is_written_is_no_error_of_its_disk(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_file(tmp_path / "x"):
        (tmp_path / "missing").read_text()


def test_processes_of_two_machines_and_one_number_write_one_file_at_once(tmp_path, monkeypatch):
    with files.atomic_file(tmp_path / "tuned.json") as one:
        monkeypatch.setattr(socket, "gethostname", lambda: "other")
        with files.atomic_file(tmp_path / "tuned.json") as other:
            other.write(b"whole")
        assert (tmp_path / "tuned.json").read_bytes() == b"whole"
        one.write(b"as whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"as whole"]


def test_a_path_that_is_no_utf8_is_read_as_it_was_written(tmp_path):
    value = {"command": [os.fsdecode(b"caf\xe9"), "café"]}
    files.write_json(tmp_path / "environment.json", value)
    assert files.read_json(tmp_path / "environment.json") == value


def test_numbers_that_json_has_not_are_none_wherever_they_are():
    value = {"a": [float("nan"), {"b": float("-inf")}], "c": 1.5, "d": "inf"}
    assert files.finite(value) == {"a": [None, {"b": None}], "c": 1.5, "d": "inf"}
