"""A run's work directory: config.json, environment.json, metrics.jsonl, tokenizer/, checkpoints/, tensorboard/.

A run on pairs has source_tokenizer/ too.
"""

import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import jax

from lm import config as configs
from lm import models, objectives
from lm.checkpoint import Checkpoints
from lm.data.files import read_json, write_json
from lm.data.prepare import PreparedData, prepare
from lm.data.tokenizers import Tokenizer, load_tokenizer
from lm.errors import CheckpointError, ConfigError, DataError, writing
from lm.tables import Tables

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy", "sentencepiece")


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened for reading: its config with durations in steps, tokenizer, model and checkpoints."""

    workdir: pathlib.Path
    config: object
    tokenizer: Tokenizer
    model: models.Model
    objective: objectives.Objective
    checkpoints: Checkpoints

    @property
    def _data(self) -> str | None:
        """The fingerprint of the data that it was trained on, None where that is not known here."""
        return json.loads((self.workdir / "config.json").read_text(encoding="utf-8"))["data"]

    def check_data(self, fingerprint: str, otherwise: str = ""):
        """DataError, which ends with what to do `otherwise`, when data of this fingerprint is not what the run was trained on."""
        if self._data not in (None, fingerprint):
            raise DataError(f"the data of {self.workdir} has changed since it was trained: restore it{otherwise}")

    def prepare(self, otherwise: str = "") -> PreparedData:
        """The run's data; see `check_data`. Of an imported model, the config's data in its own tokens."""
        keys = self.config.data.copy_and_resolve_references()
        if self._data is None:
            keys.tokenizer = str(self.workdir / "tokenizer")
        prepared = prepare(keys, keys.tokenizer_seed, progress=True)
        self.check_data(prepared.fingerprint, otherwise)
        return prepared

    def abstract_parameters(self) -> dict:
        """Shapes and types of the parameters."""
        return jax.eval_shape(self.model.init, jax.random.key(0))

    def parameters(self, sharding: jax.sharding.Sharding | None = None, step: int | None = None) -> tuple[dict, int]:
        """(parameters, step) of a checkpoint, by default the latest; the running mean of the weights where the run keeps one.

        All of them lie as `sharding` says, by default on one device; what was counted is NumPy arrays.
        """
        if isinstance(self.model, models.CountedModel):
            return Tables(self.workdir / "checkpoints").restore(step)[:2]
        item = "ema" if self.config.train.ema else "params"
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), self.abstract_parameters())
        restored = self.checkpoints.restore({item: abstract}, step)
        if restored is None:
            raise CheckpointError(f"{self.workdir} has no checkpoint yet: train first, or wait for the first one")
        return restored.items[item], restored.step


def open_run(workdir: str | os.PathLike) -> Run:
    """The run in a work directory; ConfigError when there is none."""
    workdir = pathlib.Path(workdir)
    config = configs.of_run(workdir)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    folder = workdir / "source_tokenizer"
    objective = objectives.make(config, tokenizer, load_tokenizer(folder) if folder.exists() else None)
    model = objective.model(config)
    return Run(workdir, config, tokenizer, model, objective, Checkpoints(workdir / "checkpoints", read_only=True))


def start(workdir: pathlib.Path, given, resolved, prepared: PreparedData) -> str:
    """Writes a new run's files, or checks that an old one's agree; ConfigError names the keys that differ.

    `given` is the config as it was written, `resolved` has its durations in steps. Returns a note for the user, or "".
    """
    file = workdir / "config.json"
    note = _check_same(workdir, read_json(file), given, prepared.fingerprint) if file.exists() else ""
    write(workdir, given, resolved, prepared.tokenizer, prepared.source_tokenizer, prepared.fingerprint)
    return note


def write(workdir: pathlib.Path, given, resolved, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None, data: str | None):
    """Writes the files of a run; `data` is the fingerprint of what it is trained on, None where it came from elsewhere.

    What a run that starts from another's weights needs to be exported as those came in, it takes along.
    """
    with writing(workdir):
        tokenizer.save(workdir / "tokenizer")
        if source_tokenizer:
            source_tokenizer.save(workdir / "source_tokenizer")
        origin = pathlib.Path(resolved.train.init) / "source"
        if resolved.train.init and origin.is_dir():
            shutil.copytree(origin, workdir / "source", dirs_exist_ok=True)
        write_json(workdir / "environment.json", environment())
        write_json(workdir / "config.json", {"config": configs.to_json(resolved), "given": configs.to_json(given),
                                             "hash": configs.fingerprint(resolved), "data": data})


def _check_same(workdir, stored, given, data_fingerprint) -> str:
    old = configs.from_json(stored["given"])
    changed = configs.differences(old, given)
    if changed:
        text = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items())
        raise ConfigError(f"{workdir} holds another run: {text}. Use another --workdir, or the config that it was started with")
    if stored["data"] != data_fingerprint:
        raise ConfigError(f"{workdir} was trained on other data: its content or the tokenizer has changed. Use another --workdir")
    if old.train.steps != given.train.steps and given.optim.schedule not in ("constant", "inverse_sqrt"):
        return (f"train.steps was {old.train.steps} and is {given.train.steps}: from here on the {given.optim.schedule} schedule is "
                "that of the new length, so the result differs from a run that had it from the start")
    return ""


def lock(workdir: pathlib.Path):
    """An open file whose lock says that this process trains in the work directory; keep it open. ConfigError when taken."""
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / "lock", "w")  # noqa: SIM115 - held until the process ends, however it ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(f"another process is training in {workdir}: wait for it, or use another --workdir") from error
    return file


def environment() -> dict:
    """Versions, devices, commit and command of this process."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": _git_state(),
    }


def processor_name() -> str:
    """The processor's name (Linux on x86), "" where the kernel does not say."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def _git_state() -> str | None:
    """Commit of the checkout that runs, with a + when it has changes; None outside one."""
    here = pathlib.Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")
