"""The text that XLA prints of a compiled program (`compiled.as_text()`), read into instructions.

The format is that of HLO (https://openxla.org/xla/hlo_dumps, https://openxla.org/xla/operation_semantics).
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import re
import typing

# What an instruction says of other computations: the part of a name before `=` -> the role in `Instruction.called`.
_ROLES = {"calls": "calls", "called_computations": "calls", "to_apply": "to_apply", "body": "body", "condition": "condition",
          "branch_computations": "branches", "true_computation": "branches", "false_computation": "branches"}
_HEADER = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_END = re.compile(r"\}(, execution_thread=.*)?$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")  # types hold capitals before a parenthesis, such as T(8,128), and no blank before it
_ARRAY = re.compile(r"\b([a-z]\w*)\[([^\]]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r":[^S]*?T\(([\d,]+)\)")
_BITS = re.compile(r"[a-z]+(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_DEVICES = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_FILE = re.compile(r'source_file="([^"]*)"(?: source_line=(\d+))?')
_CALLED = re.compile(rf"\b({'|'.join(_ROLES)})=(\{{[^{{}}]*\}}|%[\w.\-]+)")


class Array(typing.NamedTuple):
    """An array of a program on one device: its element type, sizes, and memory (0 the main one, HBM; 1 VMEM; 5 the host's; others flags).

    `layout` is what the text says in braces of how it lies there, such as 1,0:T(8,128)(2,1): axes from the fastest, and tiles.
    """

    type: str
    dims: tuple[int, ...]
    space: int = 0
    layout: str = ""

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """What its elements take without the padding of its layout; a token takes nothing."""
        return -(-self.size * bits(self.type) // 8)

    @property
    def stored(self) -> int:
        """The bytes that it takes in its layout, where its last axes fill whole tiles."""
        tile = _TILE.search(self.layout)
        if not tile or not self.size:
            return self.bytes
        axes, _, _ = self.layout.partition(":")
        sizes = [self.dims[int(axis)] for axis in reversed(axes.split(",")) if axis]
        tiles = [int(size) for size in tile[1].split(",")]
        sizes = [1] * (len(tiles) - len(sizes)) + sizes
        kept = len(sizes) - len(tiles)
        padded = math.prod(-(-size // step) * step for size, step in zip(sizes[kept:], tiles, strict=True))
        return -(-math.prod(sizes[:kept]) * padded * bits(self.type) // 8)


@functools.cache
def bits(type: str) -> int:
    """Bits of an element of a type as HLO calls it: bf16, f8e4m3fn, s4, pred; 0 for what is no number, such as a token."""
    if type == "pred":
        return 8
    found = _BITS.match(type)
    return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program. `results` are flat, those of a tuple in order; `literal` is a parameter's number or a constant's value."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    op_name: str = ""
    source: str = ""
    literal: str = ""

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """{role: names of computations}, of the roles calls, to_apply, body, condition and branches."""
        found: dict[str, tuple[str, ...]] = {}
        for role, names in _CALLED.findall(self.attributes):
            found[_ROLES[role]] = found.get(_ROLES[role], ()) + tuple(_NAME.findall(names))
        return found


@dataclasses.dataclass
class Module:
    """A program: {name of a computation: {name of an instruction: Instruction}} in the order of the text, which is that of execution."""

    name: str
    computations: dict[str, dict[str, Instruction]]
    entry: str
    roots: dict[str, str]  # {computation: the instruction that it gives}
    partitions: int = 1  # devices that run it together; of a program for several slices, those of one slice

    def instructions(self) -> list[Instruction]:
        """Those of all computations, in the order of the text."""
        return [instruction for inside in self.computations.values() for instruction in inside.values()]

    def root(self, computation: str) -> Instruction:
        """The instruction whose results are those of a computation."""
        return self.computations[computation][self.roots[computation]]


def parse(text: str) -> Module:
    """Module of a program's text; ValueError when it is not one."""
    tables, frames, module, computation, table = {}, {}, Module("", {}, "", {}), "", {}
    for line in _joined(text):
        if match := _INSTRUCTION.match(line):
            module.computations[computation][match[2]] = _instruction(match[2], line[match.end():], frames)
            if match[1]:
                module.roots[computation] = match[2]
        elif header := _HEADER.match(line):
            frames = frames or _sources(tables)
            computation = header[2]
            module.computations[computation] = {}
            module.entry = computation if header[1] else module.entry
        elif line.startswith("HloModule "):
            module.name = line.split(maxsplit=2)[1].rstrip(",")
            module.partitions = math.prod(int(count) for count in _DEVICES.findall(line))
        elif line.isidentifier():
            table = tables.setdefault(line, {})
        elif line[:1].isdigit():
            number, _, rest = line.partition(" ")
            table[int(number)] = rest
    if not module.entry:
        raise ValueError("this is not the text of a compiled program: no computation in it is marked ENTRY")
    return module


def _joined(text) -> list[str]:
    """Lines, of which an attribute with line breaks in it makes one."""
    lines, inside = [], False
    for line in text.splitlines():
        if inside and not _END.match(line) and not _INSTRUCTION.match(line):
            lines[-1] += line
        else:
            inside = not _END.match(line) and (inside or bool(_HEADER.match(line)))
            lines.append(line)
    return lines


def _instruction(name, text, frames) -> Instruction:
    """Of what follows `name = ` in a line: type, opcode(operands), attributes."""
    found = _OPCODE.search(text)
    if not found:
        raise ValueError(f"this line of a program has no operation: {name} = {text[:120]}")
    end = _closing(text, found.end())
    inside, attributes = text[found.end():end], text[end + 1:].removeprefix(", ")
    literal = inside if found[1] in ("constant", "parameter") else ""
    operands = () if literal else tuple(_NAME.findall(inside))
    op_name = _OP_NAME.search(attributes)
    return Instruction(name, found[1], arrays(text[:found.start()]), operands, attributes, op_name[1] if op_name else "",
                       _source(attributes, frames), literal)


def _closing(text, start) -> int:
    """Where the parenthesis closes that opened before `start`."""
    depth, at = 1, start
    while depth:
        closed = text.find(")", at)
        if closed < 0:
            raise ValueError(f"a parenthesis is not closed in this line of a program: {text[:120]}")
        depth += text.count("(", at, closed) - 1
        at = closed + 1
    return closed


@functools.cache
def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of an HLO type, such as (f32[4,8]{1,0:T(8,128)S(1)}, bf16[2]), nested tuples flat."""
    found = []
    for type, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        # A size that may be smaller is printed <=8.
        sizes = tuple(int(size.strip().removeprefix("<=")) for size in dims.split(",") if size)
        found.append(Array(type, sizes, int(space[1]) if space else 0, layout))
    return tuple(found)


def _sources(tables) -> dict[int, str]:
    """{stack frame: the innermost line of this package that it came through}, from the tables above a program."""
    files = {number: text.strip('"') for number, text in tables.get("FileNames", {}).items()}
    places = {}
    for number, text in tables.get("FileLocations", {}).items():
        fields = _fields(text)
        places[number] = _place(files[fields["file_name_id"]], fields["line"])
    found: dict[int, str] = {}
    none = None
    for number, text in sorted(tables.get("StackFrames", {}).items()):
        frame = _fields(text)
        none = frame["parent_frame_id"] if none is None else none  # the first has none; versions of XLA count parents from 0 or from 1
        found[number] = places[frame["file_location_id"]] or found.get(frame["parent_frame_id"] - none, "")
    return found


def _fields(text) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}


def _place(file, line) -> str:
    """lm/layers/dense.py:66 of a file in this package and "" of any other, of which a folder above may be called lm too."""
    _, installed, inside = file.rpartition("/site-packages/")
    parts = inside.split("/")
    starts = [at for at, (folder, name) in enumerate(itertools.pairwise(parts)) if folder == "lm" and name in _own()]
    if not starts or (installed and starts[0]):  # what is installed is this package only where it begins with it
        return ""
    return f"{'/'.join(parts[starts[-1]:])}:{line}"


@functools.cache
def _own() -> set[str]:
    """The names of this package's folders and files."""
    return {path.name for path in pathlib.Path(__file__).parents[1].iterdir()}


def _source(attributes, frames) -> str:
    if frame := _FRAME.search(attributes):
        return frames.get(int(frame[1]), "")
    file = _FILE.search(attributes)
    return _place(file[1], file[2] or 0) if file else ""
