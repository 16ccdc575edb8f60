"""What a family of another library's models says of itself: which of our models it is, and under which names its tensors go."""

from collections.abc import Callable
from typing import NamedTuple

from lm.errors import ConfigError
from lm.interop.tables import Row


class Reading(NamedTuple):
    """A model of theirs as one of ours.

    `keys` are config keys by their full names, with their values. `table` makes every parameter. A tensor in `tied` must equal
    another one where it is there; what fully matches a pattern in `ignored` (buffers that config.json determines) is not read.
    """

    keys: dict[str, object]
    table: tuple[Row, ...]
    tied: dict[str, str] = {}  # noqa: RUF012 - never changed
    ignored: tuple[str, ...] = ()


class Family(NamedTuple):
    """`read` (config.json, names of the tensors) gives a `Reading`; ConfigError names what we do not have. Without any names the table is
    for what transformers itself would save of such a config.json, under the names that it would give.

    `write` (our config, `lm.models.Sizes`) gives the config.json of a model that was trained here; ConfigError names the key that has
    no counterpart. None: nothing is written in this form but what was imported in it.
    """

    name: str
    model_types: tuple[str, ...]
    read: Callable[[dict, set[str]], Reading]
    write: Callable[[object, object], dict] | None = None


class NoCounterpartError(ConfigError):
    """A model of ours has `keys`, {name: value}, that a family of theirs cannot say."""

    def __init__(self, keys: dict):
        self.keys = keys
        super().__init__(f"nothing there says {', '.join(f'{name}={value!r}' for name, value in keys.items())}")
