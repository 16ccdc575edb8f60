"""Which devices take part in a collective, and which axes of a mesh that is.

The text says it in one of four ways, with numbers that are places in the flattened mesh: {{0,1},{2,3}}; [2,4]<=[4,2]T(1,0);
mesh['a'=4,'b'=2] {'b'}; and, for a permute, source_target_pairs={{0,1},{1,0}} (https://openxla.org/xla/operation_semantics, and what
XLA's classes IotaReplicaGroupList and MeshAxesReplicaGroupList print).
"""

import functools
import itertools
import math
import re

_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(([\d,]+|\[[\d,]+\](?:T\([\d,]+\))?)\))? \{([^}]*)\}")
_AXIS = re.compile(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?")
_SHAPE = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")

Groups = tuple[tuple[int, ...], ...]


@functools.cache
def groups(attributes: str, devices: int) -> Groups:
    """The devices of each group, as the attributes of an instruction say; all `devices` are one group where they do not.

    A group of a permute is those that hand on to one another.
    """
    if pairs := _PAIRS.search(attributes):
        return _chains(_numbers(pairs[1]))
    if mesh := _MESH.search(attributes):
        return _of_mesh(*mesh.groups())
    if iota := _IOTA.search(attributes):
        size = _integers(iota[1])[-1]
        order = _ordered(iota[2], iota[3])
        return tuple(tuple(order[at:at + size]) for at in range(0, len(order), size))
    listed = _LISTED.search(attributes)
    return _numbers(listed[1]) if listed and listed[1] else (tuple(range(devices)),)


def axes(found: Groups, mesh: dict[str, int]) -> str:
    """The axes of a mesh {name: size} along which groups lie, such as "replica+fsdp"; "" where no whole axes make these groups.

    Permutes may leave devices out, so a group may also be a part of what lies along its axes.
    """
    if max(map(max, found)) >= math.prod(mesh.values()):
        return ""
    varying = set()
    for group in found:
        places = [_place(device, mesh) for device in group]
        varying |= {axis for axis in mesh if len({place[axis] for place in places}) > 1}
    return "+".join(axis for axis in mesh if axis in varying)


def _place(device, mesh) -> dict[str, int]:
    place = {}
    for axis in reversed(mesh):
        device, place[axis] = divmod(device, mesh[axis])
    return place


def _integers(text) -> list[int]:
    return [int(number) for number in text.split(",")]


def _numbers(text) -> Groups:
    """((0, 1), (2, 3)) of {0,1},{2,3}."""
    return tuple(tuple(_integers(group)) for group in re.findall(r"\{([\d,]+)\}", text))


def _chains(pairs) -> Groups:
    """Devices that hand on to one another."""
    group_of: dict[int, frozenset] = {}
    for pair in pairs:
        joined = frozenset(pair).union(*(group_of.get(device, ()) for device in pair))
        group_of |= dict.fromkeys(joined, joined)
    return tuple(sorted(tuple(sorted(group)) for group in set(group_of.values())))


def _ordered(shape, transposed) -> list[int]:
    """0, 1, 2, ... in a shape, its axes transposed, flat."""
    sizes = _integers(shape)
    strides = [math.prod(sizes[axis + 1:]) for axis in range(len(sizes))]
    order = _integers(transposed) if transposed else range(len(sizes))
    return [sum(steps) for steps in itertools.product(*([step * strides[axis] for step in range(sizes[axis])] for axis in order))]


def _of_mesh(sizes, devices, chosen) -> Groups:
    """Along the chosen axes of a mesh that the text defines itself, or along parts of them: 'a':(2)4 is the 4 steps within halves of a."""
    dims = {name.strip(" '"): int(size) for name, size in (axis.split("=") for axis in sizes.split(","))}
    parts = [(name, int(blocks or 1), int(count or dims[name])) for name, blocks, count in _AXIS.findall(chosen)]
    ids = range(math.prod(dims.values()))
    if devices:
        shape = _SHAPE.match(devices)
        ids = _ordered(shape[1], shape[2]) if shape else _integers(devices)
    grouped: dict[tuple, list[int]] = {}
    for position, device in enumerate(ids):
        place = _place(position, dims)
        for name, blocks, count in parts:
            stride = dims[name] // (blocks * count)
            place[name] -= place[name] // stride % count * stride
        grouped.setdefault(tuple(place.values()), []).append(device)
    return tuple(map(tuple, grouped.values()))
