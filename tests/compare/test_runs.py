"""Runs as tables: of every kind and in every state, against their own lines and configs."""

import json

import numpy as np
import pandas
import pytest

from lm import compare
from lm.compare import runs
from lm.errors import CheckpointError, ConfigError
from lm.metrics.writers import read_lines
from lm.run import open_run
from lm.train import train
from tests.compare.small_runs import small, write_corpus

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs: two LSTMs, a counted one, and what is no run."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = write_corpus(folder)
    train(small(corpus, model__name="lstm", eval__every=2), folder / "lstm" / "a")
    train(small(corpus, model__name="lstm", model__width=8, seed=1, train__steps=2, optim__name="sgd"), folder / "lstm" / "b")
    train(small(corpus, model__name="ngram"), folder / "counted" / "trigram")
    (folder / "lstm" / "notes").mkdir()
    return folder


def test_lines_become_rows_of_the_right_types(folder):
    run = compare.load_run(folder / "lstm" / "a")
    lines = read_lines(folder / "lstm" / "a" / "metrics.jsonl")
    for frame, kind in ((run.metrics, "train"), (run.evaluations, "eval")):
        chosen = [line for line in lines if line["kind"] == kind]
        assert len(frame) == len(chosen) and frame["step"].tolist() == [line["step"] for line in chosen]
        assert frame["step"].dtype.kind == frame["tokens"].dtype.kind == "i" and "kind" not in frame
    assert run.metrics["time.step"].tolist() == [line["time"]["step"] for line in lines if line["kind"] == "train"]
    assert run.evaluations["loss_by_position.2-3"].iloc[-1] == lines[-1]["loss_by_position"]["2-3"]
    assert run.score is None and run.config.model.width == 16
    assert run.generate("we", max_tokens=5, temperature=0.0) == run.generate("we", max_tokens=5, temperature=0.0)
    assert run.steps() == [4] and run.params() is run.params() and run.tokenizer.vocab_size > 0


def test_counted_runs_have_nan_for_what_belongs_to_gradients(folder):
    frame = compare.load_run(folder / "counted" / "trigram").metrics
    assert frame["grad_norm"].dtype == float and frame["grad_norm"].isna().all() and frame["parameters"].dtype.kind == "i"


def test_a_table_has_a_row_for_each_run_and_a_column_for_what_differs(folder):
    frame = compare.load_runs(folder / "**")
    assert frame["name"].tolist() == ["counted/trigram", "lstm/a", "lstm/b"]
    assert frame["family"].tolist() == ["ngram", "lstm", "lstm"] and frame["seed"].tolist() == [0, 0, 1]
    assert frame["optimizer"].tolist()[1:] == ["adamw", "sgd"] and frame["train.steps"].tolist() == [4, 4, 2]
    assert frame["learning_rate"].isna().tolist() == [True, False, False]
    assert "model.order" in frame and "data.context" not in frame and "model.name" not in frame and frame.columns.is_unique
    for row in frame.itertuples():
        run = open_run(row.path)
        lines = read_lines(run.workdir / "metrics.jsonl")
        last, evaluation = ([line for line in lines if line["kind"] == kind][-1] for kind in ("train", "eval"))
        assert (row.tokens, row.bits_per_byte, row.stderr) == (last["tokens"], evaluation["bits_per_byte"], evaluation["stderr"])
        assert row.flops == run.objective.train_flops(run.model) * row.tokens
        assert row.hash == json.loads((run.workdir / "config.json").read_text())["hash"] and "8 x cpu" in row.machine
    assert frame["flops"].iloc[0] == 0 and frame["tokens"].dtype.kind == "i" and frame["parameters"].dtype.kind == "i"
    alone = compare.load_runs(folder / "lstm" / "b")
    assert alone["name"].tolist() == ["b"] and "train.steps" not in alone
    assert compare.load_runs([folder / "lstm" / "b", str(folder / "lstm" / "*")])["name"].tolist() == ["a", "b"]


def killed(folder, workdir, text):
    """A run with these metrics and no checkpoint."""
    for file in ("config.json", "environment.json", "tokenizer/tokenizer.json"):
        (workdir / file).parent.mkdir(parents=True, exist_ok=True)
        (workdir / file).write_bytes((folder / "lstm" / "a" / file).read_bytes())
    if text is not None:
        (workdir / "metrics.jsonl").write_text(text)
    return workdir


def test_runs_that_are_not_over_are_loaded_as_far_as_they_are(folder, tmp_path):
    text = (folder / "lstm" / "a" / "metrics.jsonl").read_text()
    cut = killed(folder, tmp_path / "cut", text.splitlines()[0] + "\n" + text.splitlines()[1][:50])
    run = compare.load_run(cut)
    assert run.metrics["step"].tolist() == [1] and len(run.evaluations) == 0 and "bits_per_byte" in run.evaluations
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        run.params()
    killed(folder, tmp_path / "new", None)
    frame = compare.load_runs(tmp_path / "*")
    assert frame["parameters"].nunique() == 1 and frame["bits_per_byte"].isna().all()
    assert frame["tokens"].tolist()[0] == run.metrics["tokens"].iloc[-1] and np.isnan(frame["tokens"].tolist()[1])


def test_a_score_comes_before_the_last_evaluation(folder, tmp_path, monkeypatch):
    workdir = killed(folder, tmp_path / "scored", "")
    spent = {"parameters": 5, "tokens": 7, "flops": 8.0, "seconds": 9.0}
    (workdir / "score.json").write_text(json.dumps({"bits_per_byte": None, "diverged": True, "train": spent}))
    monkeypatch.setattr(runs.rundirs, "open_run", None)  # what is known needs no model
    (row,) = compare.load_runs(workdir).to_dict("records")
    assert {name: row[name] for name in spent} == spent and np.isnan(row["bits_per_byte"])


def test_a_folder_whose_name_reads_as_a_pattern_is_itself(folder, tmp_path):
    workdir = killed(folder, tmp_path / "gru[width=8]", None)
    assert compare.load_runs(workdir)["path"].tolist() == [str(workdir)]


def test_no_run_is_an_error(folder):
    with pytest.raises(ConfigError, match=r"no run matches .*/x\*: give folders that have a config.json"):
        compare.load_runs(folder / "x*")
    with pytest.raises(ConfigError, match="is not the work directory of a run"):
        compare.load_run(folder)
    assert isinstance(compare.load_runs(folder / "*" / "*"), pandas.DataFrame)
