"""The score of a run: what a comparison knows of it once it is trained, all measured from its work directory."""

import io
import math
from collections.abc import Sequence

import numpy as np

from lm import cli
from lm.compare import breakdown
from lm.compare.copying import copy_probe
from lm.compare.costs import costs
from lm.compare.latency import decode_latency
from lm.compare.measured import step_memory
from lm.compare.samples import passages, samples
from lm.data.files import atomic_file
from lm.errors import ConfigError, DiskError
from lm.evaluate import evaluate_run, suite
from lm.interop import lm_eval
from lm.metrics.writers import read_lines
from lm.models import CountedModel
from lm.run import Run, open_run

DOCUMENTS = "scores/documents.npz"
# What an evaluation line has beside the evaluation.
_OF_LINE = ("kind", "seconds", "data")


def score(workdir, full: bool = True, prompts: Sequence[str] | None = (), suites: Sequence[str] = (), diverged: bool = False) -> dict:
    """What there is to say of a trained run: {"step", "diverged", "seed", "train": `lm.compare.costs.costs`, ...its evaluation}.

    With `full` also "position", "frequency", "recall" (`lm.compare.breakdown`; nats and bytes of each document go to
    scores/documents.npz), "copy" (`lm.compare.copying`), "memory_bytes", "decode" (`lm.compare.latency`), "suites" {"NAME:FILE":
    {"measure", "value", "stderr"}} of entries such as "choice:FILE.jsonl", and "samples" [{"prompt", "text", "temperature"}] of the
    prompts, where they are None of passages of the text (`lm.compare.samples`). Without it the evaluation of the last step is that of
    training, if there was one. A run that `diverged`, as its caller knows or its evaluation says, has no more than its costs.
    """
    run = open_run(workdir)
    lines = read_lines(run.workdir / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    basis = {"diverged": False, "seed": run.config.seed, "train": costs(run, trained)}
    if not diverged:
        _check_whole(run, trained)
        evaluation = _evaluated(run) if full else _last_evaluation(run, lines) or _clean(evaluate_run(workdir))
        diverged = not _finite(evaluation)
    if diverged:
        return {"step": trained[-1]["step"] if trained else 0, "bits_per_byte": None, **basis, "diverged": True}
    return evaluation | basis | (_more(run, trained, prompts, suites) if full else {})


def _check_whole(run: Run, trained: list[dict]):
    """ConfigError where a run has begun and not come to its last step; an imported one has nothing to come to."""
    if trained and trained[-1]["step"] < run.config.train.steps:
        raise ConfigError(f"{run.workdir} is at step {trained[-1]['step']} of {run.config.train.steps}: train it to its end first")


def _finite(evaluation: dict) -> bool:
    """Whether all that an evaluation measured is a number; what it leaves open is none."""
    headline = evaluation.get("bits_per_byte", 0.0)
    return headline is not None and all(math.isfinite(value) for value in evaluation.values() if isinstance(value, float))


def _clean(evaluation: dict) -> dict:
    return {name: value for name, value in evaluation.items() if name not in _OF_LINE}


def _last_evaluation(run: Run, lines: list[dict]) -> dict | None:
    """The evaluation that training ended with, None where it had none."""
    found = [line for line in lines if line["kind"] == "eval" and line["step"] == run.config.train.steps]
    return _clean(found[-1]) if found else None


def _evaluated(run: Run) -> dict:
    """The evaluation of the whole split with its breakdown and the copy probe, as far as what the objective can report has parts."""
    split = run.config.eval.split
    if split == "none" or not run.objective.scores_text:
        raise ConfigError(f"{run.workdir} has eval.split={split} and objective.name={run.config.objective.name}: there is nothing to score "
                          "it by")
    if run.objective.measure != "likelihood":
        evaluation = _clean(evaluate_run(run.workdir, split=split))
        return evaluation | {"position": breakdown.positions(evaluation.get("loss_by_position", {})), "frequency": [], "recall": [],
                             "copy": None}
    prepared = run.prepare()
    shares = breakdown.token_shares(prepared, run.objective.vocab_size, run.config.data)
    parts = breakdown.Breakdown(breakdown.frequency_groups(shares))
    evaluation = _clean(evaluate_run(run.workdir, split=split, tell=parts))
    arrays = io.BytesIO()
    np.savez(arrays, **parts.documents())
    with atomic_file(run.workdir / DOCUMENTS) as file:
        file.write(arrays.getvalue())
    return evaluation | {"position": breakdown.positions(evaluation["loss_by_position"]), "frequency": parts.frequency(),
                         "recall": parts.recall(), "copy": copy_probe(run, run.objective.stores(prepared, split))}


def _more(run: Run, trained: list[dict], prompts: Sequence[str] | None, suites: Sequence[str]) -> dict:
    """What a full score has beside the evaluation."""
    params, _ = run.parameters()
    prompts = passages(run, run.prepare()) if prompts is None else prompts
    return {"memory_bytes": _memory(run) if trained else None, "decode": decode_latency(run, params),
            "suites": measured_suites(run, suites) if suites else {}, "samples": samples(run, params, prompts)}


def _memory(run: Run) -> int | None:
    """Bytes of a run's compiled train step; None where it was counted."""
    return None if isinstance(run.model, CountedModel) else step_memory(run.config, run.prepare())


def measured_suites(run: Run, suites: Sequence[str]) -> dict[str, dict]:
    """{"NAME:FILE": {"measure", "value", "stderr"}}: of each suite (`lm.evaluate.suite`, or lm_eval:TASK) what it names first; of one that
    cannot be measured {"error"}, which costs the run no more than that."""
    entries, found = suite.parse(",".join(suites)), {}
    subject = suite.open_subject(run.workdir)
    for entry in entries:
        try:
            found |= {name: _first_measure(values) for name, values in _measured(subject, entry).items()}
        except DiskError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a suite's file or the harness raises, the run has its other scores
            found[str(entry)] = {"error": cli.describe(error)[1]}
    return found


def _measured(subject, entry) -> dict[str, dict]:
    """What one suite found."""
    return lm_eval.measure(subject, [entry.argument])[0] if entry.suite == suite.HARNESS else suite.measure(subject, [entry])


def _first_measure(values: dict) -> dict:
    """The first value that has a standard error beside it: NAME and NAME_stderr, or as the harness writes NAME,FILTER."""
    for name, value in values.items():
        measure, comma, kind = name.partition(",")
        error = f"{measure}_stderr{comma}{kind}"
        if error in values:
            return {"measure": measure, "value": value, "stderr": values[error]}
    raise ConfigError(f"a suite gave {', '.join(values)} and no value with a standard error: leave it out")
