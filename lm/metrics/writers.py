"""Metrics on disk. metrics.jsonl is the truth; TensorBoard and Weights & Biases are copies for looking at."""

import json
import os
import pathlib

from lm.data.files import finite
from lm.errors import ConfigError, writing


class Writers:
    """Appends lines to metrics.jsonl, and to the other places that were asked for. With `active` False it does nothing."""

    def __init__(self, workdir: pathlib.Path, tensorboard: bool, wandb_project: str, config: dict, resume_step: int, active: bool = True):
        self.path = workdir / "metrics.jsonl"
        self._active = active
        if not active:
            return
        self._board = self._wandb = None
        with writing(self.path):
            _drop_after(self.path, resume_step)
            self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as long as the run
        if tensorboard:
            from tensorboardX import SummaryWriter

            with writing(workdir / "tensorboard"):
                self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, workdir, config)

    def write(self, line: dict):
        """One line; its numbers go to the other writers as KIND/NAME."""
        if not self._active:
            return
        line = finite(line)
        with writing(self.path):
            self._file.write(json.dumps(line) + "\n")
        numbers = {f"{line['kind']}/{k}": v for k, v in line.items() if isinstance(v, (int, float)) and k != "step"}
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, line["step"])
        if self._wandb:
            self._wandb.log(numbers, step=line["step"])

    def close(self):
        """Flushes everything to disk."""
        if not self._active:
            return
        with writing(self.path):
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
        if self._board:
            with writing(self._board.logdir):
                self._board.close()
        if self._wandb:
            self._wandb.finish()


def read_lines(path: pathlib.Path) -> list[dict]:
    """The lines of a metrics.jsonl, less a last one that a kill cut short."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _drop_after(path: pathlib.Path, step: int):
    """Forgets what a killed run wrote after the checkpoint that is now resumed: those steps are made again."""
    lines = read_lines(path)
    if not path.exists():
        return
    kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(kept, encoding="utf-8")
    os.replace(temporary, path)


def _start_wandb(project, workdir, config):
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("metrics.wandb is set but wandb is not installed: pip install '.[wandb]', or leave it empty") from error
    return wandb.init(project=project, dir=str(workdir), config=config, resume="allow", id=workdir.resolve().name)
