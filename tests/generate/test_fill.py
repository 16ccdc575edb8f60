"""Gaps filled by models of span corruption: prompts as in training, a sentence known by heart, scores by brute force, bad input."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config as configs
from lm import objectives
from lm.data.packing import Rows
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.generate import Sampling, fill, scoring
from lm.generate.fill import Filler, Gapped, pieces_of
from lm.objectives.causal import token_nats

BYTES, CONTEXT, TEXT = ByteTokenizer(), 32, "my-big fork"
S_AND_X3 = "0,0,1,1,0,0,0"
GREEDY = Sampling(temperature=0.0)
FORMS = pytest.mark.parametrize("form", ["encoder_decoder", "decoder"])
KINDS = pytest.mark.parametrize("kind", ["span", "denoisers"])


def make(kind="span", form="encoder_decoder", **given):
    """(objective, model)."""
    family = "transformer" if form == "decoder" else "encoder_decoder"
    context = CONTEXT if form == "encoder_decoder" else 2 * CONTEXT
    settings = {"model.name": family, "model.layers": "1", "model.width": "32", "model.heads": "2", "objective.name": kind,
                "objective.form": form, "data.context": str(context), "data.tokenizer": "bytes", "objective.sentinels": "20"}
    config = configs.validate(configs.override(configs.default(), settings | given))
    objective = objectives.make(config, BYTES)
    return objective, objective.model(config)


def rows_of(objective, count):
    """Rows of the one sentence, again and again."""
    ids = BYTES.encode(TEXT)
    tokens = np.zeros((count, objective.raw + 1), np.int32)
    tokens[:, 1 : len(ids) + 1] = ids
    segments = (np.arange(objective.raw) < len(ids)).astype(np.int32) * np.ones((count, 1), np.int32)
    return Rows(tokens, segments > 0, segments, segments, segments > 0, segments)


@functools.cache
def by_heart(kind, form, steps=300):
    """A model that knows one sentence, by Adam on 16 corruptions of it at a time."""
    # With a smaller share a row so short has one span, its end.
    given = {"objective.noise_density": "0.5"} if kind == "span" else {"objective.denoiser_rates": S_AND_X3}
    objective, model = make(kind, form, **given)
    update, rows = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, steps))), 16
    batch = objective.build(rows_of(objective, rows * 40), np.arange(rows * 40))
    data = {name: jnp.asarray(value).reshape(40, rows, -1) for name, value in batch.items()}

    def step(carry, number):
        params, state = carry
        part = jax.tree.map(lambda x: x[number % 40], data)
        gradient = jax.grad(lambda p: objective.loss(model, p, part)[0] / jnp.sum(part["weights"]))(params)
        change, state = update.update(gradient, state)
        return (optax.apply_updates(params, change), state), None

    params = jax.jit(model.init)(jax.random.key(0))
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))
    (params, _), _ = run((params, update.init(params)))
    return Filler(model, params, BYTES, objective)


def drawn(kind="span", form="encoder_decoder"):
    """A filler whose parameters are random."""
    objective, model = make(kind, form)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return Filler(model, params, BYTES, objective)


@pytest.mark.parametrize(("kind", "form"), [
    ("span", "encoder_decoder"), ("denoisers", "decoder"), pytest.param("span", "decoder", marks=pytest.mark.slow),
    pytest.param("denoisers", "encoder_decoder", marks=pytest.mark.slow)])
def test_a_sentence_known_by_heart_comes_back(kind, form):
    # Two spans of six tokens together, the second at the end: what it has learned from half of a row of eleven.
    filler, mode = by_heart(kind, form), "X" if kind == "denoisers" else None
    for options in ({"sampling": GREEDY}, {"beams": 2}):
        both = filler([["my", " fo", ""], ["my", "g f", ""]], mode, 6, **options)
        assert [found.text for found in both] == [TEXT] * 2
        assert [[gap.text for gap in found.gaps] for found in both] == [["-big", "rk"], ["-bi", "ork"]]
        assert all(-1.0 < gap.logprob <= 0 for found in both for gap in found.gaps)
    if kind == "denoisers":
        (found,) = filler([["my-big", ""]], "S", 6, GREEDY)
        assert found.text == TEXT


@FORMS
@KINDS
def test_prompts_are_the_inputs_of_training(kind, form):
    objective, _ = make(kind, form)
    filler, count = Filler(None, None, BYTES, objective), 12
    rows, examples = rows_of(objective, count), np.arange(count)
    batch, noise = objective.build(rows, examples), objective.noise((rows.segments > 0).sum(axis=1), examples)
    for row in range(count):
        runs = [(cut, "".join(letter for letter, _ in group)) for cut, group in
                itertools.groupby(zip(TEXT, noise[row], strict=False), key=lambda pair: bool(pair[1]))]
        pieces = [text for cut, text in runs if not cut] + [""]  # a row ends with noise
        mode = "RSX"[objective.denoisers[objective.which(examples)[row]].mode] if kind == "denoisers" else None
        inputs = filler.inputs(pieces, mode)
        if form == "decoder":
            length = int((batch["prefix"][row] > 0).sum())
            assert [BYTES.bos_id, *inputs] == batch["tokens"][row, :length].tolist()
        else:
            assert inputs.tolist() == batch["source_tokens"][row][batch["source_segments"][row] > 0].tolist()
        # What scores a filling is the batch of training, but for its padding.
        targets = batch["targets"][row][batch["weights"][row] > 0]
        for name, value in objective.batch_of(inputs, [targets]).items():
            width = min(value.shape[1], batch[name].shape[1])
            np.testing.assert_array_equal(value[0, :width], batch[name][row, :width], err_msg=name)
            assert not batch[name][row, width:].any()


@FORMS
def test_log_probabilities_are_the_models_own(form):
    """Each gap's is that of its tokens and of what ends it, by one row of teacher forcing alone."""
    filler = drawn(form=form)
    objective, sentinel, eos = filler.objective, filler.objective.sentinel, BYTES.eos_id
    found = filler([["ab", " c", "d"]], max_tokens=3, num=3, seed=1)
    assert len({filling.text for filling in found}) > 1 and filler.tokens > 0 and filler.seconds > 0
    inputs = filler.inputs(["ab", " c", "d"])
    # Bytes that are no text do not come back as they were: the ids are decoded again.
    written = (filler._continue if form == "decoder" else filler._translate)(inputs, 2, 3, Sampling(), 0, 1, 3)
    for filling, targets in zip(found, written, strict=True):
        ends = np.flatnonzero((targets >= sentinel) | (targets == eos))
        assert targets[ends].tolist() == [sentinel, sentinel + 1, eos] and np.diff(ends).max() <= 4
        batch = objective.batch_of(inputs, [targets])
        nats = np.asarray(token_nats(filler.model, filler.params, batch))[0][batch["weights"][0] > 0]
        expected = [-nats[ends[0] + 1 : ends[1] + 1].sum(), -nats[ends[1] + 1 :].sum()]
        np.testing.assert_allclose([gap.logprob for gap in filling.gaps], expected, rtol=1e-5)
        assert filling.logprob == pytest.approx(sum(expected), rel=1e-5)
        assert filling.text == f"ab{filling.gaps[0].text} c{filling.gaps[1].text}d"


