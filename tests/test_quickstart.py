"""The whole way of a stranger: the quickstart configs reach what their docstrings promise."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from lm.metrics.writers import read_lines


def promised(name):
    """The bits per byte in a config's docstring."""
    text = pathlib.Path(f"configs/{name}.py").read_text()
    return float(re.search(r"Expect: (\d\.\d+) bits per byte", text)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "lstm_quickstart"])
def test_a_quickstart_config_reaches_what_it_promises(name, tmp_path):
    command = [sys.executable, "scripts/train.py", f"--config=configs/{name}.py", f"--workdir={tmp_path}"]
    subprocess.run(command, check=True, env={"JAX_PLATFORMS": "cpu", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    done = subprocess.run([sys.executable, "scripts/eval.py", f"--workdir={tmp_path}"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    # Other processors round differently, which two hundred steps amplify: seeds differ by about this much.
    assert result["bits_per_byte"] == pytest.approx(promised(name), abs=0.02)
    assert result["bits_per_byte"] == pytest.approx(read_lines(tmp_path / "metrics.jsonl")[-1]["bits_per_byte"], abs=1e-6)
