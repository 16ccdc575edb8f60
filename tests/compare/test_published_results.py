"""RESULTS.md: its rows follow from the scores that are kept in git, and the page from what is kept, to the byte."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from lm.compare import published, results
from lm.errors import ConfigError, DataError
from tests.compare.sweeps import make_sweep

ROOT = pathlib.Path(__file__).parents[2]
KEPT = sorted((ROOT / "docs" / "results").glob("*.json"))


def cells(text, name):
    """The cells of an arm's row in the first table of a page that has costs, {heading: text}."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    head = next(line for line in lines if "training FLOPs" in line)
    return dict(zip(head, next(line for line in lines[lines.index(head):] if line[0] == name), strict=True))


def check_row(text, sweep, number):
    """A row of a page is what the scores of its arm come to, by scipy."""
    arm, baseline = sweep["arms"][number], sweep["arms"][0]
    scores, others = ({score["seed"]: score["bits_per_byte"] for score in one["scores"] if score["bits_per_byte"] and not score["diverged"]}
                      for one in (arm, baseline))
    values, row = np.array(list(scores.values())), cells(text, arm["name"])
    expected = f"{values.mean():.4f}"
    if len(values) > 1 and np.ptp(values) > 0:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
        expected += f" [{low:.4f}, {high:.4f}]"
    assert row["bits per byte"].startswith(expected)
    assert (row["config"], row["seeds"]) == (arm["scores"][0]["hash"][:12], str(len(values)))
    seconds = np.mean([score["train"]["seconds"] for score in arm["scores"] if score["seed"] in scores])
    assert row["seconds"] == (f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}")
    both = [seed for seed in scores if seed in others]
    if number and not arm["reference"] and both:
        difference = np.mean([scores[seed] - others[seed] for seed in both])
        assert row[f"less {baseline['name']}"].startswith(f"{difference:+.4f}")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = make_sweep(tmp_path_factory.mktemp("published"), references=("ngram",), failed=[("lstm", 2)])
    return published.keep([folder], question="Which gate?", note="Little text.", show=("position",))


def test_results_md_is_what_is_kept_to_the_byte():
    page = ROOT / "RESULTS.md"
    if not KEPT:
        assert not page.exists(), "RESULTS.md is there, and nothing of docs/results/*.json that it is made from"
        pytest.skip("NO RESULTS HERE YET: docs/results has no file")
    assert page.read_text(encoding="utf-8") == published.page([published.read(file) for file in KEPT]), (
        "RESULTS.md is not what docs/results says: python scripts/report.py --from docs/results/*.json --into=RESULTS.md")


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_every_row_of_results_md_follows_from_its_scores(file):
    kept = published.read(file)
    for sweep in kept["sweeps"]:
        text = published.section(kept | {"sweeps": [sweep], "runs": []})
        for number, arm in enumerate(sweep["arms"]):
            if arm["scores"]:
                check_row(text, sweep, number)


def test_rows_follow_from_scores(kept):
    text = published.section(kept)
    for number in range(4):
        check_row(text, kept["sweeps"][0], number)
    row = cells(text, "gru")
    assert (row["commit"], row["machine"], row["tokens"], row["training FLOPs"]) == ("97027ca", "Linux-x86_64, cpu:cpu", "655,360", "1e13")
    assert row["tuned"] == "learning_rate 0.02" and cells(text, "ngram")["less transformer"] == "reference"


def test_a_changed_score_changes_its_row(kept):
    changed = json.loads(json.dumps(kept))
    changed["sweeps"][0]["arms"][2]["scores"][1]["bits_per_byte"] += 0.01
    with pytest.raises(AssertionError):
        check_row(published.section(kept), changed["sweeps"][0], 2)
    check_row(published.section(changed), changed["sweeps"][0], 2)


def test_a_section_says_question_verdict_failures_cost_and_command(kept):
    text = published.section(kept)
    for part in ("Which gate?", "**gru has the fewest bits per byte", "Not in it, because they failed: arms/lstm/seeds/2", "35 runs",
                 "python scripts/compare.py --configs=configs/lineage/transformer.py", "Little text.", "| 128-255 |"):
        assert part in text
    assert published.page([kept]).startswith("# Results\n") and f"\n## {kept['title']}\n" in published.page([kept])


