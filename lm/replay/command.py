"""One step of a run made again and examined: a text for a person and an object for a program."""

import dataclasses
import math
import os
import warnings

import jax
import numpy as np

from lm import models
from lm.errors import ConfigError
from lm.replay.documents import Piece, described, piece_at, pieces_of
from lm.replay.rerun import ROUNDING, Rerun, check_step, open_job, other_circumstances, say
from lm.replay.suspects import FLOOR, LOSS_FLOOR, THRESHOLD, Suspect, deviations, judge, overall
from lm.replay.watch import MAX, NONFINITE, NORM, RMS, Examined, Examiner, Tensor
from lm.run import open_run
from lm.train.step import row_noise

MOST_REFERENCES = 8
MOST_HISTORY = 50
# The gradient that is examined is summed in another order than that of the step; more than this is another gradient.
SAME_GRADIENT = 1e-2


def replay(workdir: str | os.PathLike, step: int, bisect: bool = False, full_text: bool = False) -> dict:
    """Prints the documents and tensors of a step (counted from 1, as in metrics.jsonl); returns the result of `scripts/replay.py`."""
    run = open_run(workdir)
    if run.config.objective.name != "causal" or isinstance(run.model, models.ProbabilityModel):
        raise ConfigError(f"{workdir} has model.name={run.config.model.name} and objective.name={run.config.objective.name}: only steps of "
                          "objective.name=causal, with a model that has an output matrix, can be made again")
    check_step(run, step)
    job = open_job(run)
    pieces = pieces_of(job, step - 1)
    print(f"step {step}: {job.config.data.global_batch} rows of {job.config.data.context} tokens")
    print(described(job, pieces, full_text), flush=True)
    rerun, examiner = Rerun(job, run.checkpoints, step), Examiner(job.model, job.objective, job.config, job.mesh)
    with jax.set_mesh(job.mesh):
        examination = _examined(job, rerun, examiner, bisect)
    agreement = _agreement(run, job, rerun)
    examples = _examples(pieces, examination.rows)
    suspect = _suspect(job, pieces, examination)
    print("\n".join([_table(examination), *_row_lines(examples), *_verdict(agreement, examination, suspect, bisect)]), flush=True)
    last = rerun.checks[-1]
    _check_examined(examination.whole, last)
    recorded = last["recorded"] or {"loss": None, "grad_norm": None}
    return _plain({
        "step": step, "from_checkpoint": rerun.start, "rerun_steps": step - 1 - rerun.start, "loss": last["loss"],
        "grad_norm": last["grad_norm"], "recorded_loss": recorded["loss"], "recorded_grad_norm": recorded["grad_norm"], **agreement,
        "documents": [dataclasses.asdict(piece) for piece in pieces], "examples": examples, "layers": _layers(examination),
        "steps_before": _against(examination), "suspect": suspect,
    })


@dataclasses.dataclass
class Examination:
    """A step examined: the whole batch, with `bisect` each row alone, and what was found. `index` is the first bad entry of a parameter."""

    tensors: list[Tensor]
    whole: Examined
    rows: list[Examined]
    history: list[dict]
    suspect: Suspect | None
    index: list[int] | None
    batch: dict


def _examined(job, rerun: Rerun, examiner: Examiner, bisect: bool) -> Examination:
    """Makes the steps again, and examines the last one, and with `bisect` some before it."""
    step, references, found = rerun.step, [], None
    for done, state, batch in rerun:
        if done == rerun.start:
            before = step - 1 - done
            say(f"from {f'the checkpoint of step {done}' if done else 'the initial state'}: {before} step{'s' * (before != 1)} up to "
                f"the state before step {step}, and that one")
        if done < step - 1 and not (bisect and done >= step - 1 - MOST_REFERENCES):
            continue
        params, noise = examiner.place(state.params), row_noise(job.config.seed, done, len(batch["weights"]))
        whole = examiner.batch(params, batch, noise)
        if done < step - 1:
            references.append(whole)
            continue
        rows = [examiner.row(params, batch, noise, row, whole.weights) for row in range(len(noise))] if bisect else []
        history = _history(rerun)
        suspect = judge(examiner.tensors, whole, rows, references, history) if bisect else None
        found = Examination(examiner.tensors, whole, rows, history, suspect, _first_bad_entry(examiner.tensors, params, suspect), batch)
    return found


