"""Tables of runs: from work directories alone, and into a marked place of a file."""

import json
import pathlib
import runpy

import pytest

from lm import config as configs
from lm import results
from lm.compare.report import markdown
from lm.errors import ConfigError, DataError
from lm.train import train


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "text.txt").write_text("\n".join(f"we the people number {i}" for i in range(60)))
    given = {"model.name": "ngram", "model.order": "2", "data.source": f"text:{folder}/text.txt", "data.documents": "line",
             "data.tokenizer": "bytes", "data.context": "16", "data.global_batch": "4", "data.validation_fraction": "0.2",
             "data.workers": "1", "train.steps": "5", "metrics.tensorboard": "false"}
    train(configs.validate(configs.override(configs.default(), given)), folder / "bigram")
    return folder / "bigram"


def test_a_row_says_what_training_cost_and_what_the_evaluation_said(workdir):
    result = results.result_of(workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert (result["tokens"], result["bits_per_byte"]) == (lines[0]["tokens"], lines[1]["bits_per_byte"])
    assert result["tokens"] != lines[1]["tokens"], "tokens of training and evaluation are to differ here"
    head, _, row = results.tables([result]).splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["bits per byte"] == f"{lines[1]['bits_per_byte']:.3f}" and cells["tokens"] == f"{lines[0]['tokens']:,}"


def test_scores_of_other_commands_are_told_too(workdir):
    (workdir / "scores").mkdir()
    (workdir / "scores" / "translation.json").write_text('{"bleu": 12.5, "step": 5, "split": "validation"}')
    assert results.result_of(workdir)["bleu"] == 12.5
    for other in ('{"bleu": 12.5, "step": 4, "split": "validation"}', '{"bleu": 12.5, "step": 5, "split": "train"}'):
        (workdir / "scores" / "translation.json").write_text(other)
        assert "bleu" not in results.result_of(workdir)


def test_tables_take_the_place_that_is_marked_and_nothing_else(workdir, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- lineage -->\nold\n<!-- end of lineage -->\nbelow\n")
    for text in ("| a |", "| b |"):
        markdown.put(page, "lineage", text)
    assert page.read_text() == "above\n<!-- lineage -->\n\n| b |\n\n<!-- end of lineage -->\nbelow\n"
    with pytest.raises(DataError, match="has no lines <!-- other -->"):
        markdown.put(page, "other", "| c |")


def test_each_kind_of_evaluation_has_a_table_of_its_own(workdir):
    result = results.result_of(workdir)
    masked = result | {"measure": "masked", "masked_accuracy": 0.25, "run": "bert"}
    first, second = results.tables([result, masked]).split("\n\n")
    assert "next sentence" not in second and "next sentence right" in results.tables([masked | {"next_sentence_accuracy": 0.75}])
    assert "bits per byte" in first and "bert" not in first
    assert "25.0%" in second and "| bits per byte |" not in second


def test_a_run_without_a_step_is_an_error(workdir, tmp_path):
    for name in ("config.json", "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    with pytest.raises(DataError, match="no line of training yet"):
        results.result_of(tmp_path)


@pytest.mark.parametrize("word", ["--into=README.md", "--name=lineage"])
def test_a_file_is_not_changed_without_the_name_of_the_place(word):
    main = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "scripts/results.py"))["main"]
    with pytest.raises(ConfigError, match="--into=FILE and --name=NAME go together"):
        main(["runs/x", word])
