"""Runs a command on GKE as a JobSet: one process for each host of one or several TPU slices, or for each GPU machine.

    python scripts/launch/gke.py apply --name=N --image=I --claim=C --tpu=tpu-v5-lite-podslice --topology=4x4 [--slices=2] \\
        -- scripts/train.py --config=configs/quickstart.py --workdir=/runs/a
    python scripts/launch/gke.py apply --name=N --image=I --claim=C --gpu=nvidia-h100-80gb --gpus-per-host=8 --hosts=4 -- ...
    python scripts/launch/gke.py status|logs|delete --name=N

The image holds this repository in --directory with its requirements installed (scripts/launch/Dockerfile makes one). The claim is a
PersistentVolumeClaim with ReadWriteMany, mounted at --mount; the work directory lies on it. `delete` tells the run to save first.
With --plan=DIR, a folder of scripts/plan.py, --tpu, --topology and --slices are the plan's (others are refused), and the command gets
--plan=MOUNT/plans/NAME of the folder: copy it there before.
"""

import json
import math
import pathlib
import re
import shlex
import subprocess
import sys

import planned

from lm import cli
from lm.errors import ConfigError, LmError

TEMPLATE = pathlib.Path(__file__).with_name("jobset.yaml")
PORT = 8476
LONGEST_NAME = 40  # a pod is NAME-slice-J-I-xxxxx, at most 63 characters


def parser() -> cli.Parser:
    """The command line."""
    flags = cli.Parser(description=__doc__, usage="python scripts/launch/gke.py ACTION --name=NAME [FLAGS] [-- COMMAND...]")
    flags.add_argument("action", choices=["apply", "status", "logs", "delete"])
    flags.add_argument("--name", required=True, help="name of the JobSet")
    flags.add_argument("--context", help="cluster, as kubectl's --context")
    flags.add_argument("--namespace", help="as kubectl's --namespace")
    flags.add_argument("--dry-run", action="store_true", help="print the manifest or the call of kubectl, change nothing")
    flags.add_argument("--image", help="container image")
    flags.add_argument("--directory", default="/lm", help="the repository in the image (default: %(default)s)")
    flags.add_argument("--claim", help="PersistentVolumeClaim that all pods mount")
    flags.add_argument("--mount", default="/runs", help="where (default: %(default)s)")
    flags.add_argument("--tpu", metavar="TYPE", help="value of cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice")
    flags.add_argument("--topology", help="of a slice, such as 4x4 or 2x2x2; with --tpu")
    flags.add_argument("--chips-per-host", type=int, default=4, help="google.com/tpu of a machine (default: %(default)s)")
    flags.add_argument("--slices", type=int, help="number of TPU slices (default: 1)")
    flags.add_argument("--plan", metavar="DIR", help="launch a plan; see above")
    flags.add_argument("--gpu", metavar="TYPE", help="value of cloud.google.com/gke-accelerator, such as nvidia-h100-80gb")
    flags.add_argument("--gpus-per-host", type=int, help="nvidia.com/gpu of a machine; with --gpu")
    flags.add_argument("--hosts", type=int, help="number of machines; with --gpu")
    flags.add_argument("--restarts", type=int, default=10, help="most restarts after failures, not preemptions (default: %(default)s)")
    flags.add_argument("--grace", type=int, default=300, help="seconds to save after SIGTERM (default: %(default)s)")
    flags.add_argument("--spot", action="store_true", help="only on spot nodes")
    flags.add_argument("--worker", type=int, default=0, help="process whose log `logs` prints (default: %(default)s)")
    flags.add_argument("--per-slice", type=int, default=1, metavar="HOSTS", help="hosts of a slice, for `logs` of several slices")
    flags.add_argument("--follow", action="store_true", help="`logs` goes on printing")
    return flags


def shape(flags) -> tuple[int, int, dict, dict]:
    """(slices, hosts of each, nodeSelector, limits of a host). GPUs count as one slice: nothing but the network joins them."""
    if bool(flags.tpu) == bool(flags.gpu):
        raise ConfigError("give either --tpu=TYPE and --topology=AxB, or --gpu=TYPE, --gpus-per-host=G and --hosts=N")
    if flags.gpu:
        if not flags.gpus_per_host or not flags.hosts or min(flags.gpus_per_host, flags.hosts) < 1 or flags.slices != 1:
            raise ConfigError("--gpu needs --gpus-per-host=G and --hosts=N, both above 0, and has no --slices")
        slices, hosts = 1, flags.hosts
        selector, limits = {"cloud.google.com/gke-accelerator": flags.gpu}, {"nvidia.com/gpu": flags.gpus_per_host}
    else:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", flags.topology or ""):
            raise ConfigError(f"--topology={flags.topology} is not that of a slice: give one such as 4x4 or 2x2x2")
        chips = math.prod(map(int, flags.topology.split("x")))
        if min(flags.chips_per_host, flags.slices) < 1 or chips % flags.chips_per_host:
            raise ConfigError(f"--chips-per-host={flags.chips_per_host} does not divide the {chips} chips of --topology={flags.topology}, "
                              f"or --slices={flags.slices} is below 1")
        slices, hosts = flags.slices, chips // flags.chips_per_host
        selector = {"cloud.google.com/gke-tpu-accelerator": flags.tpu, "cloud.google.com/gke-tpu-topology": flags.topology}
        limits = {"google.com/tpu": flags.chips_per_host}
    if flags.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return slices, hosts, selector, limits


