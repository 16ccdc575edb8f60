"""Lengths of time in steps, tokens, epochs, FLOPs or per cent of the run, all turned into whole steps."""

import dataclasses
import math
import re

from lm.errors import ConfigError

UNITS = ("steps", "tokens", "epochs", "flops", "%")
_FORM = re.compile(r"\s*([0-9][0-9_.]*(?:[eE][+-]?[0-9]+)?)\s*(%|[a-zA-Z]*)\s*")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a step is worth: tokens and FLOPs of one step, and the steps of one epoch of the training data."""

    tokens_per_step: float
    steps_per_epoch: float
    flops_per_step: float


def parse(key: str, value: int | str) -> tuple[float, str]:
    """(amount, unit) of a duration such as 100, "2e6 tokens", "1.5 epochs", "1e15 flops" or "5%"."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ConfigError(f"{key}={value!r} is not a duration: use whole steps or text such as '2e6 tokens', '1.5 epochs', '5%'")
    if isinstance(value, int):
        value = f"{value} steps" if value >= 0 else str(value)
    match = _FORM.fullmatch(value)
    try:
        amount = float(match.group(1).replace("_", "")) if match else -1.0
    except ValueError:
        amount = -1.0
    unit = match.group(2).lower() if match else ""
    unit = {"": "steps", "step": "steps", "token": "tokens", "epoch": "epochs", "flop": "flops"}.get(unit, unit)
    if not 0 <= amount < math.inf or unit not in UNITS:
        raise ConfigError(f"{key}={value!r} is not a duration: use a number >= 0 of steps, tokens, epochs, flops or %")
    if unit == "steps" and amount != int(amount):
        raise ConfigError(f"{key}={value!r} is not a whole number of steps")
    if unit == "%" and key == "train.steps":
        raise ConfigError("train.steps cannot be a percentage of itself: use steps, tokens, epochs or flops")
    return amount, unit


def to_steps(key: str, value: int | str, facts: Facts, total_steps: int = 0) -> int:
    """Whole optimizer steps of a duration, rounded up so that at least what was asked for is done."""
    amount, unit = parse(key, value)
    steps = {
        "steps": amount,
        "tokens": amount / facts.tokens_per_step,
        "epochs": amount * facts.steps_per_epoch,
        "flops": amount / (facts.flops_per_step or math.nan),
        "%": amount / 100 * total_steps,
    }[unit]
    if math.isnan(steps):
        raise ConfigError(f"{key}={value!r}: a model that is made by counting takes no FLOPs; use steps, tokens or epochs")
    return math.ceil(round(steps, 6))
