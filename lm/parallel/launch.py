"""Who else runs? Finds the processes of a job from flags, from Slurm, Open MPI, Kubernetes or Cloud TPU; starts nothing.

Every source gives the same answer: a `Launch`. `detect` asks them in a fixed order and takes the first that applies.
"""

import dataclasses
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from lm.errors import ConfigError, ProcessError

TPU_PORT = 8482  # where JAX's coordinator listens on Cloud TPU
KUBERNETES_PORT = 8476
# Ports derived from a job's id lie in the highest 4096, as JAX's own do.
_PORTS, _FIRST_PORT = 2**12, 65536 - 2**12
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")
_GPU_FILES = ("/dev/nvidia0", "/dev/kfd")
METADATA_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Launch:
    """This process's place in a job of `count` processes. `coordinator` is "host:port", where process 0 listens.

    `local_device_ids` are the accelerators that this process takes where several share a machine; None is all of them.
    """

    kind: str
    coordinator: str
    count: int
    index: int
    local_device_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"the coordinator {self.coordinator!r} ({self.kind}) is not HOST:PORT")
        if not 0 <= self.index < self.count:
            raise ConfigError(f"process {self.index} of {self.count} ({self.kind}): the index must be from 0 to {self.count - 1}")

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def detect(environ: Mapping[str, str], flags=None, exists: Callable[[str], bool] = os.path.exists,
           hostname: Callable[[], str] = socket.gethostname) -> Launch | None:
    """The launch that flags or the environment describe, or None for a single process. ConfigError when one is incomplete."""
    accelerator = "tpu" if any(map(exists, _TPU_FILES)) else "gpu" if any(map(exists, _GPU_FILES)) else ""
    launch = (_from_flags(flags) or _from_variables(environ) or _from_kubernetes(environ, hostname)
              or _from_slurm(environ, accelerator) or _from_open_mpi(environ, accelerator) or _from_tpu(environ, accelerator))
    if launch is None and (environ.get("LM_COORDINATOR") or environ.get("LM_PROCESSES")):
        raise ConfigError("LM_COORDINATOR or LM_PROCESSES is set, but nothing says which process this is: set LM_PROCESS to its index")
    return launch if launch and launch.count > 1 else None


def _from_flags(flags) -> Launch | None:
    given = {"--coordinator": flags.coordinator, "--processes": flags.processes, "--process": flags.process} if flags else {}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ConfigError(f"{' and '.join(missing)} missing: --coordinator=HOST:PORT, --processes=N and --process=I go together")
    return Launch("flags", *given.values())


def _from_variables(environ) -> Launch | None:
    """LM_COORDINATOR, LM_PROCESSES and LM_PROCESS; Kubernetes may give the last one by its own variable."""
    names = ("LM_COORDINATOR", "LM_PROCESSES", "LM_PROCESS")
    missing = [name for name in names if not environ.get(name)]
    if "LM_PROCESS" in missing or missing == list(names):
        return None  # LM_COORDINATOR or LM_PROCESSES alone complete what another source knows
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not set: LM_COORDINATOR=HOST:PORT, LM_PROCESSES=N and LM_PROCESS=I go together")
    return Launch("LM_* variables", environ["LM_COORDINATOR"], _number(environ, "LM_PROCESSES"), _number(environ, "LM_PROCESS"))


def _from_kubernetes(environ, hostname) -> Launch | None:
    """An Indexed Job, or a JobSet of one: the pod's index, a count from the manifest, process 0's pod by its name."""
    if "JOB_COMPLETION_INDEX" not in environ or "TPU_WORKER_HOSTNAMES" in environ:  # GKE describes TPUs by its own variables
        return None
    if "LM_PROCESSES" not in environ:
        raise ConfigError("this pod of an Indexed Job does not know how many there are: add the variable LM_PROCESSES, with the "
                          "value of spec.completions, to the container's env in the manifest")
    index = _number(environ, "JOB_COMPLETION_INDEX")
    coordinator = environ.get("LM_COORDINATOR")
    if not coordinator:
        name = hostname()
        # The pods of a job are called JOB-INDEX (JobSet: SET-JOB-0-INDEX); a subdomain makes them known to each other.
        first = re.sub(rf"-{index}$", "-0", name.split(".")[0])
        subdomain = environ.get("LM_SUBDOMAIN") or environ.get("JOBSET_NAME") or ".".join(name.split(".")[1:2])
        if not re.search(r"-0$", first) or not subdomain:
            raise ConfigError(f"process 0 cannot be found from this pod's host name {name}: set spec.template.spec.subdomain to a headless "
                              "service and the variable LM_SUBDOMAIN to its name, or LM_COORDINATOR=HOST:PORT, in the manifest")
        coordinator = f"{first}.{subdomain}:{KUBERNETES_PORT}"
    return Launch("Kubernetes", coordinator, _number(environ, "LM_PROCESSES"), index)


