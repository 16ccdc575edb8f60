"""Is this installation, and this cluster, fit to train? Looks at everything that a run needs before a run needs it."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import socket
import statistics
import time

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm.parallel import make_mesh, processes

REQUIREMENTS = pathlib.Path(__file__).parents[1] / "requirements.txt"
ACCELERATOR_PACKAGES = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-nccl-cu13")
VARIABLES = ("GLIBC_TUNABLES", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy")
REDUCED_BYTES = 1 << 24  # per device
ROUNDS = 5
MOST_SKEW = 1.0  # seconds
LEAST_FREE = 1 << 30  # bytes


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report: `state` is ok, warning or failed; `fix` says what to do unless it is ok."""

    name: str
    state: str
    text: str
    fix: str = ""


def examine(config, workdir: str | None = None) -> dict:
    """All findings about all processes, the same in each: {"ok": no check failed, "findings": [...], "bandwidth": {axis: GB/s}, ...}.

    Call it in every process of a job, after its start. `workdir` is made if it is not there, and left as it was otherwise.
    """
    mesh = make_mesh(config.mesh)
    local = [*versions(), *environment(), devices(), *(writing(pathlib.Path(workdir)) if workdir else [])]
    findings, bandwidth = [], {}
    for axis, size in mesh.shape.items():
        if size > 1:
            seconds, wrong = all_reduce(mesh, axis)
            bandwidth[axis] = round(2 * (size - 1) / size * REDUCED_BYTES / seconds / 1e9, 3)
            local.append(Finding(f"all-reduce over {axis}", "failed" if wrong else "ok",
                                 f"{wrong} wrong sums" if wrong else f"{size} devices, {bandwidth[axis]:.2f} GB/s a device",
                                 "look at the network and the driver: sums over devices are wrong" if wrong else ""))
    everyone = processes.gather("findings", [dataclasses.astuple(finding) for finding in local])
    for place, of_all in enumerate(zip(*everyone, strict=True)):
        findings += _merged([Finding(*each) for each in of_all], local[place].name)
    findings += [*clocks(), *_shared(workdir)]
    return {"ok": all(finding.state != "failed" for finding in findings), "processes": processes.count(), "devices": jax.device_count(),
            "platform": jax.devices()[0].platform, "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
            "bandwidth": bandwidth, "findings": [dataclasses.asdict(finding) for finding in findings]}


def _merged(of_all: list[Finding], name: str) -> list[Finding]:
    """One line where all processes found the same, else a line for each kind of finding with its first process."""
    merged, seen = [], {}
    for index, finding in enumerate(of_all):
        seen.setdefault((finding.state, finding.text) if finding.state != "ok" or "GB/s" not in finding.text else "ok", []).append(index)
    for indices in seen.values():
        finding = of_all[indices[0]]
        where = "" if len(seen) == 1 else f" [{'process' if len(indices) == 1 else 'processes'} {_ranges(indices)}]"
        merged.append(dataclasses.replace(finding, name=name + where))
    return merged