def test_recall_and_copying_can_be_shown(tmp_path):
    kept = published.keep([make_sweep(tmp_path)], show=("recall", "copy"))
    text = published.section(kept)
    assert "| arm | new | seen token | seen bigram |" in text and "| lstm | 5.900 | 3.900 | 1.900 |" in text
    assert "| arm | first half | second half | first less second |" in text and "| lstm | 4.400 | 3.000 | 1.400 |" in text


def test_what_is_kept_is_small_and_reads_back(kept, tmp_path):
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(kept))
    assert file.stat().st_size < 15_000 and published.read(file) == kept
    assert published.page([published.read(file)]) == published.page([kept])
    file.write_text("{}")
    with pytest.raises(DataError, match="is not of version 1: make it again"):
        published.read(file)
    with pytest.raises(DataError, match="cannot be read"):
        published.read(tmp_path / "absent.json")


def test_several_sweeps_have_a_table_over_their_budgets(tmp_path):
    folders = [make_sweep(tmp_path / str(i), arms=("transformer", "lstm"), budget={"kind": "flops", "amount": 10.0 ** (12 + i)},
                          score=lambda arm, seed, i=i: 2.0 - 0.1 * i + (0.05 * i - 0.05) * arm + 0.01 * seed) for i in range(3)]
    text = published.section(published.keep(folders))
    table = [line for line in text.splitlines() if line.startswith("| equal training FLOPs")]
    assert [re.search(r"1e1\d", line).group() for line in table] == ["1e12", "1e13", "1e14"]
    assert "-0.0500" in table[0] and "+0.0500" in table[2] and text.count("\n### ") == 3


def three_budgets(tmp_path, differences):
    """A section of lstm less transformer at 1e12, 1e13 and 1e14 training FLOPs."""
    folders = [make_sweep(tmp_path / str(i), arms=("transformer", "lstm"), budget={"kind": "flops", "amount": 10.0 ** (12 + i)},
                          score=lambda arm, seed, apart=apart: 2.0 + apart * arm + 0.01 * seed) for i, apart in enumerate(differences)]
    return published.keep(folders[::-1], title="Which, and where do curves cross?")


def test_a_crossing_is_where_a_line_through_logarithms_says(tmp_path):
    kept = three_budgets(tmp_path, [-0.03, -0.01, 0.03])
    sweeps = [results.summarise(sweep) for sweep in kept["sweeps"]]
    text = published.crossings(sweeps)
    assert f"at about {10 ** 13.25:.2g} training FLOPs, between 1e+13 and 1e+14" in text and text.count("at about") == 1
    assert text.startswith("lstm less transformer goes from -0.0300 [") and text in published.section(kept)
    line = published.verdicts([kept])
    assert line == f"- **[Which, and where do curves cross?](RESULTS.md#which-and-where-do-curves-cross)** {text}"
    sweeps[1]["ask"]["budget"] = {"kind": "tokens", "amount": 1e6}
    assert published.crossings(sweeps) == ""


def test_a_section_on_tuning_says_how_each_arm_was_tuned(tmp_path):
    kept = published.keep([make_sweep(tmp_path, arms=("rnn", "gru"))], title="Rates", show=("tuned",))
    texts = {arm["name"]: arm["tuned"]["text"] for arm in kept["sweeps"][0]["arms"]}
    assert published.verdicts([kept]) == f"- **[Rates](RESULTS.md#rates)** rnn: {texts['rnn']}. gru: {texts['gru']}."
    assert all(f"| {name} | {text} |" in published.section(kept) for name, text in texts.items())


def test_curves_that_do_not_cross_are_said_not_to(tmp_path):
    text = published.crossings([results.summarise(sweep) for sweep in three_budgets(tmp_path, [0.05, 0.02, 0.01])["sweeps"]])
    assert text.endswith("to +0.0100 [+0.0100, +0.0100] at 1e+14: the curves do not cross there.")


