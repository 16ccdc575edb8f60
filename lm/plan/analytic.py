"""Bounds of a train step's memory and time from shapes alone, in microseconds for a layout: which layouts are worth compiling.

No step holds less than `Bound.memory` or is faster than `Bound.seconds`: they leave out what a compiler may or may not need (working
space, padding, traffic that fast memory may save) and let products, memory and network work at their peaks, all at the same time.
"""

import functools
import json
import math
import os
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from lm import config as configs
from lm.config.model_keys import DEEP
from lm.config.schema import SCHEMA
from lm.metrics.flops import measured_peak
from lm.parallel import AXES, BATCH, check_replication, parameter_shardings
from lm.parallel.pipeline import bubble
from lm.plan.layouts import KEYS, Candidate, own
from lm.plan.topology import Topology
from lm.plan.traced import STACKED, Traced

_FLOAT32, _FSDP = 4, ("fsdp", "fsdp_outer")


class Limits(NamedTuple):
    """What one of `devices` can do, at most: FLOP/s, bytes of memory and bytes/s of it, of a link one way, of the networks between slices
    and to the host. `fast` bytes lie next to the units; `sides` and `closed` are the torus of a slice; `links` of a device send at once."""

    devices: int
    slices: int
    peak_flops: float
    memory: float
    bandwidth: float
    link: float
    dcn: float
    host: float
    fast: float = 0.0
    links: int = 1
    sides: tuple[int, ...] = ()
    closed: tuple[bool, ...] = ()

    def spanned(self, size: int) -> tuple[int, int]:
        """(sides of the torus, the longest first, that an axis of the mesh of some size needs; links' worth that its rings take in)."""
        return _spanned(self.sides, self.closed, size)


@functools.cache
def _spanned(lengths, closed, size) -> tuple[int, int]:
    held, sides, links = 1, 0, 0
    for side, closes in sorted(zip(lengths, closed, strict=True), reverse=True):
        if held >= size:
            break
        held *= side
        sides, links = sides + 1, links + (2 if closes and size % held == 0 else 1)
    return sides, max(1, links)


def limits_of(topology: Topology, dtype: str) -> Limits:
    """One device of a topology; of CPUs, which have no data sheet, shares of the peak that is measured here and of the machine's memory,
    and no limit beside."""
    if topology.kind == "cpu":
        peak = measured_peak(jax.local_devices(backend="cpu")[0]) / topology.chips
        return Limits(topology.chips, 1, peak, share_of_memory(topology), *[math.inf] * 4)
    chip, parts = topology.chip, topology.chip.devices_per_chip
    peak = chip.peak_flops[{"bfloat16": "bf16", "float32": "f32"}[dtype]]
    links = max(1, sum(min(2, side - 1) for side in topology.shape))
    return Limits(topology.chips * parts, topology.slices, peak / parts, chip.hbm_bytes / parts, chip.hbm_bandwidth / parts,
                  chip.link_bandwidth / parts, chip.dcn_bandwidth / parts, chip.host_bandwidth / parts,
                  chip.vmem_bytes / parts, links, topology.shape, chip.closed(topology.shape))


def share_of_memory(topology: Topology) -> float:
    """Bytes of this machine's memory for each of the devices that it is cut into."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / topology.chips


class Bound(NamedTuple):
    """Of one device: bytes that a step holds at least, and seconds that it takes at least.

    The rest is a guess, to try one layout before another and to choose the few of many alike that are tried: `likely` bytes have the
    working space of a layer and of the loss too, `serial` seconds are without overlap and over the links that an axis of the mesh has.
    `parts` are bytes of `memory` by what they are for, `times` seconds by what is busy.
    """

    memory: float
    likely: float
    seconds: float
    serial: float
    parts: dict[str, float]
    times: dict[str, float]


class Shares(NamedTuple):
    """Entries of parameters on a device: as they are kept, as optimizer and gradients are, and whole along fsdp, of matrices and of tables;
    bytes of the optimizer's state."""

    held: float
    cut: float
    whole_matrices: float
    whole_tables: float
    optimizer: float


