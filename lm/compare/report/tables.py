"""The tables of a report as rows {heading: text}, the same in HTML and Markdown; and the CSV."""

import shlex

from lm import cli
from lm.compare.breakdown import SEEN
from lm.compare.results import buckets, usable, value
from lm.compare.verdict import amount, budget_text, count, flops, interval_text, p_text

# Pairs of arms that are shown: those of seven.
MOST_PAIRS = 21
# What the copy probe gives, by its heading.
COPIED = {"first half": "first", "second half": "second", "first less second": "difference"}
OF_RECALL = ("Nats per token, means over seeds. A target is a seen bigram where it has followed the token before it earlier in its "
             "document within the row, a seen token where it was there without that, else new; what is said twice is often common, so "
             "compare arms and not columns. The halves are of rows that say a run of text twice: what the second saves is copied.")
# Of a score, what is flattened under its own name, or missing.
_NESTED = ("train", "decode", "copy")
# Control characters, which models of bytes write at first and no page may hold, as their pictures.
_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# Headings whose cells stand right; those of arms by their name beside them.
NUMBERS = frozenset((
    "bits per byte", "p", "seeds", "seeds needed", "parameters", "tokens", "training FLOPs", "seconds",
    "tokens/s", "MFU", "memory", "decoding", "over texts too", "seed", "+- over documents", *SEEN, *COPIED))


def scores(results: dict) -> list[dict]:
    """A row an arm: its score, how far it is from the baseline, and what that rests on."""
    differences = {row["b"]: row for row in results["differences"]}
    baseline = next((arm["name"] for arm in results["arms"] if not arm["reference"]), "")
    rows = []
    for arm in results["arms"]:
        found = differences.get(arm["name"])
        away = "reference" if arm["reference"] else "baseline" if arm["name"] == baseline else ""
        rows.append({
            "arm": arm["name"], "bits per byte": interval_text(arm["summary"]["bits_per_byte"]),
            "over texts too": _range(arm["bootstrap"], "") if arm.get("bootstrap") else "",
            f"less {baseline}": signed(found) if found else away,
            f"less {baseline}, over texts too": _range(found["bootstrap"]) if found and found["bootstrap"] else "",
            "p": "" if not found or found["p_holm"] is None else p_text(found["p_holm"]),
            "seeds": str(arm["summary"]["bits_per_byte"]["n"]),
            "seeds needed": "" if not found or found["seeds_needed"] is None else f"{found['seeds_needed']:,}"})
    return rows


def costs(results: dict) -> list[dict]:
    """A row an arm: its size, and the means over seeds of what it cost."""
    rows = []
    for arm in results["arms"]:
        mean = {name: found["mean"] for name, found in arm["summary"].items()}
        rows.append({
            "arm": arm["name"], "parameters": form(parameters(arm), amount), "tokens": form(mean["tokens"], "{:,.0f}"),
            "training FLOPs": form(mean["flops"], flops), "seconds": form(mean["seconds"], seconds),
            "tokens/s": form(mean["tokens_per_second"], "{:,.0f}"), "MFU": form(mean["mfu"], "{:.0%}"),
            "memory": form(mean["memory_bytes"], lambda size: f"{cli.human(size)}B"),
            "decoding": form(mean["milliseconds_per_token"], "{:.2f} ms a token")})
    return rows


def choices(results: dict) -> list[dict]:
    """A row an arm: what the solver made of it, and which values tuning found."""
    _, own = _common(results["ask"])
    entries = {entry["name"]: entry for entry in [*own["configs"], *own["references"]]}
    return [{"arm": arm["name"], "config": spec(entries[arm["name"]]), "size": (arm["sized"] or {}).get("text", ""),
             "tuned": arm["tuned"]["text"] if arm["tuned"] else "not yet" if arm["untuned"] else "as written"} for arm in results["arms"]]


def pairs(results: dict) -> list[dict]:
    """A row for each two arms, of three or more and not so many that nobody would read them."""
    if not 1 < len(results["pairs"]) <= MOST_PAIRS:
        return []
    return [{"of two arms": f"{row['b']} less {row['a']}", "bits per byte": signed(row),
             "p": "" if row["p_holm"] is None else p_text(row["p_holm"]), "": "separated" if row["separated"] else "not separated",
             "seeds needed": "" if row["seeds_needed"] is None else f"{row['seeds_needed']:,}"} for row in results["pairs"]]


