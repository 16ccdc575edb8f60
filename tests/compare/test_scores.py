"""Scores of runs: sums by document, position and frequency against brute force, and the evaluation of scripts/eval.py to the digit."""

import functools
import itertools
import json
import math
import types

import jax
import numpy as np
import pytest

from lm.compare import breakdown, copying, costs, latency, samples, scores
from lm.data.packing import Rows, read_rows
from lm.data.store import TokenStore
from lm.data.tokenizers import ByteTokenizer, train_tokenizer
from lm.errors import ConfigError
from lm.evaluate import evaluate_run
from lm.metrics.writers import read_lines
from lm.objectives import causal
from lm.run import open_run
from lm.train import train
from tests.compare.small_runs import small, write_corpus

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("scores"))


@pytest.fixture(scope="module")
def lstm(corpus, tmp_path_factory):
    """A trained run, and its full score."""
    workdir = tmp_path_factory.mktemp("lstm")
    train(small(corpus, model__name="lstm"), workdir)
    pairs = workdir / "pairs.jsonl"
    items = [{"sentence_good": f"we the people {i}", "sentence_bad": f"people we the {i}"} for i in range(3)]
    pairs.write_text("".join(json.dumps(item) + "\n" for item in items))
    return workdir, scores.score(workdir, prompts=["we the", "in order"], suites=[f"minimal_pairs:{pairs}", "choice:missing.jsonl"])


@pytest.fixture(scope="module")
def trigram(corpus, tmp_path_factory):
    """A counted run."""
    workdir = tmp_path_factory.mktemp("trigram")
    train(small(corpus, model__name="ngram"), workdir)
    return workdir


def test_a_score_is_what_eval_says_to_the_digit(lstm):
    workdir, found = lstm
    assert json.loads(json.dumps(found)) == found
    expected = evaluate_run(workdir)
    for name in ("step", "bits_per_byte", "nats_per_token", "perplexity", "stderr", "tokens", "bytes", "loss_by_position", "split"):
        assert found[name] == expected[name], name
    assert (found["seed"], found["diverged"]) == (0, False)


def nats_of_every_token(workdir):
    """(document, target, position in its document in the row, nats) of every validation token, one row at a time."""
    run = open_run(workdir)
    (store,), length = run.prepare().split_stores("validation"), run.config.data.context
    params, _ = run.parameters()
    score = jax.jit(functools.partial(causal.token_nats, run.model))
    found = []
    for start in range(0, store.num_tokens, length):
        tokens, places = np.zeros((3, 1, length), np.int32), range(start, min(start + length, store.num_tokens))
        inputs, targets, segments = tokens
        positions, entries, segment = np.zeros_like(inputs), [], 0
        for i, place in enumerate(places):
            document = int(np.searchsorted(store.offsets, place, side="right")) - 1
            begins = place == store.offsets[document]
            if begins or i == 0:
                segment, position = segment + 1, 0
            targets[0, i], segments[0, i], positions[0, i] = store.read(place, place + 1)[0], segment, position
            inputs[0, i] = run.tokenizer.bos_id if begins else store.read(place - 1, place)[0]
            entries.append((document, int(targets[0, i]), position))
            position += 1
        nats = np.asarray(score(params, {"tokens": inputs, "targets": targets, "segments": segments, "positions": positions}))
        found += [(*entry, float(nats[0, i])) for i, entry in enumerate(entries)]
    return store, np.array(found)


