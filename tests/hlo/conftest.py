"""The text of a train step as the TPU compiler gave it."""

import pytest

from lm import hlo
from tests.hlo import stored


@pytest.fixture(scope="session")
def llama():
    """The program of `tests.hlo.stored`."""
    return hlo.parse(stored.text())
