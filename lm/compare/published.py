"""RESULTS.md: made from what sweeps and runs have measured, by way of small files that are kept in git; nothing in it is typed by hand.

`keep` takes from work directories what the page says and what that follows from, each run's score among it; `page` makes the page of such
files again, to the byte, means and intervals computed anew from the scores.
"""

import itertools
import json
import math
import pathlib
import re

from lm.compare import results
from lm.compare.ask import FILE as ASK
from lm.compare.budgets import KINDS
from lm.compare.report import markdown, tables
from lm.compare.verdict import budget_text, flops, interval_text, sentence
from lm.errors import ConfigError, DataError

VERSION = 1
# Breakdowns of the loss that a section can show: {name: what its buckets are}.
SHOWN = {"position": "place in the row", "frequency": "decile of frequency", "recall": "what the row had of the target before",
         "copy": "halves of rows that say a run of text twice"}
# Beside these: how each arm was tuned. The line of such a section in `verdicts` is of that.
TUNED = "tuned"
_ASK = ("configs", "references", "budget", "tokens", "sizes", "seeds", "tune", "prompts", "suites", "together")
_SCORE = ("seed", "run", "hash", "commit", "machine", "bits_per_byte", "nats_per_token", "stderr", "tokens", "bytes", "documents",
          "diverged", "memory_bytes", "task")
_TRAIN = ("parameters", "tokens", "seconds", "tokens_per_second", "mfu", "flops", "together")
_RUN = ("name", "family", "objective", "parameters", "tokens", "flops", "seconds", "bits_per_byte", "stderr", "seed", "commit", "machine",
        "hash")
HEAD = """# Results

Made by `scripts/report.py` alone, from the work directories of sweeps and runs; what it takes from them is in [{folder}]({folder}), and a
test makes this page again from that, to the byte. Scores are bits per byte of raw text; brackets are 95 % intervals over seeds (Student's
t), of differences paired by seed. Hash and commit name the config and code of an arm's first seed; seconds and FLOPs are of one run, means
over seeds.
"""


def keep(workdirs, title: str = "", question: str = "", note: str = "", show: tuple[str, ...] = ()) -> dict:
    """What RESULTS.md needs of sweeps and runs, a few kB: {"version", "title", "question", "note", "show", "sweeps", "runs"}.

    `question` stands above the tables, `note` below; `show` names breakdowns of the loss (SHOWN) to be shown too, or TUNED. ConfigError
    for a folder that is neither a sweep nor a run; DataError for a sweep that has not finished.
    """
    known = [*SHOWN, TUNED]
    unknown = [name for name in show if name not in known]
    if unknown:
        raise ConfigError(f"--show={','.join(unknown)} is not known: use {' or '.join(known)}")
    folders = [pathlib.Path(workdir) for workdir in workdirs]
    for folder in folders:
        if not any((folder / name).exists() for name in (ASK, "config.json")):
            raise ConfigError(f"{folder} has neither {ASK} nor config.json: it is no work directory of a sweep or a run")
    sweeps = [_trimmed(results.gather(folder), show) for folder in folders if (folder / ASK).exists()]
    unfinished = [sweep["missing"][0] for sweep in sweeps if sweep["missing"]]
    if unfinished:
        raise DataError(f"a sweep has not finished ({unfinished[0]}): run scripts/compare.py on its work directory again first")
    runs = [folder for folder in folders if not (folder / ASK).exists()]
    return {"version": VERSION, "title": title or (markdown.title(sweeps[0]) if sweeps else "Runs"), "question": question, "note": note,
            "show": list(show), "sweeps": sweeps, "runs": _runs(runs) if runs else []}


def read(path) -> dict:
    """What was kept in a file. DataError when it is not of this version."""
    try:
        kept = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): make it with scripts/report.py WORKDIR --store={path}") from error
    if not isinstance(kept, dict) or kept.get("version") != VERSION:
        raise DataError(f"{path} is not of version {VERSION}: make it again with scripts/report.py WORKDIR --store={path}")
    return kept


def page(sections: list[dict], folder: str = "docs/results") -> str:
    """The whole of RESULTS.md from what was kept, in the order given."""
    return "\n".join([HEAD.format(folder=folder), *(f"## {kept['title']}\n\n{section(kept)}\n" for kept in sections)])


