"""Launchers that are given a plan: what they take from it, what they bring to the workers, and what they refuse before any call."""

import collections
import importlib.util
import json
import math
import pathlib
import sys

import pytest
import yaml

from lm.plan.topology import shapes as shapes_of

ROOT = pathlib.Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("launch_planned", ROOT / "scripts/launch/planned.py")
planned = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(planned)

WHERE = ["--name=pod", "--project=p-1", "--zone=us-west4-a", "--poll=0.03"]
TPU = [*WHERE, "--version=v2-alpha-tpuv5-lite"]
GKE = ["--name=a", "--image=i", "--claim=c"]


@pytest.fixture
def plan(cloud):
    """Makes the folder of a plan for a topology, as a word of the command line."""

    def make(topology="v5e:4x4", fits=True, **values):
        folder = cloud.folder / "my plan"
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").write_text(json.dumps({"topology": topology, "fits": fits} | values))
        (folder / "executable").write_bytes(b"code")
        (folder / "program.hlo.gz").write_bytes(b"text that no run reads")
        return f"--plan={folder}"

    return make


def train(cloud, **options):
    return ["--", "scripts/train.py", f"--workdir={cloud.folder / 'run'}", *(f"--{name}={value}" for name, value in options.items())]


def refused(done, cloud):
    """The one line of a launcher that has called nothing."""
    assert (done.returncode, done.stdout, cloud.calls) == (2, "", [])
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# Google Cloud's tables of slice shapes and accelerator types ("TPU v4", "TPU v5e", "TPU v5p", "TPU v6e").
@pytest.mark.parametrize(("topology", "name"), [
    ("v5e:1x1", "v5litepod-1"), ("v5e:4x8", "v5litepod-32"), ("v5e:8x16", "v5litepod-128"), ("v5e:16x16", "v5litepod-256"),
    ("v6e:2x2", "v6e-4"), ("v6e:2x4", "v6e-8"), ("v6e:16x16", "v6e-256"), ("v4:2x2x1", "v4-8"), ("v4:2x2x4", "v4-32"),
    ("v4:4x4x4", "v4-128"), ("v4:8x16x16", "v4-4096"), ("v5p:2x2x2", "v5p-16"), ("v5p:2x4x4", "v5p-64"), ("v5p:4x8x8", "v5p-512"),
    ("v5p:8x8x8", "v5p-1024"), ("v5p:8x8x16", "v5p-2048"), ("v5p:16x16x24", "v5p-12288")])
def test_the_accelerator_type_of_a_topology(topology, name, plan):
    folder = plan(topology).removeprefix("--plan=")
    assert planned.cloud_tpu(planned.read(folder)) == (name, 1)


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_of_every_number_of_chips_the_most_compact_slice_is_the_usual_one(kind):
    """Most compact: of the slices that there are, the one of least surface."""

    def surface(shape):
        return sum(math.prod(shape) / side for side in shape)

    slices = collections.defaultdict(list)
    for shape in shapes_of(kind):
        slices[math.prod(shape)].append(shape)
    assert len(slices) > 6
    for chips, shapes in slices.items():
        usual = min(shapes, key=surface)
        assert planned.compact(chips, len(usual)) == tuple(sorted(usual)), (chips, usual)
        if kind in planned.TYPES:
            assert planned.cloud_tpu(planned.Plan(pathlib.Path("a"), "a", kind, usual, 1))[1] == 1


def test_a_tpu_is_requested_as_planned_and_gets_plan_and_executable(cloud, plan):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    assert cloud.call("scripts/launch/tpu.sh", "watch", *TPU, plan(), *train(cloud)).returncode == 0
    [create] = [call for call in cloud.calls if "create" in call]
    assert "--accelerator-type=v5litepod-16" in create and "--node-id=pod" in create
    assert cloud.call("scripts/launch/tpu.sh", "copy", *WHERE, plan()).returncode == 0  # takes away what the first brought
    there = cloud.folder / "workers/worker-1/lm"
    assert sorted(path.name for path in (there / "planned").iterdir()) == ["executable", "plan.json"]
    assert json.loads((there / "planned/plan.json").read_text())["topology"] == "v5e:4x4"
    assert json.loads((cloud.folder / "run/argv-worker-1").read_text())[1:] == ["--plan=planned"]
    assert cloud.call("scripts/launch/tpu.sh", "copy", *WHERE).returncode == 0
    assert not list((there / "planned").iterdir()) and (there / "scripts/launch/tpu.sh").exists()


def test_slices_are_the_plans(cloud, plan):
    cloud.states("NOT_FOUND", "ACTIVE|v5litepod-16||")
    assert cloud.call("scripts/launch/tpu.sh", "create", *TPU, plan("2xv5e:4x4")).returncode == 0
    assert {"--node-count=2", "--node-prefix=pod", "--accelerator-type=v5litepod-16"} <= set(cloud.calls[1])


