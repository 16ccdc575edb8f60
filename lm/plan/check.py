"""The cost model against the clock: train steps of many kinds, estimated for this computer from measured peaks and then run.

What is measured for the estimate (`lm.plan.measured`) are small programs, none of them a model: nothing is fitted to these steps.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax

from lm import config as configs
from lm.hlo.text import parse
from lm.plan.absent import job_of
from lm.plan.measured import Processor, measure, median_seconds
from lm.plan.roofline import Estimate, estimate_on

# Turns, in each of which a step runs for so many seconds, after one that is not timed.
_ROUNDS, _SECONDS = 3, 0.5
# An error that is small enough, as a share of what was measured.
_CLOSE = 0.25


class Case(NamedTuple):
    """A config of the grid; `keys` are set besides."""

    name: str
    layers: int
    width: int
    context: int
    batch: int
    vocabulary: int
    keys: dict[str, object]


_GPT2 = {"model.norm": "layernorm", "model.positions": "learned", "model.bias": True, "model.activation": "gelu"}
_LLAMA = {"model.activation": "swiglu", "model.tie_embeddings": False}
_ENCODER = {"model.name": "encoder", "objective.name": "masked"}
_UNTIED = {"model.tie_embeddings": False}
GRID = (
    Case("gpt2", 2, 128, 64, 16, 1024, _GPT2),
    Case("gpt2", 2, 256, 128, 8, 4096, _GPT2),
    Case("gpt2", 4, 256, 256, 4, 8192, _GPT2),
    Case("gpt2", 4, 512, 128, 4, 4096, _GPT2),
    Case("gpt2, dropout", 2, 256, 256, 8, 4096, _GPT2 | {"model.dropout": 0.1}),
    Case("llama", 2, 256, 256, 8, 4096, _LLAMA),
    Case("llama", 3, 384, 256, 4, 4096, _LLAMA),
    Case("llama", 6, 128, 512, 2, 1024, _LLAMA),
    Case("llama", 2, 512, 512, 2, 16384, _LLAMA),
    Case("llama, not scanned", 4, 256, 128, 8, 4096, _LLAMA | {"model.scan_layers": False}),
    Case("llama, remat full", 4, 256, 256, 8, 4096, _LLAMA | {"model.remat": "full"}),
    Case("llama, remat dots", 4, 256, 256, 4, 2048, _LLAMA | {"model.remat": "dots"}),
    Case("llama, accumulate 4", 2, 256, 128, 16, 4096, _LLAMA | {"train.accumulate": 4}),
    Case("llama, muon", 3, 256, 128, 8, 4096, _LLAMA | {"optim.name": "muon"}),
    Case("llama, 2 key heads", 2, 384, 256, 4, 4096, _LLAMA | {"model.heads": 6, "model.kv_heads": 2}),
    Case("encoder", 2, 256, 128, 16, 4096, _ENCODER),
    Case("encoder", 4, 384, 256, 4, 8192, _ENCODER),
    Case("lstm", 2, 256, 128, 16, 4096, {"model.name": "lstm"} | _UNTIED),
    Case("lstm", 1, 512, 64, 16, 8192, {"model.name": "lstm"} | _UNTIED),
    Case("gru", 2, 256, 128, 16, 4096, {"model.name": "gru"} | _UNTIED),
    Case("rnn", 2, 512, 128, 16, 4096, {"model.name": "rnn"} | _UNTIED),
    Case("nplm", 1, 256, 128, 16, 4096, {"model.name": "nplm"}),
    Case("nplm", 1, 512, 128, 8, 8192, {"model.name": "nplm"}),
)


def config_of(case: Case):
    """The config of a case."""
    config = configs.default()
    sizes = {"model.layers": case.layers, "model.width": case.width, "data.context": case.context, "data.global_batch": case.batch,
             "data.vocab_size": case.vocabulary, "model.heads": case.width // 64}
    for key, value in (sizes | case.keys).items():
        section, name = key.split(".")
        if name in config[section]:
            config[section][name] = value
    return config


def check(progress: Callable[[str], None] = lambda line: None, grid: tuple[Case, ...] = GRID) -> dict:
    """Estimates and times each case of the grid on one device of this computer: {"cases": a row each, "worst", "median", "within"} with
    errors as shares of what was measured, and how many cases are within 25%. About six minutes; `progress` gets lines.

    Peaks and steps are measured in turns, as what else a computer does changes from one minute to the next; medians of turns are compared.
    """
    runs = []
    for case in grid:
        runs.append(_Run(case))
        progress(f"compiled {case.name}")
    for number in range(_ROUNDS):
        machine = measure()
        for run in runs:
            run.turn(machine)
        progress(f"measured {number + 1} of {_ROUNDS}")
    rows = [run.row() for run in runs]
    errors = [abs(row["error"]) for row in rows]
    return {"cases": rows, "worst": max(errors), "median": statistics.median(errors), "within": sum(error <= _CLOSE for error in errors),
            "peak_flops": machine.peak_flops, "bandwidth": machine.bandwidth}


class _Run:
    """A case that is compiled and takes turns."""

    def __init__(self, case: Case):
        self._case = case
        job = job_of(config_of(case), jax.devices("cpu")[:1])
        self._step, self._state = job.compiled()
        self._batch, self._mesh = jax.device_put(job.batch(0)), dict(job.mesh.shape)
        (program,) = self._step.values()
        self._module = parse(program.as_text())
        self._estimates: list[Estimate] = []
        self._measured: list[float] = []

    def turn(self, machine: Processor):
        """Estimates the step, and runs it for a moment."""
        self._estimates.append(estimate_on(machine, self._module, self._mesh))
        self._measured.append(median_seconds(self._call, _SECONDS))

    def _call(self):
        self._state, metrics = self._step(self._state, self._batch)
        return self._state, metrics

    def row(self) -> dict:
        """Of the table."""
        case, measured = self._case, statistics.median(self._measured)
        estimated = statistics.median(found.seconds for found in self._estimates)
        return {"case": case.name, "layers": case.layers, "width": case.width, "context": case.context, "batch": case.batch,
                "vocabulary": case.vocabulary, "estimated_ms": 1e3 * estimated, "measured_ms": 1e3 * measured,
                "error": estimated / measured - 1, "bound": self._estimates[-1].bound}


def line(row: dict) -> str:
    """A row of the table as text."""
    size = f"{row['layers']} x {row['width']}, {row['batch']} x {row['context']}, {row['vocabulary']}"
    return (f"{row['case']:<22}{size:<28}{row['estimated_ms']:>9.1f} ms estimated{row['measured_ms']:>9.1f} ms measured"
            f"{row['error']:>+8.0%}")


def page(found: dict) -> str:
    """The table of a check."""
    rows = "\n".join(line(row) for row in found["cases"])
    return (f"{rows}\n{found['within']} of {len(found['cases'])} within {_CLOSE:.0%}; error {found['median']:.0%} at the median, "
            f"{found['worst']:.0%} at worst; {found['peak_flops'] / 1e9:.0f} GFLOP/s, {found['bandwidth'] / 1e9:.0f} GB/s")
