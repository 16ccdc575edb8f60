"""Sizes and lengths of the arms of a comparison, from its budget (`lm.compare.budgets`), and what was chosen in words."""

import dataclasses
import math
from collections.abc import Callable

from lm import config as configs
from lm.compare.account import Meter, meter_of, prepared_text
from lm.compare.ask import SIZES
from lm.compare.budgets import KINDS, SIZED, TOLERANCE, Budget, check_same_data
from lm.compare.measured import step_memory, step_seconds
from lm.compare.rules import RULES
from lm.compare.solver import Found, meet
from lm.config import durations
from lm.config.model_keys import COUNTED
from lm.data.prepare import PreparedData
from lm.errors import ConfigError

# Fewest steps of a budget of seconds: of less, what is measured is how they begin.
FEWEST_STEPS = 10
# Most steps of a run: they are counted in 32 bits.
MOST_STEPS = 2**31 - 1
# Kinds whose sizes can be kept as they are written.
KEPT = ("flops", "tokens", "seconds")
# Keys in the order in which a sentence names them.
_ORDER = ("layers", "encoder_layers", "width", "heads", "kv_heads", "ff_width", "embedding_width", "classes")


@dataclasses.dataclass(frozen=True)
class Sized:
    """An arm or a reference of a comparison: its sizes, length and what they cost; see `lm.compare.account.Account` for the counts.

    `overrides` are the asked ones with the keys that were `chosen` {key: [as written, chosen]}, for `lm.config.load`; `steps` of training
    come beside them. `budget` is {"kind", "amount", "met", "error" (share of the amount)}, None without one.
    """

    name: str
    spec: str
    reference: bool
    overrides: dict[str, str]
    chosen: dict[str, list]
    family: str
    parameters: int | None
    nonembedding: int | None
    active: int | None
    train_flops_per_token: float
    inference_flops_per_token: float | None
    memory_bytes: int | None
    tokens: int
    steps: int
    flops: float
    step_seconds: float | None
    budget: dict | None
    text: str

    def to_json(self) -> dict:
        """As sized.json."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class _Arm:
    """A config on its way to being `Sized`."""

    name: str
    spec: str
    overrides: dict[str, str]
    config: object
    prepared: PreparedData | None
    reference: bool = False
    chosen: dict[str, list] = dataclasses.field(default_factory=dict)
    steps: int = 0
    memory: int | None = None
    seconds: float | None = None
    met: float | None = None

    @property
    def meter(self) -> Meter:
        """Counts at the sizes so far."""
        return meter_of(self.config, self.prepared)

    @property
    def counted(self) -> bool:
        """Whether it is made by counting."""
        return self.config.model.name in COUNTED

    @property
    def step_flops(self) -> float:
        """Training FLOPs of a step."""
        return self.meter.train_flops() * self.meter.tokens_per_step

    def resize(self, found: Found):
        """Takes sizes; ConfigError where a config cannot have them."""
        written, before = configs.flatten(self.config), self.meter
        new = {f"model.{leaf}": str(value) for leaf, value in found.sizes.items() if value != self.config.model[leaf]}
        self.config, self.met = configs.validate(configs.override(self.config, new)), found.cost
        self.meter.known(before, found.sizes)
        self.overrides = self.overrides | new
        self.chosen = {key: [written[key], int(value)] for key, value in new.items()}


def solve(asked: dict[str, tuple], references: dict[str, tuple] | None = None, budget: Budget | None = None, tokens: float | None = None,
          sizes: str = "solve", *, prepare: Callable[[object], PreparedData | None] = prepared_text,
          seconds: Callable[[object, PreparedData], float] = step_seconds,
          memory: Callable[[object, PreparedData], int] = step_memory) -> list[Sized]:
    """Every arm and then every reference, sized, in the order given; both are {name: (spec, overrides, config)}.

    `tokens` is the length of the arms where the budget is not one of length, by default the first config's own; references get the
    first arm's. Text is prepared by `prepare` (None: counts come from the config alone), step times and memory are measured by
    `seconds` and `memory`. ConfigError where arms do not share their batches, and where one cannot meet the budget;
    DataError where an arm's evaluation has no text.
    """
    _check_ask(asked, budget, tokens, sizes)
    differing = check_same_data({name: config for name, (_, _, config) in (asked | (references or {})).items()})
    cache: dict[str, PreparedData | None] = {}

    def arms_of(named, reference):
        return [_Arm(name, spec, dict(overrides), config, _prepared(cache, prepare, config), reference)
                for name, (spec, overrides, config) in named.items()]

    arms, shown = arms_of(asked, False), arms_of(references or {}, True)
    for arm in arms:
        _check_family(arm, budget, sizes)
        if arm.prepared is not None and arm.config.eval.split != "none":
            arm.prepared.split_stores(arm.config.eval.split)  # that it is empty is not to be found out by each run
    _set_lengths(arms, shown, budget, tokens, sizes, differing, seconds)
    longest = max((*arms, *shown), key=lambda arm: arm.steps)
    if longest.steps > MOST_STEPS:
        raise ConfigError(f"that is {longest.steps:.3g} steps of {longest.name}, and a run has at most {MOST_STEPS:,}: ask for less")
    for number, arm in enumerate(arms):
        _set_sizes(arm, budget, sizes, memory, keeps=number == 0 and tokens is None)
    return [_sized(arm, budget if not arm.reference else None, differing, arms[0]) for arm in (*arms, *shown)]


def _check_ask(asked, budget, tokens, sizes):
    if not asked:
        raise ConfigError("there is no config to compare: name some with --configs=A,B")
    if sizes not in SIZES:
        raise ConfigError(f"--sizes={sizes}: use {' or '.join(SIZES)}")
    if sizes == "keep" and budget and budget.kind not in KEPT:
        raise ConfigError(f"--sizes=keep cannot meet a budget of {budget.kind}, which sizes alone decide: use {', '.join(KEPT)}, or leave "
                          "it out")
    if tokens is not None and not 0 < tokens < math.inf:
        raise ConfigError(f"--tokens={tokens:g}: use a number above 0")
    if tokens is not None and budget and (budget.kind in ("tokens", "seconds") or (sizes == "keep" and budget.kind == "flops")):
        raise ConfigError(f"--tokens={tokens:g} and --budget={budget} are both lengths: leave one out")


def _prepared(cache: dict, prepare, config) -> PreparedData | None:
    """The prepared text of a config, once for each section of the data."""
    key = repr(sorted(config.data.items()))
    if key not in cache:
        cache[key] = prepare(config)
    return cache[key]


def _check_family(arm: _Arm, budget: Budget | None, sizes: str):
    """ConfigError for a family that a kind of budget says nothing of."""
    family = f"{arm.name} (model.name={arm.config.model.name}) cannot meet a budget of"
    if budget is None or (not arm.counted and budget.kind != "inference"):
        return
    if arm.counted and budget.kind != "tokens":
        raise ConfigError(f"{family} {budget.kind}: it is made by counting, and has neither sizes to choose nor FLOPs nor steps; name it "
                          "with --references")
    if budget.kind == "inference" and arm.meter.inference_flops() is None:
        raise ConfigError(f"{family} inference: it does not decode; use parameters or flops")


def _set_lengths(arms: list[_Arm], shown: list[_Arm], budget, tokens, sizes: str, differing: list[str], seconds):
    """Steps of every arm: equal ones, but where seconds or kept sizes decide."""
    first, kind = arms[0], budget.kind if budget else None
    if kind == "seconds":
        for arm in arms:
            arm.seconds = seconds(arm.config, arm.prepared)
        _check_seconds(arms, budget)
    if kind == "seconds" or (kind == "flops" and sizes == "keep"):
        for arm in arms:
            each = arm.seconds if kind == "seconds" else arm.step_flops
            arm.steps = _whole(arm, budget, each)
            arm.met = arm.steps * each
        _follow(first, shown, differing)
        return
    if kind == "tokens":
        first.steps = _whole(first, budget, first.meter.tokens_per_step)
    elif kind == "flops" and tokens is None:
        first.steps = _whole(first, budget, first.step_flops)
    elif tokens is not None:
        first.steps = max(1, round(tokens / first.meter.tokens_per_step))
    else:
        facts = first.meter.facts()
        first.steps = durations.to_steps("train.steps", first.config.train.steps, facts)
    _follow(first, [*arms[1:], *shown], differing)
    if kind == "tokens":
        for arm in arms:  # as many bytes may be other numbers of tokens: what is held equal are the first config's
            arm.met = arm.steps / _steps_for_one(first, arm, differing) * first.meter.tokens_per_step


def _check_seconds(arms: list[_Arm], budget: Budget):
    """ConfigError where a budget of seconds is too few steps of an arm."""
    slowest = max(arms, key=lambda arm: arm.seconds)
    if budget.amount < FEWEST_STEPS * slowest.seconds:
        least = math.ceil(FEWEST_STEPS * slowest.seconds * 1.2 * 100) / 100  # a fifth more: no two measurements are alike
        raise ConfigError(f"--budget={budget} is {budget.amount / slowest.seconds:.2g} steps of {slowest.name}, which take "
                          f"{slowest.seconds:.3g} s each here: ask for seconds:{least:g} or more, which is at least {FEWEST_STEPS}")


def _whole(arm: _Arm, budget: Budget, each: float) -> int:
    """Whole steps of a budget. ConfigError where they miss it, unless they are seconds, which no two runs have alike anyway."""
    steps = max(1, round(budget.amount / each))
    if abs(budget.error(steps * each)) > TOLERANCE and budget.kind != "seconds":
        raise ConfigError(f"--budget={budget} is {budget.amount / each:.2f} steps of {arm.name}: ask for "
                          f"{budget.kind}:{steps * each:.6g}, which is {steps}, or for more of them")
    return steps


def _follow(first: _Arm, others: list[_Arm], differing: list[str]):
    """The others train on what the first trains on: as many steps, or where tokenizers differ as many bytes. ConfigError where whole steps
    of an arm miss that."""
    for arm in others:
        share = _steps_for_one(first, arm, differing)
        arm.steps = max(1, round(first.steps * share))
        error = arm.steps / (first.steps * share) - 1
        if abs(error) > TOLERANCE and not arm.reference:
            enough = math.ceil(1 / (2 * TOLERANCE * share)) * first.meter.tokens_per_step
            raise ConfigError(f"{arm.name} sees as many bytes of text as {first.name} in {first.steps * share:.2f} steps, and {arm.steps} "
                              f"miss that by {error:+.1%}: ask for longer runs, such as {enough:.0f} tokens of {first.name}")


def _steps_for_one(first: _Arm, arm: _Arm, differing: list[str]) -> float:
    """Steps in which an arm sees what the first sees in one."""
    if not (differing and first.meter.bytes_per_token and arm.meter.bytes_per_token):
        return 1.0
    return first.meter.bytes_per_token * first.meter.tokens_per_step / (arm.meter.bytes_per_token * arm.meter.tokens_per_step)


def _set_sizes(arm: _Arm, budget: Budget | None, sizes: str, memory, keeps: bool):
    """Re-sizes an arm where the budget asks for it; the first config `keeps` its size where it says what the steps are."""
    if budget is None or budget.kind not in SIZED or sizes == "keep":
        return
    if budget.kind == "flops" and keeps:
        arm.met = arm.steps * arm.step_flops
        return
    if arm.config.model.name not in RULES:
        raise ConfigError(f"{arm.name} (model.name={arm.config.model.name}) cannot meet a budget of {budget.kind}: its family has no rule "
                          "of sizes; name it with --references")
    trained = arm.steps * arm.meter.tokens_per_step if budget.kind == "flops" else 1.0
    target = budget._replace(amount=budget.amount / trained)
    asked: dict[tuple, int] = {}

    def bytes_at(leaves: dict) -> int:
        key = tuple(sorted(leaves.items()))
        if key not in asked:
            new = {f"model.{leaf}": str(value) for leaf, value in leaves.items()}
            asked[key] = memory(configs.validate(configs.override(arm.config, new)), arm.prepared)
        return asked[key]

    found, ends = meet(arm.meter, target, bytes_at)
    if not ends:
        raise ConfigError(_refusal(arm, budget, found, trained))
    arm.resize(found._replace(cost=found.cost * trained))
    if budget.kind == "memory":
        arm.memory = int(found.cost)


def _refusal(arm: _Arm, budget: Budget, found: Found, trained: float) -> str:
    """Why no size is near enough, and what to do."""
    main = f"model.{RULES[arm.config.model.name].main}"
    near = _names({f"model.{leaf}": value for leaf, value in found.sizes.items()}) or "its sizes as written"
    cost = found.cost * trained
    fix = f"lower data.vocab_size or write it with fewer layers, or ask for {budget.kind}:{cost:.6g}" if cost > budget.amount else \
        f"ask for {budget.kind}:{cost:.6g}"
    return (f"{arm.name} (model.name={arm.config.model.name}) has no {main} with {_amount(budget.amount)} {KINDS[budget.kind]} within "
            f"{TOLERANCE:.0%}: the nearest has {_amount(cost)} ({near}); {fix}")


def _sized(arm: _Arm, budget: Budget | None, differing: list[str], first: _Arm) -> Sized:
    account = arm.meter.account()
    tokens = round(arm.steps * account.tokens_per_step)
    met = None if budget is None else budget.to_json() | {"met": arm.met, "error": budget.error(arm.met)}
    return Sized(arm.name, arm.spec, arm.reference, arm.overrides, arm.chosen, arm.config.model.name, account.parameters,
                 account.nonembedding, account.active, account.train_flops_per_token, account.inference_flops_per_token, arm.memory,
                 tokens, arm.steps, arm.steps * arm.step_flops, arm.seconds, met, _text(arm, budget, account, differing, first))


def _text(arm: _Arm, budget: Budget | None, account, differing: list[str], first: _Arm) -> str:
    """What was chosen, why, and what is not equal."""
    changed = _names({key: f"{before} to {after}" if before else after for key, (before, after) in arm.chosen.items()})
    told = [f"{arm.name}: {'re-sized, ' + changed if changed else 'sizes as written'}"]
    if account.parameters is not None:
        told.append(f"{account.parameters:,} parameters counted from {account.text}")
    tokens = round(arm.steps * account.tokens_per_step)
    if budget:
        whose = f" of {first.name}" if budget.kind == "tokens" and round(arm.met) != tokens else ""
        told.append(f"{_amount(arm.met)} of {_amount(budget.amount)} {KINDS[budget.kind]}{whose} ({budget.error(arm.met):+.2%})")
    told.append(f"{arm.steps:,} steps of {account.tokens_per_step:,.6g} tokens, {tokens:,} in all")
    if arm is not first and tokens != round(first.steps * first.meter.tokens_per_step):
        told.append(f"not the {round(first.steps * first.meter.tokens_per_step):,} of {first.name}")
    if differing:
        alike = "as many bytes of text" if account.text.startswith("prepared") else "as many tokens"
        told.append(f"batches differ by {', '.join(differing)}, which arms do not share; all see {alike}")
    return "; ".join(told)


def _amount(value: float) -> str:
    """A number of a budget for people."""
    return f"{value:,.0f}" if 1_000 <= value < 1e10 else f"{value:.4g}"


def _names(values: dict[str, object]) -> str:
    """Keys and values, the main ones first."""
    rank = {f"model.{leaf}": number for number, leaf in enumerate(_ORDER)}
    ordered = sorted(values.items(), key=lambda item: rank.get(item[0], len(rank)))
    return ", ".join(f"{key.removeprefix('model.')} {value}" for key, value in ordered)
