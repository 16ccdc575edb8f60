"""Who else runs: flags and variables of each kind of cluster, as they are there, give the same description or say what is missing."""

import argparse
import http.server
import threading

import pytest

from lm.errors import ConfigError, ProcessError
from lm.parallel.launch import Launch, detect, first_host

SLURM = {"SLURM_JOB_ID": "5000", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4",
         "SLURM_STEP_NODELIST": "gpu[07-08,11]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
       "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2", "LM_PROCESSES": "4"}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.s,w-1.s", "TPU_WORKER_ID": "1"}


def flags(coordinator=None, processes=None, process=None):
    """What the parser of a script gives."""
    return argparse.Namespace(coordinator=coordinator, processes=processes, process=process)


def found(environ, *devices, host="pod-2.set", given=None):
    """The launch on a machine with some device files."""
    return detect(environ, given, exists=lambda path: path in devices, hostname=lambda: host)


@pytest.mark.parametrize(("environ", "devices", "expected"), [
    ({"LM_COORDINATOR": "h:1", "LM_PROCESSES": "2", "LM_PROCESS": "1"}, (), ("h:1", 2, 1, None)),
    (SLURM, (), ("gpu07:62344", 4, 3, None)),
    (SLURM, ("/dev/nvidia0",), ("gpu07:62344", 4, 3, (1,))),
    (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, ("/dev/nvidia0",), ("gpu07:62344", 4, 3, None)),
    (SLURM | {"LM_COORDINATOR": "h:9"}, (), ("h:9", 4, 3, None)),
    (MPI, (), (f"10.96.0.1:{61440 + 1531576320 // 4096 % 4096}", 4, 2, None)),
    (MPI, ("/dev/nvidia0",), (f"10.96.0.1:{61440 + 1531576320 // 4096 % 4096}", 4, 2, (0,))),
    (MPI | {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp6://[fe80::1,2620::2]:43370"}, (), ("[fe80::1]:61442", 4, 2, None)),
    (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "8192.0;x"}, (), ("127.0.0.1:61442", 4, 2, None)),
    (JOB, (), ("pod-0.set:8476", 4, 2, None)),
    (JOB | {"LM_COORDINATOR": "first:77"}, (), ("first:77", 4, 2, None)),
    (JOB | {"LM_COORDINATOR": "first:77", "LM_PROCESS": "3"}, (), ("first:77", 4, 3, None)),
    (GKE, ("/dev/vfio/0",), ("w-0.s:8482", 2, 1, None)),
    (GKE | JOB, ("/dev/accel0",), ("w-0.s:8482", 2, 1, None)),
    (GKE | {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "m:8081"}, ("/dev/accel0",),
     ("m:8482", 6, 5, None)),
])
def test_what_each_cluster_says(environ, devices, expected):
    launch = found(environ, *devices)
    assert (launch.coordinator, launch.count, launch.index, launch.local_device_ids) == expected


@pytest.mark.parametrize(("environ", "devices"), [
    ({}, ()),
    ({}, ("/dev/nvidia0",)),
    ({"LM_COORDINATOR": "h:1", "LM_PROCESSES": "1", "LM_PROCESS": "0"}, ()),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, ()),  # an interactive shell, or a batch script's own
    (GKE, ()),  # what compiling for a TPU that is not here sets
    ({"TPU_SKIP_MDS_QUERY": "1"}, ("/dev/accel0",)),
])
def test_a_single_process_is_none(environ, devices):
    assert found(environ, *devices) is None


@pytest.mark.parametrize(("environ", "host", "words"), [
    ({"LM_PROCESS": "1", "LM_PROCESSES": "2"}, "h", "LM_COORDINATOR not set"),
    ({"LM_PROCESSES": "2"}, "h", "set LM_PROCESS to its index"),
    ({"LM_COORDINATOR": "h:1", "LM_PROCESSES": "2", "LM_PROCESS": "2"}, "h", "process 2 of 2 .* must be from 0 to 1"),
    ({"LM_COORDINATOR": "h", "LM_PROCESSES": "2", "LM_PROCESS": "0"}, "h", "'h' .* is not HOST:PORT"),
    ({"LM_COORDINATOR": "h:1", "LM_PROCESSES": "two", "LM_PROCESS": "0"}, "h", "LM_PROCESSES='two' is not a whole number"),
    ({"JOB_COMPLETION_INDEX": "1"}, "pod-1.set", "LM_PROCESSES, with the value of spec.completions"),
    (JOB, "pod-2", "LM_SUBDOMAIN"),
    (JOB, "another", "cannot be found from this pod's host name another"),
    (MPI | {"OMPI_MCA_orte_hnp_uri": ""}, "h", "mpirun -x LM_COORDINATOR=HOST:PORT"),
    (SLURM | {"SLURM_STEP_NODELIST": ""}, "h", "SLURM_STEP_NODELIST"),
])
def test_what_is_missing_is_named(environ, host, words):
    with pytest.raises(ConfigError, match=words):
        found(environ, host=host)


def test_flags_come_first_and_go_together():
    assert found(SLURM, given=flags("h:1", 2, 1)) == Launch("flags", "h:1", 2, 1)
    assert found(SLURM, given=flags()).kind == "Slurm"
    with pytest.raises(ConfigError, match="--coordinator and --process missing"):
        found({}, given=flags(processes=2))


@pytest.mark.parametrize(("nodes", "host"), [("a", "a"), ("a1,b2", "a1"), ("n[001-004,7]", "n001"), ("n[7,9-11],m", "n7"),
                                             ("r1n[3-4]-ib,x", "r1n3-ib")])
def test_first_host_of_a_slurm_list(nodes, host):
    assert first_host(nodes) == host


@pytest.fixture
def metadata():
    """A stand-in of the metadata server: (its address, the attributes that it has)."""
    attributes = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rsplit("/", 1)[1]) if self.headers["Metadata-Flavor"] == "Google" else None
            self.send_response(200 if value is not None else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", attributes
    server.shutdown()
    server.server_close()


def test_a_tpu_machine_asks_its_metadata_server(metadata):
    host, attributes = metadata
    assert found({"GCE_METADATA_HOST": host}, "/dev/accel0") is None, "a machine without the attribute is alone"
    attributes |= {"agent-worker-number": "3", "worker-network-endpoints": "a:b:10.0.0.5,a:b:10.0.0.6,a:b:10.0.0.7,a:b:10.0.0.8"}
    assert found({"GCE_METADATA_HOST": host}, "/dev/accel0") == Launch("Cloud TPU", "10.0.0.5:8482", 4, 3)
    attributes |= {"worker-network-endpoints": "t0,t1,t2,t3",
                   "tpu-env": "A: 'x'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.9.9.9:8080'"}
    assert found({"GCE_METADATA_HOST": host}, "/dev/vfio/0") == Launch("Cloud TPU", "10.9.9.9:8482", 8, 7)
    assert found({"GCE_METADATA_HOST": host}) is None, "nobody is asked where there is no TPU"


def test_a_metadata_server_that_does_not_answer_is_an_error():
    with pytest.raises(ProcessError, match=r"has a TPU but its metadata server 127\.0\.0\.1:9 does not answer"):
        found({"GCE_METADATA_HOST": "127.0.0.1:9"}, "/dev/accel0")