def test_parts_are_the_brute_force_sums(lstm):
    workdir, found = lstm
    store, tokens = nats_of_every_token(workdir)
    documents = np.load(workdir / "scores" / "documents.npz")
    nats = tokens[:, 3]
    np.testing.assert_allclose(documents["nats"], [nats[tokens[:, 0] == i].sum() for i in range(store.num_documents)], rtol=1e-5)
    np.testing.assert_array_equal(documents["bytes"], store.byte_counts)
    assert documents["nats"].sum() / math.log(2) / documents["bytes"].sum() == pytest.approx(found["bits_per_byte"], rel=1e-12)
    for part in found["position"]:
        inside = (tokens[:, 2] + 1 >= part["from"]) & (tokens[:, 2] + 1 <= part["to"])
        assert part["nats_per_token"] == pytest.approx(nats[inside].mean(), rel=1e-5)
    assert [part["from"] for part in found["position"]] == [1, 2, 4, 8, 16]

    # The deciles, token by token: from the most frequent id of the training text on, the middle of whose share lies in a tenth.
    (training,) = open_run(workdir).prepare().split_stores("train")
    ids, counts = np.unique(training.read(0, training.num_tokens), return_counts=True)
    decile, before = {}, 0
    for count, token in sorted(zip(-counts, ids, strict=True)):
        decile[int(token)] = (20 * before + 10 * -count) // (2 * training.num_tokens) + 1
        before -= count
    of_tokens = np.array([decile.get(int(token), 10) for token in tokens[:, 1]])
    assert sum(part["tokens"] for part in found["frequency"]) == found["tokens"] == len(tokens)
    assert {part["decile"] for part in found["frequency"]} == set(of_tokens.tolist()) and len(set(of_tokens.tolist())) > 4
    for part in found["frequency"]:
        assert part["tokens"] == (of_tokens == part["decile"]).sum()
        assert part["nats_per_token"] == pytest.approx(nats[of_tokens == part["decile"]].mean(), rel=1e-5)