def _ranges(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def versions() -> list[Finding]:
    """Python and packages against the tested set."""
    pins = re.findall(r"^([\w-]+)==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE) if REQUIREMENTS.exists() else []
    other, missing = [], []
    for name, tested in pins:
        found = _version(name)
        if found is None:
            missing.append(name)
        elif found != tested:
            other.append(f"{name} {found} (tested: {tested})")
    there = [f"{name} {_version(name)}" for name in ACCELERATOR_PACKAGES if _version(name)]
    text = f"Python {platform.python_version()}, jax {jax.__version__}" + "".join(f", {each}" for each in there)
    if missing or other:
        text += "; " + "; ".join(([f"not installed: {', '.join(missing)}"] if missing else []) + other)
    state = "warning" if missing or other else "ok"
    return [Finding("versions", state, text, "pip install -r requirements.txt" if state != "ok" else "")]


def _version(name) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> list[Finding]:
    """Variables that change speed or results, and proxies, which keep processes from each other."""
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    findings = [Finding("environment", "ok", ", ".join(given) or "nothing set")]
    proxies = [name for name in PROXIES if os.environ.get(name)]
    if processes.count() > 1:
        findings.append(Finding("proxies", "warning" if proxies else "ok", ", ".join(proxies) or "none",
                                "unset them, or name the hosts of the job in no_proxy" if proxies else ""))
    if not jax.config.jax_compilation_cache_dir and jax.default_backend() != "cpu":
        findings.append(Finding("compilation cache", "warning", "off", "set JAX_COMPILATION_CACHE_DIR to a folder to start faster again"))
    else:
        findings.append(Finding("compilation cache", "ok", jax.config.jax_compilation_cache_dir or "off"))
    return findings


def devices() -> Finding:
    """Kind, number and memory of this process's devices."""
    local = jax.local_devices()
    limit = (local[0].memory_stats() or {}).get("bytes_limit") if local[0].platform != "cpu" else None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = f"{limit / 2**30:.1f} GiB each" if limit else f"{total / 2**30:.1f} GiB of the machine"
    return Finding("devices", "ok", f"{len(local)} x {local[0].device_kind} ({local[0].platform}) a process, {memory}")


def all_reduce(mesh, axis: str, size: int = REDUCED_BYTES // 4) -> tuple[float, int]:
    """(seconds of one sum of `size` float32 a device over a mesh axis, wrong elements among those of this process)."""
    spec = PartitionSpec(tuple(mesh.axis_names))
    place = NamedSharding(mesh, spec)
    count = mesh.size
    # Device d holds d + 1, so that a sum that left one out would show.
    values = jax.make_array_from_callback((count, size), place, lambda index: np.full((1, size), (index[0].start or 0) + 1, np.float32))
    reduce = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, axis), mesh=mesh, in_specs=spec, out_specs=spec))
    result = jax.block_until_ready(reduce(values))
    order = np.arange(1, count + 1, dtype=np.float32).reshape(tuple(mesh.shape.values()))
    expected = np.broadcast_to(order.sum(mesh.axis_names.index(axis), keepdims=True), order.shape).reshape(-1)
    wrong = sum(int(np.sum(np.asarray(shard.data) != expected[shard.index[0].start or 0])) for shard in result.addressable_shards)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(reduce(values))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), wrong


def writing(folder: pathlib.Path) -> list[Finding]:
    """Whether this process can write a file to disk and read it again, and how much space is left."""
    file = folder / f".doctor-{socket.gethostname()}-{os.getpid()}"
    content = os.urandom(1 << 16)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(file, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        same = file.read_bytes() == content
        file.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [Finding("work directory", "failed", f"{folder}: {error.strerror}", "choose a --workdir that this user may write to"),
                Finding("free space", "warning", "unknown", "see the work directory")]
    return [
        Finding("work directory", "ok" if same else "failed", f"{folder}: written, synced, read",
                "" if same else "the disk gave back other bytes than were written: use another"),
        Finding("free space", "ok" if free > LEAST_FREE else "warning", f"{'more' if free > LEAST_FREE else 'less'} than 1 GiB",
                "" if free > LEAST_FREE else "checkpoints need space: free some, or choose another --workdir"),
    ]


def _shared(workdir) -> list[Finding]:
    """Whether all processes see the same work directory."""
    if not workdir or processes.count() == 1:
        return []
    blind = processes.blind(pathlib.Path(workdir))
    return [Finding("shared work directory", "failed" if blind else "ok", f"not seen by {', '.join(blind)}" if blind else "seen by all",
                    "put it on a disk that all processes share" if blind else "")]


def clocks() -> list[Finding]:
    """How far the processes' clocks are from process 0's. A message takes half a round trip, which is taken off."""
    if processes.count() == 1:
        return []
    trips, times = [], []
    for _ in range(ROUNDS):
        processes.barrier("clock is next")
        now, start = time.time(), time.perf_counter()
        times.append(processes.gather("clock", now))
        trips.append(time.perf_counter() - start)
    half = [trip / 2 for trip in processes.gather("round trip", min(trips))]
    skews = [statistics.median(turn[index] - turn[0] for turn in times) - (half[index] if index else 0.0) for index in range(len(half))]
    worst = max(range(len(skews)), key=lambda index: abs(skews[index]))
    bad = abs(skews[worst]) > MOST_SKEW
    return [Finding("clocks", "warning" if bad else "ok", f"at most {abs(skews[worst]) * 1000:.1f} ms apart (process {worst})",
                    "synchronise the clocks (NTP): times in logs do not compare" if bad else "")]


def table(report: dict) -> str:
    """The report for a person."""
    marks = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}
    width = max(len(finding["name"]) for finding in report["findings"])
    lines = [f"{marks[each['state']]:8}{each['name']:{width}}  {each['text']}" + (f"  -> {each['fix']}" if each["fix"] else "")
             for each in report["findings"]]
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items()) or "1 device"
    return "\n".join([f"{report['processes']} process(es), {report['devices']} {report['platform']} device(s), mesh {mesh}", *lines])
