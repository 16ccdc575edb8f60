"""What is planned for each large config, as text: memory, collectives, FLOPs, what bounds a step, and the estimated MFU.

After a change that is meant: `python tests/plan/test_plan_goldens.py --refresh [NAME ...]` (minutes each), and read the diff.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "goldens" / "plans"
LARGE = {
    "llama-7b": ("configs/llama.py:7b", "v5e:16x16"),
    "llama-70b": ("configs/llama.py:70b", "v5p:8x8x8"),
    "gpt3": ("configs/gpt3.py", "v5p:8x16x16"),
    "t5-11b": ("configs/t5.py", "v5e:16x16"),
    "bert-large": ("configs/bert.py", "v6e:4x4"),
    "lstm-1b": ("configs/lstm.py", "v5e:4x4"),
}
# The same form for a model that compiles in seconds.
TINY = {
    "tiny": ("configs/llama.py:7b", "v5e:2x2", "mesh.fsdp_outer=2", "mesh.fsdp=2", "model.layers=2", "model.width=256", "model.heads=2",
             "model.kv_heads=1", "model.ff_width=512", "data.vocab_size=1024", "data.context=256", "data.global_batch=8"),
}
ALL = LARGE | TINY


def planned(name: str, folder: pathlib.Path) -> dict:
    """The plan of a config, made by the command in a process of its own: the tests' settings for XLA are none of its business."""
    config, topology, *overrides = ALL[name]
    command = [sys.executable, "scripts/plan.py", f"--config={config}", f"--topology={topology}", f"--out={folder / name}",
               *(f"--config.{override}" for override in overrides)]
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def report(name: str, plan: dict) -> str:
    """The golden text of a plan. Three digits: what an estimate says beyond them is noise in the diff."""
    config, topology, *overrides = ALL[name]
    axes = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    lines = [f"{name}: {config} on {topology}", *(f"  {override}" for override in overrides), f"mesh: {axes}",
             f"parameters: {plan['parameters']:,}", f"tokens of a step: {plan['tokens_per_step']:,.0f}", "",
             f"memory of a chip: {_bytes(plan['hbm_bytes_per_chip'])} of {_bytes(plan['hbm_limit'])}, "
             f"{'fits' if plan['fits'] else 'does not fit'}"]
    lines += [f"  {part}: {_bytes(size)}" for part, size in plan["peak_breakdown"].items()]
    lines += ["", f"FLOPs of a chip: {_digits(plan['flops_per_chip'])}", f"bytes of a chip: {_digits(plan['bytes_accessed'])}",
              f"estimated step: {_digits(plan['estimated_step_seconds'])} s, at least {_digits(plan['lower_bound_seconds'])} s",
              f"bound: {plan['bound']}", f"estimated MFU: {plan['estimated_mfu']:.1%}", "", "collectives of a step:"]
    lines += [f"  {row['kind']} over {row['axis'] or 'unknown'}: {row['count']:,} times, {_bytes(row['bytes'])}"
              for row in plan["collectives"]]
    lines += ["", f"warnings: {len(plan['warnings'])}"]
    return "\n".join(lines) + "\n"


def _bytes(size: float) -> str:
    scale, unit = next(((scale, unit) for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= scale), (1, "B"))
    return f"{_digits(size / scale)} {unit}"


def _digits(value: float) -> str:
    return f"{value:.3g}"


def compiler() -> str:
    """What made a golden: other versions compile other programs."""
    return "made by " + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")) + "\n"


def refresh(names, folder: pathlib.Path):
    """Plans the configs again and writes their goldens."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"planning {name} ...", flush=True)
        (FOLDER / f"{name}.txt").write_text(report(name, planned(name, folder)) + compiler())


def check(name, folder):
    """Compares a plan with its golden; skips loudly where the compiler is missing or is another."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    golden = (FOLDER / f"{name}.txt").read_text()
    if not golden.endswith(compiler()):
        pytest.skip(f"the golden of {name} was {golden.splitlines()[-1]}, here is {compiler().strip()}: "
                    f"python tests/plan/test_plan_goldens.py --refresh {name}")
    assert report(name, planned(name, folder)) + compiler() == golden, f"meant? python tests/plan/test_plan_goldens.py --refresh {name}"


@pytest.mark.parametrize("name", TINY)
def test_a_small_plan_is_what_its_golden_says(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_plan_is_what_its_golden_says(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.parametrize("name", LARGE)
def test_a_golden_fits_its_chips_without_resharding(name):
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    assert any(line.startswith("memory of a chip:") and line.endswith(", fits") for line in lines)
    assert "warnings: 0" in lines


@pytest.mark.parametrize("name", ["llama-7b", "llama-70b"])
def test_the_llamas_are_fast_and_gather_a_parameter_once_in_a_pass(name):
    text = (FOLDER / f"{name}.txt").read_text()
    assert float(re.search(r"estimated MFU: ([0-9.]+)%", text)[1]) >= 55
    parameters = int(re.search(r"parameters: ([0-9,]+)", text)[1].replace(",", ""))
    scale = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    gathered = sum(float(size) * scale[unit] for size, unit in re.findall(r"all-gather over .*, ([0-9.e+]+) ([GMk]B)", text))
    # Two bytes a parameter, forward and backward; the digits of the golden leave half a per cent open.
    assert 0.95 < gathered / (2 * 2 * parameters) < 1.01


if __name__ == "__main__":
    import tempfile

    if sys.argv[1:2] != ["--refresh"] or set(sys.argv[2:]) - set(ALL):
        sys.exit(f"usage: {sys.argv[0]} --refresh [{' | '.join(ALL)} ...]")
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("the TPU compiler is not installed: pip install -e '.[plan]'")
    with tempfile.TemporaryDirectory() as folder:
        refresh(sys.argv[2:] or ALL, pathlib.Path(folder))
