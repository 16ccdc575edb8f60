"""The guard: our programs against the record, and what it says of a slower one, another version and no record at all."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lm import hlo
from lm.bench import guard, programs
from lm.errors import BenchError

ROOT = pathlib.Path(__file__).parents[2]
HLO = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%body (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %t = (s32[], /*index=1*/f32[4]{0}) tuple(%a, %b), metadata={op_name="jit(f)/call (fast)"}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %w = (s32[], f32[4]{0}) while(%t.1), condition=%c, body=%body
  ROOT %d.1 = f32[4]{0} dynamic-slice(%w), calls=%f
}
"""


def test_instructions_are_counted_by_kind_in_every_computation():
    assert programs.opcodes(hlo.parse(HLO)) == {"dynamic-slice": 1, "parameter": 2, "tuple": 1, "while": 1}


def test_work_and_memory_are_those_of_a_product_by_hand():
    found = programs.costs(jax.jit(jnp.dot).lower(jnp.ones((8, 16)), jnp.ones((16, 32))).compile())
    assert (found["flops"], found["argument bytes"], found["output bytes"]) == (2 * 8 * 16 * 32, 4 * (8 * 16 + 16 * 32), 4 * 8 * 32)
    assert found["dot"] == 1 and found["instructions"] > 1 and found["bytes accessed"] == 4 * (8 * 16 + 16 * 32 + 8 * 32)


def test_turns_of_loops_are_counted_and_their_bodies_once():
    def loop(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x)

    found = programs.costs(jax.jit(loop).lower(jnp.ones((8, 8))).compile())
    assert (found["turns of loops"], found["while"], found["dot"]) == (7, 1, 1) and found["flops"] < 2 * 2 * 8**3


def test_our_programs_are_what_the_record_says_from_the_command_line():
    stored = json.loads(guard.RECORD.read_text())
    if stored["machine"] != guard.place()["machine"]:
        pytest.skip(f"{guard.RECORD.name} is of {stored['machine']} processors")
    done = subprocess.run([sys.executable, ROOT / "scripts/bench.py", "--guard"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert json.loads(done.stdout) == {"name": "guard", **guard.place(), "differences": []}


@pytest.fixture
def programs_of(monkeypatch, tmp_path):
    """programs_of({program: numbers}) has the guard find these from now on; there is a record of others."""

    def find(numbers):
        monkeypatch.setattr(guard, "PROGRAMS", {name: (name, ()) for name in numbers})
        monkeypatch.setattr(guard, "costs", lambda target, shape: numbers[target])

    monkeypatch.setattr(guard, "RECORD", tmp_path / "guard.json")
    find({"step": {"flops": 1000, "dot": 7, "copy": 2}, "decode": {"flops": 5}})
    guard.run(refresh=True)
    return find


def test_a_changed_program_is_a_table_and_an_error_that_names_the_refresh_which_accepts_it(programs_of, capsys):
    guard.run()
    assert capsys.readouterr().err == ""
    programs_of({"step": {"flops": 1500, "dot": 7, "while": 1}, "decode": {"flops": 5}})
    before = guard.RECORD.read_text()
    with pytest.raises(BenchError, match=r"^the compiled programs differ from guard.json in 3 numbers: if that is meant, run "
                                         r"`python scripts/bench.py --guard --refresh`$"):
        guard.run()
    out, err = capsys.readouterr()
    assert [line.split() for line in err.splitlines()] == [
        ["program", "what", "stored", "now", "ratio"], ["step", "flops", "1,000", "1,500", "1.5"], ["step", "while", "0", "1"],
        ["step", "copy", "2", "0", "0"]]
    assert [row["what"] for row in json.loads(out)["differences"]] == ["flops", "while", "copy"]
    assert guard.RECORD.read_text() == before
    guard.run(refresh=True)
    capsys.readouterr()
    guard.run()
    assert capsys.readouterr().err == ""


def test_a_program_that_is_gone_or_new_differs(programs_of, capsys):
    programs_of({"step": {"flops": 1000, "dot": 7, "copy": 2}, "prefill": {"flops": 3}})
    with pytest.raises(BenchError, match="in 2 numbers"):
        guard.run()


def test_another_version_processor_or_no_record_is_said_before_anything_is_compiled(programs_of, monkeypatch):
    monkeypatch.setattr(guard, "costs", None)
    here = guard.place()
    monkeypatch.setattr(guard, "place", lambda: {**here, "jaxlib": "9.9", "machine": "abacus"})
    with pytest.raises(BenchError, match=rf"made with jaxlib {here['jaxlib']} \(here 9.9\) and machine \w+ \(here abacus\): compare"):
        guard.run()
    guard.RECORD.unlink()
    with pytest.raises(BenchError, match=r"^there is no guard.json to compare with: run `python scripts/bench.py --guard --refresh`$"):
        guard.run()


@pytest.mark.parametrize("arguments", [["--refresh"], ["--guard", "train"], ["--guard", "--against=torch"]])
def test_the_guard_has_no_benchmarks_and_only_the_guard_is_refreshed(arguments):
    done = subprocess.run([sys.executable, ROOT / "scripts/bench.py", *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: ") and "--guard" in done.stderr
