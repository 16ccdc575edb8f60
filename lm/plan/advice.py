"""What to change in a config whose step does not fit, each change one that the config and its mesh can take."""

import math

from lm import config as configs
from lm.config.model_keys import GLOVE, HMM, WORD2VEC
from lm.config.planned import as_text
from lm.errors import ConfigError
from lm.parallel import BATCH
from lm.parallel.mesh import check_slices
from lm.plan import layouts, topology
from lm.plan.analytic import account_of, limits_of

_GIB = 2**30
# Positions of a row whose logits are few enough.
_CHUNK = 512
# Families whose loss has no logits of whole rows.
_NO_LOGITS = HMM + WORD2VEC + GLOVE


def advice(plan: dict) -> list[str]:
    """What to change so that a step fits, what saves most first."""
    config, asked = configs.from_json(plan["config"]), _Asked(plan)
    over = plan["hbm_bytes_per_chip"] - plan["hbm_limit"]
    lines = [f"{over / _GIB:.2f} GiB a chip too much", *_state(plan, config, asked), *_rematerialised(config, asked)]
    rows = config.data.global_batch / math.prod(plan["mesh"].get(axis, 1) for axis in BATCH) / config.train.accumulate
    for times in range(2, int(rows) + 1):
        if flags := asked.flags({"train.accumulate": config.train.accumulate * times}):
            lines.append(f"a device has {rows:g} rows at once: {flags} leaves {rows / times:g} of them to the forward pass at a time")
            break
    chunk = _chunk(config, asked)
    lines += [f"logits exist for whole rows: {asked.flags(chunk)} makes them so many positions at a time"] if chunk else []
    return [*lines, _enough(plan, config, asked, rows, chunk), "or let the layout be found: the same command with --search"]


def _chunk(config, asked: "_Asked") -> dict:
    """The largest loss by chunks that the config can take, {} where it has one, has no logits or can take none."""
    if config.train.loss_chunk or config.model.name in _NO_LOGITS:
        return {}
    sizes = [size for size in layouts.divisors(config.data.context) if 1 < size <= _CHUNK and size < config.data.context]
    return next((values for size in reversed(sizes) if asked.flags(values := {"train.loss_chunk": size})), {})


def _enough(plan: dict, config, asked: "_Asked", rows: float, chunk: dict) -> str:
    """The first of such changes, made together, that should be enough, by what the plan takes and how much less others are likely to."""
    names = {name: () for name in ("model.remat_save", "model.remat_offload") if config.model[name.removeprefix("model.")]}
    keeps = [{}] + [{"model.remat": kind} | names for kind in ("dots", "full") if config.model.remat in ("none", "names", "dots")]
    now = asked.likely({})
    for keep in keeps:
        for times in layouts.divisors(int(rows)) or [1]:
            values = chunk | keep | ({"train.accumulate": config.train.accumulate * times} if times > 1 else {})
            takes = plan["hbm_bytes_per_chip"] * asked.likely(values) / now if asked.flags(values) else math.inf
            if takes <= plan["hbm_limit"]:
                return f"enough together, at about {takes / _GIB:.3g} GiB: {asked.flags(values)}"
    return "none of these is enough, nor are all together: take more chips, smaller rows or a smaller model"


class _Asked:
    """Asks of a plan whether its config could be another."""

    def __init__(self, plan: dict):
        self._config, self._target = configs.from_json(plan["config"]), topology.parse(plan["topology"])

    @property
    def target(self) -> topology.Topology:
        """What the plan is for."""
        return self._target

    def flags(self, values: dict) -> str:
        """{"a.b": value} as a person reads them; "" where the config, its mesh or its parameters refuse them."""
        try:
            candidate = self._candidate(values)
            check_slices(candidate.sizes, self._target.slices)
            account_of(self._config).shares(candidate)
        except ConfigError:
            return ""
        return " ".join(f"{name}={as_text(value)}" for name, value in values.items())

    def likely(self, values: dict) -> float:
        """Bytes of a device that a step with these values is likely to take, by its shapes alone."""
        limits = limits_of(self._target, self._config.model.dtype)
        return account_of(self._config).bound(self._candidate(values), limits, self._config.data.global_batch).likely

    def _candidate(self, values: dict) -> layouts.Candidate:
        config = layouts.with_values(self._config, values)
        return layouts.own(config, self._target.chips * self._target.devices_per_chip)


def _state(plan: dict, config, asked: _Asked) -> list[str]:
    """Of parameters and optimizer, where they take much."""
    parts, mesh, slices = plan["peak_breakdown"], plan["mesh"], asked.target.slices
    state, ways = parts["params"] + parts["optimizer"], []
    if config.layout.zero == 1 and mesh["fsdp"] * mesh["fsdp_outer"] > 1:
        ways.append(asked.flags({"layout.zero": 3}))
    if mesh["replica"] > slices:
        ways.append(asked.flags({"mesh.fsdp": -1, "mesh.replica": slices}))
    if not any(ways):
        ways.append("a larger slice")
        # A CPU's devices have no other memory to send to.
        keep = config.layout.offload == "none" and asked.target.kind != "cpu"
        ways += [asked.flags({"layout.offload": "optimizer"})] if keep else []
    told = f"parameters and optimizer take {state / _GIB:.2f} GiB: cut them over more chips ({', or '.join(filter(None, ways))})"
    return [told] if state > plan["hbm_limit"] / 2 else []


def _rematerialised(config, asked: _Asked) -> list[str]:
    """Of what is kept for the backward pass."""
    full = {"model.remat": "full"}
    if config.model.remat == "none":
        dots, whole = asked.flags({"model.remat": "dots"}), asked.flags(full)
        ways = [f"{dots} keeps products"] * bool(dots) + [f"{whole} only what enters a layer"] * bool(whole)
        return [f"compute activations again instead of keeping them: {', '.join(ways)}"] if ways else []
    if config.model.remat == "names":
        full |= {name: () for name in ("model.remat_save", "model.remat_offload") if config.model[name.removeprefix("model.")]}
    flags = asked.flags(full) if config.model.remat != "full" else ""
    return [f"keep less for the backward pass: {flags}"] if flags else []
