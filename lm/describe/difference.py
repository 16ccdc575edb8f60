"""What differs between two configs."""

from lm import config as configs
from lm.describe.config import Place, describe, place_of
from lm.describe.initial import is_constant

# Two draws from one distribution differ by less, where they have as many entries.
_SPREAD, _ENTRIES = 0.1, 1000


def compare(config, other, place: Place | None = None, other_place: Place | None = None, traced: bool = False) -> dict:
    """Where two configs differ, the value of the first beside that of the second (null where there is none): {"config" by key, "mesh" by
    axis, "parameters": shapes by path, of parameters that both have "sharding": mesh axes by dimension, "init": means and standard
    deviations, "group": of the optimizer, and whether it decays, "flops": in training, per token, by component, "memory": bytes of one
    device by kind, "state": by component, "totals" by name}. For `traced` see `describe`.
    """
    places = place or place_of(config), other_place or place_of(other)
    both = [describe(each, where, traced) for each, where in zip((config, other), places, strict=True)]
    rows = [{row["name"]: row for row in each["parameters"]} for each in both]
    shared = [name for name in rows[0] if name in rows[1]]

    def of_both(value):
        return _differing(*({name: value(each[name]) for name in shared} for each in rows))

    return {
        "config": _differing(*map(configs.flatten, (config, other))),
        "mesh": _differing(*(each["mesh"] for each in both)),
        "parameters": _differing(*({name: row["shape"] for name, row in each.items()} for each in rows)),
        "sharding": of_both(lambda row: row["sharding"]),
        "init": {name: [each[name]["init"] for each in rows] for name in shared if begin_apart(*(each[name] for each in rows))},
        "group": of_both(lambda row: row["group"] + (", decays" if row["decays"] else "")),
        "flops": _differing(*({row["component"]: row["train_flops_per_token"] for row in each["components"]
                               if row["train_flops_per_token"]} for each in both)),
        "memory": _differing(*(each["memory"] for each in both)),
        "state": _differing(*({row["component"]: sum(row["bytes"].values()) for row in each["components"] if row["bytes"]}
                              for each in both)),
        "totals": _differing(*(each["totals"] for each in both)),
    }


def begin_apart(first: dict, second: dict) -> bool:
    """Whether two parameters, rows of `lm.describe.parameters`, begin with different constants or standard deviations, as far as draws
    can tell."""
    if not (first["init"] and second["init"]):
        return False
    means, deviations = zip(first["init"], second["init"], strict=True)
    constants = [is_constant(*each["init"]) for each in (first, second)]
    if any(constants):
        return not all(constants) or not is_constant(means[0], abs(means[0] - means[1]))
    known = min(first["entries"], second["entries"]) >= _ENTRIES
    return known and abs(deviations[0] - deviations[1]) > _SPREAD * max(deviations)


def _differing(first: dict, second: dict) -> dict:
    names = [*first, *(name for name in second if name not in first)]
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}
