"""A run from text to vectors through the training loop, and the commands that read it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lm import config
from lm.errors import ConfigError
from lm.train import train
from lm.words import load, nearest
from lm.words.command import keep, read, report

RUNS = {
    "skipgram": {"objective.name": "skipgram", "objective.subsample": "0"},
    "cbow": {"objective.name": "cbow", "objective.hierarchical": "true", "objective.subsample": "0"},
    "glove": {"model.name": "glove", "objective.name": "glove", "eval.split": "none", "data.context": "64"},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Documents about one of two things, each with ten words of its own."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for number in range(60):
        words = [f"{'sea' if number % 2 else 'land'}{i}" for i in rng.integers(0, 10, 60)]
        (folder / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module", params=RUNS)
def run(request, text, tmp_path_factory):
    """(name, work directory, result) of a finished run on all devices."""
    workdir = tmp_path_factory.mktemp(request.param)
    shared = {"model.name": "word2vec", "model.width": "8", "data.source": f"text:{text}/*.txt", "data.tokenizer": "words",
              "data.vocab_size": "264", "data.context": "16", "data.global_batch": "16", "train.steps": "60", "optim.name": "adagrad",
              "optim.learning_rate": "0.3", "optim.schedule": "constant", "optim.clip": "0", "metrics.peak_flops": "1e12",
              "metrics.tensorboard": "false"}
    given = config.validate(config.override(config.default(), shared | RUNS[request.param]))
    return request.param, workdir, train(given, workdir)


def test_words_of_one_topic_are_near_each_other(run):
    name, workdir, result = run
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "grad_norm" in line]
    assert losses[-1] < 0.9 * losses[0] and result["step"] == 60
    vectors, source = read(str(workdir), None)
    assert source["step"] == 60 and vectors.matrix.shape == (20, 8)
    for word in vectors.words:
        topic = word.rstrip("0123456789")
        assert [other.rstrip("0123456789") for other, _ in nearest(vectors, word, 3)] == [topic] * 3, (name, word)


def test_the_report_does_what_is_asked(run, tmp_path):
    _, workdir, _ = run
    vectors, _ = read(str(workdir), None)
    (tmp_path / "pairs").write_text("sea1 sea2 9\nsea1 land1 1\nland3 land4 8\n")
    (tmp_path / "questions").write_text("sea1 sea2 land1 land2\n")
    result = report(vectors, str(tmp_path / "a.bin"), str(tmp_path / "pairs"), str(tmp_path / "questions"), "sea1", 2)
    assert result["words"] == 20 and result["width"] == 8 and result["similarity"]["rho"] >= 0.5
    assert result["analogies"]["answered"] == 1 and len(result["nearest"]) == 2
    again, source = read(None, str(tmp_path / "a.bin"))
    assert source == {"vectors": str(tmp_path / "a.bin")} and again.words == vectors.words
    np.testing.assert_array_equal(again.matrix, vectors.matrix)


def test_exactly_one_source_of_vectors_is_asked_for():
    for workdir, vectors in ((None, None), ("a", "b")):
        with pytest.raises(ConfigError, match="either --workdir"):
            read(workdir, vectors)


def test_the_script_ends_with_a_line_of_json(tmp_path):
    (tmp_path / "a.vec").write_text("3 2\none 1 0\ntwo 1 0.1\nthree 0 1\n")
    command = [sys.executable, "scripts/words.py", f"--vectors={tmp_path}/a.vec", "--nearest=one", f"--export={tmp_path}/b.glove.txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    result = json.loads(done.stdout.splitlines()[-1])
    assert [word for word, _ in result["nearest"]] == ["two", "three"] and result["words"] == 3
    assert load(tmp_path / "b.glove.txt").words == ["one", "two", "three"]


def test_what_a_run_scored_is_kept_with_gensims_beside_it(tmp_path):
    asked = {"step": 9, "similarity": {"rho": 0.4, "pairs": 3}, "analogies": {"accuracy": 0.25}}
    keep(tmp_path, asked | {"words_per_second": 300.0, "gensim": {
        "similarity": {"rho": 0.3}, "analogies": {"accuracy": 0.125}, "words_per_second": 200.0, "epochs": 1}})
    file = tmp_path / "scores" / "words.json"
    assert json.loads(file.read_text()) == {
        "step": 9, "similarity": 0.4, "analogy": 0.25, "words_per_second": 300.0, "gensim_similarity": 0.3, "gensim_analogy": 0.125,
        "gensim_words_per_second": 200.0}
    keep(tmp_path, {"step": 9, "similarity": {"rho": 0.5}})
    assert json.loads(file.read_text())["similarity"] == 0.5 and json.loads(file.read_text())["gensim_similarity"] == 0.3
    keep(tmp_path, {"step": 10, "similarity": {"rho": 0.6}})
    assert json.loads(file.read_text()) == {"step": 10, "similarity": 0.6}, "others are of another step"
