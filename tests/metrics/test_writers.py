"""metrics.jsonl after kills and resumes, the global norm, and the clock."""

import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError, DiskError
from lm.metrics import Clock, Writers, global_norm
from lm.metrics.writers import read_lines


def write(workdir, steps, resume_step=0, **values):
    writers = Writers(workdir, False, "", {}, resume_step)
    for step in steps:
        writers.write({"step": step, "kind": "train"} | values)
    writers.close()


def steps(workdir):
    return [line["step"] for line in read_lines(workdir / "metrics.jsonl")]


def test_lines_come_back_as_written(tmp_path):
    write(tmp_path, [1, 2], loss=0.1 + 0.2, name="x", loss_by_position={"1": 2.5})
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": step, "kind": "train", "loss": 0.1 + 0.2, "name": "x", "loss_by_position": {"1": 2.5}} for step in (1, 2)]


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], resume_step=2)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert steps(tmp_path) == [1]
    write(tmp_path, [2], resume_step=1)
    assert steps(tmp_path) == [1, 2]


def test_a_full_disk_is_one_line_that_names_the_fix(tmp_path):
    writers = Writers(tmp_path, False, "", {}, 0)
    writers._file.close()
    writers._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115 - the writer closes it
    for act in (lambda: writers.write({"step": 1, "kind": "train"}), writers.close):
        with pytest.raises(DiskError, match=r"cannot write .*metrics.jsonl \(no space left on device\): free space or mend the folder"):
            act()


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null(tmp_path, value):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    write(tmp_path, [1], loss=value, loss_by_position={"1": value, "2-3": 1.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "kind": "train", "loss": None, "loss_by_position": {"1": None, "2-3": 1.0}}


def test_wandb_that_is_not_installed_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"metrics\.wandb is set but wandb is not installed"):
        Writers(tmp_path, False, "project", {}, 0)


def test_global_norm_is_that_of_all_entries_in_float32():
    tree = {"a": jnp.full((64, 64), 3.0, jnp.bfloat16), "b": [jnp.arange(5.0), jnp.float32(-2)]}
    expected = np.sqrt(64 * 64 * 9 + 30 + 4)
    assert global_norm(tree).dtype == jnp.float32
    np.testing.assert_allclose(global_norm(tree), expected, rtol=1e-6)  # a bfloat16 sum would stop growing


def test_clock_adds_up_by_name_even_when_the_work_fails():
    clock = Clock()
    clock.add("step", 1.0)
    clock.add("step", 0.5)
    with pytest.raises(KeyError), clock("eval"):
        time.sleep(0.02)
        raise KeyError
    assert clock.rounded()["step"] == 1.5
    assert 0.02 <= clock.rounded()["eval"] < 5
