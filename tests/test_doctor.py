"""The doctor: what is fine is said, what is not is found and says what to do; alone and over processes."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm import config as configs
from lm import doctor
from lm.parallel import AXES, make_mesh


def by_name(report):
    """{name: finding} of a report."""
    return {finding["name"]: finding for finding in report["findings"]}


def config(**overrides):
    """The defaults with overrides, __ for the dot."""
    given = {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return configs.validate(configs.override(configs.default(), given))


def test_a_healthy_machine(tmp_path):
    report = doctor.examine(config(mesh__fsdp=4, mesh__tensor=2), str(tmp_path / "new"))
    found = by_name(report)
    assert report["ok"] and report["devices"] == 8 and report["mesh"] == {"fsdp": 4, "tensor": 2}
    assert set(report["bandwidth"]) == {"fsdp", "tensor"} and all(speed > 0 for speed in report["bandwidth"].values())
    assert {"versions", "devices", "work directory", "free space", "all-reduce over fsdp", "all-reduce over tensor"} <= set(found)
    assert list((tmp_path / "new").iterdir()) == [], "it leaves nothing behind"
    assert json.loads(json.dumps(report)) == report and "all-reduce over fsdp" in doctor.table(report)


@pytest.mark.parametrize("axis", ["replica", "fsdp", "tensor"])
def test_a_wrong_sum_is_found(monkeypatch, axis):
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": 2, "fsdp": 2, "tensor": 2})
    assert doctor.all_reduce(mesh, axis, 16)[1] == 0
    psum = jax.lax.psum
    monkeypatch.setattr(jax.lax, "psum", lambda x, name: psum(x, name) + (jax.lax.axis_index(name) == 1))
    assert doctor.all_reduce(mesh, axis, 16)[1] > 0


def test_a_folder_that_cannot_be_written_fails_with_its_fix(tmp_path):
    (tmp_path / "file").touch()
    report = doctor.examine(config(), str(tmp_path / "file"))
    finding = by_name(report)["work directory"]
    assert not report["ok"] and finding["state"] == "failed" and "choose a --workdir" in finding["fix"]


def test_other_versions_than_the_tested_ones_are_a_warning(monkeypatch, tmp_path):
    (tmp_path / "requirements.txt").write_text("# comment\njax==0.0.1\nnumpy==" + np.__version__ + "\nno-such-package==1\n-e .\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", tmp_path / "requirements.txt")
    [finding] = doctor.versions()
    assert finding.state == "warning" and "(tested: 0.0.1)" in finding.text and "not installed: no-such-package" in finding.text
    assert "numpy" not in finding.text


def test_findings_that_differ_between_processes_name_them():
    good, bad = doctor.Finding("disk", "ok", "fine"), doctor.Finding("disk", "failed", "full", "free some")
    assert doctor._merged([good, good], "disk") == [good]
    names = [finding.name for finding in doctor._merged([good, bad, good, bad], "disk")]
    assert names == ["disk [processes 0, 2]", "disk [processes 1, 3]"]


def test_two_processes_compare_clocks_folders_and_sums(tmp_path):
    command = [sys.executable, "scripts/launch_local.py", "--processes=2", "--devices=2", "--", "scripts/doctor.py",
               f"--workdir={tmp_path}", "--config.mesh.fsdp=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=pathlib.Path(__file__).parents[1],
                          env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["processes"], report["devices"], set(report["bandwidth"])) == (2, 4, {"replica", "fsdp"})
    found = by_name(report)
    assert found["shared work directory"]["state"] == found["clocks"]["state"] == "ok"
    assert float(found["clocks"]["text"].split()[2]) < 500
    assert done.stderr.count("shared work directory") == 1
