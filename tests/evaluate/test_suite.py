"""The offline suite against one token at a time, closed forms of a model that knows nothing, and bad files."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, objectives
from lm.checkpoint import Checkpoints
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError, DataError
from lm.evaluate import suite
from lm.evaluate.suite import Subject, statistics
from lm.evaluate.suite.measures import documents
from lm.interop import lm_eval
from lm.models import logits_of
from lm.parallel import AXES, make_mesh
from lm.run import write

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts/eval.py"
TOKENIZER = ByteTokenizer()
CONTEXT, VOCAB = 16, 259
TEXT = "one line\ntwo words and more of them\n\nthe end é\n"
PAIRS = [{"sentence_good": "He is.", "sentence_bad": "He are here.", "UID": "verb"}, {"sentence_good": "A dog", "sentence_bad": "An dog"},
         {"sentence_good": "much longer", "sentence_bad": "short", "UID": "verb"}, {"sentence_good": "abc", "sentence_bad": "cab"}]
CHOICES = [{"question": "q", "choices": {"text": ["long answer", "no"], "label": ["A", "B"]}, "answerKey": "B"},
           {"ctx": "It is", "endings": ["é", "ab", "abc"], "label": "2"},
           {"question": "q", "choices": ["aa", "b"], "gold": 0}]
WORDS = [{"text": "a b cd"}, {"text": "to be or not"}]


class Uniform:
    """Every token is as likely, after any other."""

    max_positions = CONTEXT

    def apply(self, params, batch):
        return jnp.zeros((*batch["tokens"].shape, 1))

    def logits(self, params, hidden):
        return jnp.zeros((*hidden.shape[:-1], VOCAB))


def settings(**keys):
    """A tiny config."""
    found = config.default()
    found.data.context, found.data.tokenizer = CONTEXT, "bytes"
    for key, value in {"model.layers": 1, "model.width": 16, "model.heads": 2, **keys}.items():
        section, name = key.split(".")
        found[section][name] = value
    return config.validate(found)


def subject_of(model=None, devices=1, **keys):
    """A subject without a work directory, with parameters large enough for its choices to be clear."""
    chosen = settings(**keys)
    objective = objectives.make(chosen, TOKENIZER)
    params = {}
    if model is None:
        model = objective.model(chosen)
        rng = np.random.default_rng(1)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)
    run = types.SimpleNamespace(workdir="W", config=chosen, tokenizer=TOKENIZER, model=model, objective=objective)
    return Subject(run, params, make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1}, jax.devices()[:devices]), 0)


def put(folder, items, name="items.jsonl"):
    """A file of JSON lines."""
    (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder / name


def measured(subject, spec):
    """What one entry finds."""
    (found,) = suite.measure(subject, suite.parse(spec)).values()
    return found


@pytest.fixture(scope="module")
def transformer():
    return subject_of(**{"model.positions": "learned"})


@pytest.fixture(scope="module")
def log_probs(transformer):
    """log_probs(tokens) -> float64 [n, V] after each of at most CONTEXT tokens."""
    model = transformer.run.model
    apply = jax.jit(lambda params, batch: model.logits(params, model.apply(params, batch)))

    def of(tokens):
        row, segments, positions = np.zeros((3, 1, CONTEXT), np.int32)
        row[0, : len(tokens)], segments[0, : len(tokens)], positions[0, : len(tokens)] = tokens, 1, range(len(tokens))
        logits = apply(transformer.params, {"tokens": row, "segments": segments, "positions": positions})
        logits = np.asarray(logits, np.float64)[0, : len(tokens)]
        return logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)

    return of


def by_hand(log_probs, context, continuation):
    """Log-probability of the bytes of a text after bos and those of another, which fit the model together."""
    ids = [TOKENIZER.bos_id, *context.encode(), *continuation.encode()]
    table, n = log_probs(ids[:-1]), len(continuation.encode())
    return table[np.arange(len(ids) - 1 - n, len(ids) - 1), ids[-n:]].sum()


@pytest.mark.parametrize("stride", [0, 5])
def test_perplexities_are_those_of_one_token_at_a_time(transformer, log_probs, tmp_path, stride):
    (tmp_path / "text.txt").write_text(TEXT)
    subject = dataclasses.replace(transformer, stride=stride)
    tokens = [TOKENIZER.bos_id, *TEXT.encode()]
    size, step, nats = len(tokens) - 1, stride or CONTEXT, 0.0
    for place in range(1, len(tokens)):
        stop = CONTEXT if place <= CONTEXT else min(size, CONTEXT + -(-(place - CONTEXT) // step) * step)
        window = tokens[max(0, stop - CONTEXT) : place]
        nats -= log_probs(window)[-1, tokens[place]]
    end = -log_probs(tokens[-CONTEXT:])[-1, TOKENIZER.eos_id]
    found = measured(subject, f"perplexity:{tmp_path}/text.txt")
    assert found["perplexity"] == pytest.approx(math.exp((nats + end) / (size + 1)), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx((nats + end) / math.log(2) / size, rel=1e-5)
    assert found["byte_perplexity"] == pytest.approx(2 ** found["bits_per_byte"])
    assert found["end_nats"] == pytest.approx(end, rel=1e-5)
    windows = 1 + -(-(size - CONTEXT) // step) + 1  # the last is full: the end has one of its own
    assert {name: found[name] for name in ("documents", "tokens", "bytes", "context", "stride", "windows")} == {
        "documents": 1, "tokens": size + 1, "bytes": size, "context": CONTEXT, "stride": step, "windows": windows}
    words = measured(subject, f"word_perplexity:{tmp_path}/text.txt")
    assert (words["words"], words["line_ends"], words["word_perplexity_stderr"]) == (11, 4, None)
    assert words["word_perplexity"] == pytest.approx(math.exp(nats / 11), rel=1e-4)
    assert words["word_perplexity_with_ends"] == pytest.approx(math.exp((nats + end) / 15), rel=1e-4)


def test_lines_are_documents_where_the_run_says_so(tmp_path):
    (tmp_path / "text.txt").write_text("a b\nc\nd e f\n")
    found = measured(subject_of(Uniform(), **{"data.documents": "line"}), f"word_perplexity:{tmp_path}/text.txt")
    assert (found["documents"], found["words"], found["line_ends"], found["windows"], found["overlap_tokens"]) == (3, 6, 3, 3, 0)
    log_v = math.log(VOCAB)
    assert math.log(found["word_perplexity"]) == pytest.approx((3 + 1 + 5) * log_v / 6)
    assert math.log(found["word_perplexity_with_ends"]) == pytest.approx((3 + 1 + 5 + 3) * log_v / 9)
    assert found["end_nats"] == pytest.approx(3 * log_v)


def test_choices_pairs_and_last_words_are_those_of_one_at_a_time(transformer, log_probs, tmp_path):
    pairs = [{"sentence_good": f"{a} is {b}", "sentence_bad": f"{b} is {a}"} for a, b in ("ab", "cd", "ef", "gh", "ij")]
    found = measured(transformer, f"minimal_pairs:{put(tmp_path, pairs)}")
    better = [by_hand(log_probs, "", pair["sentence_good"]) > by_hand(log_probs, "", pair["sentence_bad"]) for pair in pairs]
    assert 0 < sum(better) < 5 and found["accuracy"] == np.mean(better)
    assert found["accuracy_stderr"] == pytest.approx(np.std(better, ddof=1) / np.sqrt(5))
    choices = [{"ctx": f"x {i}", "endings": ["yes", "no", "it may"], "label": i % 3} for i in range(6)]
    found = measured(transformer, f"choice:{put(tmp_path, choices)}")
    scores = np.array([[by_hand(log_probs, item["ctx"], f" {answer}") for answer in item["endings"]] for item in choices])
    gold = [item["label"] for item in choices]
    assert found["accuracy"] == np.mean(scores.argmax(axis=1) == gold)
    assert found["accuracy_by_character"] == np.mean((scores / [3, 2, 6]).argmax(axis=1) == gold)
    assert (found["items"], found["requests"], found["tokens_scored"], found["chance"]) == (6, 18, 6 * (4 + 3 + 7), pytest.approx(1 / 3))
    found = measured(transformer, f"last_word:{put(tmp_path, WORDS)}")
    nats = [-by_hand(log_probs, "a b", " cd"), -by_hand(log_probs, "to be or", " not")]
    assert math.log(found["perplexity"]) == pytest.approx(np.mean(nats), rel=1e-5)
    assert found["perplexity_stderr"] == pytest.approx(found["perplexity"] * np.std(nats, ddof=1) / math.sqrt(2), rel=1e-4)


class Chain(Uniform):
    """After each byte of " cd b" the next one, after any other a "z"."""

    def apply(self, params, batch):
        return batch["tokens"][..., None]

    def logits(self, params, hidden):
        following = jnp.full(VOCAB, ord("z")).at[jnp.array(list(b" cdb"))].set(jnp.array(list(b"cdb ")))
        return 9.0 * jax.nn.one_hot(following[hidden[..., 0]], VOCAB)


def test_a_last_word_is_right_when_every_token_of_it_is_the_likeliest(tmp_path):
    items = [{"text": text} for text in ("a b cd", "a b cdb", "a b ce", "a x cd", "a b b")]
    found = measured(subject_of(Chain()), f"last_word:{put(tmp_path, items)}")
    assert (found["accuracy"], found["items"]) == (2 / 5, 5)


def test_a_model_that_knows_nothing_has_closed_forms(tmp_path):
    subject, log_v = subject_of(Uniform()), math.log(VOCAB)
    (tmp_path / "text.txt").write_text(TEXT)
    size = len(TEXT.encode())
    found = measured(subject, f"perplexity:{tmp_path}/text.txt")
    assert found["perplexity"] == pytest.approx(VOCAB)
    assert math.log(found["byte_perplexity"]) == pytest.approx((size + 1) * log_v / size)
    found = measured(subject, f"minimal_pairs:{put(tmp_path, PAIRS)}")  # the shorter sentence is the likelier one
    assert (found["accuracy"], found["ties"], found["items"]) == (0.5, 1, 4)
    assert found["by_uid"] == {uid: {"accuracy": 0.5, "accuracy_stderr": pytest.approx(0.5), "items": 2} for uid in ("", "verb")}
    assert found["accuracy_stderr"] == pytest.approx(math.sqrt(0.25 / 3))
    uneven = [PAIRS[0], PAIRS[0], PAIRS[2], {**PAIRS[1], "UID": "article"}]
    assert measured(subject, f"minimal_pairs:{put(tmp_path, uneven)}")["by_uid"] == {
        "article": {"accuracy": 1.0, "accuracy_stderr": None, "items": 1},
        "verb": {"accuracy": pytest.approx(2 / 3), "accuracy_stderr": pytest.approx(1 / 3), "items": 3}}
    found = measured(subject, f"choice:{put(tmp_path, CHOICES)}")
    # The shortest answer in bytes as it is; the one with the longest text by its own length, which does not count the space before it.
    assert (found["accuracy"], found["accuracy_by_character"], found["accuracy_by_byte"]) == pytest.approx((1 / 3, 2 / 3, 2 / 3))
    found = measured(subject, f"last_word:{put(tmp_path, WORDS)}")
    assert (found["accuracy"], math.log(found["perplexity"])) == (0.0, pytest.approx((3 + 4) / 2 * log_v))


@pytest.mark.parametrize("sentences", ["none", "next"])
def test_pseudo_log_likelihoods_hide_one_token_at_a_time(tmp_path, sentences):
    keys = {"model.name": "encoder", "objective.name": "masked", "objective.sentences": sentences,
            "model.next_sentence": sentences == "next"}
    subject = subject_of(devices=8, **keys)
    objective, model = subject.run.objective, subject.run.model
    score = jax.jit(lambda params, batch: jax.nn.log_softmax(
        logits_of(model.predict(params, model.encode(params, batch)), model.unembedding(params))))
    texts = ["ab cd", "x", "é, the"]
    found, counts = subject.sentences(texts)
    for text, value in zip(texts, found, strict=True):
        ids, total = [objective.cls, *text.encode(), objective.sep if sentences == "next" else TOKENIZER.eos_id], 0.0
        for place in range(1, len(ids) - 1):
            row = np.array([ids], np.int32)
            row[0, place] = objective.mask
            batch = {"tokens": row, "segments": np.ones_like(row), "positions": np.arange(len(ids))[None], "types": np.zeros_like(row)}
            total += float(score(subject.params, batch)[0, place, ids[place]])
        assert value == pytest.approx(total, rel=1e-5)
    assert counts["tokens_scored"] == 5 + 1 + 7
    result = measured(subject, f"minimal_pairs:{put(tmp_path, PAIRS)}")
    assert (result["score"], result["items"]) == ("pseudo_log_likelihood", 4)
    with pytest.raises(ConfigError, match="gives no likelihood: choice cannot be asked of it, only minimal_pairs"):
        measured(subject, f"choice:{put(tmp_path, CHOICES)}")
    with pytest.raises(DataError, match=f"has 20 tokens, and a row takes from 1 to {CONTEXT - 2}"):
        subject.sentences(["a" * 20])


@pytest.mark.parametrize(("spec", "line", "message"), [
    ("minimal_pairs", {"sentence_good": "a"}, "'sentence_bad'; there are 'sentence_good'"),
    ("minimal_pairs", {"sentence_good": "a", "sentence_bad": 3}, "'sentence_bad' is not a text"),
    ("minimal_pairs", {"sentence_good": "a", "sentence_bad": " "}, "'sentence_bad' is not a text"),
    ("minimal_pairs", ["a", "b"], "not a JSON object"),
    ("choice", {"choices": ["a", "b"], "gold": 0}, "no field 'question' or 'ctx'"),
    ("choice", {"ctx": "a", "gold": 0}, "no field 'choices' or 'endings'"),
    ("choice", {"ctx": "a", "endings": ["b"], "gold": 0}, "'endings' is not a list of at least two texts"),
    ("choice", {"ctx": "a", "choices": {"text": ["b", "c"], "label": ["A"]}, "gold": 0}, "does not have a label for each"),
    ("choice", {"ctx": "a", "endings": ["b", "c"]}, "no field 'answerKey', 'label' or 'gold'"),
    ("choice", {"ctx": "a", "endings": ["b", "c"], "label": 2}, "'label' is 2, and the answers are 0, 1"),
    ("choice", {"ctx": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "C"}, "is 'C', and the answers are A, B"),
    ("last_word", {"sentence": "a b"}, "no field 'text'"),
    ("last_word", {"text": "word"}, "at least two words"),
    ("last_word", {"text": "two words "}, "no space at its end"),
])
def test_bad_items_are_named_by_file_line_and_field(tmp_path, spec, line, message):
    good = {"minimal_pairs": PAIRS, "choice": CHOICES, "last_word": WORDS}[spec][:2]
    path = put(tmp_path, [*good, line])
    with pytest.raises(DataError) as error:
        measured(subject_of(Uniform()), f"{spec}:{path}")
    assert str(error.value).startswith(f"{path}:3: ") and message in str(error.value)


def test_other_bad_files(tmp_path):
    subject = subject_of(Uniform())
    (tmp_path / "broken.jsonl").write_text('\n{"text": "a b"\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, message in (("broken", ":2: not valid JSON"), ("empty", "has no items"), ("missing", "is not a file")):
        with pytest.raises(DataError, match=message):
            measured(subject, f"last_word:{tmp_path}/{name}.jsonl")


def test_entries_are_parsed():
    parsed = suite.parse("perplexity:a.txt,lm_eval:arc_easy,hellaswag,choice:b.jsonl,choice:b.jsonl,perplexity:jsonl:c.jsonl")
    assert [str(entry) for entry in parsed] == ["perplexity:a.txt", "lm_eval:arc_easy", "lm_eval:hellaswag", "choice:b.jsonl",
                                                "perplexity:jsonl:c.jsonl"]
    for spec, message in (("blimp:a", "'blimp:a' is not known"), ("a.txt", "'a.txt' is not known"), ("choice:", "names no file"),
                          ("lm_eval:", "names no task"), ("", "not known")):
        with pytest.raises(ConfigError, match=message):
            suite.parse(spec)


def test_limits_are_of_items(tmp_path):
    subject = dataclasses.replace(subject_of(Uniform(), **{"data.documents": "line"}), limit=2)
    assert measured(subject, f"choice:{put(tmp_path, CHOICES)}")["items"] == 2
    (tmp_path / "text.txt").write_text("a\nb\nc\n")
    assert documents(subject, f"{tmp_path}/text.txt").counts["documents"] == 2


def test_standard_errors():
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.3
    p = right.mean()
    assert statistics.mean(right) == pytest.approx((p, math.sqrt(p * (1 - p) / 199)))
    assert statistics.mean([1.0]) == (1.0, None) and statistics.ratio([1.0], [2.0]) == (0.5, None)
    sizes = rng.integers(5, 50, 400)
    values = sizes * rng.normal(1.0, 0.1, 400)
    found, error = statistics.ratio(values, sizes)
    left_out = (values.sum() - values) / (sizes.sum() - sizes)
    assert found == pytest.approx(values.sum() / sizes.sum())
    assert error == pytest.approx(np.sqrt(399 / 400 * np.sum((left_out - left_out.mean()) ** 2)), rel=0.02)
    assert statistics.perplexity((2.0, 0.1)) == pytest.approx((math.exp(2), 0.1 * math.exp(2)))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run at step 0."""
    folder = tmp_path_factory.mktemp("run") / "run"
    chosen = settings()
    params = objectives.make(chosen, TOKENIZER).model(chosen).init(jax.random.key(0))
    folder.mkdir()
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(0, {"params": params}, {"tokens": 0, "seconds": 0.0, "skipped": 0})
    checkpoints.close()
    write(folder, chosen, chosen, TOKENIZER, None, None)
    return folder


