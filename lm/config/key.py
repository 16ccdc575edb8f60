"""What a key of a config is: default, meaning, unit and what is allowed.

`resume` says what a changed value means for a run that already has a checkpoint: "same" keys define the result and
must not differ, "free" keys may. `families` lists the models that read a model key, `objectives` the objectives that read an
objective's; None is all of them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Key:
    """One key. `default` fixes the type; `kind` is "value", "duration" or "strings"/"floats" (tuples)."""

    default: object
    doc: str
    choices: tuple | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    kind: str = "value"
    resume: str = "same"
    families: tuple | None = None
    objectives: tuple | None = None


def free(default, doc, **options) -> Key:
    """A key that may change between the parts of a run."""
    return Key(default, doc, resume="free", **options)