class Account:
    """The bounds of a config under any layout; traces are made when they are first needed."""

    def __init__(self, config):
        """Any layout that the config itself asks for does not matter."""
        model, self.traced = config.model, Traced(config)
        self.context, self.ema = config.data.context, bool(config.train.ema)
        self.deep, self.stacked = model.name in DEEP, model.name in STACKED
        self.layers, self.width = (model.layers, model.width) if self.deep else (0, 0)
        self.kv_width = (model.kv_heads or model.heads) * (model.head_width or model.width // model.heads) if self.deep else 0
        self._shares: dict[tuple, Shares] = {}

    def bound(self, candidate: Candidate, limits: Limits, global_batch: int) -> Bound:
        """Of a step of so many rows, laid out in a way. ConfigError when the mesh leaves too much of the parameters uncut."""
        shares, sizes = self.shares(candidate), candidate.sizes
        row, stages = self.traced.row(candidate.remat, candidate.save), sizes["stage"]
        rows = global_batch / math.prod(sizes[axis] for axis in BATCH)
        idle = 1 / (1 - bubble(stages, candidate.microbatches or stages, candidate.repeats))
        cut = sizes["context"] * sizes["tensor"]
        micro = rows / candidate.accumulate / cut
        # What layers that are not one stack keep between products, a compiler may make again.
        least = self.traced.row("dots") if candidate.remat == "none" and self.stacked and not candidate.scan_layers else row
        kept, needed = (micro * (each.kept + each.pieces * (candidate.kernel in (None, "xla"))) / stages * idle for each in (row, least))
        logits = micro * row.logits * (candidate.loss_chunk / self.context if candidate.loss_chunk else 1.0) / stages
        parts = self._memory(candidate, shares, needed, logits)
        state = parts["params"] + parts["optimizer"] + parts["accumulated"]
        rest = needed + max(logits, parts["gradients"])
        memory = state + max(0.0, rest - limits.fast)  # some of it may lie next to the units
        working = micro * self.traced.layer if self.deep and candidate.remat != "none" else 0.0
        # What waits on the host is all here while it is updated.
        updating = parts["params"] + shares.optimizer + parts["gradients"]
        likely = max(state + rest + kept - needed + 2 * logits + working + shares.whole_tables * _FLOAT32, updating)
        # The output matrix is every stage's, which share its work as far as the compiler finds a way.
        flops = rows / cut / stages * ((row.flops - row.head_flops) * idle + row.head_flops)
        alone = rows / cut * row.head_flops * (1 - 1 / stages)
        sent = micro * (self.traced.row("names", candidate.send).kept - row.kept) / stages if candidate.send else 0.0
        times = self._times(candidate, shares, limits, flops, needed + logits, sent)
        inside, along, between = self._network(candidate, shares, limits, rows, idle)
        times |= {"network": inside, "between_slices": between}
        again = self._again(candidate, shares, stages) / limits.bandwidth + alone / limits.peak_flops
        serial = sum(times.values()) - inside + along + again
        return Bound(memory, likely, max(times.values()), serial, parts, times)

    def shares(self, candidate: Candidate) -> Shares:
        """What a device has of parameters and optimizer. ConfigError when that is too much of them."""
        mesh = tuple(1 if axis in ("replica", "context") else size for axis, size in zip(AXES, candidate.mesh, strict=True))
        if (mesh, candidate.zero) not in self._shares:
            self._shares[mesh, candidate.zero] = self._cut(mesh, candidate.zero)
        return self._shares[mesh, candidate.zero]

    def _cut(self, mesh, zero) -> Shares:
        boxed, traced, there = self.traced.boxed, self.traced, _abstract(mesh)
        kept, beside = parameter_shardings(boxed, there, zero), parameter_shardings(boxed, there)
        check_replication(boxed, beside, there, zero)
        uncut = tuple(1 if axis in _FSDP else size for axis, size in zip(AXES, mesh, strict=True))
        held, cut, whole = (_entries(traced.params, shardings) for shardings in
                            (kept, beside, parameter_shardings(boxed, _abstract(uncut))))
        totals = [leaf.size for leaf in jax.tree.leaves(traced.params)]
        optimizer = traced.apart + sum(state * part / total for state, part, total in zip(traced.beside, cut, totals, strict=True))
        groups = {group: sum(size for size, mine in zip(whole, traced.groups, strict=True) if mine == group) for group in traced.groups}
        return Shares(sum(held), sum(cut), groups.get("matrix", 0), groups.get("embedding", 0), optimizer)

    def _memory(self, candidate, shares: Shares, kept, logits) -> dict[str, float]:
        ema = shares.held * _FLOAT32 if self.ema else 0
        accumulated = shares.cut * _FLOAT32 if candidate.accumulate > 1 else 0.0
        return {"params": shares.held * _FLOAT32, "optimizer": ema + (0.0 if candidate.offload == "optimizer" else shares.optimizer),
                "accumulated": accumulated, "gradients": shares.cut * self.traced.itemsize, "activations": kept, "logits": logits}

    def _times(self, candidate, shares: Shares, limits: Limits, flops, activations, sent) -> dict[str, float]:
        """Seconds of products, of main memory and of the way to the host's memory.

        The state is read and written; of what a micro-batch keeps, what fast memory cannot hold.
        """
        offloaded = shares.optimizer if candidate.offload == "optimizer" else 0.0
        traffic = shares.held * _FLOAT32 + shares.optimizer - offloaded + candidate.accumulate * max(0.0, activations - limits.fast)
        # Both ways at once, there and back.
        return {"compute": flops / limits.peak_flops, "memory": 2 * traffic / limits.bandwidth,
                "host": (offloaded + candidate.accumulate * sent) / limits.host}

    def _again(self, candidate, shares: Shares, stages: int) -> float:
        """Bytes of main memory that each micro-batch moves anew: matrices in three products, and the sum of gradients that it adds to."""
        pieces = candidate.accumulate * ((candidate.microbatches or stages) if stages > 1 else 1)
        matrices = 3 * (shares.whole_matrices + shares.whole_tables) * self.traced.itemsize
        return pieces * (matrices + 2 * shares.cut * _FLOAT32 * (pieces > 1))

    def _network(self, candidate, shares: Shares, limits: Limits, rows, idle) -> tuple[float, float, float]:
        """Seconds of what a device sends within its slice, with all its links at work, and over those of each axis; and between slices."""
        between = 0.0
        sent = self._sent(candidate, shares, rows, idle)
        if limits.slices > 1:  # sums of slices, of which each device has a part
            between = 2 * shares.cut * self.traced.itemsize * (limits.slices - 1) / limits.slices / limits.dcn
            if candidate.sizes["replica"] == limits.slices and candidate.sizes["context"] == 1:
                sent["replica"] = 0.0
        sizes = candidate.sizes | {"fsdp": candidate.sizes["fsdp"] * candidate.sizes["fsdp_outer"]}
        along = sum(count / limits.spanned(sizes[axis])[1] for axis, count in sent.items() if count)
        if candidate.sizes["fsdp_outer"] == 1 and limits.spanned(sizes["fsdp"])[0] > 1:
            # XLA for TPUs sums a whole array over several sides, and cuts it afterwards.
            along += self._scattered(candidate, shares) / limits.spanned(sizes["fsdp"])[1]
        return sum(sent.values()) / (limits.link * limits.links), along / limits.link, between

    def _scattered(self, candidate, shares: Shares) -> float:
        """Bytes of gradients that a device sends to have its part of their sum along fsdp."""
        fsdp = candidate.sizes["fsdp"] * candidate.sizes["fsdp_outer"]
        return (fsdp - 1) / fsdp * self.traced.itemsize * (shares.whole_matrices + shares.whole_tables) * candidate.accumulate

    def _sent(self, candidate: Candidate, shares: Shares, rows: float, idle: float) -> dict[str, float]:
        """{axis: bytes that one device sends along it in a step}, by rings."""
        sizes, size = candidate.sizes, self.traced.itemsize
        fsdp, tensor, context, stages = sizes["fsdp"] * sizes["fsdp_outer"], sizes["tensor"], sizes["context"], sizes["stage"]
        copies, found = sizes["replica"] * context, {}
        if fsdp > 1:
            # Forward and backward each gather matrices anew; ZeRO-1 gathers what it has updated.
            gathered = candidate.accumulate * (2 * shares.whole_matrices + shares.whole_tables) if candidate.zero == 3 else 0
            updated = 0 if candidate.zero == 3 else _FLOAT32 / size * (shares.whole_matrices + shares.whole_tables)
            found["fsdp"] = (fsdp - 1) / fsdp * size * (gathered + updated) + self._scattered(candidate, shares)
        if copies > 1:
            found["replica"] = 2 * (copies - 1) / copies * shares.cut * size
        # Activations of a device, of all its micro-batches together, whole along tensor.
        stream = rows * self.context / context * self.width * size
        if tensor > 1:  # before and after attention and feed-forward, forward and backward
            found["tensor"] = 8 * self.layers / stages * idle * (tensor - 1) / tensor * stream
        if context > 1:  # keys and values forward, their gradients backward
            found["context"] = 4 * (context - 1) * rows * self.context / context * self.kv_width / tensor * size * self.layers / stages
        if stages > 1:
            found["stage"] = 2 * idle * stream / tensor
        return found


def _abstract(mesh: tuple[int, ...]) -> AbstractMesh:
    return AbstractMesh(mesh, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _entries(params, shardings) -> list[int]:
    """Entries of each parameter on one device."""
    return [math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in
            zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True)]


_accounts: dict[str, Account] = {}


def account_of(config) -> Account:
    """The account of a config, made once for all its layouts and batches."""
    layout = {name for name in SCHEMA if name.startswith(("mesh.", "layout."))} | {*KEYS, "data.global_batch"}
    name = json.dumps({key: value for key, value in configs.flatten(config).items() if key not in layout}, sort_keys=True)
    if name not in _accounts:
        _accounts[name] = Account(config)
    return _accounts[name]


def lower_bound(config, topology: Topology) -> Bound:
    """The bound of a config as it is laid out, on a topology; ConfigError where it cannot be."""
    limits = limits_of(topology, config.model.dtype)
    mine = own(config, limits.devices)  # before anything is traced
    return account_of(config).bound(mine, limits, config.data.global_batch)
