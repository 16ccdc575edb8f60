"""What a sweep has found: everything that its report shows, as one value, from the sweep's directory alone, finished or not."""

import itertools
import math
import pathlib

import numpy as np
from ml_collections import ConfigDict

from lm.compare import statistics, tuning
from lm.compare.ask import FILE as ASK
from lm.compare.checks import ARM
from lm.compare.statistics import LEVEL
from lm.compare.tasks import FAILED, SCORE, TUNED
from lm.compare.verdict import difference_text, verdict
from lm.data.files import read_json
from lm.errors import ConfigError

# Of seeds and documents, for each pair of arms.
RESAMPLES = 2_000
# A curve keeps at most so many of a run's lines.
MOST_POINTS = 240
# What is summarised over an arm's seeds: {name: path in score.json}.
MEASURES = {"bits_per_byte": ("bits_per_byte",), "nats_per_token": ("nats_per_token",), "tokens_per_second": ("train", "tokens_per_second"),
            "mfu": ("train", "mfu"), "memory_bytes": ("memory_bytes",), "milliseconds_per_token": ("decode", "milliseconds_per_token"),
            "flops": ("train", "flops"), "seconds": ("train", "seconds"), "tokens": ("train", "tokens")}
# Of these, what is measured of the steps' time.
TIMED = tuple(MEASURES[name] for name in ("tokens_per_second", "mfu", "seconds"))


def gather(workdir) -> dict:
    """Results of the sweep in a work directory (see `summarise` for what follows from the scores alone).

    Keys: ask, environment (of its first run), commits, machines, text (what scores are of: source, split, bytes, documents), arms, pairs,
    differences, verdict, curves, config_differences, cost, missing (sentences; empty when the sweep is over). ConfigError where there is
    none.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / ASK).exists():
        raise ConfigError(f"{workdir} has no {ASK}: it is not the work directory of scripts/compare.py")
    ask = read_json(workdir / ASK)
    entries = [(entry, False) for entry in ask["configs"]] + [(entry, True) for entry in ask.get("references", [])]
    arms = [_arm(workdir, entry["name"], reference, ask) for entry, reference in entries]
    documents = {arm["name"]: _documents(workdir, arm) for arm in arms}
    arms = [arm | {"bootstrap": _own_bootstrap(documents[arm["name"]])} for arm in arms]
    scores = [score for arm in arms for score in arm["scores"]]
    found = {"ask": ask, "environment": _optional(workdir / scores[0]["run"] / "environment.json") if scores else None,
             "commits": sorted({score["commit"] for score in scores if score["commit"]}),
             "machines": sorted({score["machine"] for score in scores if score["machine"]}),
             "text": _text(workdir, arms), "arms": arms, "bootstrap": _bootstraps(arms, documents), "missing": _missing(ask, arms),
             "curves": [_curve(workdir, arm, score) for arm in arms for score in arm["scores"]],
             "config_differences": _config_differences(workdir, arms), "cost": _cost(workdir, arms)}
    return summarise(found)


def summarise(found: dict) -> dict:
    """`found`, with what follows from its scores: a "summary" of each arm, "pairs" of all arms that keep to the budget (corrected for how
    many they are, by Holm), of these the "differences" of each other arm from the baseline, and the "verdict"."""
    arms = [arm | {"summary": {name: _interval(_once(arm["scores"], path), path) for name, path in MEASURES.items()}}
            for arm in found["arms"]]
    named = {arm["name"]: arm for arm in arms if not arm["reference"]}
    bootstraps = {(row["a"], row["b"]): row for row in found.get("bootstrap", [])}
    pairs = [_difference(named[a], named[b], bootstraps.get((a, b))) for a, b in itertools.combinations(named, 2)]
    _correct(pairs)
    for row in pairs:
        row["text"] = difference_text(row)
    baseline = next(iter(named), None)
    differences = [pair.copy() for pair in pairs if pair["a"] == baseline]
    return found | {"arms": arms, "pairs": pairs, "differences": differences} | {"verdict": verdict(found, arms, pairs)}


def curve_frame(results: dict):
    """Points of all curves as a pandas frame: arm, seed, step, tokens, flops, seconds, loss (nats per target), bits_per_byte (or NaN)."""
    import pandas

    rows = [{"arm": curve["arm"], "seed": curve["seed"]} | point for curve in results["curves"] for point in curve["points"]]
    columns = ("arm", "seed", "step", "tokens", "flops", "seconds", "loss", "bits_per_byte")
    frame = pandas.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(columns[3:], float))


def profile_frame(tuned: dict):
    """Trials of an arm's tuning as a pandas frame: rung, share, factor, score (bits per byte; NaN where it diverged), diverged."""
    import pandas

    rows = [{"rung": number, "share": rung["share"]} | {key: trial[key] for key in ("factor", "score", "diverged")}
            for number, rung in enumerate(tuned["rungs"]) for trial in rung["trials"]]
    return pandas.DataFrame(rows, columns=["rung", "share", "factor", "score", "diverged"]).astype({"score": float, "factor": float})


