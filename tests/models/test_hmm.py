"""The hidden Markov model against sums over all class sequences, its EM against counts so made, and a tagger that it becomes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from lm import config, optim
from lm.config.validate import check_combinations
from lm.errors import ConfigError
from lm.models import Sizes, hmm
from lm.objectives.causal import Causal
from lm.parallel import AXES, Layout, make_mesh
from lm.train.step import init_state, jitted_step, state_shardings, train_step

CLASSES, VOCAB = 3, 5
SEGMENTS = [[1, 1, 1, 1, 2, 2, 3], [1, 1, 1, 2, 2, 0, 0]]
OBJECTIVE = Causal(None, None, 7, 0)


def model_of(classes=CLASSES, vocab=VOCAB):
    section = config.default().model
    section.classes = classes
    return hmm.build(section, Sizes(vocab, 7), Layout())


def potentials(model, seed=0):
    """Random tables, not normalised: whatever holds of them holds of probabilities."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), jax.eval_shape(model.init, jax.random.key(0)))


def consistent(batch):
    """The batch with tokens that are the targets before them, where a segment goes on."""
    before = np.concatenate([batch["targets"][:, :1], batch["targets"][:, :-1]], axis=1)
    return batch | {"tokens": np.where(batch["positions"] == 0, batch["tokens"], before)}


@pytest.fixture
def batch(random_batch):
    return consistent(random_batch(SEGMENTS, vocab=VOCAB))


def segments_of(batch):
    """(row, columns) of every segment but padding."""
    for row, segments in enumerate(batch["segments"]):
        for segment in range(1, segments.max() + 1):
            yield row, np.flatnonzero(segments == segment)


def paths(params, before, targets):
    """(classes, log-weight) of each class sequence of one segment, in float64."""
    start, transition, emission = (np.asarray(params[name], np.float64) for name in ("start", "transition", "emission"))
    for classes in itertools.product(range(len(transition)), repeat=len(targets)):
        score = start[before, classes[0]] + sum(transition[pair] for pair in itertools.pairwise(classes))
        yield classes, score + sum(emission[k, x] for k, x in zip(classes, targets, strict=True))


def total(params, before, targets):
    """log of the summed weights of all class sequences."""
    return np.logaddexp.reduce([score for _, score in paths(params, before, targets)]) if len(targets) else 0.0


def expected_counts(params, batch):
    """How often each event is expected to have happened in the batch, as a tree like the parameters."""
    counts = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for row, columns in segments_of(batch):
        before, targets = batch["tokens"][row, columns[0]], batch["targets"][row, columns]
        for classes, score in paths(params, before, targets):
            share = np.exp(score - total(params, before, targets))
            counts["start"][before, classes[0]] += share
            for pair in itertools.pairwise(classes):
                counts["transition"][pair] += share
            for k, x in zip(classes, targets, strict=True):
                counts["emission"][k, x] += share
    return counts


def test_probabilities_are_those_of_all_class_sequences(batch):
    model = model_of()
    params = potentials(model)
    nats = np.asarray(jax.jit(model.token_nats)(params, batch))
    assert nats.dtype == np.float32 and np.isfinite(nats).all()
    for row, columns in segments_of(batch):
        before, targets = batch["tokens"][row, columns[0]], batch["targets"][row, columns]
        sums = [total(params, before, targets[:n]) for n in range(len(targets) + 1)]
        np.testing.assert_allclose(nats[row, columns], -np.diff(sums), rtol=1e-5, atol=1e-5)


def test_the_gradient_is_the_expected_counts(batch):
    model = model_of()
    params = potentials(model)
    got = jax.jit(jax.grad(lambda params: OBJECTIVE.loss(model, params, batch)[0]))(params)
    for name, counts in expected_counts(params, batch).items():
        np.testing.assert_allclose(-got[name], counts, rtol=1e-4, atol=1e-5, err_msg=name)


def test_logits_are_the_log_probabilities_of_the_targets(batch):
    model = model_of()
    params = jax.tree.map(jax.nn.log_softmax, potentials(model))
    logits = np.asarray(model.logits(params, model.apply(params, batch)))
    assert logits.dtype == np.float32 and logits.shape == (2, 7, VOCAB)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1.0, rtol=1e-5)
    chosen = np.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, -np.asarray(model.token_nats(params, batch)), rtol=1e-5, atol=1e-5)


