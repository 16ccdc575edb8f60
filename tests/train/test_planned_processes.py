"""scripts/train.py and scripts/launch_local.py with a plan, as a user starts them."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm import config as configs
from lm.metrics.writers import read_lines
from lm.parallel import make_mesh
from lm.train import planned, set_up
from tests.uncached import uncached

ROOT = pathlib.Path(__file__).parents[2]
SAME = ("step", "loss", "grad_norm", "param_norm", "tokens")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The folder of a plan for cpu:4."""
    folder, rng, words = tmp_path_factory.mktemp("planned"), random.Random(2), ["we", "the", "people"]
    (folder / "text.txt").write_text("".join(" ".join(rng.choices(words, k=rng.randint(3, 60))) + "\n" for _ in range(60)))
    config = configs.validate(configs.override(configs.default(), {
        "model.width": "16", "model.layers": "1", "model.heads": "2", "data.source": f"text:{folder}/text.txt", "data.documents": "line",
        "data.tokenizer": "bytes", "data.context": "24", "data.global_batch": "8", "data.validation_fraction": "0.2", "mesh.fsdp": "2",
        "train.steps": "4", "train.log_every": "2", "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "eval.split": "none",
        "data.workers": "1"}))
    job = set_up(config, folder, mesh=make_mesh(config.mesh, jax.devices()[:4]))
    with jax.set_mesh(job.mesh), uncached():
        [(shape, lowered)] = job.lowered_steps().items()
        (folder / "executable").write_bytes(planned.packed(lowered.compile())[0])
    (folder / "plan.json").write_text(json.dumps({
        "topology": "cpu:4", "chips": 4, "fits": True, "estimated_step_seconds": 0.01, "estimated_mfu": 0.5, "hbm_bytes_per_chip": 10**6,
        "launch": planned.facts(job, shape, lowered) | {"config": configs.to_json(config), "not_stored": ""}}))
    return folder


def run(folder, *words, **variables):
    """(metrics, result, standard error) of a command."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"]).strip()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"XLA_FLAGS": flags, "GLIBC_TUNABLES": "", "JAX_COMPILATION_CACHE_DIR": ""} | variables)
    assert done.returncode == 0, done.stderr
    return read_lines(folder / "metrics.jsonl"), json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def one(plan, tmp_path_factory):
    """The metrics of a run that launched the plan in one process."""
    folder = tmp_path_factory.mktemp("one")
    lines, result, said = run(folder, "scripts/train.py", f"--plan={plan}", f"--workdir={folder}", JAX_NUM_CPU_DEVICES="4")
    assert result["step"] == 4 and f"loaded the executable of {plan}: the train step is not compiled" in said
    assert said.count("measured against planned: step") == 1
    return lines


def test_a_plan_alone_is_all_that_a_run_needs(one):
    assert [line["step"] for line in one if "planned" in line] == [2]


@pytest.mark.slow
def test_two_processes_have_other_devices_and_compile(one, plan, tmp_path):
    two, _, said = run(tmp_path / "two", "scripts/launch_local.py", "--processes=2", f"--plan={plan}", "--", "scripts/train.py",
                       f"--workdir={tmp_path / 'two'}")
    assert said.count(f"compiling, not loading the executable of {plan}: the devices here have other numbers or places in the mesh") == 1
    assert [line["step"] for line in two if "planned" in line] == [2]
    np.testing.assert_allclose([[line[name] for name in SAME] for line in two], [[line[name] for name in SAME] for line in one], rtol=1e-5)


def test_a_run_that_was_not_planned_ends_with_one_line(plan, tmp_path):
    environment = os.environ | {"GLIBC_TUNABLES": "", "XLA_FLAGS": ""}
    for words, expected in ((["--config.model.width=32"], "is of another run: model.width is 32 here and 16 there"),
                            ([], "is for cpu:4 (4 x cpu), and here are 2 x cpu")):
        done = subprocess.run([sys.executable, "scripts/train.py", f"--plan={plan}", f"--workdir={tmp_path}", *words], cwd=ROOT, text=True,
                              capture_output=True, timeout=60, env=environment | {"JAX_NUM_CPU_DEVICES": "2"})
        assert (done.returncode, done.stdout) == (2, "") and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] in ([], ["lock"])
