"""The report: one file that stands alone and says everything, in a parser and in a browser where there is one."""

import csv
import html
import html.parser
import io
import json
import re
import shutil
import subprocess

import pytest

from lm.compare import report, results
from lm.compare.report import markdown, tables
from lm.compare.report.html import page
from lm.errors import ConfigError
from tests.compare.sweeps import PROMPT, make_sweep

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "link", "img", "hr", "input"}
EVIL = "<script>alert(1)</script>&\"'|"


class Reader(html.parser.HTMLParser):
    """Raises where tags do not match; keeps ids, attributes, tags, text, and the cells of each table."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.tables = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        """All that is read."""
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make_sweep(folder, references=("ngram",), failed=[("lstm", 2)])
    return folder, report.write(folder)


@pytest.fixture(scope="module")
def read(sweep):
    return Reader((sweep[0] / "report" / "index.html").read_text())


def test_all_files_are_written_and_agree(sweep):
    folder, written = sweep
    assert {name: written[name].removeprefix(f"{folder}/report/") for name in ("html", "markdown", "csv", "json")} == {
        "html": "index.html", "markdown": "report.md", "csv": "table.csv", "json": "results.json"}
    stored = json.loads((folder / "report" / "results.json").read_text())
    assert stored["verdict"] == written["results"]["verdict"]
    assert {path.name for path in (folder / "report").iterdir()} == {"curves.csv", "index.html", "report.md", "results.json", "table.csv"}


def test_the_page_is_well_formed_and_asks_for_nothing(sweep, read):
    text = (sweep[0] / "report" / "index.html").read_text()
    assert not {"script", "link", "img", "iframe", "button", "object", "base"} & set(read.tags)
    assert "http" not in re.sub(r"http-equiv", "", text) and "@import" not in text and "url(" not in re.sub(r"url\(#", "", text)
    targets = [value for name, value in read.attributes if name in ("href", "src", "xlink:href")]
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "an id is there twice: a figure would show another's shapes"
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert not any(name.startswith("on") for name, _ in read.attributes)


def test_title_verdict_and_every_arm_are_there(sweep, read):
    results = sweep[1]["results"]
    assert read.text.count("transformer, lstm and gru at equal training FLOPs (1e13)") == 2
    assert results["verdict"] in read.text.replace("</p>", "")
    scores = next(table for table in read.tables if table[0][:2] == ["arm", "bits per byte"])
    assert [row[0] for row in scores[1:]] == ["transformer", "lstm", "gru", "ngram"]
    for arm, row in zip(results["arms"], scores[1:], strict=True):
        assert row[1].startswith(f"{arm['summary']['bits_per_byte']['mean']:.4f} [")
    costs = next(table for table in read.tables if table[0][:2] == ["arm", "parameters"])
    assert costs[1] == ["transformer", "5M", "655,360", "1e13", "171", "3,600", "45%", "250 MB", "2.50 ms a token"]


@pytest.mark.parametrize("part", [
    "learning rate 0.02 is best for gru", "width 256 -> 224", "out of memory <here> & there", PROMPT, "of <gru> & the Congress of seed 0",
    "greedily", "at temperature 0.8", "model.width", "97027ca", "cpu:cpu", "35 runs, 24 of them trials", "python scripts/compare.py",
    "0.25, 0.5, 1, 2, 4", "configs/lineage/ngram.py"])
def test_what_was_asked_chosen_said_and_spent_is_there(sweep, read, part):
    assert part in read.text
    if "<" not in part:
        assert part in (sweep[0] / "report" / "report.md").read_text()


def test_figures_have_the_colours_of_the_page_and_words_as_text(sweep, read):
    drawn = re.findall(r"<svg.*?</svg>", (sweep[0] / "report" / "index.html").read_text(), re.DOTALL)
    labels = [value for name, value in read.attributes if name == "aria-label"]
    assert len(drawn) == len(labels) == read.tags.count("figure") == 1 + 6 + 3 + 3 + 4  # differences, curves, costs, rates, breakdowns
    curve = drawn[labels.index("bits per byte against tokens seen")]
    assert "var(--c0)" in curve and "#0072b2" not in curve and ">tokens seen</text>" in curve and "<metadata>" not in curve


def test_recall_and_copying_are_in_every_form_of_the_report(sweep, read):
    folder = sweep[0] / "report"
    table = next(table for table in read.tables if "seen bigram" in table[0])
    assert table[0] == ["arm", "new", "seen token", "seen bigram", "first half", "second half", "first less second"]
    assert table[1:3] == [["transformer", "6.000", "4.000", "2.000", "4.500", "2.000", "2.500"],
                          ["lstm", "5.900", "3.900", "1.900", "4.400", "3.000", "1.400"]]
    assert "| lstm | 5.900 | 3.900 | 1.900 | 4.400 | 3.000 | 1.400 |" in (folder / "report.md").read_text()
    row = next(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert float(row["recall.seen bigram"]) == 2.0 and float(row["copy.difference"]) == 2.5 and "copy" not in row


def test_scores_from_before_there_was_recall_are_reported_without_it(tmp_path):
    make_sweep(tmp_path)
    for i, file in enumerate(sorted(tmp_path.glob("arms/*/seeds/*/score.json"))):
        score = json.loads(file.read_text())
        file.write_text(json.dumps({name: part for name, part in score.items() if name not in ("recall", "copy")} | (
            {"recall": [], "copy": None} if i % 2 else {})))
    found = results.gather(tmp_path)
    assert not len(results.breakdown_frame(found, "recall")) and not len(results.breakdown_frame(found, "copy"))
    for text in (page(found), markdown.page(found), tables.csv(found)):
        assert "seen bigram" not in text and "first half" not in text and "copy" not in text


def test_the_csv_has_a_row_for_each_arm_and_seed(sweep):
    rows = list(csv.DictReader(io.StringIO((sweep[0] / "report" / "table.csv").read_text())))
    assert len(rows) == 11 and {(row["arm"], row["seed"]) for row in rows} == {
        (arm, seed) for arm in ("transformer", "lstm", "gru", "ngram") for seed in "012"} - {("lstm", "2")}
    first = rows[0]
    assert float(first["bits_per_byte"]) == sweep[1]["results"]["arms"][0]["scores"][0]["bits_per_byte"]
    assert float(first["train.seconds"]) == 170.0 and float(first["tuned.optim.learning_rate"]) == 0.02
    assert float(first["tuned.curvature"]) == 0.03 and first["tuned.edge"] == ""
    arm, apart = sweep[1]["results"]["arms"][2], sweep[1]["results"]["differences"][1]
    row = next(row for row in rows if row["arm"] == "gru")
    for name, interval, wide in (("mean", arm["summary"]["bits_per_byte"], arm["bootstrap"]), ("difference", apart, apart["bootstrap"])):
        assert [float(row[name]), *(float(row[f"{name}.{end}"]) for end in ("low", "high", "bootstrap_low", "bootstrap_high"))] == [
            interval["mean"], interval["low"], interval["high"], wide["low"], wide["high"]]
    assert first["difference"] == "" and rows[-1]["tuned.curvature"] == ""
    curves = list(csv.DictReader(io.StringIO((sweep[0] / "report" / "curves.csv").read_text())))
    assert len(curves) == 11 * 40 and set(curves[0]) == {"arm", "seed", "step", "tokens", "flops", "seconds", "loss", "bits_per_byte"}


def test_every_score_has_an_interval_over_texts_too(sweep, read):
    table = next(table for table in read.tables if table[0][:2] == ["arm", "bits per byte"])
    assert table[0][2:5] == ["over texts too", "less transformer", "less transformer, over texts too"]
    for arm, row in zip(sweep[1]["results"]["arms"], table[1:], strict=True):
        wide = arm["bootstrap"]
        assert wide["low"] < arm["summary"]["bits_per_byte"]["mean"] < wide["high"] and wide["documents"] == 4
        assert row[2] == f"[{wide['low']:.4f}, {wide['high']:.4f}]"


def test_what_is_tuned_is_named_at_its_axis_and_what_is_not_tuned_yet_is_said(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru", "hmm"), skip=[(arm, seed) for arm in ("gru", "hmm") for seed in range(3)])
    file = tmp_path / "arms/rnn/tuned.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"keys": ["optim.weight_decay"]}))
    for arm, optimizer in (("gru", "adamw"), ("hmm", "em")):
        (tmp_path / f"arms/{arm}/tuned.json").unlink()
        (tmp_path / f"arms/{arm}/arm.json").write_text(json.dumps({"config": {"model": {"name": arm}, "optim": {"name": optimizer}}}))
    found = results.gather(tmp_path)
    assert [row["tuned"] for row in tables.choices(found)][1:] == ["not yet", "as written"]
    assert found["missing"] == ["gru: tuning, seeds 0, 1, 2", "hmm: seeds 0, 1, 2"]
    assert "times optim.weight_decay of the config" in page(found) and "times the learning rate" not in page(found)


def test_what_runs_say_cannot_become_markup(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    found = results.gather(tmp_path)
    text = json.dumps(found).replace("of <gru>", EVIL.replace('"', r"\"")).replace('"gru"', json.dumps(f"gru{EVIL}"))
    found = json.loads(text)
    found["ask"]["prompts"] = [EVIL]
    read = Reader(page(found))
    assert "script" not in read.tags and EVIL in read.text
    assert any(EVIL in row[0] for table in read.tables for row in table)
    table = markdown.table([{"a": EVIL}])
    assert r"\|" in table and table.count("\n") == 2


def test_bytes_that_are_no_text_are_shown_as_pictures(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"))
    found = json.loads(json.dumps(results.gather(tmp_path)).replace("of <gru>", r"of\u0000\u001b\u0085\u007f\ta\nb"))
    for text in (page(found), markdown.page(found)):
        assert "of␀␛�␡\ta" in text and not {chr(code) for code in (*range(9), *range(14, 32), *range(127, 160))} & set(text)


def test_sweeps_that_have_just_begun_or_lack_things_have_a_page_too(tmp_path):
    make_sweep(tmp_path, arms=("rnn", "gru"), skip=[(arm, seed) for arm in ("rnn", "gru") for seed in range(3)], tuned=False)
    for file in tmp_path.glob("arms/*/*.json"):
        file.unlink()
    read = Reader(page(results.gather(tmp_path)))
    assert "no arm has a score yet" in read.text and "Still to come: rnn: its size, seeds 0, 1, 2" in read.text
    make_sweep(tmp_path, arms=("rnn", "gru"), tuned=False, score=lambda arm, seed: None if arm else 1.5 + seed)
    for file in tmp_path.glob("arms/*/seeds/*/score.json"):
        score = json.loads(file.read_text())
        bare = {name: score[name] for name in ("step", "bits_per_byte", "diverged", "seed")}  # as one that diverged at once
        file.write_text(json.dumps(bare | {"train": None}))
    found = results.gather(tmp_path)
    read = Reader(page(found))
    assert "diverged" in read.text and markdown.page(found) and tables.csv(found)


def test_a_table_whose_rows_differ_in_columns_is_refused():
    assert markdown.table([{"a": 1, "b": 2}, {"b": 4, "a": 3}]).splitlines()[-1] == "| 3 | 4 |"
    with pytest.raises(ValueError, match="a row has the columns a, c, and the table a, b"):
        markdown.table([{"a": 1, "b": 2}, {"a": 1, "c": 2}])


def test_a_place_in_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.md is no file"):
        markdown.put(str(tmp_path / "absent.md"), "gated", "text")


def test_workers_that_shared_the_machine_are_told(sweep):
    found = json.loads(json.dumps(sweep[1]["results"]))
    assert "workers at once" not in markdown.page(found)
    for number, score in enumerate(found["arms"][0]["scores"]):
        score["task"] = {"workers": number + 1, "seconds": 1.0}
    for text in (page(found), markdown.page(found)):
        assert "Speeds were measured with 3 workers at once" in text


def test_a_suite_that_failed_says_why():
    scores = [{"seed": 0, "suites": {"s:f": {"error": "no file f"}}}, {"seed": 1, "suites": {"s:f": {"measure": "accuracy", "value": 0.5}}}]
    rows = tables.suites({"arms": [{"name": "a", "scores": scores}, {"name": "b", "scores": scores[:1]}, {"name": "c", "scores": []}]})
    assert rows == [{"suite": "s:f", "measure": "accuracy", "a": "0.5 (of 1 of 2 seeds)", "b": "failed: no file f", "c": ""}]


def test_the_same_results_make_the_same_page(sweep):
    assert page(sweep[1]["results"]) == (sweep[0] / "report" / "index.html").read_text()


def test_without_a_sweep_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"has no compare\.json"):
        report.write(tmp_path)


def browse(tmp_path, text, width, *flags):
    """What Chromium makes of a page in a frame of `width` pixels: {"scroll", "width", "title", "verdict", "wide"}, and its console."""
    source = html.escape(text, quote=True)
    (tmp_path / "frame.html").write_text(f"""<!doctype html><body><iframe width="{width}" height="900" srcdoc="{source}"></iframe>
