"""A plan that is to be launched, as far as the config goes: what scripts/plan.py wrote, and which keys it holds for.

A plan is a folder: plan.json has what was found out, and under "launch" what a run is compared with (`lm.train.planned.facts`).
"""

import json
import pathlib
from typing import NamedTuple

from lm import config as configs
from lm.config.schema import SCHEMA
from lm.errors import ConfigError

# Keys that a plan's memory and speed follow from; mesh sizes are compared with -1 replaced.
_SECTIONS = ("model", "objective", "layout")
_KEYS = ("data.context", "data.global_batch", "data.buckets", "optim.name", "train.accumulate", "train.z_loss", "train.ema",
         "train.loss_chunk", "train.nonfinite")
DECISIVE = tuple(name for name in SCHEMA if name.split(".")[0] in _SECTIONS or name in _KEYS)
# Numbers in the program: with another one a plan still holds, but its executable is of another program.
CONSTANTS = ("seed", "train.steps", *(name for name in SCHEMA if name.startswith("optim.") and name not in DECISIVE))


class Plan(NamedTuple):
    """The folder of a plan and its plan.json."""

    folder: pathlib.Path
    values: dict

    @property
    def launch(self) -> dict:
        """What a run is compared with."""
        return self.values["launch"]

    @property
    def topology(self) -> str:
        """What it is for, such as v5e:16x16."""
        return self.values["topology"]


def values_of(folder: str | pathlib.Path) -> dict:
    """plan.json of a plan's folder, whether the plan fits or not. ConfigError where there is none."""
    try:
        values = json.loads((pathlib.Path(folder) / "plan.json").read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("plan.json is not an object")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plan={folder} is not the folder of a plan ({error}): make one with scripts/plan.py --out={folder}") from error
    return values


def read(folder: str | pathlib.Path) -> Plan:
    """The plan in a folder. ConfigError where there is none, where it cannot be launched, and where it does not fit."""
    plan = Plan(pathlib.Path(folder), values_of(folder))
    missing = [name for name in ("launch", "topology", "fits") if name not in plan.values]
    if missing:
        raise ConfigError(f"the plan {folder} does not say {' and '.join(missing)}: plan again with scripts/plan.py")
    if not plan.values["fits"]:
        raise ConfigError(f"the plan {folder} does not fit {plan.topology}: see its page.txt for what to change, and plan again")
    return plan


def load(plan: Plan, spec: str | None, overrides: dict[str, str]):
    """The config of a run that launches a plan: of a file with the plan's overrides, or without a file the plan's own; then `overrides`.

    ConfigError where an override contradicts one of the plan's, or the config is not the planned one.
    """
    if spec:
        config = configs.load(spec, _merged(plan, overrides))
    else:
        config = configs.validate(configs.override(configs.from_json(plan.launch["config"]), overrides))
    check_keys(plan, config)
    return config


def _merged(plan: Plan, overrides: dict[str, str]) -> dict[str, str]:
    chosen = {name: as_text(value) for name, value in plan.values.get("overrides", {}).items()}
    for name in chosen.keys() & overrides.keys():
        one, other = (configs.flatten(configs.override(configs.default(), {name: text[name]}))[name] for text in (chosen, overrides))
        if one != other:
            raise ConfigError(f"--config.{name}={overrides[name]} contradicts the plan {plan.folder}, which has {name}={chosen[name]}: "
                              "leave it out, or plan again with scripts/plan.py")
    return chosen | overrides


def as_text(value) -> str:
    """A value as an override writes it: true, 1, or a,b."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_keys(plan: Plan, config):
    """ConfigError that names the keys whose values are not those that the plan holds for."""
    changed = differences(plan.launch["config"], config, DECISIVE)
    if changed:
        text = "; ".join(f"{name} is {here!r} here and {there!r} there" for name, (there, here) in changed.items())
        fix = "give " + " ".join(f"--config.{name}={as_text(there)}" for name, (there, _) in changed.items())
        raise ConfigError(f"the plan {plan.folder} is of another run: {text}. To launch it {fix}, or plan this one with scripts/plan.py")


def differences(stored: dict, config, names: tuple[str, ...]) -> dict[str, tuple]:
    """{key: (stored, here)} of those keys that differ between a stored config, as JSON, and one."""
    before, after = configs.flatten(configs.from_json(stored)), configs.flatten(config)
    return {name: (before[name], after[name]) for name in names if before[name] != after[name]}