@FORMS
def test_beams_are_the_likeliest_fillings_in_their_order(form):
    """One gap of one token, and so all that there is."""
    filler = drawn(form=form)
    objective, inputs = filler.objective, filler.inputs(["ab", ""])
    allowed = [i for i in range(BYTES.vocab_size) if i not in (BYTES.pad_id, BYTES.bos_id, BYTES.eos_id)]
    targets = [np.array([objective.sentinel, i, BYTES.eos_id]) for i in allowed]
    batch = objective.batch_of(inputs, targets)
    nats = np.asarray(jax.jit(functools.partial(token_nats, filler.model))(filler.params, batch))
    rows = [row[weights > 0][1:] for row, weights in zip(nats, batch["weights"], strict=True)]
    # What must follow costs the search nothing: after the token the end does.
    order = np.argsort([row[0] for row in rows])
    found = filler([["ab", ""]], max_tokens=1, beams=6, num=5)
    np.testing.assert_allclose([filling.logprob for filling in found], [-rows[i].sum() for i in order[:5]], rtol=1e-4)


def test_a_tokenizer_whose_prompts_have_no_beginning_changes_nothing(monkeypatch):
    """Rows of training begin with bos whatever prompts do."""
    filler = drawn(form="decoder")
    expected = [found.logprob for found in filler([["my", " fork"]], beams=4, num=4, max_tokens=2)]
    monkeypatch.setattr(ByteTokenizer, "prompt_bos", False)
    assert [found.logprob for found in filler([["my", " fork"]], beams=4, num=4, max_tokens=2)] == expected