def test_an_initial_model_is_made_of_distributions_that_differ_by_class():
    params = jax.jit(model_of(8, 50).init)(jax.random.key(0))
    for table in params.values():
        np.testing.assert_allclose(np.exp(table).sum(-1), 1.0, rtol=1e-5)
    for name in ("transition", "emission"):
        assert np.std(params[name], axis=0).min() > 0.3


def test_documents_of_a_row_do_not_meet_and_targets_are_only_scored(batch):
    model = model_of()
    score = jax.jit(functools.partial(model.token_nats, potentials(model)))
    length = len(SEGMENTS[0])
    rows = jax.tree.map(lambda leaf: np.repeat(leaf[:1], length, axis=0), batch)
    before = np.asarray(score(rows))
    for name in ("tokens", "targets"):
        changed = rows[name].copy()
        changed[np.arange(length), np.arange(length)] = (changed[0] + 1) % VOCAB  # row i has column i changed
        after = np.asarray(score(rows | {name: changed}))
        column, segment = np.arange(length), np.array(SEGMENTS[0])
        may_change = (segment == segment[:, None]) & (column >= column[:, None]) if name == "tokens" else np.eye(length, dtype=bool)
        np.testing.assert_array_equal(after != before, may_change)


def test_decoding_is_the_full_forward_pass(random_batch):
    """Prompts of unequal length, padded on the left, in two chunks, then single tokens."""
    model, length, chunk = model_of(), 8, 4
    params, prompts = potentials(model), np.array([0, 3, 5, 8])
    batch = random_batch(np.ones((4, length)), vocab=VOCAB)
    full = np.asarray(model.logits(params, model.apply(params, batch)))
    step, state, got = jax.jit(model.decode_step), model.init_decode(4, 2 * length), []
    places = np.arange(2 * chunk) - (2 * chunk - prompts)[:, None]
    padded = np.take_along_axis(batch["tokens"], np.maximum(places, 0), axis=1)
    for first in (0, chunk):
        logits, state = step(params, state, padded[:, first : first + chunk], (places >= 0)[:, first : first + chunk])
        got.append(np.asarray(logits))
    got = np.concatenate(got, axis=1)
    for row, prompt in enumerate(prompts):
        np.testing.assert_allclose(got[row, 2 * chunk - prompt :], full[row, :prompt], rtol=1e-5, atol=1e-5)
    for i in range(length):
        now = np.minimum(prompts + i, length - 1)
        logits, state = step(params, state, np.take_along_axis(batch["tokens"], now[:, None], axis=1))
        for row in np.flatnonzero(prompts + i < length):
            np.testing.assert_allclose(logits[row, 0], full[row, now[row]], rtol=1e-5, atol=1e-5)


def test_a_state_goes_on_from_the_tokens_that_were_accepted(random_batch):
    model = model_of()
    params, tokens = potentials(model), random_batch(np.ones((3, 5)), vocab=VOCAB)["tokens"]
    before, counts = model.init_decode(3, 9), np.array([0, 2, 5])
    _, after = model.decode(params, before, tokens)
    accepted = model.accept(params, before, after, tokens, counts)
    for row, count in enumerate(counts):
        _, alone = model.decode(params, model.take(before, np.array([row])), tokens[row : row + 1, :count])
        jax.tree.map(lambda got, want, row=row: np.testing.assert_array_equal(got[row], want[0]), accepted, alone)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_viterbi_is_the_best_of_all_class_sequences(random_batch, seed):
    model = model_of()
    batch = consistent(random_batch(SEGMENTS, vocab=VOCAB, seed=seed or 0))
    params = potentials(model, seed or 0)
    if seed is None:  # exact in float32, and full of ties
        params = jax.tree.map(lambda leaf: jnp.round(leaf / 2), params)
    got = np.asarray(jax.jit(model.viterbi)(params, batch))
    assert got.dtype == np.int32
    tied = 0
    for row, columns in segments_of(batch):
        scored = list(paths(params, batch["tokens"][row, columns[0]], batch["targets"][row, columns]))
        best = max(score for _, score in scored)
        equal = [classes for classes, score in scored if score == best]
        tied += len(equal) > 1
        assert tuple(got[row, columns]) == min(equal, key=lambda classes: classes[::-1])
    assert (seed is not None) or tied


