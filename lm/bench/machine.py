"""What a benchmark ran on: processor, memory, versions and commit."""

import importlib.metadata
import os
import pathlib

from lm.run import environment

PEERS = ("torch", "transformers")


class Machine:
    """A side (see `lm.bench.worker`) that only says where it is."""

    def __init__(self):
        here = environment()
        installed = {name: importlib.metadata.version(name) for name in PEERS if _installed(name)}
        self.info = {**here, "packages": {**here["packages"], **installed}, "cpu": cpu(), "cores": len(os.sched_getaffinity(0)),
                     "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


def cpu() -> str:
    """The processor's name (Linux), "" where the kernel does not say."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