def recall_by_hand(store, rows):
    """Which of breakdown.SEEN each scored target of rows [B, T] is, by reading what the model has read: -1 for others."""
    found = np.full(rows.scored.shape, -1)
    for row, column in zip(*np.nonzero(rows.scored), strict=True):
        places = rows.documents[row] == rows.documents[row, column]
        first = int(np.nonzero(places)[0][0])
        read = [] if rows.starts[row, first] else [int(rows.tokens[row, first])]
        read += rows.tokens[row, first + 1:column + 1].tolist()
        target = int(rows.tokens[row, column + 1])
        twice = read and (read[-1], target) in itertools.pairwise(read)
        found[row, column] = 2 if twice else int(target in read)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_what_a_row_had_of_a_target_is_what_reading_it_says(seed):
    """Of random documents of few ids, so that they repeat; rows that begin anywhere, overlap, and end in padding."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, size=12)
    texts = ["".join(rng.choice(list("abcd"), size=length)) for length in lengths]
    store = TokenStore.from_documents([(str(i), text) for i, text in enumerate(texts)], ByteTokenizer())
    starts = np.arange(0, store.num_tokens + 9, 9)
    rows = read_rows(store, starts, 16, starts + 4, store.num_tokens - 3)
    expected = recall_by_hand(store, rows)
    np.testing.assert_array_equal(breakdown.seen(rows)[rows.scored], expected[rows.scored])
    assert set(expected[rows.scored]) == {0, 1, 2}

    parts, nats = breakdown.Breakdown(np.ones(300, np.int64)), rng.exponential(size=rows.scored.shape).astype(np.float32)
    for half in (slice(0, 5), slice(5, None)):
        parts(store, Rows(*(part[half] for part in rows)), nats[half])
    assert [part["target"] for part in parts.recall()] == ["new", "seen token", "seen bigram"]
    for kind, part in enumerate(parts.recall()):
        assert part["tokens"] == (expected == kind).sum()
        assert part["nats_per_token"] == pytest.approx(nats[expected == kind].mean(dtype=np.float64), rel=1e-12)


def test_a_score_says_what_rows_had_of_targets_and_what_is_copied(lstm):
    workdir, found = lstm
    assert sum(part["tokens"] for part in found["recall"]) == found["tokens"]
    total = sum(part["tokens"] * part["nats_per_token"] for part in found["recall"])
    assert total / found["tokens"] == pytest.approx(found["nats_per_token"], rel=1e-12)
    run = open_run(workdir)
    assert found["copy"] == pytest.approx(copying.copy_probe(run, run.prepare().split_stores("validation")))


def test_deciles_hold_a_tenth_of_the_text_where_ids_allow_it():
    shares = np.random.default_rng(0).dirichlet(np.ones(5000))
    shares[7] = 0.0
    shares /= shares.sum()
    groups = breakdown.frequency_groups(shares)
    np.testing.assert_allclose([shares[groups == i].sum() for i in range(1, 11)], 0.1, atol=2e-3)
    assert groups[7] == 10 and groups[shares.argmax()] == 1
    assert all(shares[groups == i].min() >= shares[groups == i + 1].max() for i in range(1, 10))


def test_shares_of_a_mixture_are_weighed_as_training_weighs_it(tmp_path):
    texts = ["aab" * 5, "bc" * 40]
    stores = [TokenStore.from_documents([("d", text)], ByteTokenizer()) for text in texts]

    class Prepared:
        sources, weights, fingerprint = [{"train": store} for store in stores], np.array([0.75, 0.25]), "mixture"

    class Data:
        cache_dir = str(tmp_path)

    for _ in range(2):  # counted, and then from the cache
        shares = breakdown.token_shares(Prepared, 300, Data)
        assert shares[ord("a")] == pytest.approx(0.75 * 10 / 16) and shares.sum() == pytest.approx(1.0)
        assert shares[ord("b")] == pytest.approx(0.75 * 5 / 16 + 0.25 * 40 / 81)
        Prepared.sources = []
    assert breakdown.token_counts(stores[0], 300)[ord("a")] == 10


def test_what_training_took_is_told(lstm):
    workdir, found = lstm
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if line["kind"] == "train"]
    run, spent = open_run(workdir), found["train"]
    assert spent["tokens"] == lines[-1]["tokens"] and spent["flops"] == run.objective.train_flops(run.model) * spent["tokens"] > 0
    assert spent["tokens_per_second"] == np.median([line["tokens_per_second"] for line in lines[1:]])
    assert spent["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(run.parameters()[0]))
    assert spent["seconds"] == lines[-1]["time"]["step"] < spent["wall_seconds"] == lines[-1]["seconds"]
    assert found["memory_bytes"] > 3 * 4 * spent["parameters"]  # at least the parameters and AdamW's two moments


def test_seconds_of_a_resumed_run_are_those_of_all_its_processes():
    of_first, of_second = {"prepare": 1.0, "compile": 2.0}, {"prepare": 1.0, "compile": 3.0}
    times = [of_first | {"step": 0.5}, of_first | {"step": 1.5}, of_second | {"step": 1.75}, of_second | {"step": 2.25}]
    lines = [{"step": i + 1, "seconds": 99.0, "time": spent} for i, spent in enumerate(times)]
    assert costs.stepping_seconds(lines) == 1.5 + 2.25 and costs.seconds_by_line(lines) == [0.5, 1.5, 3.25, 3.75]
    assert costs.stepping_seconds([{"seconds": 4.0}]) == 4.0  # counted


def test_latency_samples_and_suites(lstm):
    _, found = lstm
    assert set(found["decode"]) == {"milliseconds_per_token", "prefill_tokens_per_second"}
    assert found["decode"]["prefill_tokens_per_second"] > 0
    assert [(sample["prompt"], sample["temperature"]) for sample in found["samples"]] == [
        ("we the", 0.0), ("we the", 0.8), ("in order", 0.0), ("in order", 0.8)]
    (name, suite), (other, failed) = found["suites"].items()
    assert other == "choice:missing.jsonl" and set(failed) == {"error"} and "missing.jsonl" in failed["error"]
    assert name.startswith("minimal_pairs:") and suite["measure"] == "accuracy" and 0 <= suite["value"] <= 1


def test_latency_is_the_time_of_a_token_after_the_first(monkeypatch, lstm):
    run = open_run(lstm[0])
    monkeypatch.setattr(latency, "_seconds", lambda generator, prompt, new: 0.5 + 0.1 * (new - 1))
    assert latency.decode_latency(run, {}) == {"milliseconds_per_token": pytest.approx(100.0), "prefill_tokens_per_second": 12 / 0.5}


def test_latency_that_noise_hides_is_none_and_a_drift_of_the_machine_is_not_in_it(monkeypatch, lstm):
    run, noise = open_run(lstm[0]), itertools.count()
    monkeypatch.setattr(latency, "_seconds", lambda generator, prompt, new: 0.5 - 0.01 * (new > 1))
    assert latency.decode_latency(run, {}) == {"milliseconds_per_token": None, "prefill_tokens_per_second": 12 / 0.5}
    monkeypatch.setattr(latency, "_seconds", lambda generator, prompt, new: 1.0 * (next(noise) // 2) + 0.1 * (new - 1))
    assert latency.decode_latency(run, {})["milliseconds_per_token"] == pytest.approx(100.0)


def test_passages_are_of_the_text_whatever_the_tokenizer_and_as_long_as_the_model_has_room_for(lstm, monkeypatch):
    run = open_run(lstm[0])
    texts = ["one", "we the people in order to form a more perfect union establish justice", "ein Großmütterchen strickt " * 400,
             "left out", "我们人民为了建立更完"]
    documents = list(zip("abcde", texts, strict=True))

    def found(tokenizer, room=None):
        split = types.SimpleNamespace(split_stores=lambda split: [TokenStore.from_documents(documents[:1], tokenizer),
                                                                  TokenStore.from_documents(documents[1:], tokenizer)])
        model = types.SimpleNamespace(max_positions=room)
        monkeypatch.setattr(samples, "decodes", lambda *_: True)
        return samples.passages(types.SimpleNamespace(config=run.config, model=model, tokenizer=tokenizer, objective=None), split)

    trained = train_tokenizer(iter(texts * 50), "bpe", 300)
    expected = ["Großmütterchen strickt ein Großmütterchen strick", "perfect union establish justice"]
    assert found(ByteTokenizer()) == found(trained) == expected
    assert found(ByteTokenizer(), room=32) == ["我们人民为", "o"] and found(ByteTokenizer(), room=33)[0] == expected[1]
    documents = [("a", "union"), ("b", "two words"), ("c", ""), ("d", "我们人民为了建立更完善的联邦树立" * 3)]
    assert found(ByteTokenizer()) == ["我们人民为了建立更完善的联邦树立", "un"]


def test_without_prompts_a_run_continues_passages_of_what_it_is_scored_on(lstm, trigram):
    for workdir in (lstm[0], trigram):
        run = open_run(workdir)
        prompts = samples.passages(run, run.prepare())
        params, _ = run.parameters()
        assert prompts and [sample["prompt"] for sample in samples.samples(run, params, prompts)] == [
            prompt for prompt in prompts for _ in samples.TEMPERATURES]


def test_a_trial_takes_the_evaluation_of_its_training(lstm, monkeypatch):
    workdir, full = lstm
    monkeypatch.setattr(scores, "evaluate_run", None)
    found = scores.score(workdir, full=False)
    assert set(found) == set(full) - {"position", "frequency", "recall", "copy", "memory_bytes", "decode", "suites", "samples"}
    assert found["bits_per_byte"] == pytest.approx(full["bits_per_byte"], rel=1e-6) and found["train"] == full["train"]


def test_a_counted_model_is_scored_too(trigram):
    found = scores.score(trigram, prompts=["we the"])
    assert found["bits_per_byte"] == evaluate_run(trigram)["bits_per_byte"] and found["train"]["flops"] == 0
    assert found["memory_bytes"] is None and found["samples"] and found["frequency"] and found["decode"]
    documents = np.load(trigram / "scores" / "documents.npz")
    assert documents["nats"].sum() / found["tokens"] == pytest.approx(found["nats_per_token"], rel=1e-12)


def test_a_model_without_a_likelihood_is_scored_by_what_it_can_say(corpus, tmp_path):
    keys = {"model__name": "encoder", "objective__name": "masked", "model__heads": 2, "eval__batch": 64}
    train(small(corpus, **keys, train__steps=1), tmp_path)
    found = scores.score(tmp_path, prompts=["we the"])
    assert found["masked_accuracy"] == evaluate_run(tmp_path)["masked_accuracy"] and not found["diverged"]
    assert (found["decode"], found["samples"], found["frequency"], found["position"]) == (None, [], [], [])
    assert (found["recall"], found["copy"]) == ([], None)
    assert found["memory_bytes"] > 0 and not (tmp_path / "scores").exists()


def test_runs_that_diverged_or_are_not_over(lstm, tmp_path):
    workdir, _ = lstm
    for name in ("config.json", "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    assert scores.score(tmp_path, diverged=True) == {"step": 0, "bits_per_byte": None, "diverged": True, "seed": 0, "train": None}
    (tmp_path / "metrics.jsonl").write_text("\n".join((workdir / "metrics.jsonl").read_text().splitlines()[:2]) + "\n")
    assert scores.score(tmp_path, diverged=True)["step"] == 2
    with pytest.raises(ConfigError, match="is at step 2 of 4: train it to its end"):
        scores.score(tmp_path)
    lines = (workdir / "metrics.jsonl").read_text().replace('"bits_per_byte": ', '"bits_per_byte": null, "was": ')
    (tmp_path / "metrics.jsonl").write_text(lines)
    found = scores.score(tmp_path, full=False)
    assert (found["diverged"], found["bits_per_byte"], found["step"]) == (True, None, 4) and "perplexity" not in found
