"""Configs of every family with every objective, tiny, without text."""

import pytest

from lm import config as configs
from lm.config.objective_keys import TRAINS
from lm.describe import initial

CASES = [(objective, family) for objective, families in TRAINS.items() for family in families]


@pytest.fixture
def undrawn(monkeypatch):
    """Nothing is drawn, which takes a second to compile."""
    monkeypatch.setattr(initial, "MOST_DRAWN", 0)


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A text, for objectives over words."""
    path = tmp_path_factory.mktemp("words") / "text.txt"
    path.write_text("the cat sat on the mat and the dog on the cat\n" * 20)
    return path


@pytest.fixture(scope="session")
def tiny(words):
    """tiny(objective, family, **{"a__b": value}): a config of a family that is traced in a second."""

    def make(objective="causal", family="transformer", **overrides):
        given = {"model.name": family, "objective.name": objective, "data.tokenizer": "bytes", "data.context": "32",
                 "data.global_batch": "8"}
        small = {"model.heads": "2", "model.width": "16", "model.layers": "2", "model.classes": "6"}
        given |= {name: value for name, value in small.items() if family in configs.SCHEMA[name].families}
        if objective in ("span", "denoisers"):
            form = "decoder" if family == "transformer" else "encoder_decoder"
            given |= {"objective.sentinels": "20", "data.context": "48", "objective.form": form}
        if objective in ("skipgram", "cbow", "glove"):
            given |= {"data.tokenizer": "words", "data.min_count": "1", "data.source": f"text:{words}", "data.documents": "line"}
        if objective == "glove":
            given |= {"eval.split": "none"}
        if family == "hmm":
            given |= {"optim.name": "em", "optim.learning_rate": "1.0", "optim.schedule": "constant", "optim.clip": "0"}
        given |= {name.replace("__", "."): str(value) for name, value in overrides.items()}
        return configs.validate(configs.override(configs.default(), given))

    return make