<pre id="out"></pre><script>
document.querySelector("iframe").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter(part => !part.closest(".wide, svg") &&
    part.getBoundingClientRect().right > root.clientWidth + 1).map(part => part.tagName);
  document.getElementById("out").textContent = JSON.stringify({{scroll: root.scrollWidth, width: root.clientWidth, title: page.title,
    verdict: page.getElementById("verdict").textContent, wide, page: getComputedStyle(page.body).backgroundColor,
    figures: [...page.querySelectorAll("svg")].map(part => part.getBoundingClientRect().height),
    fetched: event.target.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)}});
}};</script></body>""")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=4000", "--enable-logging=stderr", "--v=0",
         *flags, "--dump-dom", f"file://{tmp_path}/frame.html"],
        capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL).group(1)
    return json.loads(html.unescape(found)), [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.skipif(not BROWSER, reason="NO CHROMIUM HERE: the report is not rendered by this test (apt install chromium)")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_errors_requests_or_overflow(sweep, tmp_path, width):
    text = (sweep[0] / "report" / "index.html").read_text()
    found, console = browse(tmp_path, text, width)
    assert not console, console
    assert found["scroll"] <= found["width"] <= width and not found["wide"], found
    assert found["title"] == "transformer, lstm and gru at equal training FLOPs (1e13)"
    assert found["verdict"].startswith("gru has the fewest bits per byte, 1.5090 [")
    assert len(found["figures"]) == 17 and min(found["figures"]) > 80
    assert not found["fetched"]


@pytest.mark.skipif(not BROWSER, reason="NO CHROMIUM HERE: the report is not rendered by this test (apt install chromium)")
def test_a_browser_shows_it_dark_to_who_prefers_that_and_prints_it(sweep, tmp_path):
    text = (sweep[0] / "report" / "index.html").read_text()
    assert browse(tmp_path, text, 800, "--blink-settings=preferredColorScheme=0")[0]["page"] == "rgb(20, 23, 26)"
    file = tmp_path / "page.pdf"
    subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--no-pdf-header-footer",
                    f"--print-to-pdf={file}", f"file://{sweep[0]}/report/index.html"], capture_output=True, timeout=120, check=True)
    pages = len(re.findall(rb"/Type\s*/Page\b", file.read_bytes()))
    assert 2 <= pages <= 7