def _check_examined(whole: Examined, made: dict):
    """Warns when what was examined is not what the step did: then this module and the train step have come apart."""
    for name, value in (("loss", whole.loss), ("grad_norm", whole.grad_norm)):
        if math.isfinite(made[name]) and not math.isclose(value, made[name], rel_tol=SAME_GRADIENT):
            warnings.warn(f"the statistics are of a {name} of {value:.6g}, but the step had {made[name]:.6g}", stacklevel=2)


def _history(rerun: Rerun) -> list[dict]:
    """Loss and gradient norm of steps before, recorded or made again; those that were finite."""
    lines = rerun.recorded | {check["step"]: check for check in rerun.checks}
    before = [lines[step] for step in sorted(lines) if step < rerun.step]
    finite = [line for line in before if all(math.isfinite(line[name] or 0.0) and line[name] for name in ("loss", "grad_norm"))]
    return finite[-MOST_HISTORY:]


def _first_bad_entry(tensors, params, suspect) -> list[int] | None:
    """Index of the first entry that is not finite of the parameter that a suspect names."""
    if suspect is None or suspect.finding is None or suspect.finding.what != "parameter":
        return None
    tensor = next(tensor for tensor in tensors if tensor.name == suspect.finding.name)
    for key in tensor.path:
        params = params[key]
    leaf = np.asarray(params if tensor.layer is None else params[tensor.layer])
    return np.argwhere(~np.isfinite(leaf))[0].tolist()


def _agreement(run, job, rerun) -> dict:
    """Whether what was recorded came out again: {agrees, relative_difference, checked_steps, differs}."""
    checked = [check for check in rerun.checks if check["recorded"]]
    if not checked:
        return {"agrees": None, "relative_difference": None, "checked_steps": [], "differs": []}
    difference = max(check["difference"] for check in checked)
    differs = other_circumstances(run, job) if difference else []
    if difference > ROUNDING:
        differs.append("this is more than rounding: the checkpoint, metrics.jsonl or the code is not what it was when the run wrote them")
    return {"agrees": difference == 0, "relative_difference": difference, "checked_steps": [check["step"] for check in checked],
            "differs": differs}


def _examples(pieces: list[Piece], rows: list[Examined]) -> list[dict]:
    """Loss and gradient norm of each row alone: of the mean over its own targets."""
    far = deviations([row.grad_norm for row in rows])
    far_loss = deviations([row.loss for row in rows], floor=LOSS_FLOOR)
    return [{"row": row, "documents": [piece.id for piece in pieces if piece.row == row], "loss": examined.loss,
             "loss_deviations": float(far_loss[row]), "grad_norm": examined.grad_norm, "grad_norm_deviations": float(far[row]),
             "finite": math.isfinite(examined.loss) and math.isfinite(examined.grad_norm)} for row, examined in enumerate(rows)]


def _layers(examination: Examination) -> list[dict]:
    """Every tensor in the order of computation, with its statistics and those of its gradient."""
    entries, whole = [], examination.whole
    for tensor in examination.tensors:
        is_weight = tensor.kind == "parameter"
        own, gradient = (whole.weights, whole.gradients) if is_weight else (whole.forward, whole.backward)
        entry = {"name": tensor.name, "weight" if is_weight else "activation": _numbers(tensor.kind, own[tensor.name])}
        entries.append(entry | {"gradient": _numbers(tensor.kind, gradient[tensor.name]) if tensor.name in gradient else None})
    return entries


def _numbers(kind, statistics) -> dict:
    values = overall(kind, statistics)
    numbers = {"rms": values[RMS], "max": values[MAX], "nonfinite": int(values[NONFINITE]), "finite": not values[NONFINITE]}
    return numbers | ({"norm": values[NORM]} if kind == "parameter" else {})


def _suspect(job, pieces, examination: Examination) -> dict | None:
    """The suspect with its documents: of the token where the first row is worst, else of the rows."""
    suspect = examination.suspect
    if suspect is None:
        return None
    row = suspect.rows[0] if suspect.rows else None
    at = piece_at(pieces, row, suspect.place) if row is not None and suspect.place is not None else None
    token = None
    if at is not None:
        inputs, targets = (int(examination.batch[name][row, suspect.place]) for name in ("tokens", "targets"))
        decode = job.prepared.tokenizer.decode
        token = {"place": suspect.place, "input": inputs, "input_text": decode([inputs]), "target": targets,
                 "target_text": decode([targets]), "document": at.id,
                 "document_token": at.document_tokens[0] + suspect.place - at.row_tokens[0]}
    return {"kind": suspect.kind, "reason": suspect.reason, "row": row, "rows": suspect.rows, "token": token,
            "documents": [dataclasses.asdict(piece) for piece in pieces if piece.row in suspect.rows],
            "tensor": suspect.finding and dataclasses.asdict(suspect.finding) | {"index": examination.index}}


