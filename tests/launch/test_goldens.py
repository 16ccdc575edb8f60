"""What the launchers would do, against stored text: a change of a flag, of quoting or of the job script shows here.

    python tests/launch/test_goldens.py --refresh      # rewrites tests/launch/goldens/*.txt
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = pathlib.Path(__file__).with_name("goldens")
TRAIN = ["--", "scripts/train.py", "--config=configs/quickstart.py", "--workdir=/mnt/runs/a", "--config.train.steps=2e6 tokens",
         "--config.metrics.wandb=it's $HOME"]
WHERE = ["--name=pod", "--project=my-project", "--zone=us-west4-a"]
TYPE = ["--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]
NEVER = ["gcloud", "kubectl", "sbatch", "ssh"]
TPU = {"create": TYPE, "copy": [], "install": ["--setup=sudo mount -t nfs 10.0.0.2:/runs /mnt/runs"], "run": TRAIN, "status": [],
       "logs": ["--worker=2", "--follow"], "stop": [], "delete": [], "up": [*TYPE, "--spot", *TRAIN], "watch": [*TYPE, "--spot", *TRAIN]}
CASES = {
    **{f"tpu_{action}": ["scripts/launch/tpu.sh", action, *WHERE, *words] for action, words in TPU.items()},
    "tpu_slices": ["scripts/launch/tpu.sh", "up", *WHERE, *TYPE, "--slices=2", "--create-flag=--network=n", *TRAIN],
    "slurm_node": ["scripts/launch/slurm.sh", "--nodes=4", "--per=node", *TRAIN],
    "slurm_gpu": ["scripts/launch/slurm.sh", "--nodes=4", "--per=gpu", "--gpus-per-node=8", "--time=24:00:00", "--partition=gpu",
                  "--account=me", "--setup=module load cuda", "--sbatch=--constraint=h100", *TRAIN],
    "gke_tpu": [sys.executable, "scripts/launch/gke.py", "apply", "--name=a", "--image=europe-docker.pkg.dev/p/lm/lm:1", "--claim=runs",
                "--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--slices=2", *TRAIN],
    "gke_gpu": [sys.executable, "scripts/launch/gke.py", "apply", "--name=a", "--image=i", "--claim=runs", "--gpu=nvidia-h100-80gb",
                "--gpus-per-host=8", "--hosts=4", *TRAIN],
    "gke_logs": [sys.executable, "scripts/launch/gke.py", "logs", "--name=a", "--context=cluster"],
}


def dry_run(words: list[str], tools: pathlib.Path) -> str:
    """The output of a launcher with --dry-run, where calling anything is an error."""
    for name in NEVER:
        (tools / name).write_text(f"#!/bin/sh\necho called {name}\nexit 9\n")
        (tools / name).chmod(0o755)
    split = words.index("--") if "--" in words else len(words)
    done = subprocess.run([*words[:split], "--dry-run", *words[split:]], cwd=ROOT, capture_output=True, text=True, timeout=30,
                          env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"})
    return done.stdout if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_prints_what_it_did(name, tmp_path):
    assert dry_run(CASES[name], tmp_path) == (GOLDENS / f"{name}.txt").read_text(), \
        "Refresh with `python tests/launch/test_goldens.py --refresh` when the change is meant, and read the difference"


def test_every_golden_belongs_to_a_case():
    assert {path.stem for path in GOLDENS.iterdir()} == set(CASES)


if __name__ == "__main__":
    import tempfile

    assert sys.argv[1:] == ["--refresh"], __doc__
    for case, case_words in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            (GOLDENS / f"{case}.txt").write_text(dry_run(case_words, pathlib.Path(folder)))
