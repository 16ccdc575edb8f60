"""Our checkpoints between train steps, as the loop of `scripts/train.py` makes them."""

import pathlib
import tempfile
import time

import jax

from lm.bench.ours import Training
from lm.checkpoint import CHECKSUMS, Checkpoints


class Saving(Training):
    """Trains one shape and saves; see `lm.bench.worker`. `info` has `step`: seconds of a step."""

    def __init__(self, shape: list):
        super().__init__(shape)
        self.first()
        self._folder = tempfile.TemporaryDirectory()
        self._checkpoints, self._saved = Checkpoints(pathlib.Path(self._folder.name)), 0
        self._items, self._abstract = self._job().items, self._job().abstract_state()
        self.info = {"step": min(self.steps(2))}

    def turn(self, count: int) -> dict:
        """Seconds: of each of some `quiet` steps, for which the save `held` the caller, of each step `during` it, and until it was
        `durable` and sealed; with the `bytes` on disk."""
        quiet = self.steps(1 + count)[1:]
        self._saved += 1
        meta = {"tokens": 0, "seconds": 0.0, "skipped": 0, "data": ""}
        clock, start, during = time.time(), time.perf_counter(), []
        self._checkpoints.save(self._saved, self._items(self._state), meta)
        held = time.perf_counter() - start
        while self._checkpoints.saving():
            during += self.steps(1)
        self._checkpoints.check()
        folder = self._checkpoints.directory / str(self._saved)
        durable = (folder / CHECKSUMS).stat().st_mtime - clock  # it ended within a step
        return {"quiet": quiet, "held": held, "during": during, "durable": max(durable, held), "bytes": bytes_below(folder)}

    def restore(self) -> float:
        """Seconds from files to a state on the devices, with the verification of checksums; the files are in the system's cache."""
        start = time.perf_counter()
        jax.block_until_ready(self._checkpoints.restore(self._items(self._abstract)).items)
        return time.perf_counter() - start


def bytes_below(folder: pathlib.Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