def test_the_script_prints_one_object(workdir, tmp_path, capsys):
    found = importlib.util.spec_from_file_location("eval_script", SCRIPT)
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    pairs, words = put(tmp_path, PAIRS, "pairs.jsonl"), put(tmp_path, WORDS, "words.jsonl")
    script.main([f"--workdir={workdir}", f"--suite=minimal_pairs:{pairs},last_word:{words}", "--limit=1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["step"] == 0 and list(result["suites"]) == [f"minimal_pairs:{pairs}", f"last_word:{words}"]
    assert [found["items"] for found in result["suites"].values()] == [1, 1]
    for arguments, message in ((["--suite=choice:a", "--split=test"], "--split is not for --suite"),
                               (["--limit=3"], "--limit is for --suite"),
                               (["--suite=choice:a", "--shots=1"], "--include and --shots are for --suite=lm_eval"),
                               ([f"--suite=last_word:{words}", f"--stride={CONTEXT + 1}"], "must be from 1 to the model's context"),
                               ([f"--suite=last_word:{words}", "--limit=0"], "limit=0 is not allowed")):
        with pytest.raises(ConfigError, match=message):
            script.main([f"--workdir={workdir}", *arguments])


def test_without_the_harness_it_is_said_how_to_get_it(workdir, monkeypatch):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    lm_eval.model_class.cache_clear()
    with pytest.raises(ConfigError, match="pip install lm_eval"):
        lm_eval.measure(suite.open_subject(workdir), ["any"])
