"""Which chips a plan is for: their kind, how they are wired, and how many slices of them; and the devices that stand for them.

A topology is written KIND:AxB (v5e, v6e), KIND:AxBxC (v4, v5p, tpu7x), or with slices that the data-centre network joins 2xKIND:AxB;
cpu:N is N devices of this machine.
"""

import contextlib
import importlib.metadata
import itertools
import math
import os
import re
from typing import NamedTuple

from lm.errors import ConfigError, PlanError
from lm.plan.chips import CHIPS, Chip

_FORM = re.compile(r"(?:([0-9]+)x)?([a-z][a-z0-9]*):([0-9]+(?:x[0-9]+)*)")
# Names of Cloud TPU, such as v5p-128, and kinds alone; v4 and v5p are counted there in cores, of which a chip has two.
_CLOUD = re.compile(r"([a-z][a-z0-9]*?)(?:-([0-9]+))?")
_CORES = {"v4": 2, "v5p": 2}
# Slices of v5e and v6e as they are sold; Google Cloud, "TPU v5e" and "TPU v6e", system architecture.
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Parts of a cube of 4x4x4, of which the larger slices of v4, v5p and tpu7x are made (Jouppi et al. 2023, section 2).
PARTS = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# Chips of the largest slice: v4 Jouppi et al. 2023; v5p and tpu7x (Ironwood) Google Cloud, "TPU v5p" and "TPU7x".
LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
_LONGEST_SIDE = 36
_SHOWN = 3
# What has the compiler describe chips that are not here, instead of asking a metadata server for those that are, and say its warnings.
_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "1", "TPU_MIN_LOG_LEVEL": "1"}


class Topology(NamedTuple):
    """`slices` slices of chips of a kind, wired as `shape`; of kind cpu, devices of this machine."""

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is written."""
        several = f"{self.slices}x" if self.slices > 1 else ""
        return f"{several}{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """In all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """What one of them can do; not for kind cpu."""
        return CHIPS[self.kind]

    @property
    def devices_per_chip(self) -> int:
        """What a program calls devices, on one of them."""
        return 1 if self.kind == "cpu" else self.chip.devices_per_chip


def parse(text: str) -> Topology:
    """The topology that a text names. ConfigError for a kind, form or shape that there is not, with the nearest ones that there are."""
    match = _FORM.fullmatch(text)
    if not match:
        raise ConfigError(f"--topology={text} is not a topology: write {_instead(text)}")
    slices, kind, shape = int(match[1] or 1), match[2], tuple(map(int, match[3].split("x")))
    if kind == "cpu":
        if slices > 1 or len(shape) > 1 or not shape[0]:
            raise ConfigError(f"--topology={text}: write cpu:N for N devices of this machine")
        return Topology(kind, shape)
    if kind not in CHIPS:
        raise ConfigError(f"--topology={text}: there is no chip {kind}; there are {', '.join(CHIPS)} and cpu")
    if shape not in shapes(kind) or not slices:
        raise ConfigError(f"--topology={text}: {kind} has no slice of {'x'.join(map(str, shape))}; the nearest are "
                          f"{', '.join(Topology(kind, near).name for near in nearest(kind, shape))}")
    return Topology(kind, shape, slices)


def _instead(text: str) -> str:
    """What to write instead of a kind alone, of a name of Cloud TPU, or of anything else."""
    name = _CLOUD.fullmatch(text)
    kind = name[1].replace("v5litepod", "v5e") if name else ""
    if kind not in CHIPS:
        return "v5e:16x16, v5p:8x8x8, 2xv5e:16x16 (two slices), or cpu:8"
    if name[2] is None:
        some = shapes(kind)[:len(FLAT)]
        return f"its shape too: {', '.join(Topology(kind, shape).name for shape in some)}{', ...' if len(some) < len(shapes(kind)) else ''}"
    chips = int(name[2]) // _CORES.get(kind, 1)
    counted = " (its number counts cores, two of each chip)" if kind in _CORES else ""
    found = [shape for shape in shapes(kind) if math.prod(shape) == chips] or nearest(kind, (chips,))
    return f"its shape: {' or '.join(Topology(kind, shape).name for shape in found)}{counted}"


def asked_for(text: str) -> Topology:
    """`parse` for a command line, before anything starts JAX's devices: cpu:N makes this process have N of them."""
    topology = parse(text)
    if topology.kind == "cpu":
        import jax

        jax.config.update("jax_num_cpu_devices", topology.chips)
    return topology


def shapes(kind: str) -> tuple[tuple[int, ...], ...]:
    """All slices of a kind, the smallest first."""
    if kind not in LARGEST:
        return FLAT
    cubes = itertools.combinations_with_replacement(range(4, _LONGEST_SIDE + 1, 4), 3)
    fitting = [shape for shape in cubes if math.prod(shape) <= LARGEST[kind]]
    return PARTS + tuple(sorted(fitting, key=lambda shape: (math.prod(shape), shape)))


def nearest(kind: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The slices of a kind most like a shape: in their number of chips above all, and in the lengths of their sides."""
    chips, sides = max(1, math.prod(shape)), sorted((max(1, side) for side in shape), reverse=True)

    def distance(other):
        unlike = sum(abs(math.log(a / b)) for a, b in itertools.zip_longest(sorted(other, reverse=True), sides, fillvalue=1))
        return unlike + 2 * abs(math.log(math.prod(other) / chips))

    return sorted(shapes(kind), key=distance)[:_SHOWN]


def devices(topology: Topology) -> list:
    """The devices of a topology, for a mesh. PlanError where the TPU compiler is not installed, or the machine has fewer devices."""
    import jax

    if topology.kind == "cpu":
        here = jax.devices("cpu")
        if len(here) < topology.chips:
            raise PlanError(f"{topology.name} needs {topology.chips} devices and there are {len(here)}: set "
                            f"JAX_NUM_CPU_DEVICES={topology.chips} before Python starts")
        return here[: topology.chips]
    compiler_version()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # Without `wrap` the compiler takes every side for a line, and gathers over three by adding zeros: twice the bytes, and more memory.
    rings = topology.chip.closed(topology.shape)
    options = {"wrap": rings + (False,) * (3 - len(rings))} | ({"num_slices": topology.slices} if topology.slices > 1 else {})
    if topology.kind == "v4":  # its two cores work as one device, as they do on Cloud TPU
        options["chip_config_name"] = "megacore"
    if topology.shape == (1, 1):
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{topology.kind}:{'x'.join(map(str, topology.shape))}"
    with no_flags():
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)


@contextlib.contextmanager
def no_flags():
    """XLA_FLAGS out of sight of the TPU compiler, which ends the process without a word at one that it does not know."""
    import jax

    jax.devices("cpu")  # has read them
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def compiler_version() -> str:
    """Of the TPU compiler: its version, or the path that TPU_LIBRARY_PATH names. PlanError where it is not installed."""
    if "TPU_LIBRARY_PATH" in os.environ:
        return os.environ["TPU_LIBRARY_PATH"]
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise PlanError("the TPU compiler is not installed: pip install -e '.[plan]'") from error
