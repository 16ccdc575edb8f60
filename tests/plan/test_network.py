"""Seconds of collectives: closed forms on whole tori, and what counting every hop gives."""

import dataclasses
import types

import numpy as np
import pytest

from lm.plan.chips import CHIPS
from lm.plan.network import HOP_SECONDS, SLICE_SECONDS, Network, Side

V5E, V5P = CHIPS["v5e"], CHIPS["v5p"]
BIG = 10**10


def devices(*shape, slices=1, cores=1):
    """Stand-ins for the devices of slices, in the order of their places."""
    places = [(number, *place) for number in range(slices) for place in np.ndindex(*shape, *(1,) * (3 - len(shape)), cores)]
    return np.array([types.SimpleNamespace(slice_index=number, coords=list(place), core_on_chip=core) for number, *place, core in places])


def network(chip, shape, mesh, **more):
    """The network of a mesh {axis: size} over a slice, whose devices are taken in order."""
    return Network(devices(*shape, **more).reshape(tuple(mesh.values())), tuple(mesh), chip)


def test_an_axis_over_a_whole_torus_has_all_links():
    over = network(V5E, (16, 16), {"fsdp": 256})
    assert over.reach("fsdp").sides == (Side(16, 1, True), Side(16, 1, True))
    assert over.reach("fsdp").links == 4
    assert over.reach("fsdp").ring == 2
    gather = 255 / 256 * BIG / (4 * V5E.link_bandwidth)
    assert over.seconds("all-gather", "fsdp", 256, BIG) == pytest.approx(gather)
    assert over.seconds("all-reduce", "fsdp", 256, BIG) == pytest.approx(2 * gather)
    assert over.seconds("reduce-scatter", "fsdp", 256, BIG / 256) == pytest.approx(gather)
    assert over.seconds("all-gather", "fsdp", 256, BIG, links=2) == pytest.approx(2 * gather)
    assert over.seconds("all-gather", "fsdp", 1, BIG) == 0


def test_each_axis_has_the_side_that_it_lies_along():
    over = network(V5E, (16, 16), {"replica": 16, "fsdp": 16})
    assert over.reach("replica").sides == over.reach("fsdp").sides == (Side(16, 1, True),)
    assert over.reach("replica+fsdp").links == 4
    over = network(V5P, (4, 4, 8), {"fsdp": 16, "tensor": 8})
    assert over.reach("fsdp").sides == (Side(4, 1, True), Side(4, 1, True))
    assert over.reach("tensor").sides == (Side(8, 1, True),)
    with pytest.raises(ValueError, match="no axis expert"):
        over.reach("expert")


def test_axes_that_share_a_side_share_its_links():
    over = network(V5E, (16, 16), {"fsdp": 64, "tensor": 4})
    # Four neighbours are a line; every fourth chip is a ring around the whole side, of which there are four.
    assert over.reach("tensor").sides == (Side(4, 1, False),)
    assert over.reach("tensor").links == 1
    assert over.reach("fsdp").sides == (Side(16, 1, True), Side(4, 4, True))
    assert over.reach("fsdp").links == 2 + 0.5


def test_small_slices_are_lines():
    over = network(V5E, (4, 4), {"fsdp": 16})
    assert over.reach("fsdp").links == 2
    assert over.reach("fsdp").ring == 2  # through both sides and back
    assert network(V5E, (2, 4), {"replica": 2, "fsdp": 4}).reach("fsdp").ring == 1


@pytest.mark.parametrize(("length", "closed"), [(4, True), (8, True), (4, False), (6, False)])
def test_all_to_all_takes_what_its_busiest_link_carries(length, closed):
    loads = dict.fromkeys([(chip, step) for chip in range(length) for step in (1, -1)], 0.0)
    part = BIG / length
    for start in range(length):
        for end in range(length):
            ways = [(end - start) % length, -((start - end) % length)] if closed else [end - start]
            shortest = min(map(abs, ways))
            ways = [way for way in ways if abs(way) == shortest and way]
            for way in ways:  # two ways of the same length share the data
                for hop in range(shortest):
                    loads[(start + hop * np.sign(way)) % length, np.sign(way)] += part / len(ways)
    chip = dataclasses.replace(V5E, ring=length if closed else 100)
    over = network(chip, (length,), {"expert": length})
    assert over.seconds("all-to-all", "expert", length, BIG) == pytest.approx(max(loads.values()) / chip.link_bandwidth)


@pytest.mark.parametrize(("length", "closed"), [(5, True), (9, True), (4, False), (7, False)])
def test_a_gather_takes_as_long_as_passing_shards_on_step_by_step(length, closed):
    # Every step each chip hands on, both ways, the newest shard that it got from the other side.
    has = [{chip} for chip in range(length)]
    passing = [dict.fromkeys((1, -1), chip) for chip in range(length)]
    steps = 0
    while any(len(shards) < length for shards in has):
        coming = [{} for _ in range(length)]
        for chip in range(length):
            for step, shard in passing[chip].items():
                to = chip + step
                if closed or 0 <= to < length:
                    coming[to % length][step] = shard
        for chip, shards in enumerate(coming):
            has[chip] |= set(shards.values())
        passing, steps = coming, steps + 1
    chip = dataclasses.replace(V5E, ring=length if closed else 100)
    over = network(chip, (length,), {"fsdp": length})
    assert over.seconds("all-gather", "fsdp", length, BIG) == pytest.approx(steps * BIG / length / chip.link_bandwidth)


def test_small_messages_take_their_hops():
    over = network(V5E, (16, 16), {"fsdp": 256})
    assert over.seconds("all-reduce", "fsdp", 256, 4) == pytest.approx(2 * 16 * HOP_SECONDS)
    assert network(V5E, (4, 4), {"fsdp": 16}).seconds("all-gather", "fsdp", 16, 4) == pytest.approx(6 * HOP_SECONDS)
    assert over.seconds("all-reduce", "fsdp", 256, 4, latency=False) < HOP_SECONDS
    assert over.seconds("collective-permute", "fsdp", 256, BIG) == pytest.approx(BIG / V5E.link_bandwidth)


def test_slices_exchange_what_each_chip_has_a_part_of():
    over = network(V5E, (4, 4), {"replica": 2, "fsdp": 16}, slices=2)
    alone = 2 * (BIG / 2 / V5E.dcn_bandwidth + SLICE_SECONDS)
    assert over.reach("replica").slices == 2
    assert over.between("all-reduce", 2, BIG) == pytest.approx(alone)
    assert over.between("reduce-scatter", 2, BIG / 2) == over.between("all-gather", 2, BIG) == pytest.approx(alone / 2)
    assert over.between("all-reduce", 1, BIG) == 0
    assert over.seconds("all-reduce", "replica", 2, BIG) == pytest.approx(alone)
    within = network(V5E, (4, 4), {"fsdp": 16}).seconds("all-reduce", "fsdp", 16, BIG)
    both = over.seconds("all-reduce", "replica+fsdp", 32, BIG)
    assert both == pytest.approx(within + 2 * (BIG / 16 / 2 / V5E.dcn_bandwidth + SLICE_SECONDS))


def test_devices_of_one_chip_are_no_side():
    over = network(CHIPS["tpu7x"], (2, 2, 1), {"fsdp": 8}, cores=2)
    assert over.reach("fsdp").chips == 4
