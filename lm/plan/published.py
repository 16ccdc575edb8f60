"""What others have measured beside what we plan for the same models on the same chips (`lm.plan.published_runs`): how wrong the cost
model is."""

import pathlib
import statistics
from collections.abc import Callable

from lm import cli, objectives
from lm.errors import PlanError
from lm.plan import topology
from lm.plan.absent import tokenizers_of
from lm.plan.planning import plan
from lm.plan.published_runs import RUNS, config_of, run_of

# Of a plan, what a row of the comparison has.
_PLANNED = ("fits", "bound", "hbm_bytes_per_chip", "estimated_step_seconds", "lower_bound_seconds")


def flops_per_token(name: str) -> float:
    """FLOPs of a token of a published run, by its own account."""
    run, config = run_of(name), config_of(name)
    objective = objectives.make(config, *tokenizers_of(config))
    return 3 * objective.model(config).forward_flops(run.context, causal=not run.every_key)


def compared(name: str, seconds: float | None) -> dict:
    """A published run beside an estimate of `seconds` a step: both MFUs by the run's own account, and the error of the estimate.

    `error` is the estimated over the measured rate, less 1; `rate_error` the same by tokens per second, where they were published.
    What a step costs that could not be compiled is None, and so is all that follows from it.
    """
    run = run_of(name)
    where = topology.parse(run.topology)
    rate = run.rows_here * run.context / seconds if seconds else None
    mfu = rate * flops_per_token(name) / where.chip.peak_flops["bf16"] if rate else None
    return {
        "run": name, "topology": run.topology, "chips": where.chips, "source": run.source, "guesses": run.guesses,
        "published_mfu": run.mfu, "estimated_mfu": mfu, "error": mfu / run.mfu - 1 if mfu else None, "tokens_per_second": rate,
        "published_tokens_per_second": run.tokens_per_second or None,
        "rate_error": rate / run.tokens_per_second - 1 if rate and run.tokens_per_second else None,
    }


def compare(folder: pathlib.Path, names: tuple[str, ...] = tuple(RUNS), say: Callable[[str], None] = print, planned=plan) -> list[dict]:
    """Plans each of the published runs under `folder`/NAME and sets the estimates beside what was published; see `compared`.

    One that does not fit, or whose plan fails (`failure` says why), does not stop the others. `say` is told of each before it is
    planned, which takes a minute or two. ConfigError for a name that there is not.
    """
    rows = []
    for number, name in enumerate(names, start=1):
        run = run_of(name)
        say(f"{number} of {len(names)}: {name} on {run.topology}")
        try:
            found, why = planned(config_of(name), topology.parse(run.topology), folder / name), ""
        except PlanError as error:
            found, why = dict.fromkeys(_PLANNED), str(error)
            say(f"{name}: {why}")
        rows.append(compared(name, found["estimated_step_seconds"]) | {key: found[key] for key in _PLANNED} | {"failure": why})
    return rows


def page(rows: list[dict]) -> str:
    """The comparison as a table for people, and what is not known of the runs."""
    shown = [{"run": row["run"], "chips": row["topology"], "fits": {True: "yes", False: "no", None: "failed"}[row["fits"]],
              "bound": row["bound"] or "", "published MFU %": 100 * row["published_mfu"], "estimated": _percent(row["estimated_mfu"]),
              "error %": _percent(row["error"]),
              "tokens/s of a chip": row["published_tokens_per_second"], "estimated tokens/s": row["tokens_per_second"]} for row in rows]
    lines = [cli.table(shown)]
    errors = sorted(abs(row["error"]) for row in rows if row["error"] is not None)
    if errors:
        middle, largest = statistics.median(errors), errors[-1]
        lines.append(f"{len(errors)} of {len(rows)} estimated: the middle error is {middle:.0%}, the largest {largest:.0%}")
    lines += [f"{row['run']} was not planned: {row['failure']}" for row in rows if row["failure"]]
    return "\n".join(lines + [f"{row['run']}: {row['guesses']}" for row in rows if row["guesses"]])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