def breakdown_frame(results: dict, kind: str):
    """Loss by "position" (of a row), "frequency" (of the target in training) or "recall" (whether the target was in the row before), a row
    for each arm, seed and bucket, as a pandas frame; of "copy" (`lm.compare.copying`) a row for each arm and seed."""
    import pandas

    rows = [{"arm": arm["name"], "seed": score["seed"]} | bucket
            for arm in results["arms"] for score in arm["scores"] for bucket in buckets(score, kind)]
    return pandas.DataFrame(rows)


def buckets(score: dict, kind: str) -> list[dict]:
    """What a score has of a breakdown, [] where it has nothing, as one from before there was this breakdown."""
    found = score.get(kind) or []
    return [found] if isinstance(found, dict) else found


def usable(scores: list[dict]) -> list[dict]:
    """Scores of runs that did not diverge and have bits per byte."""
    return [score for score in scores if not score.get("diverged") and score.get("bits_per_byte") is not None]


def value(score: dict, path: tuple[str, ...]):
    """What a score has at a path, None where it has nothing."""
    for name in path:
        score = (score or {}).get(name)
    return score


def _optional(path):
    return read_json(path) if path.exists() else None


def _arm(workdir, name, reference, ask) -> dict:
    from lm.compare.runs import machine_of  # what is summarised again needs no JAX

    root = workdir / "arms" / name
    scores, failed = [], []
    for seed in ask["seeds"]:
        run = root / "seeds" / str(seed)
        score = _optional(run / SCORE)
        if score is not None:
            config, environment = (_optional(run / f"{name}.json") or {} for name in ("config", "environment"))
            scores.append(score | {"seed": seed, "run": str(run.relative_to(workdir)), "hash": config.get("hash"),
                                   "commit": environment.get("git"), "machine": machine_of(environment)})
    for file in sorted(root.glob(f"*/*/{FAILED}")):
        told = read_json(file)
        if told["fatal"] and not (file.parent / SCORE).exists():  # else it is tried again
            failed.append({"run": str(file.parent.relative_to(workdir)), "error": told["error"], "diverged": told.get("diverged", False)})
    tuned = _optional(root / TUNED)
    if tuned and tuned["best"] is None:
        diverged = all(trial["diverged"] for rung in tuned["rungs"] for trial in rung["trials"])
        failed.append({"run": str((root / "tune").relative_to(workdir)), "error": _untuned(tuned), "diverged": diverged})
    return {"name": name, "reference": reference, "sized": _optional(root / "sized.json"), "tuned": tuned,
            "untuned": tuned is None and not reference and bool(ask.get("tune")) and _has_rates(root, ask["tune"]["keys"]),
            "scores": scores, "failed": failed}


def _has_rates(root, keys) -> bool:
    """Whether an arm has something to tune, as far as it is planned: what is counted has not, nor has what EM trains."""
    planned = _optional(root / ARM)
    return planned is None or bool(tuning.keys_of(ConfigDict(planned["config"]), keys))


def _untuned(tuned) -> str:
    """Why no trial has a score."""
    trials = [trial for rung in tuned["rungs"] for trial in rung["trials"]]
    diverged = sum(trial["diverged"] for trial in trials)
    failed = sum(trial["score"] is None and not trial["diverged"] for trial in trials)
    why = "every trial diverged" if diverged and not failed else f"{diverged} of {len(trials)} trials diverged and {failed} failed"
    return f"{why}: no rate was found to train with"


