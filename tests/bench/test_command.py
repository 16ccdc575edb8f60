"""scripts/bench.py: what may be asked, what is said of what may not, and one benchmark from the command line to its JSON."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from lm.bench import command
from lm.bench.shapes import SHAPES, shape_of
from lm.errors import BenchError, ConfigError, DiskError

ROOT = pathlib.Path(__file__).parents[2]


def test_options_are_checked_and_the_family_is_part_of_the_shape():
    assert command.options_of() == command.Options()
    options = command.options_of("S", "llama", None, 2, 0.5, "a.png")
    assert options == command.Options("S", shape_of("S", family="llama"), None, 2, 0.5, "a.png")
    assert command.options_of("LSTM512", against="flax").against == "flax"


@pytest.mark.parametrize(("given", "words"), [
    ({"shape": "XL"}, "shape=XL is not one of tiny, S, M, L"),
    ({"shape": "LSTM512", "family": "gpt2"}, "shape=LSTM512 is an LSTM: leave out --family=gpt2"),
    ({"shape": "LSTM512", "against": "transformers"}, "not written for the family lstm: use --against=torch or --against=flax"),
    ({"family": "llama", "against": "flax"}, "not written for the family llama: use --against=transformers"),
    ({"rounds": 0}, "rounds=0"),
    ({"seconds": -1.0}, "seconds=-1"),
])
def test_wrong_options_name_their_fix(given, words):
    with pytest.raises(ConfigError, match=words):
        command.options_of(**given)


def test_a_peer_that_is_not_installed_is_named_with_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"^--against=torch needs torch: pip install -e '.\[bench\]'$"):
        command.options_of(against="torch")
    with pytest.raises(BenchError, match="needs torch and transformers"):
        command.options_of(against="transformers")
    command.options_of(against="flax")


def test_the_extra_has_what_peers_need():
    text = (ROOT / "pyproject.toml").read_text()
    extra = next(line for line in text.splitlines() if line.startswith("bench = "))
    assert all(f'"{name}==' in extra for name in {name for needs in command.NEEDS.values() for name in needs})


@pytest.fixture
def benchmarks(monkeypatch):
    """Two benchmarks that only say what they were asked; the second has nobody to be held against."""

    def module(name):
        def run(options):
            return {"name": name, "shape": options.shape_name, "rows": [{"x": 1}], "asked": options.against}
        return types.SimpleNamespace(run=run)

    class Machine:
        def __init__(self, *_):
            self.info = {"cores": 2, "command": ["worker"]}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(command, "BENCHMARKS", {"one": ("flax",), "two": ()})
    monkeypatch.setattr(command, "Side", Machine)
    monkeypatch.setattr(command.importlib, "import_module", lambda name: module(name.removeprefix("lm.bench.")))


def test_all_benchmarks_run_in_order_each_against_the_peer_it_has(benchmarks, capsys, tmp_path):
    command.run_all([], command.options_of("tiny", against="flax"), str(tmp_path / "out.json"))
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert [(found["name"], found["asked"], found["shape"], found["rounds"]) for found in results] == [
        ("one", "flax", "tiny", 5), ("two", None, "tiny", 5)]
    assert results[0]["environment"] == {"cores": 2, "command": sys.argv}
    assert json.loads((tmp_path / "out.json").read_text()) == results
    assert err == "one tiny\nx\n1\ntwo tiny\nx\n1\n"


def test_what_cannot_run_is_refused_before_anything_runs(benchmarks, capsys, tmp_path):
    with pytest.raises(ConfigError, match="three is not a benchmark: choose among one, two"):
        command.run_all(["one", "three"], command.options_of())
    with pytest.raises(ConfigError, match="two is not measured against flax: leave --against out"):
        command.run_all(["one", "two"], command.options_of(against="flax"))
    with pytest.raises(ConfigError, match="plot"):
        command.run_all(["one"], command.options_of(plot="a.png"))
    assert capsys.readouterr().out == ""
    with pytest.raises(DiskError, match="nowhere"):
        command.run_all(["one"], command.options_of(), str(tmp_path / "nowhere/out.json"))


QUIET = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print([name for name in ("jax", "torch", "matplotlib") if name in sys.modules])
"""


def test_neither_the_command_nor_a_benchmark_nor_what_torch_sides_import_loads_jax():
    names = [f"lm.bench.{name}" for name in (*command.BENCHMARKS, "command", "shapes", "rounds", "worker", "plot")]
    done = subprocess.run([sys.executable, "-c", QUIET, *names], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    for peer in ("pytorch", "hf"):  # jax in their processes would count as their memory
        lines = (ROOT / f"lm/bench/peers/{peer}.py").read_text().splitlines()
        from_lm = {line.split()[1] for line in lines if line.startswith("from lm")}
        assert from_lm <= {"lm.bench.shapes", "lm.bench.rounds", "lm.bench.worker", "lm.bench.peers"}


def test_every_benchmark_has_a_run():
    assert all(callable(importlib.import_module(f"lm.bench.{name}").run) for name in command.BENCHMARKS)


def test_training_is_measured_from_the_command_line_to_json(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    arguments = ["train", "--shape=tiny", "--rounds=1", "--seconds=0.05", f"--json={tmp_path}/out.json"]
    program = [sys.executable, ROOT / "scripts/bench.py", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    heading, columns, shown, *rest = done.stderr.splitlines()
    assert (heading, columns.split()[:2], shown.split()[0], rest) == ("train tiny", ["side", "tokens_per_s"], "ours", [])
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "out.json").read_text()) == [result]
    (row,), (seconds,) = result["rows"], result["step_seconds"]["ours"]
    assert row["low_ms"] <= row["step_ms"] <= row["high_ms"] and len(seconds) >= 1 and "ratio" not in result
    assert row["tokens_per_s"] * row["step_ms"] == pytest.approx(1e3 * SHAPES["tiny"].tokens)
    assert row["mfu"] == pytest.approx(result["flops_per_step"] / row["step_ms"] * 1e3 / result["peak_flops"]) and 0 < row["mfu"] < 1
    assert row["peak_memory_gb"] > 0.1 and row["first_step_s"] > row["step_ms"] / 1e3
    here = result["environment"]
    assert here["cores"] == len(os.sched_getaffinity(0)) and here["memory"] > 1e9 and "git" in here and here["packages"]["jax"]
    assert here["command"][1:] == arguments
