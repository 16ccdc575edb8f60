"""A guard that noise does not cross: what XLA says of our compiled programs must be what guard.json, beside this file, says of them.

Nothing is run or timed. The numbers depend on the version of JAX, which guard.json names, and neither on cores nor on the instruction
set: they were the same on one core and two, with 16 threads, and for SSE4.2, AVX2 and AVX-512. LLVM's optimisation, which comes after
what is counted, is left out.
"""

import functools
import importlib.metadata
import json
import pathlib
import platform
import sys

from lm.bench.rounds import at_once
from lm.bench.shapes import Shape, shape_of
from lm.bench.worker import Side
from lm.cli import table
from lm.errors import BenchError, writing

RECORD = pathlib.Path(__file__).with_suffix(".json")
# Whatever the caller has set.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
               "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_backend_optimization_level=0"}
REFRESH = "python scripts/bench.py --guard --refresh"
PROGRAMS = {
    "train gpt2 M": ("lm.bench.programs:Step", shape_of("M")),
    "train llama M": ("lm.bench.programs:Step", shape_of("M", family="llama")),
    "train LSTM512": ("lm.bench.programs:Step", shape_of("LSTM512")),
    "decode gpt2 M": ("lm.bench.programs:Decoding", shape_of("M")),
}


def run(refresh: bool = False):
    """Compiles the programs and compares them with the record, or writes a new one; BenchError says what differs, or that this is not
    where the record was made. Differences go to standard error as a table and to standard output as JSON."""
    here = place()
    stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else None
    if not refresh:
        check_place(stored, here)
    found = at_once([functools.partial(costs, *program) for program in PROGRAMS.values()])
    programs = dict(zip(PROGRAMS, found, strict=True))
    rows = differences(stored["programs"] if stored else {}, programs)
    if rows:
        print(table(rows), file=sys.stderr, flush=True)
    print(json.dumps({"name": "guard", **here, "differences": rows}), flush=True)
    if refresh:
        with writing(RECORD):
            RECORD.write_text(json.dumps({**here, "programs": programs}, indent=1) + "\n", encoding="utf-8")
    elif rows:
        raise BenchError(f"the compiled programs differ from {RECORD.name} in {len(rows)} numbers: if that is meant, run `{REFRESH}`")


def place() -> dict:
    """What the numbers depend on: versions and the kind of processor."""
    return {"jax": importlib.metadata.version("jax"), "jaxlib": importlib.metadata.version("jaxlib"), "machine": platform.machine()}


def check_place(stored: dict | None, here: dict):
    """BenchError unless the record was made in a place like this."""
    if stored is None:
        raise BenchError(f"there is no {RECORD.name} to compare with: run `{REFRESH}`")
    other = [f"{key} {stored[key]} (here {here[key]})" for key in here if stored[key] != here[key]]
    if other:
        raise BenchError(f"{RECORD.name} was made with {' and '.join(other)}: compare there, or run `{REFRESH}` on a commit that is good")


def costs(target: str, shape: Shape) -> dict[str, int]:
    """`lm.bench.programs.costs` of a program, compiled in a process of its own."""
    with Side(target, {"shape": shape}, ENVIRONMENT) as side:
        return side("costs")


def differences(stored: dict[str, dict[str, int]], found: dict[str, dict[str, int]]) -> list[dict]:
    """A row for each number of each program that is not as it is stored; `ratio` is what is found over what is stored."""
    rows = []
    for program in dict.fromkeys([*stored, *found]):
        old, new = stored.get(program, {}), found.get(program, {})
        for name in dict.fromkeys([*new, *old]):
            before, now = old.get(name, 0), new.get(name, 0)
            if before != now:
                rows.append({"program": program, "what": name, "stored": before, "now": now, "ratio": now / before if before else None})
    return rows