def test_the_readme_says_what_the_results_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    place = text.split("<!-- results -->\n\n")[1].split("\n\n<!-- end of results -->")[0]
    assert place == published.verdicts([published.read(file) for file in KEPT]), (
        "python scripts/report.py --from docs/results/*.json --into=README.md --name=results --verdicts")


def test_sweeps_of_other_arms_keep_their_columns(tmp_path):
    folders = [make_sweep(tmp_path / str(i), arms=arms, budget={"kind": "flops", "amount": 10.0 ** (12 + i)})
               for i, arms in enumerate((("rnn", "gru"), ("rnn", "lstm", "gru"), ("lstm", "rnn")))]
    lines = [line for line in published.section(published.keep(folders)).splitlines() if line.startswith("| ")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert head == ["budget", "rnn", "gru", "lstm", "gru less rnn", "lstm less rnn", "rnn less lstm"]
    assert [[bool(cell) for cell in row[1:]] for row in rows] == [
        [True, True, False, True, False, False], [True, True, True, True, True, False], [True, False, True, False, False, True]]
    assert rows[1][2].startswith("1.5090") and rows[1][3].startswith("1.5610")


def test_parameters_are_those_counted_where_none_were_sized(tmp_path):
    make_sweep(tmp_path, arms=("rnn",), references=("ngram",))
    for file in (tmp_path / "arms/ngram/sized.json", *tmp_path.glob("arms/ngram/seeds/*/score.json")):
        file.write_text(file.read_text().replace('"parameters": 5000001', f'"parameters": {"null" if file.name == "sized.json" else 777}'))
    text = published.section(published.keep([tmp_path]))
    assert (cells(text, "rnn")["parameters"], cells(text, "ngram")["parameters"]) == ("5,000,000", "777")
    for file in tmp_path.glob("arms/ngram/seeds/*/score.json"):
        file.write_text(file.read_text().replace('"parameters": 777', '"parameters": null'))
    assert cells(published.section(published.keep([tmp_path])), "ngram")["parameters"] == ""


def test_the_command_of_a_section_says_all_that_was_asked(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    file = tmp_path / "compare.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"together": "no", "suites": ["choice:a.jsonl"]}))
    text = published.section(published.keep([tmp_path]))
    assert "--suites=choice:a.jsonl --together=no" in text and "--prompts=The state" in text


def test_what_cannot_be_published_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"neither compare\.json nor config\.json"):
        published.keep([tmp_path])
    with pytest.raises(DataError, match="a sweep has not finished"):
        published.keep([make_sweep(tmp_path, skip=[("gru", 0)])])
    with pytest.raises(ConfigError, match="--show=colour is not known: use position or frequency"):
        published.keep([tmp_path], show=("colour",))


def report(*arguments):
    """scripts/report.py."""
    command = [sys.executable, "scripts/report.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_command_stores_writes_and_changes_a_place(tmp_path):
    make_sweep(tmp_path / "sweep", arms=("rnn", "gru"))
    stored, page, place = tmp_path / "a.json", tmp_path / "RESULTS.md", tmp_path / "README.md"
    place.write_text("above\n<!-- gated -->\nold\n<!-- end of gated -->\nbelow\n")
    done = report(tmp_path / "sweep", f"--store={stored}", "--title=Gates", f"--into={place}", "--name=gated")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["sections"][0]["runs"] == 6
    before, after = "above\n<!-- gated -->\n\n**gru has", "<!-- end of gated -->\nbelow\n"
    assert place.read_text().startswith(before) and place.read_text().endswith(after)
    done = report("--from", stored, f"--into={page}")
    assert done.returncode == 0 and page.read_text() == published.page([published.read(stored)])


@pytest.mark.parametrize(("arguments", "line"), [
    (["w", "--verdicts"], "--verdicts are lines for a place in a file"),
    ([], "give work directories, or --from"), (["--from", "a.json", "--title=x"], "--title is for work directories"),
    (["w", "w"], "a work directory is named twice"), (["w", "--name=x"], "give --into=FILE too")])
def test_wrong_arguments_are_a_line_and_exit_code_2(arguments, line):
    done = report(*arguments)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1
