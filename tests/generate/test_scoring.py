"""BLEU of a run on a split of its pairs."""

import json

import pytest

from lm import config as configs
from lm.errors import ConfigError
from lm.generate import scoring
from lm.train import train


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on pairs of a few letters and their reverse, of which some are too long."""
    folder = tmp_path_factory.mktemp("scoring")
    lines = [f"{'abcde'[i % 5] * (i % 4 + 1)}{i % 7}\t{i % 7}{'abcde'[i % 5] * (i % 4 + 1)}" for i in range(60)] + ["x" * 40 + "\ty"] * 5
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    given = {"model.name": "seq2seq", "objective.name": "translation", "model.width": "16", "model.layers": "1", "data.tokenizer": "bytes",
             "data.source": f"pairs:{folder}/pairs.tsv", "data.context": "16", "data.global_batch": "8", "data.validation_fraction": "0.3",
             "data.workers": "1", "train.steps": "2", "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "eval.split": "none"}
    train(configs.validate(configs.override(configs.default(), given)), folder / "run")
    return folder / "run"


def test_the_pairs_of_a_split_are_texts_that_fit(workdir):
    run, _, _ = scoring.translator_of(workdir)
    found = [scoring.pairs_of(run, split, 0) for split in ("train", "validation")]
    pairs = [pair for some, _ in found for pair in some]
    assert len(pairs) == 60 and all(source == target[1:] + target[0] for source, target in pairs)
    assert sum(left_out for _, left_out in found) == 5
    assert scoring.pairs_of(run, "train", 3) == (found[0][0][:3], found[0][1])


def test_bleu_is_kept_in_the_run(workdir):
    pytest.importorskip("sacrebleu", reason="BLEU NOT CHECKED: pip install -e '.[translate]'")
    with pytest.raises(ConfigError, match="no reference has 4 tokens by tokenize=13a"):
        scoring.score(workdir, limit=4)
    result, shown = scoring.score(workdir, limit=4, beams=2, tokenize="char")
    assert json.loads((workdir / "scores" / "translation.json").read_text()) == result
    assert result["left_out"] == scoring.pairs_of(scoring.translator_of(workdir)[0], "validation", 0)[1]
    assert "tokenizer_lossless" not in result
    assert result["pairs"] == len(shown) == 4 and 0 <= result["bleu"] <= 100
    assert result["exact"] == sum(text == reference for _, text, reference in shown) / 4


def test_a_tokenizer_that_sacrebleu_has_not_is_refused_before_anything_is_translated(workdir, monkeypatch):
    pytest.importorskip("sacrebleu", reason="BLEU NOT CHECKED: pip install -e '.[translate]'")
    monkeypatch.setattr(scoring, "Translator", lambda *_: pytest.fail)
    with pytest.raises(ConfigError, match="tokenize=moses cannot be used by sacrebleu: use one of 13a"):
        scoring.score(workdir, tokenize="moses")


def test_a_run_that_reads_no_source_is_refused(workdir, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join("we the people" for _ in range(20)))
    given = {"model.name": "ngram", "data.source": f"text:{tmp_path}/text.txt", "data.documents": "line", "data.tokenizer": "bytes",
             "data.context": "8", "data.global_batch": "2", "data.validation_fraction": "0", "train.steps": "2", "data.workers": "1",
             "metrics.tensorboard": "false", "eval.split": "none"}
    train(configs.validate(configs.override(configs.default(), given)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model.name=ngram and objective.name=causal, which translates nothing"):
        scoring.translator_of(tmp_path / "run")
