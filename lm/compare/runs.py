"""Runs for notebooks: one opened whole, or many as one table with a row each.

    run = lm.compare.load_run("runs/quickstart")
    run.metrics.plot(x="tokens", y="loss")
    lm.compare.load_runs("runs/lineage/*").sort_values("bits_per_byte")
"""

import dataclasses
import functools
import glob
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas

from lm import config as configs
from lm import run as rundirs
from lm.compare.costs import costs, parameters_of
from lm.config import flatten
from lm.config.model_keys import COUNTED
from lm.data.files import read_json
from lm.errors import ConfigError
from lm.metrics.writers import read_lines

# Columns that a table of lines has even where a run has written none yet.
_METRICS, _EVALUATIONS = ("step", "tokens", "seconds", "loss"), ("step", "split", "seconds", "bits_per_byte")
# Columns of `load_runs` that stand for a key of the config.
_NAMED = {"family": "model.name", "objective": "objective.name", "seed": "seed", "learning_rate": "optim.learning_rate",
          "optimizer": "optim.name"}


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run, finished, killed or still going on, imported or counted: what is on disk, and what is made of it when asked for.

    `config` has durations in steps. `metrics` and `evaluations` have a row for each train and eval line of metrics.jsonl, {"a": {"b": 1}}
    as a column "a.b". `score` is what a comparison measured (score.json), None where it did not.
    """

    workdir: pathlib.Path
    config: object
    metrics: pandas.DataFrame
    evaluations: pandas.DataFrame
    score: dict | None

    @functools.cached_property
    def run(self) -> rundirs.Run:
        """The run as `lm.run.open_run` opens it."""
        return rundirs.open_run(self.workdir)

    @property
    def model(self):
        """The model (`lm.models.base.Model`)."""
        return self.run.model

    @property
    def tokenizer(self):
        """The tokenizer that its text was read with."""
        return self.run.tokenizer

    @property
    def result(self) -> dict:
        """Its score, else its last evaluation; {} where it has neither."""
        return self.score or (self.evaluations.iloc[-1].to_dict() if len(self.evaluations) else {})

    @functools.cached_property
    def environment(self) -> dict:
        """Versions, devices, commit and command of the process that trained it last."""
        return read_json(self.workdir / "environment.json")

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, rising."""
        return self.run.checkpoints.steps()

    def params(self, step: int | None = None) -> dict:
        """The parameters of a checkpoint, by default the latest, on one device. CheckpointError where there is none."""
        return self._params(step)

    @functools.cached_property
    def _params(self):
        return functools.lru_cache(maxsize=1)(lambda step: self.run.parameters(step=step)[0])

    def generate(self, prompt: str, max_tokens: int | None = None, temperature: float = 1.0, seed: int = 0) -> str:
        """A continuation of a prompt, at temperature 0 the greedy one. ConfigError for models that do not continue a text."""
        from lm.compare.latency import decodes
        from lm.generate import Sampling

        if not decodes(self.run.model, self.run.objective):
            raise ConfigError(f"{self.workdir} has model.name={self.config.model.name}, which does not continue a text")
        (done,) = self._generator([prompt], max_tokens, Sampling(temperature=temperature), seed=seed)
        return self.tokenizer.continuation(done.tokens)

    @functools.cached_property
    def _generator(self):
        from lm.generate import Generator

        return Generator(self.model, self.params(), self.tokenizer, prefix=self.run.objective.bidirectional_prompts)


def load_run(path: str | os.PathLike) -> LoadedRun:
    """The run in a work directory; ConfigError when there is none."""
    workdir = pathlib.Path(path)
    config = configs.of_run(workdir)
    lines = read_lines(workdir / "metrics.jsonl")
    file = workdir / "score.json"
    return LoadedRun(workdir, config, _frame(lines, "train", _METRICS), _frame(lines, "eval", _EVALUATIONS),
                     read_json(file) if file.exists() else None)


