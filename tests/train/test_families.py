"""Every family with every objective that can train it: one loop, one run directory, one evaluation, one description, one table."""

import json
import math
import random
import re
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lm import config as configs
from lm import describe, results
from lm.config.objective_keys import TRAINS
from lm.errors import ConfigError
from lm.evaluate import evaluate_run
from lm.generate import Generator
from lm.metrics.writers import read_lines
from lm.models import CountedModel
from lm.run import open_run
from lm.train import train

CASES = [(objective, family) for objective, families in TRAINS.items() for family in families]
LEARNED = [case for case in CASES if case[1] != "ngram"]  # what is counted is counted at once
DECODERS = [case for case in CASES if case[1] in ("transformer", "rnn", "lstm", "gru", "nplm", "hmm", "ngram")]
# What an evaluation of each kind must say, and the honest bounds of it.
KEYS = {
    "likelihood": ("bits_per_byte", "nats_per_token"), "translation": ("bits_per_byte", "left_out"), "masked": ("masked_accuracy",),
    "replaced": ("discriminator_accuracy", "replaced_share"), "loss": ("loss",), "vae": ("bits_per_byte_bound", "kl"), "words": ("loss",),
}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """A run that goes on, and one that is evaluated again, compile the programs of the first: they are kept here between them."""
    options = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")), "jax_persistent_cache_min_compile_time_secs": 0.0,
               "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Sentences, one a line, and pairs of a sentence and its reverse."""
    words = re.findall(r"\w+", "we the people of union in order to form a more perfect state and secure peace for all")
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(80)]
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "pairs.tsv").write_text("".join(f"{line[:20]}\t{line[:20][::-1]}\n" for line in lines))
    return folder


def tiny(texts, objective, family, **overrides):
    """A config of a family that compiles in a second or two."""
    source = {"data.source": f"pairs:{texts}/pairs.tsv"} if objective == "translation" else {"data.source": f"text:{texts}/text.txt"}
    given = {
        "model.name": family, "objective.name": objective, "data.documents": "line",
        "data.tokenizer": "bytes", "data.context": "32", "data.global_batch": "8", "data.validation_fraction": "0.2", "data.workers": "1",
        "train.steps": "3", "train.log_every": "1", "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "checkpoint.every": "2",
        "eval.every": "0", **source,
    }
    schema = configs.SCHEMA
    given |= {name: value for name, value in {"model.heads": "2", "model.width": "16", "model.layers": "1", "model.classes": "6"}.items()
              if family in schema[name].families}
    given |= {"model.scan_layers": "false"} if family in schema["model.scan_layers"].families else {}  # one layer needs no loop
    if objective == "translation":
        given |= {"data.context": "24"}  # too short for buckets: one shape of batches
    if objective in ("span", "denoisers"):
        form = "decoder" if family == "transformer" else "encoder_decoder"
        given |= {"objective.sentinels": "20", "data.context": "48", "objective.form": form}
    if objective in ("skipgram", "cbow", "glove"):
        given |= {"data.tokenizer": "words", "data.min_count": "1"}
    if objective == "glove":
        given |= {"eval.split": "none"}
    if family == "hmm":
        given |= {"optim.name": "em", "optim.learning_rate": "1.0", "optim.schedule": "constant", "optim.clip": "0"}
    return configs.validate(configs.override(configs.default(), given | overrides))


def each(cases):
    """A test for each of some cases, each of which is trained once."""
    return pytest.mark.parametrize("trained", cases, ids=["-".join(case) for case in cases], indirect=True)


@pytest.fixture(scope="module")
def trained(request, texts, tmp_path_factory):
    """(config, work directory, result) of a short run."""
    config = tiny(texts, *request.param)
    workdir = tmp_path_factory.mktemp("-".join(request.param))
    return config, workdir, train(config, workdir)


@each(CASES)
def test_it_trains_and_its_evaluation_is_that_of_its_checkpoint(trained):
    config, workdir, result = trained
    lines = read_lines(workdir / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert result["step"] == 3 and all(np.isfinite(losses)) and result["tokens"] > 0
    run = open_run(workdir)
    if config.eval.split == "none":
        with pytest.raises(ConfigError, match=r"scripts/words\.py"):
            evaluate_run(workdir)
        return
    (line,) = [line for line in lines if line["kind"] == "eval"]
    assert all(key in line and np.isfinite(line[key]) for key in KEYS[run.objective.measure])
    again = evaluate_run(workdir)
    for key, value in line.items():
        if isinstance(value, float) and key != "seconds":
            # One device here, eight there.
            assert again[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@each(LEARNED)
def test_it_resumes_bit_for_bit(trained, tmp_path):
    config, workdir, _ = trained
    whole = open_run(workdir)
    shutil.copytree(workdir, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "3")
    train(configs.override(config, {"eval.split": "none"}), tmp_path / "killed")  # from step 2 on
    a, b = (run.parameters(step=3)[0] for run in (whole, open_run(tmp_path / "killed")))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@each(CASES)
def test_its_description_and_its_table_agree_with_it(trained):
    config, workdir, _ = trained
    run = open_run(workdir)
    described = describe.describe(config)
    row = results.result_of(workdir)
    assert row["run"] in results.tables([row])
    if isinstance(run.model, CountedModel):
        assert described["totals"]["parameters"] == 0 < row["parameters"]
        return
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
              for path, leaf in jax.tree_util.tree_leaves_with_path(run.abstract_parameters())}
    assert {entry["name"]: entry["shape"] for entry in described["parameters"]} == shapes
    assert row["parameters"] == sum(math.prod(shape) for shape in shapes.values())
    json.dumps(described)


@each(DECODERS)
def test_what_decodes_decodes(trained):
    _, workdir, _ = trained
    run = open_run(workdir)
    params, _ = run.parameters()
    first, again = (Generator(run.model, params, run.tokenizer, prefix=run.objective.bidirectional_prompts)(["we the", "a"], 5, seed=3)
                    for _ in range(2))
    assert first == again and all(len(completion.tokens) <= 5 and np.isfinite(completion.logprob) for completion in first)