def em_config(**changes):
    made = config.default()
    made.model.name, made.train.steps = "hmm", 20
    made.optim.update({"name": "em", "learning_rate": 1.0, "schedule": "constant", "clip": 0.0})
    for name, value in changes.items():
        section, leaf = name.split("__")
        made[section][leaf] = value
    check_combinations(made)
    return made


def trained(model, batch, steps, **changes):
    """(the states before, between and after the steps, the reported losses) of the train step on one batch."""
    made = em_config(**changes)
    optimizer, rate = optim.optimizer(made.optim), optim.schedule(made.optim, made.train.steps)
    step = jax.jit(functools.partial(train_step, model=model, objective=OBJECTIVE, optimizer=optimizer, learning_rate=rate, config=made))
    states, losses = [init_state(model, optimizer, jax.random.key(1), False)], []
    for _ in range(steps):
        state, metrics = step(states[-1], batch)
        states.append(state)
        losses.append(float(metrics["loss"]))
        assert bool(metrics["finite"])
    return states, losses


@pytest.mark.parametrize(("prior", "accumulate"), [(0.0, 1), (0.1, 1), (0.1, 2)])
def test_a_step_of_training_is_the_m_step(batch, prior, accumulate):
    model = model_of()
    (before, after), _ = trained(model, batch, 1, optim__em_prior=prior, train__accumulate=accumulate)
    for name, counts in expected_counts(before.params, batch).items():
        counts = counts + prior * counts.sum() / counts.size
        sums = counts.sum(axis=-1, keepdims=True)
        with np.errstate(all="ignore"):
            wanted = np.where(sums > 0, np.log(np.maximum(counts / sums, 1e-30)), before.params[name])
        np.testing.assert_allclose(after.params[name], wanted, rtol=1e-4, atol=1e-4, err_msg=name)
        if not prior and name == "start":
            assert (sums == 0).any(), "some token starts no segment"


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("prior", [0.0, 0.05])
def test_no_step_makes_the_posterior_less(random_batch, prior, accumulate):
    """What EM maximises: the likelihood, times a Dirichlet density whose imaginary counts do not change on a fixed batch."""
    model = model_of(4, 12)
    batch = consistent(random_batch([[1] * 20 + [2] * 12, [1] * 25 + [0] * 7, [1] * 32, [1] * 9 + [2] * 23], vocab=12))
    states, losses = trained(model, batch, 20, optim__em_prior=prior, train__accumulate=accumulate)
    targets, starts = batch["weights"].sum(), sum(1 for _ in segments_of(batch))
    masses = {"emission": targets, "transition": targets - starts, "start": starts}
    posterior = []
    for state, loss in zip(states, losses, strict=False):
        imaginary = sum(prior * mass * np.mean(np.asarray(state.params[name], np.float64)) for name, mass in masses.items())
        posterior.append(imaginary / targets - loss)
    # float32 sums of some hundred nats, over a hundred targets.
    assert (np.diff(posterior) > -1e-6).all()
    assert posterior[-1] - posterior[0] > 0.3
    if not prior:
        assert losses[-1] < losses[0] - 0.3


def test_stepwise_em_keeps_a_running_mean_of_the_counts(random_batch):
    prior, exponent, model = 0.1, 0.7, model_of()
    optimizer = optim.em(prior, exponent)
    params = jax.tree.map(jax.nn.log_softmax, potentials(model))
    state, kept = optimizer.init(params), jax.tree.map(np.zeros_like, params)
    for k in range(3):
        counts = jax.tree.map(np.abs, potentials(model, 10 + k))
        directions, state = optimizer.update(jax.tree.map(jnp.negative, counts), state, params)
        share = (k + 2) ** -exponent
        kept = jax.tree.map(lambda old, new, share=share: (1 - share) * old + share * new, kept, counts)
        wanted = jax.tree.map(lambda c: np.log((c + prior * c.mean()) / (c + prior * c.mean()).sum(-1, keepdims=True)), kept)
        params = jax.tree.map(lambda p, d: p - d, params, directions)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, wanted)


def test_what_never_came_stays_finite(random_batch):
    """A token that the first batches lack costs 69 nats without imaginary counts, and neither nan nor infinity."""
    model = model_of()
    batch = random_batch(np.ones((2, 7)), vocab=VOCAB - 1)
    states, _ = trained(model, consistent(batch), 3)
    batch["targets"][0, 3] = VOCAB - 1
    nats = np.asarray(model.token_nats(states[-1].params, consistent(batch)))
    assert np.isfinite(nats).all() and nats[0, 3] == pytest.approx(-np.log(1e-30), rel=0.1)


