"""The shape of the library: imports go one way, importing it changes nothing, files and functions stay small."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

LM = pathlib.Path(__file__).parents[1] / "lm"
FILES = sorted(LM.rglob("*.py"))
# A room imports only from rooms before it.
ROOMS = ("errors", "config", "cli", "hlo", "parallel", "data", "layers", "models", "losses", "objectives", "optim", "checkpoint", "tables",
         "metrics", "run", "evaluate", "train", "generate", "words", "interop", "plan", "describe", "compare", "results", "replay",
         "launch_local", "doctor", "bench")
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


def room_of(path):
    """The room that a file of lm/ belongs to."""
    return path.relative_to(LM).with_suffix("").parts[0]


def imported_rooms(path):
    """The rooms that a file imports, lazily or not."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("lm.")}
    return rooms


def test_every_room_has_its_place_in_the_order():
    assert {room_of(path) for path in FILES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LM)))
def test_imports_go_one_way_and_files_and_functions_are_small(path):
    room = room_of(path)
    allowed = set() if room == "__init__" else {*ROOMS[: ROOMS.index(room)], room}
    assert imported_rooms(path) <= allowed
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert not [node.name for node in functions if node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES]


def test_every_folder_of_tests_is_a_package():
    """Else two test files of one name in two folders are one module to pytest, which then leaves out the second."""
    tests = LM.parent / "tests"
    assert not [path for path in {file.parent for file in tests.rglob("test_*.py")} if not (path / "__init__.py").exists()]


# What a process looks like before and after every module of lm is imported.
PROBE = """
import importlib, json, logging, os, pkgutil, random, signal, sys, warnings
import jax, numpy
import flax, optax, orbax.checkpoint, scipy.optimize, tensorflow_datasets  # whatever these change is not lm's doing

def state():
    flags = {name: str(value) for name, value in jax.config.values.items()}
    return {"jax": flags, "environment": dict(os.environ), "numpy": str(numpy.geterr()), "random": str(random.getstate()[1][:3]),
            "numpy_random": str(numpy.random.get_state()[1][:3]), "filters": len(warnings.filters),
            "logging": [logging.getLogger(name).level for name in (None, "absl", "jax")],
            "signals": str([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])}

before = state()
import lm
# The peers of the benchmarks are other frameworks.
names = [module.name for module in pkgutil.walk_packages(lm.__path__, "lm.") if not module.name.startswith("lm.bench.peers.")]
for name in names:
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
backends = list(jax._src.xla_bridge._backends)
print(json.dumps({"names": names, "changed": changed, "backends": backends,
                  "frameworks": [name for name in ("tensorflow", "torch") if name in sys.modules]}))
"""


def test_importing_every_module_sets_no_global_flag_starts_no_device_and_needs_no_other_framework():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["names"]) > 30 and "lm.data.textfolder" in found["names"]
    assert (found["changed"], found["backends"], found["frameworks"]) == ([], [], [])