def recall(results: dict) -> list[dict]:
    """A row an arm: what targets cost by whether the row had them before, and the halves of a row that says a run twice, in nats per token,
    means over seeds. No rows where no run has either."""
    rows = []
    for arm in results["arms"]:
        found: dict[str, list] = {name: [] for name in (*SEEN, *COPIED)}
        for score in usable(arm["scores"]):
            for name, nats in (by_bucket(score, "recall") | by_bucket(score, "copy")).items():
                found[name].append(nats)
        rows.append({"arm": arm["name"]} | {name: f"{sum(nats) / len(nats):.3f}" if nats else "" for name, nats in found.items()})
    return rows if any(cell for row in rows for name, cell in row.items() if name != "arm") else []


def by_bucket(score: dict, kind: str) -> dict[str, float]:
    """{heading: nats per token} of a breakdown of one run (`lm.compare.results.buckets`); {} where it has none."""
    if kind == "copy":
        return {heading: row[name] for row in buckets(score, kind) for heading, name in COPIED.items()}
    return {_bucket(bucket): bucket["nats_per_token"] for bucket in buckets(score, kind)}


def _bucket(bucket) -> str:
    for name in ("decile", "target"):
        if name in bucket:
            return str(bucket[name])
    return f"{bucket['from']}" if bucket["from"] == bucket["to"] else f"{bucket['from']}-{bucket['to']}"


def suites(results: dict) -> list[dict]:
    """A row for each suite, a column an arm: the mean over seeds with the standard error of the first, or why none was measured."""
    found = {(name, arm["name"], score["seed"]): one for arm in results["arms"] for score in arm["scores"]
             for name, one in (score.get("suites") or {}).items()}
    rows = []
    for name in dict.fromkeys(name for name, _, _ in found):
        of_suite = {key: one for key, one in found.items() if key[0] == name}
        row = {"suite": name, "measure": next((one["measure"] for one in of_suite.values() if one.get("measure")), "")}
        for arm in results["arms"]:
            row[arm["name"]] = _of_seeds([one for key, one in of_suite.items() if key[1] == arm["name"]])
        rows.append(row)
    return rows


def _of_seeds(ones) -> str:
    """What one suite gave the seeds of an arm."""
    measured = [one for one in ones if "error" not in one]
    if not measured:
        return f"failed: {ones[0]['error']}" if ones else ""
    error = measured[0].get("stderr")
    mean = f"{sum(one['value'] for one in measured) / len(measured):.4g}" + (f" ± {error:.2g}" if error else "")
    return mean if len(measured) == len(ones) else f"{mean} (of {len(measured)} of {len(ones)} seeds)"


def samples(results: dict) -> list[dict]:
    """Prompts with what the first seed of each arm that was given them makes of them: [{"prompt", "how", "texts": [{"arm", "how",
    "text"}]}]."""
    said: dict[tuple, list] = {}
    for arm in results["arms"]:
        for sample in next((score["samples"] for score in arm["scores"] if score.get("samples")), ()):
            own = {"arm": arm["name"], "how": _how(sample), "text": sample["text"].translate(_SHOWN)}
            said.setdefault((sample["prompt"].translate(_SHOWN), _how(sample)), []).append(own)
    return [{"prompt": prompt, "how": how, "texts": texts} for (prompt, how), texts in said.items()]


def _how(sample) -> str:
    temperature = sample.get("temperature")
    return "" if temperature is None else f"at temperature {temperature:g}" if temperature else "greedily"


def runs(results: dict) -> list[dict]:
    """A row a run, as it ended."""
    return [{"arm": arm["name"], "seed": str(score["seed"]), "bits per byte": form(score.get("bits_per_byte"), "{:.4f}"),
             "+- over documents": form(score.get("stderr"), "{:.4f}"), "tokens": form(_train(score, "tokens"), "{:,.0f}"),
             "seconds": form(_train(score, "seconds"), seconds), "config": (score.get("hash") or "")[:12],
             "commit": (score.get("commit") or "")[:7], "": "diverged" if score.get("diverged") else ""}
            for arm in results["arms"] for score in arm["scores"]]


def failures(results: dict) -> list[dict]:
    """A row for each run that failed."""
    return [{"failed run": row["run"], "error": row["error"]} for arm in results["arms"] for row in arm["failed"]]


def settings(results: dict) -> list[dict]:
    """A row for each key of the config that arms differ in."""
    return [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in results["config_differences"]]


