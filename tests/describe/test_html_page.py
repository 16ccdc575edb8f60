"""The HTML page: one file that stands alone, whose bars add up and whose picture has the peak where it is; and plans, described."""

import gzip
import html.parser
import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest

from lm import config as configs
from lm import describe
from lm.describe.collectives import annotated, line_of
from lm.describe.html import HEIGHT, LEFT, TOP, WIDTH, picture
from lm.errors import ConfigError, PlanError
from lm.hlo.names import phase_and_module
from lm.hlo.text import parse

pytestmark = pytest.mark.usefixtures("undrawn")
TIMELINE = [[0.0, 100], [0.25, 700], [0.5, 300], [0.75, 300]]
BREAKDOWN = {"params": 50, "optimizer": 100, "activations": 250, "temporaries": 300}
PROGRAM = """HloModule jit_train_step, num_partitions=4

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  %y = f32[8]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%sum, metadata={op_name="jit(train_step)/transpose(jvp(M))/while/body/layers/up/dot" source_file="/x/lm/layers/dense.py" source_line=1}
  ROOT %t = (s32[], f32[8]{0}) tuple(%j, %y)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8], w: f32[2]) -> (s32[], f32[8]) {
  %x = f32[8]{0} parameter(0)
  %w = f32[2]{0} parameter(1)
  %g = f32[8]{0} all-gather(%w), replica_groups={{0,1,2,3}}, dimensions={0}, metadata={op_name="jit(train_step)/jvp(M)/inputs/take"}
  %z = s32[] constant(0)
  %t = (s32[], f32[8]{0}) tuple(%z, %g)
  ROOT %w2 = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
}
"""  # noqa: E501 - as the compiler writes it


class Reader(html.parser.HTMLParser):
    """Raises where tags do not match; keeps text and attributes."""

    EMPTY = ("meta", "br", "line", "path", "circle")

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert not any(tag == "script" or name in ("src", "href") or name.startswith("on") for tag, name, _ in reader.attributes)
    assert "http" not in page and "url(" not in page
    return reader


@pytest.fixture
def folder(tiny, tmp_path):
    """The folder of a plan."""
    config = tiny(mesh__replica=1, mesh__fsdp=4)
    plan = {"config": configs.to_json(config), "topology": "cpu:4", "chips": 4, "hbm_limit": 1000, "peak_breakdown": BREAKDOWN,
            "timeline": TIMELINE, "estimated_step_seconds": 0.25, "estimated_mfu": 0.5,
            "largest_buffers": [{"bytes": 250, "count": 2, "shape": "f32[2,3]", "part": "activations", "source": "lm/losses.py:40",
                                 "op_name": "x"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "program.hlo.gz").write_bytes(gzip.compress(PROGRAM.encode()))
    return tmp_path


def test_the_page_stands_alone_and_its_bars_add_up(tiny):
    config = configs.override(tiny(), {"data.source": "text:<script>alert(1)</script>&"})
    described = describe.describe(config, traced=True)
    reader = read(describe.html_of(described))
    assert "text:<script>alert(1)</script>&" in "".join(reader.words)  # as text
    widths = [float(re.search(r"width: ([\d.]+)%", value)[1]) for tag, name, value in reader.attributes if tag == "i" and name == "style"]
    components = described["components"]
    counts = [sum(1 for row in components if value(row)) for value in (
        lambda row: row["parameters"], lambda row: row["train_flops_per_token"], lambda row: sum(row["bytes"].values()))]
    for count in [*counts, len(widths) - sum(counts)]:
        bar, widths = widths[:count], widths[count:]
        assert len(bar) == count > 1 and sum(bar) == pytest.approx(100, abs=0.01)
    with pytest.raises(ConfigError, match="counting"):
        describe.html_of(describe.describe(tiny(family="ngram")))


def test_the_picture_has_the_peak_and_the_limit_where_they_are():
    shapes = picture(TIMELINE, 1000, BREAKDOWN)
    bottom, right = shapes["bottom"], shapes["right"]
    heights = [float(y) for y in re.findall(r",([\d.]+)", shapes["line"])]
    held = [1.04 * 1000 * (bottom - y) / (bottom - TOP) for y in heights]
    assert held == pytest.approx([100, 100, 700, 700, 300, 300, 300, 300], abs=2)
    assert shapes["line"].startswith(f"M{LEFT}.0,") and f"{right}.0" in shapes["line"].rpartition("L")[2]
    assert shapes["peak"][0] == pytest.approx(LEFT + (right - LEFT) * 0.375, abs=0.1) and shapes["peak"][1] == min(heights)
    assert TOP < shapes["limit"] < shapes["peak"][1] and shapes["anchor"] == "middle"
    # What is state is never higher than all that is held.
    assert max(float(y) for y in re.findall(r"L[\d.]+,([\d.]+)", shapes["areas"][1])) == bottom
    assert picture(TIMELINE, 10_000, BREAKDOWN)["limit"] is None  # far above all there is to see
    too_much = picture(TIMELINE, 500, BREAKDOWN)  # what does not fit goes over the line
    assert too_much["peak"][1] < too_much["limit"] < bottom
    assert all(0 <= place <= HEIGHT for place, _ in shapes["ticks"]) and all(0 <= place <= WIDTH for place, _ in shapes["shares"])


def test_a_plan_is_described_as_it_was_compiled(folder):
    described = describe.describe_plan(folder)
    text, reader = describe.text_of(described), read(describe.html_of(described))
    assert "of the compiled step: 700 B of 1 kB" in text and "activations" in text and "at least" not in text
    words = " ".join(reader.words)
    assert "peak 700 B" in words and "lm/losses.py:40" in words and "50.0%" in words and "all-reduce" in words
    assert describe.text_of_collectives(described["collectives"]).splitlines()[0] == \
        "all-reduce over fsdp, 4 devices: 6 times, 1.92e-07 GB, 2.88e-07 GB sent; backward layers/up"
    (folder / "program.hlo.gz").write_bytes(b"no gzip")
    with pytest.raises(PlanError, match="plan again"):
        describe.describe_plan(folder)
    for text in ("{", "7", "[]"):
        (folder / "plan.json").write_text(text)
        with pytest.raises(ConfigError, match="not the folder of a plan"):
            describe.describe_plan(folder)


def test_a_page_says_why_collectives_have_no_seconds_without_the_compiler(folder, monkeypatch):
    assert describe.describe_plan(folder)["note"] == ""  # devices of this machine have no network
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    path = folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"topology": "v5e:2x2"}))
    described = describe.describe_plan(folder)
    words = "no seconds: the TPU compiler is not installed"
    assert words in describe.text_of(described) and words in " ".join(read(describe.html_of(described)).words)
    assert words in describe.text_of_collectives(described["collectives"], described["note"]).splitlines()[0]


