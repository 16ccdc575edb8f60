"""Texts of a sentence VAE's codes and classes of an HMM, from runs on disk."""

import jax
import numpy as np
import pytest

from lm import config as configs
from lm.errors import ConfigError
from lm.generate.codes import Codes, rows_of, tags
from lm.objectives.causal import batch_of
from lm.run import open_run
from lm.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{family: work directory} of a VAE and of an HMM that have seen two sentences."""
    folder = tmp_path_factory.mktemp("codes")
    (folder / "text.txt").write_text("\n".join(["aaa", "ddd"] * 20))
    given = {"data.source": f"text:{folder}/text.txt", "data.documents": "line", "data.tokenizer": "bytes", "data.context": "12",
             "data.global_batch": "8", "data.validation_fraction": "0", "data.workers": "1", "metrics.tensorboard": "false",
             "metrics.peak_flops": "1e9", "eval.split": "none", "train.log_every": "1000"}
    vae = {"model.name": "vae", "objective.name": "vae", "model.width": "24", "model.layers": "1", "model.latent_width": "4",
           "optim.learning_rate": "0.02", "train.steps": "10"}
    hmm = {"model.name": "hmm", "model.classes": "4", "optim.name": "em", "optim.learning_rate": "1.0", "optim.schedule": "constant",
           "optim.clip": "0", "train.steps": "10"}
    for name, own in (("vae", vae), ("hmm", hmm)):
        train(configs.validate(configs.override(configs.default(), given | own)), folder / name)
    return {name: folder / name for name in ("vae", "hmm")}


def test_sentences_are_written_again_drawn_and_mixed(runs):
    codes = Codes(runs["vae"])
    (first, last) = codes.reconstruct(["aaa", "ddd"])
    assert [codes.reconstruct([text])[0] for text in ("aaa", "ddd")] == [first, last]
    drawn = codes.sample(6, seed=1)
    assert drawn == codes.sample(6, seed=1) and len(drawn) == 6
    between = codes.interpolate("aaa", "ddd", 5)
    assert (between[0], between[-1], len(between)) == (first, last, 5)
    model, params, special = codes.run.model, codes.params, (256, 257, 258, 259)
    written = np.asarray(model.sample(params, jax.random.key(1), 6, **codes._end))
    texts = [bytes(token for token in row if token >= 0 and token not in special).decode(errors="replace") for row in written.tolist()]
    assert drawn == texts and not {256, 257, 259} & set(written.flat)  # neither padding, bos nor <unk>


def test_classes_are_those_of_the_best_path(runs):
    run = open_run(runs["hmm"])
    (found,) = tags(runs["hmm"], ["ab cd"])
    assert "".join(token for token, _ in found) == "ab cd"
    batch = batch_of(rows_of(run, ["ab cd"]), run.tokenizer.bos_id)
    best = np.asarray(jax.jit(run.model.viterbi)(run.parameters()[0], batch))
    assert [number for _, number in found] == best[0, :5].tolist()


def test_what_cannot_be_is_one_line(runs):
    for ask, message in ((lambda: Codes(runs["hmm"]), "model.name=hmm, which has no codes"),
                         (lambda: tags(runs["vae"], ["ab"]), "model.name=vae, which has no classes"),
                         (lambda: Codes(runs["vae"]).reconstruct(["ab" * 20]), "has 40 tokens, and data.context=12 holds 11"),
                         (lambda: Codes(runs["vae"]).reconstruct([" "]), "a text is empty"),
                         (lambda: Codes(runs["vae"]).sample(0), "sample=0 is not allowed")):
        with pytest.raises(ConfigError, match=message):
            ask()