def _frame(lines: list[dict], kind: str, columns: Sequence[str]) -> pandas.DataFrame:
    """The lines of a kind: numbers as numbers, NaN where JSON has null."""
    rows = [{name: value for name, value in line.items() if name != "kind"} for line in lines if line["kind"] == kind]
    frame = pandas.json_normalize(rows) if rows else pandas.DataFrame(columns=list(columns))
    empty = [name for name in frame.columns if rows and frame[name].isna().all()]
    return frame.astype(dict.fromkeys(empty, float))


def load_runs(pattern: str | os.PathLike | Sequence) -> pandas.DataFrame:
    """A row for each run in the folders that a pattern ("runs/*", "W/**" for all below) or several match, sorted by path.

    Columns: path, name (the part of the path in which the runs differ), family, objective, parameters, tokens, flops (of training),
    seconds (in steps), bits_per_byte and stderr (of the score, else of the last evaluation), seed, learning_rate, optimizer, commit,
    machine, hash, then every key of the config that differs among the runs. NaN where a run has none, as a counted one has no learning
    rate. ConfigError for no run at all.
    """
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
    found = sorted({os.path.normpath(path) for each in patterns for path in _matching(str(each))})
    paths = [path for path in found if os.path.isfile(os.path.join(path, "config.json"))]
    if not paths:
        raise ConfigError(f"no run matches {', '.join(map(str, patterns))}: give folders that have a config.json, such as 'runs/*'")
    runs = [load_run(path) for path in paths]
    flat = [flatten(run.config) for run in runs]
    shown = set(_NAMED.values())
    differing = [key for key in flat[0] if key not in shown and any(keys[key] != flat[0][key] for keys in flat)]
    names = _names(paths)
    return pandas.DataFrame([_row(run, names[path], keys) | {key: keys[key] for key in differing}
                             for run, path, keys in zip(runs, paths, flat, strict=True)])


def _matching(pattern: str) -> list[str]:
    """The folder of this very name, though it may read as a pattern, else what matches."""
    return [pattern] if os.path.isdir(pattern) else glob.glob(pattern, recursive=True)


def _names(paths: list[str]) -> dict[str, str]:
    """The part of each path below the folder that all have in common."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return {path: os.path.relpath(os.path.abspath(path), common) for path in paths}


def _row(run: LoadedRun, name: str, keys: dict) -> dict:
    """The columns that every run has."""
    spent, result = _spent(run), run.result
    given = {column: keys[key] for column, key in _NAMED.items()}
    if keys["model.name"] in COUNTED:
        given |= {"learning_rate": np.nan, "optimizer": None}
    environment = run.environment if (run.workdir / "environment.json").exists() else {}
    stored = json.loads((run.workdir / "config.json").read_text(encoding="utf-8"))
    return {"path": str(run.workdir), "name": name, "family": given.pop("family"), "objective": given.pop("objective"),
            **{column: _number(spent.get(column)) for column in ("parameters", "tokens", "flops", "seconds")},
            **{column: _number(result.get(column)) for column in ("bits_per_byte", "stderr")}, **given,
            "commit": environment.get("git"), "machine": machine_of(environment), "hash": stored["hash"]}


def _spent(run: LoadedRun) -> dict:
    """Its costs: from the score, else from the model and the lines; without a step its parameters alone."""
    if run.score and run.score["train"]:
        return run.score["train"]
    lines = [line for line in read_lines(run.workdir / "metrics.jsonl") if line["kind"] == "train"]
    return costs(run.run, lines) or {"parameters": parameters_of(run.run, [])}


def machine_of(environment: dict) -> str | None:
    """Processor (platform where it has no name) and devices, such as "AMD EPYC 9R14, 2 cores, cpu:cpu"."""
    if not environment:
        return None
    devices = environment["devices"]
    kinds = [f"{devices.count(kind)} x {kind}" if devices.count(kind) > 1 else kind for kind in dict.fromkeys(devices)]
    cores = environment.get("cores")
    return ", ".join([environment.get("processor") or environment["machine"], *([f"{cores} cores"] if cores else []), *kinds])


def _number(value):
    return np.nan if value is None else value
