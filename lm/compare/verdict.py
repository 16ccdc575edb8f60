"""What a comparison came to, in sentences that claim no more than their intervals."""

import math

from lm.compare.budgets import TOLERANCE, Budget
from lm.compare.statistics import LEVEL

LEVEL_TEXT = f"{100 * LEVEL:g} %"
# How far from a budget of seconds an arm may come out, as a share, until it is said: no two runs take the same.
OF_SECONDS = 0.05
# Arms that a sentence names.
MOST_NAMED = 5
_KINDS = {"parameters": "parameters", "parameters.nonembedding": "non-embedding parameters", "parameters.active": "active parameters",
          "flops": "training FLOPs", "tokens": "tokens", "seconds": "seconds of training", "memory": "bytes of training memory",
          "inference": "decoding FLOPs a token"}


def amount(number: float) -> str:
    """A count as people write it: 655,360, 5.2M and so on, 1.8e15 for more than they have words for."""
    shown = float(f"{number:.3g}")  # 999,999,999 is 1B
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if shown >= 1e15:
            return flops(number)
        if shown >= size:
            return f"{shown / size:.3g}{unit}"
    return f"{number:,.0f}" if number >= 1000 or number == round(number) else f"{number:.3g}"


def flops(number: float) -> str:
    """FLOPs as papers write them: 1.8e13."""
    if not number:
        return "0"
    exponent = math.floor(math.log10(number))
    digits = f"{number / 10.0**exponent:.3g}"
    return f"1e{exponent + 1}" if digits == "10" else f"{digits}e{exponent}"


def budget_text(found: dict) -> str:
    """What all arms were given the same of, by results that have "ask" and may have "arms" with their sizes. Where tokenizers differ, that
    is bytes of text and no number of tokens."""
    budget, tokens = found["ask"]["budget"], found["ask"].get("tokens")
    baseline = found["ask"]["configs"][0]["name"]
    lengths = [(arm["sized"] or {}).get("tokens") for arm in found.get("arms", ()) if not arm["reference"]]
    differ = bool(lengths and lengths[0]) and len(set(filter(None, lengths))) > 1
    if budget is None:
        tokens = tokens or next(iter(lengths), None)
        length = f" ({tokens:,.0f} tokens)" if tokens else ""
        bytes_of = f"on as many bytes of text as {baseline}{length}"
        return f"sizes as they are written, all {bytes_of if differ else f'as long as {baseline}{length}'}"
    kind, much = budget["kind"], budget["amount"]
    if kind == "tokens" and differ:
        return f"as many bytes of text as {amount(much)} tokens of {baseline}"
    shown = flops(much) if kind in ("flops", "inference") else amount(much)
    return f"equal {_KINDS[kind]} ({shown})"


