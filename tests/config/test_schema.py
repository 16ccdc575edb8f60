"""The schema: every key is documented, its default is valid, and nothing outside it can be set."""

import pytest
from ml_collections import ConfigDict

from lm import config
from lm.config.model_keys import FAMILIES
from lm.config.objective_keys import TRAINS
from lm.config.schema import SCHEMA
from lm.config.validate import check_value, unknown_key
from lm.errors import ConfigError


@pytest.mark.parametrize("name", SCHEMA)
def test_key_is_documented_and_its_default_is_valid(name):
    key = SCHEMA[name]
    assert len(key.doc) > 8 and key.doc.endswith(".")
    assert check_value(name, key.default) == key.default
    assert key.resume in ("same", "free") and key.kind in ("value", "duration", "strings", "floats")


def test_default_has_exactly_the_keys_of_the_schema_and_is_valid():
    assert set(config.flatten(config.default())) == set(SCHEMA)
    assert config.validate(config.default()) == config.default()


@pytest.mark.parametrize(("objective", "family"), [(name, family) for name, families in TRAINS.items() for family in families])
def test_every_family_trains_with_the_defaults(objective, family):
    needed = {"optim.name": "em", "optim.learning_rate": "1.0", "optim.schedule": "constant", "optim.clip": "0"} if family == "hmm" else {}
    needed |= {"objective.form": "decoder"} if (objective in ("span", "denoisers") and family == "transformer") else {}
    given = {"model.name": family, "objective.name": objective, **needed}
    assert config.validate(config.override(config.default(), given)).model.name == family


def test_every_family_has_an_objective():
    assert {family for families in TRAINS.values() for family in families} == set(FAMILIES)


def test_an_objective_that_cannot_train_a_family_is_refused_with_those_that_can():
    with pytest.raises(ConfigError, match=r"objective.name=masked trains encoder, not model.name=lstm: use causal or infill with it"):
        config.validate(config.override(config.default(), {"model.name": "lstm", "objective.name": "masked"}))


def test_families_of_keys_and_models_are_the_same():
    from lm import models, objectives

    assert set(models.FAMILIES) == set(FAMILIES) and set(objectives.OBJECTIVES) == set(TRAINS)


@pytest.mark.parametrize(("wrong", "nearest"), [
    ("optim.lerning_rate", "optim.learning_rate"), ("train.step", "train.steps"), ("lerning_rate", "optim.learning_rate"),
    ("step", "train.steps"), ("contxt", "data.context"), ("sed", "seed"), ("head", "model.heads"), ("zzz.heads", "model.heads"),
])
def test_unknown_key_names_the_nearest(wrong, nearest):
    assert f"unknown config key {wrong}; did you mean {nearest}?" in str(unknown_key(wrong))


def test_unknown_key_without_a_neighbour_says_where_the_keys_are():
    assert "lm/config/schema.py lists the keys" in str(unknown_key("xyzzy.plugh"))


def test_unknown_key_is_refused_wherever_it_is_given(tmp_path):
    with pytest.raises(ConfigError, match=r"data.contxt; did you mean data.context"):
        config.override(config.default(), {"data.contxt": "3"})
    with pytest.raises(AttributeError, match=r"contxt"):
        config.default().data.contxt = 3
    file = tmp_path / "c.py"
    file.write_text("from lm.config import default\ndef get_config():\n    c = default()\n    c.data.contxt = 3\n    return c\n")
    with pytest.raises(ConfigError, match=r"contxt; did you mean data.context"):
        config.load(str(file))
    tree = config.to_json(config.default())
    tree["data"]["contxt"] = 3
    with pytest.raises(ConfigError, match=r"data.contxt; did you mean data.context"):
        config.from_json(tree)


def test_a_key_that_is_younger_than_a_stored_config_has_its_default():
    tree = config.to_json(config.default())
    del tree["optim"]["beta2"]
    assert config.from_json(tree) == config.default()


def test_a_missing_key_is_named():
    tree = config.to_json(config.default())
    del tree["optim"]["beta2"]
    with pytest.raises(ConfigError, match=r"no optim.beta2"):
        config.validate(ConfigDict(tree, type_safe=False))