def _missing(ask, arms) -> list[str]:
    """What is yet to be done, a sentence an arm."""
    sentences = []
    for arm in arms:
        failed = {row["run"].rpartition("/")[2] for row in arm["failed"] if "/seeds/" in row["run"]}
        there = {score["seed"] for score in arm["scores"]}
        hopeless = arm["tuned"] and arm["tuned"]["best"] is None
        left = [str(seed) for seed in ask["seeds"] if not hopeless and seed not in there and str(seed) not in failed]
        what = ["its size"] if arm["sized"] is None else []
        what += ["tuning"] if arm["untuned"] and left else []
        what += [f"seed{'s' if len(left) > 1 else ''} {', '.join(left)}"] if left else []
        sentences += [f"{arm['name']}: {', '.join(what)}"] if what else []
    return sentences


def _text(workdir, arms) -> dict | None:
    """What the scores are of, by the first run that has one, and the arms whose tokenizer has lost some of it."""
    lossy = [arm["name"] for arm in arms if any(score.get("tokenizer_lossless") is False for score in arm["scores"])]
    for arm in arms:
        for score in arm["scores"]:
            config = (_optional(workdir / score["run"] / "config.json") or {}).get("config")
            if config:
                source = config["data"]["source"]
                return {"source": source if isinstance(source, str) else ", ".join(source), "split": config["eval"]["split"],
                        "bytes": score.get("bytes"), "documents": score.get("documents"), "lossy": lossy}
    return None


def _once(scores, path) -> list[dict]:
    """The scores without those that say again what was measured of seeds trained together: their time is one measurement."""
    kept, seen = [], set()
    for score in usable(scores):
        again = (score.get("train") or {}).get("together", 1) > 1 and path in TIMED and value(score, path) in seen
        seen.add(value(score, path))
        kept += [] if again else [score]
    return kept


def _interval(scores, path) -> dict:
    """Mean and interval over seeds of what scores have at a path; null where there is nothing, or no interval."""
    values = [found for found in (value(score, path) for score in usable(scores)) if found is not None]
    if not values:
        return {"mean": None, "low": None, "high": None, "sd": None, "n": 0}
    return statistics.mean_interval(values, LEVEL)._asdict()


def _difference(a: dict, b: dict, bootstrap: dict | None) -> dict:
    """How two arms differ, by the seeds that both have: b less a, bits per byte; "means" are those of a and b over these seeds."""
    first, second = ({score["seed"]: score["bits_per_byte"] for score in usable(arm["scores"])} for arm in (a, b))
    seeds = [seed for seed in first if seed in second]
    row = {"a": a["name"], "b": b["name"], "mean": None, "low": None, "high": None, "p": None, "sd": None, "n": len(seeds), "seeds": seeds,
           "means": None}
    if seeds:
        values = [[scores[seed] for seed in seeds] for scores in (first, second)]
        row |= statistics.paired_difference(*values, LEVEL)._asdict() | {"means": [sum(of_arm) / len(seeds) for of_arm in values]}
    return row | {"bootstrap": bootstrap and {key: bootstrap[key] for key in ("low", "high")}}


def _correct(rows: list[dict]):
    """Adds Holm's p-values over the rows that have one, whether they tell the two apart, and how many seeds would: at the level divided by
    the tests (Bonferroni), which is what the smallest of Holm's p-values has to meet."""
    tested = [row for row in rows if row["p"] is not None]
    corrected = statistics.holm([row["p"] for row in tested]) if tested else []
    for row in rows:
        row["p_holm"], row["tests"], row["seeds_needed"] = None, len(tested), None
    for row, p in zip(tested, corrected, strict=True):
        row["p_holm"] = float(p)
        row["seeds_needed"] = statistics.seeds_needed(row["mean"], row["sd"], level=1 - (1 - LEVEL) / len(tested))
    for row in rows:
        row["separated"] = row["p_holm"] is not None and row["p_holm"] <= 1 - LEVEL


def _bootstraps(arms, documents) -> list[dict]:
    """Intervals of differences over seeds and documents together, for pairs whose runs have kept their documents."""
    rows = []
    for a, b in itertools.combinations([arm["name"] for arm in arms if not arm["reference"]], 2):
        first, second = documents[a], documents[b]
        seeds = [seed for seed in first if seed in second]
        if not seeds or not _of_one_text([kept[seed] for kept in (first, second) for seed in seeds]):
            continue
        nats = [np.stack([kept[seed][0] for seed in seeds]) for kept in (first, second)]
        found = statistics.bootstrap_documents(*nats, first[seeds[0]][1], LEVEL, RESAMPLES)
        rows.append({"a": a, "b": b, "low": found.low, "high": found.high, "documents": found.n})
    return rows