def _from_slurm(environ, accelerator) -> Launch | None:
    """A step of several tasks; a batch script's own shell has one task and is no step."""
    if "SLURM_PROCID" not in environ or _number(environ, "SLURM_STEP_NUM_TASKS", 1) < 2:
        return None
    first = first_host(environ.get("SLURM_STEP_NODELIST", ""))
    coordinator = environ.get("LM_COORDINATOR") or f"{first}:{_port(_number(environ, 'SLURM_JOB_ID', 0))}"
    several = any(int(count) > 1 for count in re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1")))
    local = _own_device(accelerator, several, environ, "SLURM_LOCALID")
    return Launch("Slurm", coordinator, _number(environ, "SLURM_STEP_NUM_TASKS"), _number(environ, "SLURM_PROCID"), local)


def _from_open_mpi(environ, accelerator) -> Launch | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    count, index = _number(environ, "OMPI_COMM_WORLD_SIZE"), _number(environ, "OMPI_COMM_WORLD_RANK")
    on_this_machine = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    coordinator = environ.get("LM_COORDINATOR")
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    if not coordinator and on_this_machine == count:
        job = re.match(r"\d+", uri)
        coordinator = f"127.0.0.1:{_port(int(job[0]) // 4096 if job else os.getppid())}"
    elif not coordinator:
        # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or 1314521088.0;tcp6://[fe80::1,2620::2]:43370
        found = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
        if not found:
            raise ConfigError("Open MPI does not say where process 0 runs: give it with mpirun -x LM_COORDINATOR=HOST:PORT")
        host = found[2] or f"[{found[3]}]"
        coordinator = f"{host}:{_port(int(found[1]) // 4096)}"  # ids are multiples of 4096
    local = _own_device(accelerator, on_this_machine > 1, environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    return Launch("Open MPI", coordinator, count, index, local)


def _from_tpu(environ, accelerator) -> Launch | None:
    """The workers of a Cloud TPU slice, or of several: from GKE's variables, else from the machine's metadata server."""
    if accelerator != "tpu":
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        workers, worker = [host.split(":")[0] for host in hosts.split(",")], _number(environ, "TPU_WORKER_ID", 0)
        slices = environ
    elif environ.get("TPU_SKIP_MDS_QUERY"):
        return None
    else:
        number = _metadata(environ, "agent-worker-number")
        if number is None:
            return None
        # Two formats: host names, or name:id:address triples.
        endpoints = (_metadata(environ, "worker-network-endpoints") or "").split(",")
        workers, worker = [endpoint.split(":")[-1] for endpoint in endpoints], int(number)
        slices = _tpu_environment(_metadata(environ, "tpu-env") or "") | dict(environ)
    number_of_slices, this_slice = _number(slices, "MEGASCALE_NUM_SLICES", 1), _number(slices, "MEGASCALE_SLICE_ID", 0)
    first = slices.get("MEGASCALE_COORDINATOR_ADDRESS", "").split(":")[0] or workers[0]
    coordinator = environ.get("LM_COORDINATOR") or f"{first}:{TPU_PORT}"
    return Launch("Cloud TPU", coordinator, len(workers) * number_of_slices, worker + this_slice * len(workers))


def _tpu_environment(text: str) -> dict[str, str]:
    """{name: value} of lines such as MEGASCALE_NUM_SLICES: '2'."""
    pairs = [line.partition(":") for line in text.splitlines() if ":" in line]
    return {name.strip(): value.strip().strip("'") for name, _, value in pairs}


def _metadata(environ, key: str) -> str | None:
    """An attribute of this virtual machine; None when it has no such attribute. ProcessError when the server does not answer."""
    host = environ.get("GCE_METADATA_HOST") or environ.get("GCE_METADATA_IP") or "metadata.google.internal"
    request = urllib.request.Request(f"http://{host}/computeMetadata/v1/instance/attributes/{key}", headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with opener.open(request, timeout=METADATA_SECONDS) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise ProcessError(f"the metadata server {host} answers {error.code} to {key}: set LM_COORDINATOR, LM_PROCESSES and "
                           "LM_PROCESS") from error
    except OSError as error:
        raise ProcessError(f"this machine has a TPU but its metadata server {host} does not answer ({error}): set TPU_SKIP_MDS_QUERY=1 to "
                           "run alone, or LM_COORDINATOR, LM_PROCESSES and LM_PROCESS") from error


def first_host(nodes: str) -> str:
    """The first host of Slurm's list, such as a1 of "a1,b2" and node001 of "node[001-004,7],other"."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if not match:
        raise ConfigError("Slurm does not say which nodes this step has (SLURM_STEP_NODELIST): set LM_COORDINATOR=HOST:PORT")
    return match[1] + (match[2] or "") + (match[3] or "")


def _own_device(accelerator, several, environ, name):
    """One GPU each where several processes share a machine that has them."""
    return (_number(environ, name),) if accelerator == "gpu" and several and name in environ else None


def _port(job: int) -> int:
    return _FIRST_PORT + job % _PORTS


def _number(environ, name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}={text!r} is not a whole number") from error