def section(kept: dict) -> str:
    """What was kept as Markdown, without its title."""
    sweeps = [results.summarise(sweep) for sweep in kept["sweeps"]]
    parts = [kept["question"], *([markdown.table(across(sweeps)), crossings(sweeps)] if len(sweeps) > 1 else [])]
    for sweep in sweeps:
        parts += [f"### {sentence(budget_text(sweep))}"] if len(sweeps) > 1 else []
        parts += [f"**{sweep['verdict']}**", markdown.table(rows(sweep))]
        parts += [f"{sentence(SHOWN[kind])}, nats per token:\n\n{markdown.table(breakdown(sweep, kind))}"
                  for kind in kept["show"] if kind != TUNED]
        parts += [markdown.table(tuned_rows(sweep))] if TUNED in kept["show"] else []
        parts += [f"Not in it, because they failed: {'; '.join(failed)}."] if (failed := _failed(sweep)) else []
        parts.append(tables.shared(sweep))
        parts.append(f"{tables.spent(sweep['cost'])}. Again: `{tables.command(sweep['ask'])}`")
    parts += [markdown.table([_run_row(run) for run in kept["runs"]])] if kept["runs"] else []
    return "\n\n".join(filter(None, [*parts, kept["note"]]))


def verdicts(sections: list[dict], page: str = "RESULTS.md") -> str:
    """A line for each section of the page, as Markdown: its title, linked, and what its sweeps say."""
    lines = []
    for kept in sections:
        anchor = re.sub(r"[^\w\- ]", "", kept["title"].lower()).replace(" ", "-")
        if TUNED in kept["show"]:
            said = [f"{row['arm']}: {row['tuned']}." for sweep in kept["sweeps"] for row in tuned_rows(sweep)]
        elif len(kept["sweeps"]) > 1:
            said = [crossings(list(map(results.summarise, kept["sweeps"])))]
        else:
            said = outcome(kept)["verdicts"]
        lines.append(f"- **[{kept['title']}]({page}#{anchor})** {' '.join(said)}")
    return "\n".join(lines)


def outcome(kept: dict) -> dict:
    """{"title", "verdicts", "runs": how many of them} of what was kept."""
    verdicts = [results.summarise(sweep)["verdict"] for sweep in kept["sweeps"]]
    count = sum(len(arm["scores"]) for sweep in kept["sweeps"] for arm in sweep["arms"]) + len(kept["runs"])
    return {"title": kept["title"], "verdicts": verdicts, "runs": count}


def rows(sweep: dict) -> list[dict]:
    """A row an arm, as RESULTS.md has it; `sweep` is summarised."""
    baseline = next(arm["name"] for arm in sweep["arms"] if not arm["reference"])
    differences = {row["b"]: row for row in sweep["differences"]}
    found = []
    for arm in sweep["arms"]:
        first = (arm["scores"] or [{}])[0]
        mean = {name: summary["mean"] for name, summary in arm["summary"].items()}
        row, other = differences.get(arm["name"]), "reference" if arm["reference"] else "baseline"
        found.append({
            "arm": arm["name"], "config": (first.get("hash") or "")[:12], "commit": commit_of(first), "machine": first.get("machine") or "",
            "parameters": tables.form(tables.parameters(arm), "{:,}"), "tokens": tables.form(mean["tokens"], "{:,.0f}"),
            "tuned": ", ".join(f"{key.partition('.')[2]} {number:g}" for key, number in tuned_values(arm).items()) + _edge(arm),
            "bits per byte": interval_text(arm["summary"]["bits_per_byte"]), "seeds": str(arm["summary"]["bits_per_byte"]["n"]),
            f"less {baseline}": tables.signed(row) + _verdict_mark(row) if row else other,
            "training FLOPs": tables.form(mean["flops"], flops), "seconds": tables.form(mean["seconds"], tables.seconds)})
    return found


def across(sweeps: list[dict]) -> list[dict]:
    """A row a sweep, a column an arm and then a difference: how scores go over budgets. Cells of what a sweep has not are empty."""
    arms = [{arm["name"]: interval_text(arm["summary"]["bits_per_byte"]) for arm in sweep["arms"]} for sweep in sweeps]
    apart = [{f"{row['b']} less {row['a']}": tables.signed(row) + _verdict_mark(row) for row in sweep["differences"]} for sweep in sweeps]
    return [{"budget": budget_text(sweep)} | of_arms | of_pairs
            for sweep, of_arms, of_pairs in zip(sweeps, _aligned(arms), _aligned(apart), strict=True)]


def crossings(sweeps: list[dict]) -> str:
    """Where the difference of two arms changes its sign over budgets of one kind, a sentence a pair; "" for budgets of several kinds.

    Between two budgets it is taken as straight in the logarithm of the budget. Means alone: a difference that is not separated has no sign
    to speak of, and the table beside says which are not.
    """
    budgets = [sweep["ask"]["budget"] for sweep in sweeps]
    if len({budget and budget["kind"] for budget in budgets}) > 1 or None in budgets:
        return ""
    ordered = sorted(zip(budgets, sweeps, strict=True), key=lambda pair: pair[0]["amount"])
    found: dict[tuple, list] = {}
    for budget, sweep in ordered:
        for row in sweep["differences"]:
            if row["mean"] is not None:
                found.setdefault((row["a"], row["b"]), []).append((budget["amount"], row))
    unit = KINDS[budgets[0]["kind"]]
    return " ".join(_crossing(a, b, points, unit) for (a, b), points in found.items() if len(points) > 1)