def parameters(arm: dict) -> int | None:
    """Parameters of an arm as it was sized, or as its first run counted them; None where neither says."""
    counted = (_train(score, "parameters") for score in arm["scores"])
    return (arm["sized"] or {}).get("parameters") or next(filter(None, counted), None)


def shared(results: dict) -> str:
    """That speeds were measured beside other workers, as a sentence; nothing where each worked alone."""
    most = max((value(score, ("task", "workers")) or 1 for arm in results["arms"] for score in arm["scores"]), default=1)
    return f"Speeds were measured with {most} workers at once: those of one machine share it." if most > 1 else ""


def asked(results: dict) -> list[tuple[str, str]]:
    """What the comparison was asked, as pairs of a name and a text."""
    ask = results["ask"]
    common, own = _common(ask)
    facts = [(f"{'baseline' if number == 0 else 'arm'} {entry['name']}", spec(entry)) for number, entry in enumerate(own["configs"])]
    facts += [(f"beside them {entry['name']}", spec(entry)) for entry in own["references"]]
    if common:
        facts.append(("for all of them", ", ".join(f"{key}={setting}" for key, setting in common.items())))
    facts += [("budget", budget_text(results)), ("seeds", ", ".join(map(str, ask["seeds"])))]
    if ask.get("tokens"):
        facts.append(("tokens", f"{ask['tokens']:,}"))
    tune = ask.get("tune")
    if tune:
        facts.append(("tuning", f"{_keys(tune)} times {', '.join(f'{factor:g}' for factor in tune['factors'])}, halved after "
                      f"{', '.join(f'{share:.0%}' for share in tune['shares'])} of the tokens, at most {tune['extensions']} factors more"))
    else:
        facts.append(("tuning", "none: rates as they are written"))
    return facts + ([("suites", ", ".join(ask["suites"]))] if ask.get("suites") else [])


def provenance(results: dict) -> list[tuple[str, str]]:
    """Where the numbers are from: commit, hardware, versions, and what all runs cost."""
    environment, cost = results["environment"] or {}, results["cost"]
    facts = [("commit", ", ".join(results["commits"]) or "not known"), ("hardware", "; ".join(results["machines"]) or "not known")]
    if environment:
        packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        facts += [("software", f"Python {environment['python']}, {packages}"), ("begun", environment["time"])]
    return [*facts, ("cost of the whole sweep", spent(cost))]


def spent(cost: dict) -> str:
    """What all runs of a sweep cost."""
    return (f"{count(cost['runs'], 'run')}, {cost['trials']:,} of them trials: {flops(cost['flops'])} training FLOPs, "
            f"{duration(cost['seconds'])} in steps")


def spec(entry: dict) -> str:
    """A config as it was asked for: `configs/gru.py[optim.name=adamw]`."""
    changes = ",".join(f"{key}={setting}" for key, setting in (entry.get("overrides") or {}).items())
    return entry["spec"] + (f"[{changes}]" if changes else "")


def command(ask: dict) -> str:
    """The command that makes the sweep again."""
    common, own = _common(ask)
    words = ["python", "scripts/compare.py", f"--configs={','.join(map(_argument, own['configs']))}"]
    words += [f"--references={','.join(map(_argument, own['references']))}"] if own["references"] else []
    words += [f"--config.{key}={setting}" for key, setting in common.items()]
    words += [f"--budget={ask['budget']['kind']}:{ask['budget']['amount']:.12g}"] if ask["budget"] else []
    words += [f"--tokens={ask['tokens']}"] if ask.get("tokens") else []
    words += [f"--sizes={ask['sizes']}"] if ask.get("sizes", "solve") != "solve" else []
    words += _tuning(ask.get("tune"))
    words += [f"--prompts={prompt}" for prompt in ask.get("prompts", ())]
    words += [f"--suites={','.join(ask['suites'])}"] if ask.get("suites") else []
    words += [f"--together={ask['together']}"] if ask.get("together", "auto") != "auto" else []
    return shlex.join([*words, f"--seeds={len(ask['seeds'])}", "--workdir=WORKDIR"])


def _tuning(tune) -> list[str]:
    if not tune:
        return ["--tune=none"]
    lists = {name: ",".join(f"{number:.12g}" for number in tune[name]) for name in ("factors", "shares")}
    return [f"--tune={_keys(tune)}", *(f"--{name}={text}" for name, text in lists.items())]


