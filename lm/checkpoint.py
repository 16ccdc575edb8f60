"""Checkpoints: Orbax behind one module. Parameters, optimizer state and meta are separate items, saved in the background.

A save costs its caller the start of a copy into the memory of the host; a thread does the rest. Each finished checkpoint gets
checksums of its files. The latest is what verifies: a torn or changed one is set aside with a warning, and the one before is used.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import pathlib
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_policies

from lm.errors import CheckpointError, writing
from lm.parallel import processes

CHECKSUMS = "checksums.json"
# What sealed checkpoints until November 2026, at a third of the speed.
_BEFORE = functools.partial(hashlib.blake2b, digest_size=16)
# What Orbax, TensorStore and the file system raise over files that are damaged, gone or not to be had now.
_TROUBLE = (ValueError, OSError, KeyError, TypeError)
# Errors of the file system that say that a file is gone. All others (no permission, a disk or a server that does not answer) may pass,
# and the file may be good.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's items, by name, and what was written beside them."""

    step: int
    items: dict
    meta: dict


class Checkpoints:
    """The checkpoints of one run. Only the trainer writes; everyone else opens `read_only`."""

    def __init__(self, directory: pathlib.Path, keep: int = 1, keep_every: int = 0, read_only: bool = False):
        self.directory = pathlib.Path(directory).resolve()
        self.read_only = read_only
        self._saving: Future | None = None
        self._failed = False
        if read_only:
            self._manager = None
            return
        policies = [keep_policies.LatestN(keep)] + ([keep_policies.EveryNSteps(keep_every)] if keep_every else [])
        policy = keep_policies.AnyPreservationPolicy(policies)
        # Where processes are named, Orbax has them meet without a program on the devices, which must not run beside a step.
        everyone = ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))
        # A folder that cannot be made is an error at once; made in yet another thread, it would leave some that wait for it for minutes.
        folders_first = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=False, multiprocessing_options=everyone,
                                               async_options=folders_first)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        # Before the first save, and over when `close` returns: Orbax's own cleaning goes on beyond that, and meets that of the next.
        self._cleaning = self._thread.submit(self._clean)

    def _clean(self):
        """Removes what killed or failed saves have left, which is of no use and would fill the disk in time."""
        if processes.is_first():
            for folder in sorted(self.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*")):
                shutil.rmtree(folder)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, rising."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit() and path.is_dir())

    def save(self, step: int, items: dict, meta: dict):
        """Starts saving trees of arrays by name; they may change as soon as it returns. Errors of an earlier save surface here."""
        self.wait()
        meta = meta | {"step": step, "manifest": {name: manifest(tree) for name, tree in items.items()}}
        self._saving = self._thread.submit(self._write, step, _in_host_memory(items), meta)

    def _write(self, step, items, meta):
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        try:
            self._cleaning.result()
            self._manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)), force=True)
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except _TROUBLE as error:
            self._failed = True
            raise CheckpointError(f"saving step {step} to {self.directory} failed ({_one_line(error)}): free space or mend the folder, "
                                  "then run the same command to go on from the checkpoint before") from error
        self._seal()

    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._saving is not None and not self._saving.done()

    def check(self):
        """Raises CheckpointError when a background save failed; it does not wait."""
        if not self.saving():
            self.wait()

    def wait(self):
        """Returns when the last save is on disk and sealed; CheckpointError when it failed, once."""
        if self._saving is not None:
            try:
                self._saving.result()
            finally:  # where the wait was interrupted instead, what the save meets is still to be said
                self._saving = None if self._saving.done() else self._saving

    def close(self):
        """Waits for the last save and ends."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(*_TROUBLE if self._failed else ()):  # Orbax says again what `wait` has said
                self._manager.close()

    def restore(self, abstract: dict, step: int | None = None) -> Restored | None:
        """Items named in `abstract` (trees of ShapeDtypeStruct with shardings) and the meta of a step, or of the latest good one.

        None when there is no checkpoint at all; CheckpointError when `step` is missing or damaged, or none is good.
        """
        steps = processes.first("checkpoints", self.steps)
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.directory} has no checkpoint of step {step}: it has {', '.join(map(str, steps)) or 'none'}")
        for candidate in [step] if step is not None else reversed(steps):
            restored, damage = self._attempt(candidate, abstract)
            if not damage:
                return restored
            problem = f"checkpoint {self.directory / str(candidate)} is damaged ({damage})"
            if step is not None:
                raise CheckpointError(f"{problem}: use another of the steps {', '.join(map(str, steps))}")
            if processes.is_first():
                warnings.warn(f"{problem}; falling back to the one before", stacklevel=2)
            self._set_aside(candidate)
        if steps:
            raise CheckpointError(f"none of the checkpoints in {self.directory} can be read: train again in a new work directory")
        return None

    def _attempt(self, step, abstract) -> tuple[Restored | None, str]:
        """(a checkpoint, "") or (None, how it is damaged): what one process meets is so in all. CheckpointError when it may be good."""
        sealed = (self.directory / str(step) / CHECKSUMS).exists()  # if not, it was killed before: reading it is the only check
        trouble = processes.first("verified checkpoint", lambda: _trouble_in(lambda: self._verify(step)) if sealed else [])
        if not trouble:
            read = []
            met = processes.gather("read checkpoint", _trouble_in(lambda: read.append(self._read(step, abstract)), sealed), None)
            trouble = next((each for each in met if each), [])
            if not trouble:
                return read[0], ""
        kind, text = trouble
        if kind == "damaged":
            return None, text
        raise CheckpointError(f"checkpoint {self.directory / str(step)} cannot be read ({text}), though nothing shows that it is damaged: "
                              "try again, or move its folder away to go on from the one before")

    def _read(self, step, abstract):
        # Each process reads what it needs by itself: where one fails the others do not wait for it inside Orbax.
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}")
        options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=alone)
        with ocp.CheckpointManager(self.directory, options=options) as reader:
            meta = reader.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            for name, tree in abstract.items():
                _compare(f"{self.directory / str(step)}: {name}", meta["manifest"].get(name, {}), manifest(tree))
            args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
            try:
                restored = reader.restore(step, args=ocp.args.Composite(**args))
            except Exception as error:
                if type(error) is not Exception:
                    raise
                raise ValueError(_one_line(error)) from error  # Orbax raises a bare Exception over an array that it cannot read
        return Restored(step, {name: restored[name] for name in abstract}, meta)

    def _seal(self):
        if jax.process_index() != 0:
            return
        for step in self.steps():
            folder = self.directory / str(step)
            if not (folder / CHECKSUMS).exists():
                with writing(folder / CHECKSUMS):
                    (folder / f"{CHECKSUMS}.tmp").write_text(json.dumps(checksums(folder)))
                    (folder / f"{CHECKSUMS}.tmp").rename(folder / CHECKSUMS)

    def _verify(self, step):
        folder = self.directory / str(step)
        wanted = json.loads((folder / CHECKSUMS).read_text())
        found = checksums(folder, _BEFORE if all(len(digest) == 32 for digest in wanted.values()) else hashlib.sha256)
        for name in wanted:
            if found.get(name) != wanted[name]:
                raise ValueError(f"{name} {'has changed' if name in found else 'is missing'}")

    def _set_aside(self, step):
        if self.read_only:
            return
        processes.first("set aside", lambda: self._rename(step))
        self._manager.reload()

    def _rename(self, step):
        target = self.directory / f"damaged-{step}"
        number = 1
        while target.exists():
            number += 1
            target = self.directory / f"damaged-{step}-{number}"
        with writing(target):
            (self.directory / str(step)).rename(target)


def _trouble_in(read, verified: bool = False) -> list[str]:
    """["damaged" or "unreadable", a line] over what `read` raises, or []. What was verified is not damaged, whatever it raises."""
    try:
        read()
    except _TROUBLE as error:
        return ["unreadable" if verified or not _shows_damage(error) else "damaged", _one_line(error)]
    return []


def _shows_damage(error) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    told = re.search(r"OS error (\d+)", str(error))  # as TensorStore does, in a ValueError
    number = int(told[1]) if told else number
    return number is None or number in _GONE


def _in_host_memory(tree):
    """A copy in the memory of the host (on the devices where these have no way there), with each piece once in a process however many
    of its devices have it. The copy is made as the devices get to it; a program that is started later may overwrite the original."""
    leaves, structure = jax.tree.flatten(tree)
    homes = [_each_piece_once(leaf.sharding) for leaf in leaves]
    pieces = [[shard.data for shard in leaf.addressable_shards if shard.device in home.device_set]
              for leaf, home in zip(leaves, homes, strict=True)]
    where = jax.tree.map(lambda piece: SingleDeviceSharding(piece.device, memory_kind=_host_memory(piece.device)), pieces)
    copies = jax.device_put(pieces, where, may_alias=False)
    return structure.unflatten([jax.make_array_from_single_device_arrays(leaf.shape, home, copy)
                                for leaf, home, copy in zip(leaves, homes, copies, strict=True)])


@functools.lru_cache(maxsize=1024)
def _each_piece_once(sharding):
    """The part of a sharding, in the memory of the host, with as few copies of each piece as leave some with every process."""
    kind = _host_memory(next(iter(sharding.addressable_devices)))
    if not isinstance(sharding, NamedSharding):
        return sharding.with_memory_kind(kind)
    mesh, named = sharding.mesh, {name for part in sharding.spec for name in ((part,) if isinstance(part, str) else part or ())}
    axes = [axis for axis, name in enumerate(mesh.axis_names) if name in named]
    devices = np.moveaxis(mesh.devices, axes, range(len(axes)))
    devices = devices.reshape(*devices.shape[:len(axes)], -1)  # the last axis is that of the copies
    kept, served = [], set()
    for copy in range(devices.shape[-1]):
        processes_here = {device.process_index for device in devices[..., copy].flat}
        if not processes_here <= served:
            kept.append(copy)
            served |= processes_here
    return NamedSharding(Mesh(devices[..., kept], (*(mesh.axis_names[axis] for axis in axes), "copies")), sharding.spec, memory_kind=kind)


def _host_memory(device) -> str:
    kinds = {memory.kind for memory in device.addressable_memories()}
    return "pinned_host" if "pinned_host" in kinds else device.default_memory().kind


def manifest(tree) -> dict[str, list]:
    """{path: [shape, dtype]} of a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def checksums(folder: pathlib.Path, make=hashlib.sha256) -> dict[str, str]:
    """{relative path: digest} of every file of a checkpoint but the checksums themselves."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(CHECKSUMS))
    with ThreadPoolExecutor() as threads:
        digests = threads.map(_digest, files, itertools.repeat(make))
        return {str(path.relative_to(folder)): digest for path, digest in zip(files, digests, strict=True)}


def _digest(path, make):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, make).hexdigest()


def _compare(where, stored, wanted):
    for path in sorted(stored.keys() | wanted.keys()):
        if stored.get(path) != wanted.get(path):
            raise CheckpointError(f"{where}/{path} is {stored.get(path, 'missing')} in the checkpoint and {wanted.get(path, 'missing')} "
                                  "in this model: use the config it was trained with")


def _one_line(error) -> str:
    if "No space left on device" in str(error):  # TensorStore wraps it in half a page
        return "no space left on device"
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
