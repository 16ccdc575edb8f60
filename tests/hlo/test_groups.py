"""Who talks to whom in a collective, and along which axes of a mesh."""

import itertools

import numpy as np
import pytest

from lm.hlo.groups import axes, groups

MESH = {"replica": 2, "stage": 1, "fsdp": 4, "tensor": 2}


def along(*names):
    """Groups of the flattened mesh along some axes, by NumPy."""
    places = np.arange(16).reshape(tuple(MESH.values()))
    moved = np.moveaxis(places, [list(MESH).index(name) for name in names], range(-len(names), 0))
    return {tuple(sorted(group)) for group in moved.reshape(-1, np.prod([MESH[name] for name in names])).tolist()}


def same(found, wanted):
    return {tuple(sorted(group)) for group in found} == wanted


@pytest.mark.parametrize("names", [names for count in (1, 2, 3) for names in itertools.combinations(("replica", "fsdp", "tensor"), count)])
def test_lists_are_told_apart_by_their_axes(names):
    listed = ",".join("{" + ",".join(map(str, group)) + "}" for group in sorted(along(*names)))
    found = groups(f"replica_groups={{{listed}}}, use_global_device_ids=true", 16)
    assert same(found, along(*names)) and axes(found, MESH) == "+".join(names)


@pytest.mark.parametrize(("text", "names"), [
    ("[8,2]<=[16]", ("tensor",)),
    ("[8,2]<=[2,8]T(1,0)", ("replica",)),
    ("[4,4]<=[2,4,2]T(0,2,1)", ("fsdp",)),
    ("[4,4]<=[2,4,2]T(1,2,0)", ("replica", "tensor")),
    ("[1,16]<=[16]", ("replica", "fsdp", "tensor")),
    ("mesh['axis_0'=2,'axis_1'=4,'axis_2'=2] {'axis_1'}", ("fsdp",)),
    ("mesh['axis_0'=2,'axis_1'=4,'axis_2'=2] {'axis_2','axis_0'}", ("replica", "tensor")),
    ("mesh['a'=16] {'a':(2)4}", ("fsdp",)),
    ("mesh['a'=16] {'a':(1)2,'a':(8)2}", ("replica", "tensor")),
    ("mesh['a'=4,'b'=4], device_ids=([2,8]T(1,0)) {'b':(2)2}", ("replica",)),
    ("mesh['x'=2,'y'=8], device_ids=(0,8,1,9,2,10,3,11,4,12,5,13,6,14,7,15) {'y':(4)2}", ("replica",)),
])
def test_short_forms_are_spelled_out(text, names):
    found = groups(f"channel_id=1, replica_groups={text}, dimensions={{0}}", 16)
    assert same(found, along(*names)) and axes(found, MESH) == "+".join(names)


def test_a_permute_is_along_the_axes_that_its_pairs_follow():
    ring = groups("source_target_pairs={{0,2},{2,4},{4,6},{6,0},{9,11},{11,13},{13,15},{15,9}}", 16)
    assert ring == ((0, 2, 4, 6), (9, 11, 13, 15)) and axes(ring, MESH) == "fsdp"
    line = groups("source_target_pairs={{4,12},{5,13}}", 16)  # leaves most devices out
    assert line == ((4, 12), (5, 13)) and axes(line, MESH) == "replica"


def test_what_says_nothing_is_everyone():
    assert groups("replica_groups={}, to_apply=%add", 4) == ((0, 1, 2, 3),)
    assert groups("to_apply=%add", 4) == ((0, 1, 2, 3),)
    assert axes(((0, 16),), MESH) == ""  # a device that the mesh does not have
    assert axes(((3,),), MESH) == ""