def _crossing(a: str, b: str, points: list[tuple[float, dict]], unit: str) -> str:
    """The sentence of a pair: `points` are (budget, difference), budgets rising."""
    places = []
    for (low, before), (high, after) in itertools.pairwise(points):
        if before["mean"] and before["mean"] * after["mean"] <= 0:
            share = before["mean"] / (before["mean"] - after["mean"])
            at = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
            places.append(f"at about {at:.2g} {unit}, between {low:.3g} and {high:.3g}")
    first, last = (tables.signed(row) for _, row in (points[0], points[-1]))
    ends = f"{b} less {a} goes from {first} bits per byte at {points[0][0]:.3g} {unit} to {last} at {points[-1][0]:.3g}"
    return f"{ends}: the curves cross {' and '.join(places)}." if places else f"{ends}: the curves do not cross there."


def _aligned(found: list[dict]) -> list[dict]:
    """Rows with the columns of all of them."""
    columns = dict.fromkeys(name for row in found for name in row)
    return [{name: row.get(name, "") for name in columns} for row in found]


def breakdown(sweep: dict, kind: str) -> list[dict]:
    """A row an arm, a column a bucket: the mean loss over seeds."""
    found = []
    for arm in sweep["arms"]:
        buckets = [tables.by_bucket(score, kind) for score in results.usable(arm["scores"])]
        names = dict.fromkeys(name for one in buckets for name in one)
        means = {name: [one[name] for one in buckets if one.get(name) is not None] for name in names}
        found.append({"arm": arm["name"]} | {name: f"{sum(values) / len(values):.3f}" for name, values in means.items() if values})
    return _aligned(found)


def tuned_rows(sweep: dict) -> list[dict]:
    """A row an arm that was tuned: what was best of how many, and how sharp the optimum is."""
    return [{"arm": arm["name"], "tuned": arm["tuned"]["text"]} for arm in sweep["arms"] if arm["tuned"]]


def tuned_values(arm: dict) -> dict[str, float]:
    """What tuning chose for an arm."""
    return ((arm["tuned"] or {}).get("best") or {}).get("values") or {}


def commit_of(score: dict) -> str:
    """Seven digits, with a + where the checkout had changes."""
    commit = score.get("commit") or ""
    return commit[:7] + ("+" if commit.endswith("+") else "")


def _trimmed(found: dict, show) -> dict:
    """Of a sweep's results what the page says, and what that follows from."""
    arms = [{"name": arm["name"], "reference": arm["reference"], "failed": arm["failed"],
             "sized": arm["sized"] and {name: arm["sized"][name] for name in ("parameters", "tokens", "text")},
             "tuned": arm["tuned"] and {name: arm["tuned"][name] for name in ("best", "edge", "text")},
             "scores": [_score(score, show) for score in arm["scores"]]} for arm in found["arms"]]
    kept = {name: found[name] for name in ("text", "commits", "machines", "missing", "bootstrap", "cost")}
    return {"ask": {name: found["ask"][name] for name in _ASK if name in found["ask"]}, "arms": arms} | kept


def _score(score, show) -> dict:
    kept = {name: score[name] for name in (*_SCORE, *show) if name in score}
    kept["train"] = {name: number for name, number in (score.get("train") or {}).items() if name in _TRAIN}
    if score.get("decode"):
        kept["decode"] = {"milliseconds_per_token": score["decode"]["milliseconds_per_token"]}
    return kept


def _runs(folders) -> list[dict]:
    from lm.compare.runs import load_runs

    records = json.loads(load_runs(folders).to_json(orient="records", double_precision=15))  # null where there is nothing
    return [{name: record[name] for name in _RUN} for record in records]


def _run_row(run) -> dict:
    return {"run": run["name"], "config": run["hash"][:12], "commit": commit_of(run), "machine": run["machine"] or "",
            "parameters": tables.form(run["parameters"], "{:,.0f}"), "tokens": tables.form(run["tokens"], "{:,.0f}"),
            "bits per byte": tables.form(run["bits_per_byte"], "{:.4f}"), "+- over documents": tables.form(run["stderr"], "{:.4f}"),
            "training FLOPs": tables.form(run["flops"], flops), "seconds": tables.form(run["seconds"], tables.seconds)}


def _failed(sweep) -> list[str]:
    return [f"{row['run']} ({row['error']})" for arm in sweep["arms"] for row in arm["failed"]]


def _edge(arm) -> str:
    edge = (arm["tuned"] or {}).get("edge")
    return f" (at the {edge} edge)" if edge else ""


def _verdict_mark(row) -> str:
    return "" if row["separated"] else ", not separated"
