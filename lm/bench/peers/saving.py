"""PyTorch's checkpoints between train steps: `torch.save` of the state of model and optimizer."""

import os
import pathlib
import tempfile
import time

import torch

from lm.bench.peers.pytorch import Training


class Saving(Training):
    """Trains one shape and saves, as `lm.bench.saving.Saving`; its save is over when it returns."""

    def __init__(self, shape: list):
        super().__init__(shape, compiled=False)
        self.first()
        self._folder = tempfile.TemporaryDirectory()
        self._file = pathlib.Path(self._folder.name) / "state.pt"
        self.info = {"step": min(self.steps(2))}

    def turn(self, count: int) -> dict:
        """As `lm.bench.saving.Saving.turn`; durable includes an fsync, held does not."""
        quiet = self.steps(1 + count)[1:]
        start = time.perf_counter()
        torch.save({"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}, self._file)
        held = time.perf_counter() - start
        with open(self._file, "rb") as file:
            os.fsync(file.fileno())
        durable = time.perf_counter() - start
        return {"quiet": quiet, "held": held, "during": [], "durable": durable, "bytes": self._file.stat().st_size}

    def restore(self) -> float:
        """Seconds from the file to a state in use; it is in the system's cache."""
        start = time.perf_counter()
        state = torch.load(self._file, weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        return time.perf_counter() - start
