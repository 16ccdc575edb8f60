"""Seconds that devices take to talk: which sides of the torus of chips an axis of the mesh runs along, and what its rings carry.

Rings, their bandwidths and latencies are those of Austin et al. 2025, "How to Scale Your Model", part 3; a torus of several dimensions
gathers along all of them at once. Networks between slices are taken as a switch that each chip reaches at its own rate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.plan.chips import Chip

# Of a message from a chip to its neighbour [Austin et al. 2025, part 3]; of a round trip in a data centre [Guo et al. 2015, "Pingmesh":
# 268 us at the median between pods of servers].
HOP_SECONDS, SLICE_SECONDS = 1e-6, 268e-6
# How often the data go around, of what a gather sends: all-reduce scatters the sums and then gathers them.
_ROUNDS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "collective-broadcast": 1}


class Side(NamedTuple):
    """A side of the torus that an axis runs along: over `length` chips, each the `stride`-th, as a ring or a line."""

    length: int
    stride: int
    closed: bool

    @property
    def links(self) -> float:
        """Links' worth of data that each chip takes in at a time: one from each side of a ring, where the end of a line has one only.
        Where the axis skips chips, others that do the same share its links."""
        return (2 if self.closed else 1) / self.stride


class Reach(NamedTuple):
    """What an axis of the mesh runs over: sides of a torus within a slice, and slices; devices of one chip are none."""

    sides: tuple[Side, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """In one slice."""
        return math.prod(side.length for side in self.sides)

    @property
    def links(self) -> float:
        """Of all sides at once."""
        return self.links_of(len(self.sides))

    def links_of(self, count: int) -> float:
        """Of so many sides at once, those with the most."""
        return sum(sorted((side.links for side in self.sides), reverse=True)[:count])

    @property
    def ring(self) -> float:
        """Links of a single ring through all the chips: around, if the torus closes or a ring folds back through a second dimension."""
        if len(self.sides) == 1:
            return self.sides[0].links
        return 2 / max(side.stride for side in self.sides)

    @property
    def hops(self) -> int:
        """Between the chips farthest apart."""
        return sum(side.stride * (side.length // 2 if side.closed else side.length - 1) for side in self.sides)


class Network:
    """How the devices of a mesh are joined, for chips of one kind."""

    def __init__(self, devices: np.ndarray, axes: Sequence[str], chip: Chip):
        """`devices` has a dimension for each of `axes`; what has no `coords` (a CPU's devices) is taken to lie in a row."""
        self.chip, self._axes = chip, tuple(axes)
        places = [_place(device, number) for number, device in enumerate(devices.flat)]
        self._places = np.array(places).reshape(*devices.shape, -1)  # [..., slice, x, y, z]
        shape = tuple(int(side) + 1 for side in self._places.reshape(len(places), -1).max(0)[1:])
        self.shape = shape[: chip.dimensions]
        self._closed = chip.closed(self.shape)
        self._reaches: dict[str, Reach] = {}

    def reach(self, axis: str) -> Reach:
        """What an axis, or several that a "+" joins, runs over; ValueError for another name."""
        if axis not in self._reaches:
            names = axis.split("+")
            if unknown := set(names) - set(self._axes):
                raise ValueError(f"the mesh has no axis {', '.join(sorted(unknown))}; it has {', '.join(self._axes)}")
            where = tuple(slice(None) if name in names else 0 for name in self._axes)
            self._reaches[axis] = self._span(self._places[where].reshape(-1, self._places.shape[-1]))
        return self._reaches[axis]

    def _span(self, places) -> Reach:
        sides = []
        for number, (whole, closes) in enumerate(zip(self.shape, self._closed, strict=True)):
            at = np.unique(places[:, 1 + number])
            if len(at) > 1:
                stride = int(np.diff(at).min())
                sides.append(Side(len(at), stride, closes and len(at) * stride == whole))
        return Reach(tuple(sides), len(np.unique(places[:, 0])))

    def seconds(self, kind: str, axis: str, size: int, nbytes: float, links: float | None = None, latency: bool = True) -> float:
        """Of one collective over an axis, in groups of `size` devices, which ends in `nbytes` on each device.

        `links` is how many links' worth its algorithm takes in at a time, where the compiler says so; by default all that the axis has.
        Without `latency`, messages arrive as soon as they are sent. An axis "" (the compiler's groups fit none) is taken for one ring of
        `size` chips.
        """
        if size < 2:
            return 0.0
        reach = self.reach(axis) if axis else Reach((Side(size, 1, True),))
        whole = nbytes * size if kind == "reduce-scatter" else nbytes
        # Chips of a slice share what they send to another: after the scatter within it each has a part.
        part = whole / (reach.chips if kind in _ROUNDS else 1)
        between = self.between(kind, reach.slices, part / reach.slices if kind == "reduce-scatter" else part, latency)
        return self._within(kind, reach, whole, links, HOP_SECONDS if latency else 0.0) + between

    def _within(self, kind, reach, whole, links, hop) -> float:
        if reach.chips < 2:
            return 0.0
        rate = self.chip.link_bandwidth
        if kind in _ROUNDS:
            share = (reach.chips - 1) / reach.chips
            return _ROUNDS[kind] * max(share * whole / (rate * min(links or reach.links, reach.links)), hop * reach.hops)
        if kind == "collective-permute":  # to a neighbour along the axis, which one link reaches
            return max(whole * reach.sides[0].stride / rate, hop)
        # All to all: each side carries what crosses its middle, half of what half of its chips hold, in each direction.
        busiest = max(side.stride * side.length / (8 if side.closed else 4) for side in reach.sides)
        return max(whole * busiest / rate, hop * reach.hops)

    def between(self, kind: str, slices: int, nbytes: float, latency: bool = True) -> float:
        """Seconds of a collective of one device in each slice, which ends in `nbytes` on each."""
        whole = nbytes * slices if kind == "reduce-scatter" else nbytes
        trip = SLICE_SECONDS if latency else 0.0
        return _ROUNDS.get(kind, 1) * ((slices - 1) / slices * whole / self.chip.dcn_bandwidth + trip) if slices > 1 else 0.0


def _place(device, number: int) -> tuple[int, ...]:
    """(slice, x, y, z) of a device."""
    coords = tuple(getattr(device, "coords", None) or (number, 0, 0))
    return (getattr(device, "slice_index", 0) or 0, *coords)