def _keys(tune) -> str:
    return tune["keys"] if isinstance(tune["keys"], str) else ",".join(tune["keys"])


def _common(ask: dict) -> tuple[dict, dict]:
    """Overrides that all of two or more entries have, and {"configs", "references"}: the entries with the others alone."""
    entries = {name: ask.get(name) or [] for name in ("configs", "references")}
    first, *rest = [set((entry.get("overrides") or {}).items()) for kind in entries.values() for entry in kind]
    shared = first.intersection(*rest) if rest else set()
    common = {key: setting for key, setting in (entries["configs"][0].get("overrides") or {}).items() if (key, setting) in shared}
    return common, {name: [entry | {"overrides": {key: setting for key, setting in (entry.get("overrides") or {}).items()
                                                  if key not in common}} for entry in kind] for name, kind in entries.items()}


def _argument(entry) -> str:
    """The entry as --configs takes it, under its own name where the file does not say it."""
    stem = entry["spec"].rpartition("/")[2].replace(".py:", "-").removesuffix(".py")
    return spec(entry) if entry["name"] == stem and not entry["overrides"] else f"{entry['name']}={spec(entry)}"


def seconds(number: float) -> str:
    """Seconds: whole ones, of less than ten two digits."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3.4 h`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def signed(row: dict) -> str:
    """A difference with its sign and interval."""
    if row["mean"] is None:
        return ""
    return f"{row['mean']:+.4f}" + ("" if row["low"] is None else f" {_range(row)}")


def csv(results: dict) -> str:
    """Comma-separated values: a row for each arm and seed, with what was measured of that run, and of its arm the mean with its intervals,
    how far it is from the baseline, and what was chosen."""
    import pandas

    differences = {row["b"]: row for row in results["differences"]}
    rows = []
    for arm in results["arms"]:
        of_arm = {"arm": arm["name"], "reference": arm["reference"], "parameters": (arm["sized"] or {}).get("parameters")}
        apart = differences.get(arm["name"], {})
        after = _chosen(arm["tuned"] or {}) | _interval("mean", arm["summary"]["bits_per_byte"], arm.get("bootstrap"))
        after |= _interval("difference", apart, apart.get("bootstrap"))
        rows += [of_arm | _of_run(score) | after for score in arm["scores"]]
    return pandas.DataFrame(rows).to_csv(index=False)


def _of_run(score: dict) -> dict:
    """What was measured of a run, flat."""
    flat = {name: cell for name, cell in score.items() if not isinstance(cell, (dict, list)) and name not in _NESTED}
    for name in _NESTED:
        flat |= {f"{name}.{part}": cell for part, cell in (score.get(name) or {}).items()}
    return flat | {f"recall.{name}": nats for name, nats in by_bucket(score, "recall").items()}


def _interval(name: str, found: dict, bootstrap: dict | None) -> dict:
    """A mean or a difference in bits per byte with both of its intervals: over seeds, and over seeds and documents."""
    ends = {f"{name}.bootstrap_{end}": (bootstrap or {}).get(end) for end in ("low", "high")}
    return {f"{name}.{part}" if part != "mean" else name: found.get(part) for part in ("mean", "low", "high")} | ends


def _chosen(tuned: dict) -> dict:
    """What tuning found: values, the edge of the grid that they are at, and how sharp the optimum is (`sharpness`)."""
    values = {f"tuned.{key}": setting for key, setting in ((tuned.get("best") or {}).get("values") or {}).items()}
    return values | ({f"tuned.{name}": found for name, found in ({"edge": tuned.get("edge")} | sharpness(tuned)).items()} if tuned else {})


def sharpness(tuned: dict) -> dict:
    """{"curvature": bits per byte for a squared doubling, "half", "double": how much worse half and double the best value is} of what
    tuning found; None for what is not known."""
    rises = tuned.get("rises") or {}
    return {"curvature": tuned.get("curvature")} | {name: rises.get(name) for name in ("half", "double")}


def _train(score, name):
    return (score.get("train") or {}).get(name)


def form(number, how) -> str:
    """A number by a format or a function; nothing where there is none."""
    return "" if number is None else how.format(number) if isinstance(how, str) else how(number)


def _range(row, sign: str = "+") -> str:
    return "" if row["low"] is None else f"[{row['low']:{sign}.4f}, {row['high']:{sign}.4f}]"