@pytest.mark.parametrize(("topology", "words", "expected"), [
    ("v5e:4x4", ["--type=v5litepod-8"], "is for v5e:4x4, that is --type=v5litepod-16 --slices=1, and asked for are --type=v5litepod-8"),
    ("2xv5e:4x4", ["--slices=1"], "--type=v5litepod-16 --slices=2, and asked for are --type=v5litepod-16 --slices=1"),
    ("v5e:4x4", ["--slices=two"], "asked for are --type=v5litepod-16 --slices=two"),
    ("tpu7x:2x2x1", [], "which Cloud TPU does not have: scripts/launch/gke.py launches it"), ("cpu:8", [], "it is for no TPU"),
    ("v5p:4x4x16", [], "but a v5p-512 is usually wired as 4x8x8: plan for v5p:4x8x8, or give --type=v5p-512"),
])
def test_a_tpu_that_was_not_planned_is_refused(topology, words, expected, cloud, plan):
    for action in (["create"], ["up", *train(cloud)], ["watch", *train(cloud)]):
        split = len(TPU)
        done = cloud.call("scripts/launch/tpu.sh", action[0], *TPU[:split], plan(topology), *words, *action[1:])
        assert expected in refused(done, cloud)


def test_an_unusual_shape_is_taken_from_who_asks_for_its_type(cloud, plan):
    cloud.states("NOT_FOUND", "ACTIVE|v5p-512||")
    assert cloud.call("scripts/launch/tpu.sh", "create", *TPU, plan("v5p:4x4x16"), "--type=v5p-512").returncode == 0


def test_what_is_no_plan_or_does_not_fit_is_refused(cloud, plan):
    call = ["scripts/launch/tpu.sh", "create", *TPU]
    assert "does not fit v5e:4x4: see its page.txt" in refused(cloud.call(*call, plan(fits=False)), cloud)
    assert "is not the folder of a plan" in refused(cloud.call(*call, f"--plan={cloud.folder}"), cloud)
    assert "is not the folder of a plan" in refused(cloud.call(*call, plan(topology=7)), cloud)


def test_gke_takes_accelerator_topology_and_slices_from_the_plan(cloud, plan):
    command = ["--", "scripts/train.py", "--workdir=/runs/a"]
    done = cloud.call(sys.executable, "scripts/launch/gke.py", "apply", *GKE, plan("2xv6e:4x8"), *command)
    assert done.returncode == 0, done.stderr
    [replicated] = yaml.safe_load((cloud.folder / "applied").read_text())["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert (replicated["replicas"], replicated["template"]["spec"]["completions"]) == (2, 8)
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice", "cloud.google.com/gke-tpu-topology": "4x8"}
    assert pod["containers"][0]["args"] == ["scripts/train.py", "--workdir=/runs/a", "--plan=/runs/plans/my plan"]


@pytest.mark.parametrize(("topology", "words", "expected"), [
    ("v6e:4x8", ["--topology=8x8"],
     "that is --tpu=tpu-v6e-slice --topology=4x8 --slices=1, and asked for are --tpu=tpu-v6e-slice --topology=8x8"),
    ("v6e:4x8", ["--tpu=tpu-v5-lite-podslice"], "asked for are --tpu=tpu-v5-lite-podslice"), ("v6e:4x8", ["--slices=2"], "--slices=2"),
    ("v6e:4x8", ["--gpu=x"], "plans are for TPUs"), ("cpu:4", [], "which is no TPU of GKE"),
])
def test_a_jobset_that_was_not_planned_is_refused(topology, words, expected, cloud, plan):
    done = cloud.call(sys.executable, "scripts/launch/gke.py", "apply", *GKE, plan(topology), *words, "--", "scripts/train.py")
    assert expected in refused(done, cloud)


def test_slurm_passes_the_plan_on_and_refuses_what_it_cannot_be_for(cloud, plan):
    call = ["scripts/launch/slurm.sh", "--nodes=2"]
    for topology, words, expected in (("v5e:4x4", ["--per=node"], "scripts/launch/tpu.sh or gke.py"),
                                      ("cpu:4", ["--per=gpu", "--gpus-per-node=2"], "on GPUs, 2 a node"),
                                      ("cpu:5", ["--per=node"], "cannot share evenly")):
        assert expected in refused(cloud.call(*call, *words, plan(topology), *train(cloud)), cloud)
    assert cloud.call(*call, "--per=node", plan("cpu:4"), *train(cloud)).returncode == 0
    assert f"'--plan={cloud.folder / 'my plan'}'" in (cloud.repository / "runs/slurm/lm.sbatch").read_text()
