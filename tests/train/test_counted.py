"""Counting as training: exactly the tokens of the budget, a run like any other, ARPA files in and out."""

import json

import numpy as np
import pytest

from lm import config as configs
from lm.data.feed import TrainingData
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer
from lm.errors import CheckpointError, ConfigError
from lm.evaluate import evaluate_run
from lm.objectives.causal import batch_of
from lm.run import open_run
from lm.tables import Tables
from lm.train import train
from lm.train.counted import export_arpa, import_arpa, seen_tokens


def stores():
    texts = (["abc" * 9, "de" * 30, "f"], ["xyz" * 40])
    return [TokenStore.from_documents([(str(i), text) for i, text in enumerate(part)], ByteTokenizer()) for part in texts]


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_the_tokens_that_count_are_the_targets_of_the_budget(steps):
    data = TrainingData(stores(), (0.7, 0.3), 8, 4, seed=5)
    seen = seen_tokens(data, steps)
    met = [np.zeros(store.num_tokens, bool) for store in data.stores]
    for step in range(steps):
        examples = np.arange(4) + 4 * step
        for source, row in zip(*data.order.locate(examples), strict=True):
            for token in range(row * 8, min(row * 8 + 8, data.stores[source].num_tokens)):
                met[source][token] = True
    for a, b in zip(seen, met, strict=True):
        np.testing.assert_array_equal(a, b)
    weights = sum(data.batch(step, lambda rows, _: batch_of(rows, 257))["weights"].sum() for step in range(steps))
    assert steps == 100 or weights == sum(part.sum() for part in seen)  # no epoch is over yet


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A bigram over bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"the people of the union number {i % 7} and {i}" for i in range(60)))
    given = {"model.name": "ngram", "model.order": "3", "data.source": f"text:{path}", "data.documents": "line", "data.tokenizer": "bytes",
             "data.context": "16", "data.global_batch": "4", "data.validation_fraction": "0.2", "data.workers": "1",
             "train.steps": "1 epochs", "metrics.tensorboard": "false"}
    return configs.validate(configs.override(configs.default(), given))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(config, workdir)


def test_the_same_command_counts_once(config, trained):
    workdir, result = trained
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train(config, workdir) == result and (workdir / "metrics.jsonl").read_bytes() == before
    kept = open_run(workdir).parameters()[0]
    assert result["tokens"] > 1000 and result["loss"] > 0 and {array.dtype.itemsize for array in kept.values()} == {4}


def test_a_longer_budget_counts_more_and_lowers_the_cost(config, tmp_path):
    costs = []
    for steps in ("3", "1 epochs"):
        train(configs.override(config, {"train.steps": steps}), tmp_path / steps)
        costs.append(evaluate_run(tmp_path / steps)["bits_per_byte"])
    assert costs[1] < costs[0] - 0.1


def test_an_arpa_file_gives_the_same_run(config, trained, tmp_path):
    workdir, _ = trained
    written = export_arpa(workdir, str(tmp_path / "model.arpa.gz"))
    read = import_arpa(config, tmp_path / "read", written["file"])
    assert read == written and written["order"] == 3
    a, b = evaluate_run(workdir), evaluate_run(tmp_path / "read")
    assert a["bits_per_byte"] == pytest.approx(b["bits_per_byte"], abs=1e-7)


def test_what_does_not_fit_is_refused(config, trained, tmp_path):
    workdir, _ = trained
    file = export_arpa(workdir, str(tmp_path / "model.arpa"))["file"]
    with pytest.raises(ConfigError, match=r"is of order 3: set model.order=3, not 2"):
        import_arpa(configs.override(config, {"model.order": "2"}), tmp_path / "a", file)
    with pytest.raises(ConfigError, match=r"takes no FLOPs"):
        train(configs.override(config, {"train.steps": "1e9 flops"}), tmp_path / "b")


def test_an_arpa_file_needs_two_tokens_where_a_tokenizer_has_one(trained, tmp_path, monkeypatch):
    opened = open_run(trained[0])
    monkeypatch.setattr(type(opened.tokenizer), "bos_id", opened.tokenizer.eos_id)
    monkeypatch.setattr("lm.train.counted.run.open_run", lambda _: opened)
    with pytest.raises(ConfigError, match=r"one token for both: use a data.tokenizer that has two"):
        export_arpa(trained[0], str(tmp_path / "model.arpa"))
    assert not list(tmp_path.iterdir())


def test_changed_tables_are_an_error_and_none_say_so(tmp_path):
    tables = Tables(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        tables.restore()
    tree = {"a": np.arange(3, dtype=np.int32), "b": {"c": np.ones((2, 2), np.float32)}}
    tables.save(4, tree, {"tokens": 9})
    read, step, meta = tables.restore()
    assert step == 4 and meta["tokens"] == 9
    np.testing.assert_array_equal(read["b"]["c"], tree["b"]["c"])
    with pytest.raises(CheckpointError, match="no checkpoint of step 5: it has 4"):
        tables.restore(5)
    file = tmp_path / "4" / "tables.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="damaged"):
        tables.restore()
    json.loads((tmp_path / "4" / "checksum.json").read_text())
    (tmp_path / "4" / "checksum.json").unlink()
    assert tables.steps() == []  # a save that was killed is none