def manifest(flags, command: list[str]) -> str:
    """The JobSet as YAML."""
    missing = [f"--{name}" for name in ("image", "claim") if not getattr(flags, name)]
    if missing:
        raise ConfigError(f"apply needs {' and '.join(missing)}")
    if not command:
        raise ConfigError("apply has no command: give -- scripts/train.py --config=...")
    slices, hosts, selector, limits = shape(flags)
    values = {
        "JOBSET": flags.name, "SLICES": slices, "HOSTS": hosts, "HOSTS_TEXT": str(hosts), "PROCESSES": str(slices * hosts),
        # NAME-slice-JOB-INDEX is the host name of a pod, and NAME the headless service.
        "COORDINATOR": f"{flags.name}-slice-0-0.{flags.name}:{PORT}", "PORT": PORT,
        "ANNOTATIONS": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if flags.tpu else {},
        "RESTARTS": flags.restarts, "GRACE": flags.grace, "SELECTOR": selector, "LIMITS": limits, "IMAGE": flags.image,
        "DIRECTORY": flags.directory, "MOUNT": flags.mount, "CLAIM": flags.claim,
        "COMMAND": [word.replace("$", "$$") for word in command],  # Kubernetes would replace $(NAME)
    }
    return re.sub(r'"@(\w+)@"', lambda match: json.dumps(values[match[1]]), TEMPLATE.read_text().partition("\n")[2])


def kubectl(flags, *words: str, text: str | None = None):
    """Calls kubectl, or prints the call and its standard input under --dry-run."""
    where = [f"--{name}={value}" for name, value in (("context", flags.context), ("namespace", flags.namespace)) if value]
    call = ["kubectl", *where, *words]
    if flags.dry_run:
        print((text or "") + ("# " if text else "") + shlex.join(call))
        return
    try:
        subprocess.run(call, input=text, text=True, check=True)
    except FileNotFoundError as error:
        raise LmError("kubectl is not installed: see https://kubernetes.io/docs/tasks/tools") from error
    except subprocess.CalledProcessError as error:
        raise LmError(f"kubectl failed with exit code {error.returncode}: its message is above") from error


def _plan(flags) -> list[str]:
    """Fills in what the plan asks for; gives what the command gets."""
    if flags.gpu:
        raise ConfigError(f"--plan={flags.plan} and --gpu={flags.gpu}: plans are for TPUs, leave one of them out")
    try:
        flags.tpu, flags.topology, flags.slices = planned.gke(planned.read(flags.plan), flags.tpu, flags.topology, flags.slices)
    except planned.Refused as error:
        raise ConfigError(str(error)) from error
    return [f"--plan={flags.mount}/plans/{pathlib.Path(flags.plan).resolve().name}"]


def main(argv):
    """Entry point."""
    split = argv.index("--") if "--" in argv else len(argv)
    command = argv[split + 1:]
    flags = parser().parse_args(argv[:split])
    if flags.plan and flags.action == "apply":
        command += _plan(flags)
    flags.slices = 1 if flags.slices is None else flags.slices
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", flags.name) or len(flags.name) > LONGEST_NAME:
        raise ConfigError(f"--name={flags.name} is not allowed: lower-case letters, digits and -, at most {LONGEST_NAME} characters")
    if flags.action == "apply":
        kubectl(flags, "apply", "--filename=-", text=manifest(flags, command))
    elif flags.action == "status":
        kubectl(flags, "get", f"jobset/{flags.name}")
        kubectl(flags, "get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={flags.name}", "--output=wide")
    elif flags.action == "logs":
        job, index = divmod(flags.worker, flags.per_slice) if flags.per_slice > 1 else (0, flags.worker)
        pod = {"jobset.sigs.k8s.io/jobset-name": flags.name, "jobset.sigs.k8s.io/job-index": job,
               "batch.kubernetes.io/job-completion-index": index}
        selector = ",".join(f"{key}={value}" for key, value in pod.items())
        # With a selector kubectl prints ten lines, unless told otherwise.
        kubectl(flags, "logs", f"--selector={selector}", "--tail=-1", *(["--follow"] if flags.follow else []))
    else:
        kubectl(flags, "delete", f"jobset/{flags.name}")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # in order with what kubectl prints
    cli.run(main)