def sampled(rng, start, transition, emission, rows, length):
    """(classes, words), each [rows, length], of a hidden Markov model."""
    def draw(probabilities):
        return (rng.random((len(probabilities), 1)) > np.cumsum(probabilities, axis=1)).sum(axis=1)

    classes = [draw(np.tile(start, (rows, 1)))]
    for _ in range(length - 1):
        classes.append(draw(transition[classes[-1]]))
    classes = np.stack(classes, axis=1)
    return classes, draw(emission[classes.reshape(-1)]).reshape(rows, length)


def test_a_tagger_finds_the_classes_that_made_a_text():
    """Up to their names; words are ambiguous, so that the transitions must be learned too."""
    rng, k, v = np.random.default_rng(0), 3, 24
    transition = 0.2 / k + 0.8 * np.roll(np.eye(k), 1, axis=1)  # each class is mostly followed by the next
    emission = 0.2 / v + 0.8 * np.repeat(np.eye(k), v // k, axis=1) * k / v
    classes, words = sampled(rng, np.full(k, 1 / k), transition, emission, 16, 64)
    rows, length = words.shape
    batch = {"tokens": np.concatenate([np.full((rows, 1), v), words[:, :-1]], axis=1).astype(np.int32), "targets": words.astype(np.int32),
             "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)), "segments": np.ones((rows, length), np.int32),
             "weights": np.ones((rows, length), np.float32)}
    model = model_of(k, v + 1)
    states, losses = trained(model, batch, 100, optim__em_prior=0.01)
    found = np.asarray(model.viterbi(states[-1].params, batch))
    table = np.zeros((k, k))
    np.add.at(table, (classes, found), 1)
    accuracy = table[linear_sum_assignment(-table)].sum() / table.sum()
    by_word = np.mean(classes == words // (v // k))  # what a word's own likeliest class gets right
    assert accuracy > by_word + 0.03 and by_word > 0.8, (accuracy, by_word)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("mesh", [{"replica": 8}, {"fsdp": 2, "tensor": 2, "replica": 2}], ids=["replica", "fsdp-tensor-replica"])
def test_a_mesh_trains_as_one_device(random_batch, mesh):
    model, made = model_of(4, 24), em_config(optim__em_prior=0.1, optim__em_exponent=0.6)
    batch = consistent(random_batch(np.tile([1] * 5 + [2] * 4, (8, 1)), vocab=24))
    optimizer, rate = optim.optimizer(made.optim), optim.schedule(made.optim, made.train.steps)
    results = []
    for sizes, devices in (({}, jax.devices()[:1]), (mesh, jax.devices())):
        over = make_mesh(dict.fromkeys(AXES, 1) | sizes, devices)
        with jax.set_mesh(over):
            shardings = state_shardings(model, optimizer, over, False, made.layout)
            step = jitted_step(model, OBJECTIVE, optimizer, rate, made, over, shardings)
            state = jax.device_put(init_state(model, optimizer, jax.random.key(0), False), shardings.state)
            for _ in range(3):
                state, metrics = step(state, batch)
        results.append(jax.device_get((state.params, state.opt_state, metrics["loss"])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize(("changes", "words"), [
    ({"optim__name": "adamw"}, "model.name=hmm, and no other, needs optim.name=em"),
    ({"model__name": "lstm"}, "optim.name=em does not train model.name=lstm"),
    ({"optim__learning_rate": 0.5}, "set optim.learning_rate=1.0"),
    ({"optim__schedule": "cosine"}, "set optim.schedule=constant"),
    ({"optim__clip": 1.0}, "set optim.clip=0.0"),
    ({"optim__weight_decay": 0.1}, "set optim.weight_decay=0.0"),
    ({"optim__warmup": "5%"}, "set optim.warmup=0"),
    ({"train__ema": 0.9}, "set train.ema=0.0"),
    ({"train__z_loss": 0.1}, "set train.z_loss=0.0"),
    ({"model__dtype": "bfloat16"}, r"model\.dtype is not read by model\.name=hmm"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_what_does_not_go_with_em_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        em_config(**changes)
