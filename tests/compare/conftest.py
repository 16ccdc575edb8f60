"""Fixtures of several files of this folder."""

import pytest

from tests.compare.small_runs import compiled_once


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Each program of a file's tests is compiled once."""
    with compiled_once(tmp_path_factory.mktemp("programs")):
        yield