def count(number: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def few(names: list[str]) -> list[str]:
    """The names, or, of more than a sentence can carry, the first of them and how many others there are."""
    return names if len(names) <= MOST_NAMED else [*names[:MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} others"]


def p_text(number: float, equals: str = "") -> str:
    """A p value: `0.03`, after `equals`, or `< 0.001`."""
    return "< 0.001" if number < 0.001 else f"{equals}{number:.2g}"


def interval_text(found: dict, digits: int = 4) -> str:
    """`1.537 [1.531, 1.543]`; the mean alone where there is no interval; nothing where there is no mean."""
    if found["mean"] is None:
        return ""
    text = f"{found['mean']:.{digits}f}"
    return text if found["low"] is None else f"{text} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def difference_text(row: dict) -> str:
    """One difference as a sentence: how much, its interval, or that it is not told apart and what would."""
    a, b = row["a"], row["b"]
    if row["mean"] is None:
        return f"{a} and {b} have no seed in common"
    less = "fewer" if row["mean"] < 0 else "more"
    apart = f"{abs(row['mean']):.4f} bits per byte {less} than {a}"
    if row["low"] is None:
        return f"{b} has {apart}; {count(row['n'], 'seed')}, so without an interval over seeds: it may be chance{_texts(row)}"
    low, high = sorted((abs(row["low"]), abs(row["high"]))) if row["low"] * row["high"] > 0 else (row["low"], row["high"])
    if row["separated"]:
        return f"{b} has {apart} [{low:.4f}, {high:.4f}]{_corrected(row)}"
    return (f"not separated: {b} less {a} is {row['mean']:+.4f} bits per byte [{row['low']:+.4f}, {row['high']:+.4f}]"
            f"{_corrected(row)}{_power(row)}")


def _texts(row) -> str:
    wide = row.get("bootstrap")
    return f" (over documents alone [{wide['low']:+.4f}, {wide['high']:+.4f}])" if wide and wide["low"] is not None else ""


def _corrected(row) -> str:
    if row["tests"] < 2 or row["p_holm"] is None:
        return ""
    return f" (p {p_text(row['p_holm'], '= ')} after Holm's correction of {row['tests']} tests)"


def _power(row) -> str:
    needed = row["seeds_needed"]
    if needed is None or needed <= row["n"]:
        return ""
    corrected = f", allowing for {row['tests']} tests" if row["tests"] > 1 else ""
    return f"; about {needed:,} seeds would separate such a difference in 4 of 5 tries{corrected}"


def verdict(found: dict, arms: list[dict], pairs: list[dict]) -> str:
    """The comparison in a sentence: which arm is ahead, by how much with its interval, and of whom it is told apart; who is not in it; and
    what that rests on: budget, seeds, text. Arms are ranked by the differences of each two, over the seeds that both have."""
    asked = [arm for arm in arms if not arm["reference"]]
    scored = [arm for arm in asked if arm["summary"]["bits_per_byte"]["mean"] is not None]
    names = {arm["name"] for arm in scored}
    rows = [row for row in pairs if {row["a"], row["b"]} <= names]
    start = "Unfinished: " if found["missing"] else ""
    lost = "".join(f"; {text}" for text in filter(None, (_lost(arm, len(found["ask"]["seeds"])) for arm in asked)))
    if not scored:
        return f"{start}no arm has a score{' yet' if start else ''}{lost}."
    if len(scored) == 1:
        others = ", and no other arm a score" if len(asked) > 1 else ""
        said = f"{scored[0]['name']} has {interval_text(scored[0]['summary']['bits_per_byte'])} bits per byte{others}"
    else:
        said = _of_two(rows[0]) if len(scored) == 2 else _of_many(scored, rows)
    if said.startswith("not ") and not start:  # names of arms stay as they are
        said = sentence(said)
    beside = [*off_budget(found["ask"]["budget"], scored), *_at_edges(scored), *_ahead_of_all(scored, arms)]
    return " ".join([f"{start}{said}{lost}. {_ground(found, scored, rows)}", *beside])


def _lost(arm, seeds: int) -> str:
    """That an arm, or some of its seeds, failed or diverged; nothing where none did."""
    failed = {row["run"] for row in arm["failed"]}
    runs = {run for run in failed if "/seeds/" in run}
    without = sum(score.get("diverged") or score.get("bits_per_byte") is None for score in arm["scores"])
    untuned = arm["tuned"] is not None and arm["tuned"]["best"] is None
    kinds = {"diverged" if row.get("diverged") else "failed" for row in arm["failed"]} | ({"diverged"} if without else set())
    how = " or ".join(sorted(kinds, reverse=True))
    if not arm["summary"]["bits_per_byte"]["n"] and (untuned or len(runs) + without == seeds):
        return f"{arm['name']} has no score ({how})"
    number = len(runs) + without
    return f"{number} of {count(seeds, 'seed')} of {arm['name']} {how}" if number else ""


def _of_two(row) -> str:
    seen = row if row["mean"] is None or row["mean"] <= 0 else towards(row, row["b"])
    text = difference_text(seen)
    if row["mean"] is None:
        return text
    if not row["separated"] and not text.startswith("not separated"):
        text = f"not separated: {text}"
    return f"{text} ({seen['means'][1]:.4f} against {seen['means'][0]:.4f})"


def _of_many(scored, pairs) -> str:
    seen = {arm["name"]: [towards(row, arm["name"]) for row in pairs if arm["name"] in (row["a"], row["b"])] for arm in scored}
    ahead = [arm for arm in sorted(scored, key=_mean) if all((row["mean"] or 0) >= 0 for row in seen[arm["name"]])]
    if not ahead or any(row["mean"] is None for row in seen[ahead[0]["name"]]):
        return (f"none of {listed(few([arm['name'] for arm in scored]))} has fewer bits per byte than each other one over the seeds that "
                "both have")
    best = ahead[0]["name"]
    numbers = {arm["name"]: _mean(arm) for arm in scored}
    rows = sorted(seen[best], key=lambda row: numbers[row["b"]])
    said = f"{best} has the fewest bits per byte, {interval_text(ahead[0]['summary']['bits_per_byte'])}"
    apart = few([f"{_gap(row)} fewer than {row['b']}" for row in rows if row["separated"]])
    close = few([f"{row['b']} ({_gap(row)}{_power(row)})" for row in rows if not row["separated"]])
    said += f": {listed(apart)}" if apart else ""
    said += f"; it is not separated from {listed(close)}" if close else ""
    tests = max(row["tests"] for row in rows)
    return said + (f" (Holm's correction for {tests} pairs)" if tests > 1 else "")


def _mean(arm) -> float:
    return arm["summary"]["bits_per_byte"]["mean"]


def towards(row: dict, a: str) -> dict:
    """The difference seen from arm `a`, which is one of the two."""
    if row["a"] == a:
        return row
    turned = row | {"a": row["b"], "b": row["a"]}
    for low, high in (("low", "high"), ("high", "low"), ("mean", "mean")):
        turned[low] = None if row[high] is None else -row[high]
    turned["means"] = row["means"] and row["means"][::-1]
    wide = row.get("bootstrap")
    if wide and wide["low"] is not None:
        turned["bootstrap"] = {"low": -wide["high"], "high": -wide["low"]}
    return turned


def _gap(row) -> str:
    """By how much `b` has more."""
    return f"{row['mean']:.4f}" + ("" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]")


def _ground(found, scored, rows) -> str:
    """What the sentence rests on."""
    numbers = sorted({row["n"] for row in rows} or {scored[0]["summary"]["bits_per_byte"]["n"]})
    what = "paired seed" if rows else "seed"
    seeds = count(numbers[-1], what) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} {what}s"
    interval = f"{LEVEL_TEXT} intervals over " if numbers[-1] > 1 else "without intervals, which one seed cannot give: "
    text = found.get("text")
    size = f"{text['bytes']:,} bytes of " if text and text.get("bytes") else ""
    where = f", on {size}the {text['split']} split of {text['source']}" if text else ""
    return f"At {budget_text(found)}, {interval}{seeds}{where}{_lossy(text)}."


def off_budget(budget: dict | None, arms: list[dict]) -> list[str]:
    """A sentence for each arm whose runs took more or less than a budget allows that was measured before they were trained."""
    measured = {"memory": (lambda score: score.get("memory_bytes"), TOLERANCE, "it was trained on other devices than it was sized on"),
                "seconds": (lambda score: (score.get("train") or {}).get("seconds"), OF_SECONDS,
                            "its steps took another time than when they were measured, so that it is not at equal seconds")}
    if not budget or budget["kind"] not in measured:
        return []
    met, tolerance, why = measured[budget["kind"]]
    told = []
    for arm in arms:
        worst = max((Budget(**budget).error(each) for each in map(met, arm["scores"]) if each), key=abs, default=0.0)
        if abs(worst) > tolerance:
            told.append(f"{arm['name']} is {worst:+.1%} off the budget of {budget['kind']}: {why}.")
    return told


def _at_edges(arms: list[dict]) -> list[str]:
    """A sentence of the arms whose tuning ended at an edge of its grid: what they could do is not known."""
    names = [arm["name"] for arm in arms if (arm["tuned"] or {}).get("edge")]
    return [f"The best rate of {listed(few(names))} is still at an edge of the grid: more --factors there may better it."] if names else []


def _ahead_of_all(scored: list[dict], arms: list[dict]) -> list[str]:
    """A sentence of the references, outside the budget, with fewer bits per byte than every arm that keeps to it."""
    best = min(map(_mean, scored))
    ahead = [arm for arm in arms if arm["reference"] and (_mean(arm) or math.inf) < best]
    named = [f"{arm['name']} ({interval_text(arm['summary']['bits_per_byte'])})" for arm in sorted(ahead, key=_mean)]
    return [f"Outside the budget {listed(few(named))} {'has' if len(named) == 1 else 'have'} fewer than all of them."] if named else []


def _lossy(text) -> str:
    """That a tokenizer has lost text; nothing where none did."""
    lossy = (text or {}).get("lossy")
    if not lossy:
        return ""
    return f"; the tokenizer of {listed(few(lossy))} loses text, which costs no bits: such scores compare with one another alone"
