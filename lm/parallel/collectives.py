"""What a compiled step sends between devices: its collectives, counted in the text that XLA prints of it."""

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|(?:true|false|branch)_computations?)=\{?((?:%[\w.\-]+(?:, )?)+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass
class Traffic:
    """How often a kind of collective runs in a step, and the bytes that its results have on one device."""

    count: int = 0
    bytes: int = 0


def collectives(hlo: str) -> dict[str, Traffic]:
    """{kind: Traffic} of a compiled program, from `compiled.as_text()`; loops count as often as they turn.

    ValueError when a loop around a collective has no known number of turns. An asynchronous collective counts once.
    """
    bodies, entry = _computations(hlo)
    found = {kind: Traffic() for kind in KINDS}

    def visit(name, times):
        for line in bodies[name]:
            match = _COLLECTIVE.search(line)
            if match:
                traffic = found[match[2]]
                traffic.count += times
                traffic.bytes += times * _size(match[1], match[2], bool(match[3]))
            called = _called(line)
            if " while(" not in line:
                turns = 1
            elif _TRIPS.search(line):
                turns = int(_TRIPS.search(line)[1])
            elif any(_sends(bodies, callee) for callee in called):
                raise ValueError(f"a loop around a collective has no known number of turns: {line.strip()[:200]}")
            else:
                turns = 1
            for callee in called:
                visit(callee, times * turns)

    visit(entry, 1)
    return {kind: traffic for kind, traffic in found.items() if traffic.count}


def _computations(hlo):
    bodies, entry, name = {}, None, None
    for line in hlo.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            name = start[2]
            bodies[name] = []
            entry = name if start[1] else entry
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def _sends(bodies, name) -> bool:
    return any(_COLLECTIVE.search(line) or any(_sends(bodies, callee) for callee in _called(line)) for line in bodies[name])


def _called(line) -> list[str]:
    return [callee for group in _CALLED.findall(line) for callee in re.findall(r"%([\w.\-]+)", group)]


def _size(result: str, kind: str, starts: bool) -> int:
    """Bytes of an HLO type, such as (f32[4,8]{1,0}, bf16[2]).

    The start of an asynchronous gather or permute gives (what it was given, results, contexts): only its results count.
    """
    arrays = [(name, sizes) for name, sizes in _ARRAY.findall(result) if name in _WIDTHS]
    if starts and kind in ("all-gather", "collective-permute"):
        arrays = [array for array in arrays if array != ("u32", "")]
        arrays = arrays[len(arrays) // 2:]
    return sum(_WIDTHS[name] * math.prod(int(size) for size in sizes.split(",") if size) for name, sizes in arrays)
