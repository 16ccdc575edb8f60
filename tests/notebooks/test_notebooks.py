"""Notebooks run from their first cell to their last, show figures that can be read, and are stored without what they have put out."""

import ast
import json
import pathlib
import re

import pytest

from tests.notebooks.conftest import FIGURES

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_LINES = 15
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind=None):
    """[(type, text)] of a stored notebook."""
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in stored]
    return [text for own, text in found if own == kind] if kind else found


def test_there_are_seven():
    assert [path.name[0] for path in NOTEBOOKS] == list("1234567")


@each
def test_nothing_that_it_put_out_is_stored(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert set(stored["metadata"]) == {"kernelspec", "language_info"} and stored["metadata"]["kernelspec"]["name"] == "python3"
    for cell in stored["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count") and not cell["metadata"]
    names = [cell["id"] for cell in stored["cells"]]
    assert len(set(names)) == len(names) and all(re.fullmatch("[a-z]+(-[a-z]+)*", name) for name in names)


@each
def test_it_asks_a_question_installs_and_says_what_was_learnt(path):
    kind, question = cells(path)[0]
    assert kind == "markdown" and re.match(rf"# {path.name[0]}\. .*\?", question)
    install = cells(path, "code")[0]
    assert 'find_spec("lm") is None' in install and "%pip install" in install
    assert "## What was learnt" in cells(path)[-1][1]


@each
def test_cells_of_code_fit_the_eye(path):
    assert max(len(text.splitlines()) for text in cells(path, "code")) <= MOST_LINES


@each
def test_what_it_names_is_there(path):
    text = "\n".join(text for _, text in cells(path))
    for name in re.findall(r"\b(?:scripts|configs|docs)/[\w/]+\.(?:py|sh|md)", text):
        assert (ROOT / name).exists(), f"{name} is not there"
    for name, flags in re.findall(r"python scripts/(\w+)\.py((?: .*?(?<!\\))?)$", text.replace("\\\n", " "), re.MULTILINE):
        source = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8")
        for flag in re.findall(r"--(\w+)", flags.partition("`")[0]):
            assert f'"--{flag}"' in source or f'"{flag}"' in source or flag in ("config", "workdir"), f"scripts/{name}.py has no --{flag}"


@each
def test_what_it_imports_is_there(path):
    """Of lm, without running anything: a name that moved is seen here at once."""
    import importlib

    for text in cells(path, "code"):
        plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(plain if plain.strip()[-1:] != ":" else f"{plain}\n    pass")):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lm":
                for alias in node.names:
                    room = importlib.import_module(node.module)
                    assert hasattr(room, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


@each
def test_it_runs(path, executed):
    book = executed(path)
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
    last = book.cells[-1]
    assert last.source == FIGURES
    printed = "".join(part.text for part in last.outputs if part.output_type == "stream" and part.name == "stdout")
    assert "FIGURES" in printed, last.outputs
    figures = json.loads(printed.partition("FIGURES")[2])
    assert figures and any(figures), "it shows no figure"
    for name, across, up in [labels for figure in figures for labels in figure]:
        assert up and (across or name == "<colorbar>"), f"axes without a label: {across!r}, {up!r}"
    learnt = book.cells[-2].outputs[-1].data["text/markdown"]
    assert "## What was learnt" in learnt and "nan" not in learnt.split()