def _own_bootstrap(kept: dict) -> dict | None:
    """The interval of an arm's score over seeds and documents together, {"low", "high", "documents"}; None where no run kept them."""
    rows = list(kept.values())
    if not rows or not _of_one_text(rows):
        return None
    found = statistics.bootstrap_score(np.stack([nats for nats, _ in rows]), rows[0][1], LEVEL, RESAMPLES)
    return {"low": found.low, "high": found.high, "documents": found.n}


def _of_one_text(rows) -> bool:
    """Whether documents of several runs have the same bytes."""
    return all(np.array_equal(rows[0][1], sizes) for _, sizes in rows)


def _documents(workdir, arm) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{seed: (nats, bytes) by document}."""
    kept = {}
    for score in usable(arm["scores"]):
        path = workdir / score["run"] / "scores" / "documents.npz"
        if path.exists():
            with np.load(path) as file:
                kept[score["seed"]] = (file["nats"], file["bytes"])
    return kept


def _curve(workdir, arm, score) -> dict:
    """A run's lines against all that they cost: tokens, training FLOPs, seconds in steps."""
    from lm.compare.costs import seconds_by_line
    from lm.metrics.writers import read_lines

    lines = read_lines(workdir / score["run"] / "metrics.jsonl")
    trained, spent = [line for line in lines if line["kind"] == "train"], score.get("train") or {}
    per_token = spent["flops"] / spent["tokens"] if spent.get("tokens") else None
    bits = {line["step"]: line.get("bits_per_byte") for line in lines if line["kind"] == "eval"}
    points = [{"step": line["step"], "tokens": line["tokens"], "flops": per_token and per_token * line["tokens"], "seconds": seconds,
               "loss": line.get("loss"), "bits_per_byte": bits.get(line["step"])}
              for line, seconds in zip(trained, seconds_by_line(trained) if trained else [], strict=True)]
    every = math.ceil(len(points) / MOST_POINTS) or 1
    kept = [point for i, point in enumerate(points) if point["bits_per_byte"] is not None or (len(points) - 1 - i) % every == 0]
    return {"arm": arm["name"], "seed": score["seed"], "points": kept}


def _config_differences(workdir, arms) -> list[dict]:
    """Keys that the arms' configs differ in: {"key", arm: value, ...}."""
    flat = {}
    for arm in arms:
        for score in arm["scores"][:1]:
            stored = _optional(workdir / score["run"] / "config.json")
            if stored:
                flat[arm["name"]] = _flat(stored["config"])
    keys = dict.fromkeys(key for config in flat.values() for key in config)
    rows = [{"key": key} | {name: _plain(config.get(key)) for name, config in flat.items()} for key in keys]
    return [row for row in rows if len({str(cell) for name, cell in row.items() if name != "key"}) > 1]


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"a.b": value}; a sweep of an older schema is read too, so keys are taken as they are."""
    flat = {}
    for name, inner in tree.items():
        flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": inner}
    return flat


def _plain(setting):
    return setting if isinstance(setting, (int, float, str, bool, type(None))) else ", ".join(map(str, setting))


def _cost(workdir, arms) -> dict:
    """What all runs of the sweep came to, trials and those that failed or have not finished among them: seconds in steps, FLOPs, how many
    runs and of them trials."""
    spent, trials = [], 0
    for arm in arms:
        for run in sorted(path for path in (workdir / "arms" / arm["name"]).glob("*/*") if path.is_dir()):
            score = _optional(run / SCORE)
            cost = _unfinished_cost(run, arm["sized"] or {}) if score is None else score.get("train") or {}
            if cost is not None:
                spent.append(cost)
                trials += run.parent.name == "tune"
    return {name: sum(cost.get(name) or 0 for cost in spent) for name in ("seconds", "flops", "wall_seconds")} | {
        "runs": len(spent), "trials": trials}


def _unfinished_cost(run, sized) -> dict | None:
    """What a run without a score has spent, by its lines; None where it has not trained."""
    from lm.compare.costs import stepping_seconds
    from lm.metrics.writers import read_lines

    lines = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"] if (run / "metrics.jsonl").exists() else []
    if not lines:
        return None
    return {"seconds": stepping_seconds(lines), "wall_seconds": lines[-1]["seconds"],
            "flops": (sized.get("train_flops_per_token") or 0) * lines[-1]["tokens"]}