def test_a_device_holds_its_part_of_a_chip_and_what_was_compiled(folder):
    described = describe.describe_plan(folder)
    plan = described["plan"] | {"chips": 2}
    held = describe.bytes_per_device(described | {"plan": plan})
    assert held == {name: size // 2 for name, size in BREAKDOWN.items()} | {"limit": 500, "host": 0}


def test_collectives_carry_the_line_and_the_module_that_ask_for_them():
    rows = annotated(parse(PROGRAM), {"replica": 1, "fsdp": 4})
    assert [(row["kind"], row["count"], row["bytes"], row["sent"], row["phase"], row["module"], row["source"]) for row in rows] == [
        ("all-reduce", 6, 6 * 32, 6 * 48, "backward", "layers/up", "lm/layers/dense.py:1"),
        ("all-gather", 1, 32, 24, "forward", "inputs", "")]
    assert rows[0]["line"].startswith('"""Dense layers') and rows[1]["line"] == "" and rows[0]["seconds"] is None
    assert line_of("lm/nothing.py:3") == ""

    class Device:
        def network_seconds(self, one, algorithm=""):
            return {"all-reduce": 2.0, "all-gather": 1.0}[one.kind] * one.bytes / one.count * one.size

    assert [row["seconds"] for row in annotated(parse(PROGRAM), {"fsdp": 4}, Device())] == [6 * 2 * 32 * 4, 32 * 4]


@pytest.mark.parametrize(("name", "expected"), [
    ("jit(train_step)/jvp(Transformer)/while/body/closed_call/layers/attention/attention._project/remat2", ("forward", "layers/attention")),
    ("jit(train_step)/transpose(jvp(T))/while/body/checkpoint/rematted_computation/layers/up/convert", ("forward again", "layers/up")),
    ("jit(step)/jvp(T)/while/body/layers/attention/attention._attend/shard_map/splash/pallas_call", ("forward", "layers/attention")),
    ("jit(step)/jvp(T)/shard_map/while/body/layers/up/dot_general", ("forward", "layers/up")),
    ("jit(train_step)/transpose(jvp())/dot_general", ("backward", "")),
    ("jit(train_step)/reduce_sum", ("", "")),
    ("state.params[\\'unembedding\\'][\\'kernel\\']", ("", "unembedding/kernel")),
    ("", ("", "")),
])
def test_the_name_of_an_operation_says_when_and_where(name, expected):
    assert phase_and_module(name) == expected


def test_a_difference_has_a_page_too(tiny):
    difference = describe.compare(tiny(), tiny(model__width=32))
    assert "model.width" in read(describe.html_of_difference(difference, ("a.py", "b.py"))).words
    assert "No difference." in read(describe.html_of_difference(describe.compare(tiny(), tiny()), ("a.py", "b.py"))).words


def script(*arguments, **environment):
    done = subprocess.run([sys.executable, "scripts/describe.py", *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_the_script_writes_pages_and_ends_with_json(folder, tmp_path):
    code, out, _ = script(f"--plan={folder}", f"--html={tmp_path}/p.html", f"--hlo={tmp_path}/h.txt")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["parameters"] > 0 and result["devices"] == 4
    assert result["bytes_per_device"] == BREAKDOWN | {"limit": 1000, "host": 0}
    read((tmp_path / "p.html").read_text())
    assert "lm/layers/dense.py:1" in (tmp_path / "h.txt").read_text()


def test_no_accelerator_is_taken_whatever_the_environment_says():
    code, out, err = script("--config=configs/quickstart.py", JAX_PLATFORMS="cuda")
    assert code == 0 and json.loads(out.splitlines()[-1])["parameters"] > 0, err


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "give --config=FILE, or --plan=DIR"),
    (["--config=configs/quickstart.py", "--plan=x"], "or --plan=DIR"),
    (["--plan=x", "--devices=2"], "leave out"),
    (["--plan=nowhere"], "is not the folder of a plan"),
    (["--config=configs/quickstart.py", "--hlo=x"], "--hlo needs a compiled step"),
    (["--config=configs/quickstart.py", "--topology=v5e:3x3"], "the nearest are"),
    (["--config=configs/quickstart.py", "--topology=cpu:x"], "or cpu:8"),
    (["--config=configs/quickstart.py", "--topology=v5e:2x2", "--devices=2"], "leave out --devices"),
    (["--config=configs/quickstart.py", "--devices=-1"], "must be at least 1"),
])
def test_wrong_arguments_get_one_line(arguments, words):
    code, out, err = script(*arguments)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
