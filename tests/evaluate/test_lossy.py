"""Bits per byte of a tokenizer that loses text say so."""

import jax
import pytest

from lm import config as configs
from lm import evaluate, objectives
from lm.data.sources import Document
from lm.data.store import TokenStore
from lm.data.tokenizer_training import train_bytebpe, train_wordpiece
from lm.parallel import AXES, make_mesh, replicated

TEXTS = [f"The quick brown fox number {i} jumps over the lazy dog, and {i * 7} more" for i in range(40)]


@pytest.mark.parametrize(("train", "said"), [(train_wordpiece, False), (train_bytebpe, None)])
def test_only_what_was_scored_without_loss_goes_unremarked(train, said):
    tokenizer, config = train(TEXTS, 100 if train is train_wordpiece else 300), configs.default()
    config.model.update(layers=1, width=16, heads=2)
    config.data.context = 32
    objective = objectives.make(config, tokenizer, None)
    model = objective.model(config)
    params, documents = model.init(jax.random.key(0)), [Document(text, text) for text in TEXTS[:8]]
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1})
    with jax.set_mesh(mesh):
        evaluator = evaluate.make(config, objective, model, mesh, replicated(mesh), batch=8)
        result = evaluator(params, [TokenStore.from_documents(documents, tokenizer)])
    assert result.get("tokenizer_lossless") is said and result["bytes"] == sum(len(text.encode()) for text in TEXTS[:8])