def test_only_targets_can_be_written():
    model = type("Uniform", (), {"logits": lambda self, params, hidden: hidden})()
    gapped = Gapped(model, 6, 2, 2, 5)  # ids 0 to 4 are text, 5 is eos, 6 to 8 sentinels
    free = lambda count, size: np.flatnonzero(gapped.allowed(jnp.zeros((1, 9)), jnp.array([count]), jnp.array([size]))[0] == 0).tolist()  # noqa: E731
    assert free(0, 0) == [6] and free(1, 0) == [0, 1, 2, 3, 4] and free(1, 1) == [0, 1, 2, 3, 4, 7] and free(1, 2) == [7]
    assert free(2, 1) == [0, 1, 2, 3, 4, 5] and free(2, 2) == [5]
    assert np.flatnonzero(gapped.logits(None, jnp.zeros((1, 9)))[0] == 0).tolist() == [6]


@pytest.mark.parametrize(("prompt", "mark", "mode", "pieces"), [
    ("The ____ of the union is ____.", "____", None, ["The", " of the union is", "."]), ("____ a", "____", None, ["", " a"]),
    ("a<x>b", "<x>", None, ["a", "b"]), ("We the", "____", "S", ["We the", ""]), ("We the ____", "____", "S", ["We the", ""])])
def test_pieces_of_a_prompt(prompt, mark, mode, pieces):
    assert pieces_of(prompt, mark, mode) == pieces


@pytest.mark.parametrize(("prompt", "mark", "named"), [
    ("We the people", "____", "has no gap: mark each with ____"), ("We ____ ____", "____", "nothing between two gaps"),
    ("a", "", "--gap is empty")])
def test_prompts_without_a_gap_are_errors(prompt, mark, named):
    with pytest.raises(ConfigError, match=named):
        pieces_of(prompt, mark)


@pytest.mark.parametrize(("kind", "pieces", "given", "named"), [
    ("span", ["a"] * 22, {}, "21 gaps, and the run objective.sentinels=20"),
    ("span", ["a", ""], {"mode": "R"}, "mode=R is for runs with objective.name=denoisers, not span"),
    ("span", ["a" * 40, ""], {}, "too many for the model's context of 32"),
    ("span", ["a", ""], {"max_tokens": 40}, "use 1 to 30"), ("span", ["a", ""], {"num": 2, "beams": 1}, "num=2"),
    ("denoisers", ["a", "b"], {"mode": "S"}, "mode=S continues a text"), ("denoisers", ["a", "b"], {"mode": "T"}, "use one of R, S, X")])
def test_what_cannot_be_filled_is_an_error(kind, pieces, given, named):
    objective, model = make(kind)
    with pytest.raises(ConfigError, match=named):
        Filler(model, None, BYTES, objective)([pieces], **given)


def test_answers_are_texts_with_their_gaps(capsys):
    filler = by_heart("span", "encoder_decoder")
    run = type("Run", (), {"model": filler.model, "tokenizer": BYTES, "objective": filler.objective,
                           "parameters": lambda self, step: (filler.params, step)})()
    result = fill.answer(run, ["my____ fo____"], "____", None, sampling=GREEDY, max_tokens=6)
    assert capsys.readouterr().out.startswith(TEXT + "\n")
    (completion,) = result["completions"]
    assert (completion["text"], [gap["text"] for gap in completion["gaps"]]) == (TEXT, ["-big", "rk"])
    assert completion["logprob"] == sum(gap["logprob"] for gap in completion["gaps"]) and result["tokens_per_second"] > 0


def test_translating_with_such_a_run_names_the_way_to_fill_gaps(monkeypatch):
    objective, _ = make()
    section = configs.override(configs.default(), {"model.name": "encoder_decoder", "objective.name": "span"})
    monkeypatch.setattr(scoring, "open_run", lambda workdir: type("Run", (), {"objective": objective, "config": section})())
    with pytest.raises(ConfigError, match=r"translates nothing: fill gaps with scripts/generate\.py"):
        scoring.translator_of("runs/t5")