def _table(examination: Examination) -> str:
    """The tensors in the order of computation, a line each."""
    entries = _layers(examination)
    width = max(len(entry["name"]) for entry in entries)
    lines = [f"{'tensor':<{width}}  {'of':<10} {'rms':>10} {'max':>10} {'gradient rms':>13} {'max':>10}  not finite"]
    for entry in entries:
        kind = "weight" if "weight" in entry else "activation"
        gradient = entry["gradient"] or {"rms": None, "max": None, "nonfinite": 0}
        columns = [f"{number:.3g}" if number is not None else "" for number in (entry[kind]["rms"], entry[kind]["max"], gradient["rms"],
                                                                                gradient["max"])]
        bad = [f"{count} in {what}" for count, what in ((entry[kind]["nonfinite"], "value"), (gradient["nonfinite"], "gradient")) if count]
        lines.append(f"{entry['name']:<{width}}  {kind:<10} {columns[0]:>10} {columns[1]:>10} {columns[2]:>13} {columns[3]:>10}  "
                     f"{', '.join(bad)}".rstrip())
    return "\n".join(lines)


def _row_lines(examples: list[dict]) -> list[str]:
    return [f"row {example['row']:>3} alone: loss {example['loss']:.4f} ({example['loss_deviations']:+.1f} deviations)  "
            f"gradient norm {example['grad_norm']:.4g} ({example['grad_norm_deviations']:+.1f})" for example in examples]


def _verdict(agreement: dict, examination: Examination, suspect: dict | None, bisect: bool) -> list[str]:
    """Is this the run, and what is wrong with the step."""
    steps = agreement["checked_steps"]
    if agreement["agrees"] is None:
        lines = ["the run recorded none of the steps made again: whether this is the run cannot be told"]
    elif agreement["agrees"]:
        lines = [f"loss and gradient norm of {len(steps)} recorded step{'s' * (len(steps) != 1)} came out again bit for bit"]
    else:
        lines = [f"loss or gradient norm differ by up to {agreement['relative_difference']:.2g} (relative) from what was recorded: "
                 + ("; ".join(agreement["differs"]) or "why is not known")]
    if against := _against(examination):
        lines.append(f"beside {against['steps']} steps before: loss {against['loss']:+.1f} deviations, gradient norm "
                     f"{against['grad_norm']:+.1f}")
    if bisect and suspect is None:
        lines.append(f"nothing is suspect: all is finite, and neither a row nor the step is more than {THRESHOLD:g} deviations out of line")
    return lines + (_accusation(suspect) if suspect else [])


def _against(examination: Examination) -> dict | None:
    """Loss and gradient norm of the step in deviations from the steps before, and how many those are; None without any."""
    usual, whole = examination.history, examination.whole
    far = {name: float(deviations([value], [line[name] for line in usual], floor)[0])
           for name, value, floor in (("loss", whole.loss, LOSS_FLOOR), ("grad_norm", whole.grad_norm, FLOOR))}
    return {"steps": len(usual), **far} if usual and math.isfinite(whole.loss) and math.isfinite(whole.grad_norm) else None


def _accusation(suspect: dict) -> list[str]:
    lines, tensor, token = [f"suspect ({suspect['kind']}): {suspect['reason']}"], suspect["tensor"], suspect["token"]
    if tensor:
        index = f" (first at {tensor['index']})" if tensor["index"] else ""
        usual = "" if tensor["usual"] is None else f", usual {tensor['usual']:.4g}, {tensor['deviations']:.1f} deviations"
        lines.append(f"  first tensor: {tensor['what']} {tensor['name']}, {tensor['statistic']} {tensor['value']:.4g}{index}{usual}")
    if token:
        lines.append(f"  worst at token {token['place']} of row {suspect['row']}: input {token['input']} {token['input_text']!r}, target "
                     f"{token['target']} {token['target_text']!r}; token {token['document_token']} of {token['document']}")
    return lines + [f"  row {piece['row']} holds {Piece(**piece).words}" for piece in suspect["documents"]]


def _plain(value):
    """The value with plain numbers, and null for those that are not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
