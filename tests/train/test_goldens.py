"""The first steps of both quickstart configs against stored metrics: a change of numerics, data order or tokenizer shows here.

    python tests/train/test_goldens.py --refresh      # rewrites tests/goldens/*.json
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import pytest

from lm import config as configs
from lm.metrics.writers import read_lines
from lm.train import train

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NAMES = ("loss", "grad_norm", "param_norm", "update_norm", "learning_rate", "tokens")
HOW = ("Refresh with `python tests/train/test_goldens.py --refresh` when the change is meant: new numerics, initialisation, optimizer, "
       "data order or tokenizer. A refactoring, a faster layer or a new feature that is off must not move them.")


def measure(name: str, workdir: pathlib.Path) -> list[dict]:
    """The metrics of three steps of a quickstart config, at its full width on eight short rows; the same on any number of devices."""
    short = {"data.context": "64", "train.steps": "3", "train.log_every": "1", "data.global_batch": "8", "eval.split": "none",
             "metrics.tensorboard": "false", "metrics.peak_flops": "1e11"}
    train(configs.load(f"configs/{name}.py", short), workdir)
    return [{key: line[key] for key in NAMES} for line in read_lines(workdir / "metrics.jsonl")]


@pytest.mark.parametrize("name", ["quickstart", "lstm_quickstart"])
def test_first_steps_are_as_they_were(name, tmp_path):
    stored = json.loads((GOLDENS / f"{name}.json").read_text())
    found = measure(name, tmp_path)
    for step, (old, new) in enumerate(zip(stored, found, strict=True), 1):
        for key in NAMES:
            # Another processor sums in another order: 1e-4 after three steps is generous, a real change is far larger.
            assert np.isclose(new[key], old[key], rtol=1e-4), f"{name}, step {step}: {key} was {old[key]} and is {new[key]}. {HOW}"


if __name__ == "__main__":
    assert sys.argv[1:] == ["--refresh"], __doc__
    for config_name in ("quickstart", "lstm_quickstart"):
        with tempfile.TemporaryDirectory() as folder:
            (GOLDENS / f"{config_name}.json").write_text(json.dumps(measure(config_name, pathlib.Path(folder)), indent=1) + "\n")
