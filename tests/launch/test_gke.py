"""scripts/launch/gke.py: the manifest as Kubernetes would read it, its container's command run for real, and the calls of kubectl."""

import json
import re
import sys

import pytest
import yaml

from lm.parallel import launch

TPU = ["--name=a", "--image=i", "--claim=c", "--tpu=tpu-v5-lite-podslice", "--topology=4x4"]
GPU = ["--name=a", "--image=i", "--claim=c", "--gpu=nvidia-h100-80gb", "--gpus-per-host=8", "--hosts=3"]
AWKWARD = ["--config.train.steps=2e6 tokens", "it's", '"$HOME" $(LM_HOSTS) $$ \\ &', "", "a  b\nc", "@NAME@", "*"]


def gke(cloud, *words):
    return cloud.call(sys.executable, "scripts/launch/gke.py", *words)


def applied(cloud, *words):
    """The JobSet that kubectl was given."""
    done = gke(cloud, "apply", *words)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((cloud.folder / "applied").read_text())


def job_of(jobset):
    [replicated] = jobset["spec"]["replicatedJobs"]
    return replicated, replicated["template"]["spec"]


def pod_of(jobset):
    return job_of(jobset)[1]["template"]["spec"]


def expand(text, variables):
    """Kubernetes' replacement of $(NAME) and $$ in commands and arguments."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]), text)


def variables_of(jobset, slice_index, index):
    """The environment of a container."""
    annotations = {"jobset.sigs.k8s.io/job-index": str(slice_index), "batch.kubernetes.io/job-completion-index": str(index)}
    variables = {}
    for entry in pod_of(jobset)["containers"][0]["env"]:
        path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        variables[entry["name"]] = entry["value"] if path is None else annotations[re.fullmatch(r"metadata.annotations\['(.*)'\]", path)[1]]
    return variables


def start(cloud, jobset, slice_index, index):
    """Runs the command of a pod's container, as the kubelet would."""
    [container] = pod_of(jobset)["containers"]
    variables = variables_of(jobset, slice_index, index) | {"LM_STATE": str(cloud.folder / f"state-{slice_index}-{index}")}
    words = [expand(word, variables) for word in container["command"] + container["args"]]
    return cloud.call(*words, HOME=str(cloud.folder / f"pod-{slice_index}-{index}"), **variables)


def test_counts_selectors_and_limits_of_tpu_slices(cloud):
    jobset = applied(cloud, *TPU, "--slices=2", "--spot", "--", "x")
    replicated, job = job_of(jobset)
    assert (jobset["apiVersion"], jobset["kind"], jobset["metadata"]["name"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet", "a")
    assert (replicated["replicas"], job["parallelism"], job["completions"], job["completionMode"]) == (2, 4, 4, "Indexed")
    assert pod_of(jobset)["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
                                              "cloud.google.com/gke-tpu-topology": "4x4", "cloud.google.com/gke-spot": "true"}
    resources = pod_of(jobset)["containers"][0]["resources"]
    assert resources == {"requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4}}
    assert jobset["metadata"]["annotations"] == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}


def test_counts_selectors_and_limits_of_gpu_machines(cloud):
    jobset = applied(cloud, *GPU, "--", "x")
    replicated, job = job_of(jobset)
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, 3, 3)
    assert pod_of(jobset)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod_of(jobset)["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert not jobset["metadata"]["annotations"]


def test_failures_are_bounded_preemptions_are_not_and_there_is_time_to_save(cloud):
    jobset = applied(cloud, *TPU, "--restarts=5", "--grace=77", "--mount=/w", "--", "x")
    _, job = job_of(jobset)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5 and policy["restartStrategy"] == "BlockingRecreate"
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])]
    preempted, stopped = job["podFailurePolicy"]["rules"]
    assert job["backoffLimit"] == 0 and preempted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["onExitCodes"] == {"containerName": pod_of(jobset)["containers"][0]["name"], "operator": "In", "values": [75]}
    assert (pod_of(jobset)["restartPolicy"], pod_of(jobset)["terminationGracePeriodSeconds"]) == ("Never", 77)
    [volume] = pod_of(jobset)["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "c"}
    assert pod_of(jobset)["containers"][0]["volumeMounts"] == [{"name": volume["name"], "mountPath": "/w"}]


def test_every_pod_finds_its_place_and_arguments_arrive_as_given(cloud):
    jobset = applied(cloud, *TPU, "--topology=2x4", "--slices=2", "--", "scripts/train.py", f"--workdir={cloud.folder}/run", *AWKWARD)
    replicated, _ = job_of(jobset)
    places = []
    for slice_index in (0, 1):
        for index in (0, 1):
            done = start(cloud, jobset, slice_index, index)
            assert done.returncode == 0, done.stderr
            me = f"pod-{slice_index}-{index}"
            assert json.loads((cloud.folder / f"run/argv-{me}").read_text())[1:] == AWKWARD
            places.append(launch.detect(json.loads((cloud.folder / f"run/environment-{me}").read_text())))
    assert [(place.index, place.count) for place in places] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    # The host name of the first pod of the first job, in the headless service.
    network = jobset["spec"]["network"]
    assert {place.coordinator for place in places} == {f"a-{replicated['name']}-0-0.{network['subdomain']}:8476"}
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
    assert {"containerPort": 8476} in pod_of(jobset)["containers"][0]["ports"]


def test_kubectl_is_called_in_the_cluster_that_was_named(cloud):
    for words in (["apply", *TPU, "--", "x"], ["status", "--name=a"], ["delete", "--name=a"],
                  ["logs", "--name=a", "--worker=5", "--per-slice=4", "--follow"], ["logs", "--name=a", "--worker=5"]):
        assert gke(cloud, words[0], "--context=k", "--namespace=n", *words[1:]).returncode == 0
    labels = "--selector=jobset.sigs.k8s.io/jobset-name=a,jobset.sigs.k8s.io/job-index={},batch.kubernetes.io/job-completion-index={}"
    assert [call[3:] for call in cloud.calls] == [
        ["apply", "--filename=-"], ["get", "jobset/a"], ["get", "pods", "--selector=jobset.sigs.k8s.io/jobset-name=a", "--output=wide"],
        ["delete", "jobset/a"], ["logs", labels.format(1, 1), "--tail=-1", "--follow"], ["logs", labels.format(0, 5), "--tail=-1"]]
    assert all(call[:3] == ["kubectl", "--context=k", "--namespace=n"] for call in cloud.calls)


def test_a_failure_of_kubectl_is_one_line(cloud):
    (cloud.folder / "exit").write_text("1")
    done = gke(cloud, "delete", "--name=a")
    assert (done.returncode, done.stderr) == (1, "error: kubectl failed with exit code 1: its message is above\n")


@pytest.mark.parametrize(("words", "expected"), [
    (["apply", "--name=a", "--image=i", "--", "x"], "--claim"), (["apply", *TPU], "no command"), (["delete"], "--name"),
    (["delete", "--name=A"], "--name=A"), (["apply", *TPU, "--gpu=g", "--", "x"], "either --tpu"),
    (["apply", *TPU, "--topology=4", "--", "x"], "--topology=4"), (["apply", *TPU, "--topology=3x3", "--", "x"], "9 chips"),
    (["apply", *GPU, "--hosts=0", "--", "x"], "--hosts"), (["fly", "--name=a"], "fly")])
def test_a_wrong_command_line_exits_2_with_one_line_and_calls_nothing(cloud, words, expected):
    done = gke(cloud, *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and expected in done.stderr and done.stderr.count("\n") == 1
    assert cloud.calls == []
