"""Recurrent encoder-decoders against the papers' equations in NumPy; padding, decoding, and what they can learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config, losses, optim
from lm.errors import ConfigError
from lm.generate.translate import search, source_batch
from lm.models import seq2seq
from lm.models.base import Sizes
from lm.parallel import Layout

VOCAB, SOURCE_VOCAB, WIDTH = 9, 11, 6
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)  # float32, sums in another order
SOURCE_LENGTHS, TARGET_LENGTHS = (5, 2, 1, 0), (4, 3, 1, 0)
# Between them every cell, attention and way to read the source, one and two layers, tied and untied.
VARIANTS = {
    "bahdanau": {"cell": "lstm", "attention": "bahdanau", "layers": 2, "residual": True},
    "bahdanau-tied": {"cell": "gru", "attention": "bahdanau", "bidirectional": False, "tie_embeddings": True, "embedding_width": 4},
    "luong": {"cell": "gru", "attention": "luong", "layers": 2},
    "luong-dot": {"cell": "lstm", "attention": "luong_dot", "bidirectional": False, "embedding_width": 5},
    "fed": {"cell": "lstm", "attention": "luong", "layers": 2, "residual": True, "input_feeding": True},
    "fed-dot-tied": {"cell": "gru", "attention": "luong_dot", "bidirectional": False, "tie_embeddings": True, "embedding_width": 4,
                     "input_feeding": True},
    "plain": {"cell": "rnn", "attention": "none", "layers": 2, "tie_embeddings": True, "embedding_width": 4},
    "sutskever": {"cell": "lstm", "attention": "none", "layers": 2, "bidirectional": False, "reverse_source": True},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(**settings):
    section = config.default().model
    section.update({"layers": 1, "width": WIDTH, "tie_embeddings": False} | settings)
    return seq2seq.build(section, Sizes(VOCAB, 8, SOURCE_VOCAB), Layout())


@functools.cache
def make(variant, **settings):
    """(model, parameters), random everywhere: zero biases would hide where they are added."""
    model, rng = build(**VARIANTS[variant], **settings), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: (0.6 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@functools.cache
def runner(variant):
    """run(params, batch) -> (hidden [B, T, O], attention weights [B, T, S] or None)."""
    model, _ = make(variant)
    return jax.jit(lambda params, batch: model.module.apply({"params": params}, batch, method="attend"))


def random_batch(source_width=5, width=4, garbage=0):
    """Four pairs, the last one padding alone; what stands in the padding is drawn from `garbage`."""
    rng, batch = np.random.default_rng(0), {}
    for prefix, lengths, vocab, columns in (("source_", SOURCE_LENGTHS, SOURCE_VOCAB, source_width), ("", TARGET_LENGTHS, VOCAB, width)):
        real = np.arange(columns) < np.array(lengths)[:, None]
        tokens = np.random.default_rng([garbage, columns]).integers(0, vocab, real.shape).astype(np.int32)
        tokens[real] = rng.integers(0, vocab, sum(lengths))
        batch |= {f"{prefix}tokens": tokens, f"{prefix}segments": real.astype(np.int32),
                  f"{prefix}positions": np.where(real, np.arange(columns), 0).astype(np.int32)}
    return batch | {"targets": np.roll(batch["tokens"], 1, axis=1), "weights": batch["segments"].astype(np.float32)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell_step(cell, p, x, state):
    """The state after one input [N], in float64."""
    h, a, r = state[0], x @ p["input"] + p["bias"], state[0] @ p["recurrent"]
    if cell == "rnn":
        return (np.tanh(a + r),)
    if cell == "lstm":
        i, f, g, o = np.split(a + r, 4)
        c = sigmoid(f + 1) * state[1] + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (ar, az, an), (rr, rz, rn) = np.split(a, 3), np.split(r, 3)
    z = sigmoid(az + rz)
    return ((1 - z) * np.tanh(an + sigmoid(ar + rr) * (rn + p["recurrent_bias"])) + z * h,)


def layer_by_hand(cell, p, x, state):
    outputs = []
    for now in x:
        state = cell_step(cell, p, now, state)
        outputs.append(state[0])
    return np.array(outputs), state


def encode_by_hand(s, p, tokens):
    """(values [S, M], first states of the decoder) of one source without padding."""
    encoder, x, states = p["encoder"], p["encoder"]["embedding"]["embedding"][tokens], []
    empty = (np.zeros(s.width),) * (2 if s.cell == "lstm" else 1)
    for layer in range(s.layers):
        if s.bidirectional:
            forward, last = layer_by_hand(s.cell, encoder[f"forward_{layer}"], x, empty)
            backward, first = layer_by_hand(s.cell, encoder[f"backward_{layer}"], x[::-1], empty)
            y = np.concatenate([forward, backward[::-1]], axis=1)
            both = {part: np.concatenate([a, b]) for part, a, b in zip("hc", last, first, strict=False)}
            bridged = {part: v @ p["bridge"][f"{part}_{layer}"]["kernel"] + p["bridge"][f"{part}_{layer}"]["bias"]
                       for part, v in both.items()}
            state = tuple(np.tanh(v) if part == "h" else v for part, v in bridged.items())
        elif s.reverse_source:
            y, state = layer_by_hand(s.cell, encoder[f"layer_{layer}"], x[::-1], empty)
            y = y[::-1]
        else:
            y, state = layer_by_hand(s.cell, encoder[f"layer_{layer}"], x, empty)
        x = x + y if s.residual and layer else y
        states.append(state)
    return x, states


def attend_by_hand(scores, values):
    weights = np.exp(scores) / np.exp(scores).sum()
    return weights @ values, weights


def forward_by_hand(model, params, source, target):
    """(hidden [T, O], weights [T, S] or None) of one pair without padding, in float64, by the papers."""
    s, p = model.spec, jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    values, states = encode_by_hand(s, p, source)
    keys = values @ p["keys"]["kernel"] if "keys" in p else values
    decoder, hidden, all_weights = p["decoder"], [], []
    fed = np.zeros(s.output_width)
    for embedded in decoder["embedding"]["embedding"][target]:
        x, context = embedded, None
        for layer, state in enumerate(states):
            inputs = x
            if s.attention == "bahdanau" and layer == 0:
                scores = np.tanh(state[0] @ decoder["layer_0"]["query"]["kernel"] + keys) @ decoder["layer_0"]["energy"]["kernel"][:, 0]
                context, weights = attend_by_hand(scores, values)
                inputs = np.concatenate([x, context])
            if s.input_feeding and layer == 0:
                inputs = np.concatenate([x, fed])
            states[layer] = cell_step(s.cell, decoder[f"layer_{layer}"], inputs, state)
            x = x + states[layer][0] if s.residual and layer else states[layer][0]
        if s.attention.startswith("luong"):
            context, weights = attend_by_hand(keys @ x, values)
        if context is not None:
            all_weights.append(weights)
            parts = [context, x] + ([embedded] if s.attention == "bahdanau" else [])
            x = fed = np.tanh(np.concatenate(parts) @ decoder["attentional"]["kernel"])
        elif "projection" in decoder:
            x = x @ decoder["projection"]["kernel"]
        hidden.append(x)
    return np.array(hidden), np.array(all_weights) if all_weights else None


@each_variant
def test_model_is_the_papers_equations(variant):
    model, params = make(variant)
    batch = random_batch()
    got, weights = runner(variant)(params, batch)
    for row, (source, target) in enumerate(zip(SOURCE_LENGTHS[:3], TARGET_LENGTHS[:3], strict=True)):
        hidden, expected = forward_by_hand(model, params, batch["source_tokens"][row, :source], batch["tokens"][row, :target])
        CLOSE(got[row, :target], hidden)
        assert (expected is None) == (weights is None)
        if expected is not None:
            CLOSE(weights[row, :target, :source], expected)


@pytest.mark.parametrize("variant", ["bahdanau", "luong-dot"])
def test_attention_weights_are_a_distribution_over_real_tokens(variant):
    model, params = make(variant)
    weights = np.asarray(jax.jit(model.attention_weights)(params, random_batch()))
    assert (weights.shape, weights.dtype) == ((4, 4, 5), np.float32)
    np.testing.assert_allclose(weights[:3].sum(-1), 1.0, atol=1e-6)
    for row, length in enumerate(SOURCE_LENGTHS):
        np.testing.assert_array_equal(weights[row, :, length:], 0.0)
        assert np.all(weights[row, :, :length] > 0)


def test_there_are_no_weights_without_attention():
    with pytest.raises(ConfigError, match="no attention"):
        make("plain")[0].attention_weights(make("plain")[1], random_batch())


@each_variant
def test_padding_changes_neither_results_nor_gradients(variant):
    model, params = make(variant)

    def loss(params, batch):
        hidden = model.apply(params, batch)
        return losses.dense_loss(hidden, model.unembedding(params), batch["targets"], batch["weights"])[0], hidden

    gradient_of = jax.jit(jax.grad(loss, has_aux=True))
    narrow, _ = runner(variant)(params, random_batch())
    wide, other = (random_batch(source_width=9, width=7, garbage=garbage) for garbage in (1, 2))
    assert np.any(wide["source_tokens"] != other["source_tokens"]) and np.any(wide["tokens"] != other["tokens"])
    other["targets"] = wide["targets"]
    (gradient, hidden), (other_gradient, other_hidden) = gradient_of(params, wide), gradient_of(params, other)
    for row, length in enumerate(TARGET_LENGTHS):
        np.testing.assert_allclose(hidden[row, :length], narrow[row, :length], atol=1e-6)
        np.testing.assert_allclose(hidden[row, :length], other_hidden[row, :length], atol=1e-6)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        assert np.all(np.isfinite(one)) and np.any(one != 0)
        CLOSE(one, two)


@each_variant
def test_decoding_is_teacher_forcing(variant):
    """A token at a time, and all at once where `valid` says how many tokens count."""
    model, params = make(variant)
    batch = random_batch()
    expected, _ = runner(variant)(params, batch)
    decode = jax.jit(model.decode)
    states = [jax.jit(model.start_decode, static_argnums=2)(params, batch, 4)]
    for t in range(4):
        hidden, state = decode(params, states[-1], batch["tokens"][:, t : t + 1])
        CLOSE(hidden[:, 0], expected[:, t])
        states.append(state)
    counts = np.array([4, 2, 0, 1])
    right, after = decode(params, states[0], batch["tokens"], np.arange(4) < counts[:, None])
    # A row's tokens at its end, as prompts of unequal length have them.
    at_end = np.stack([np.roll(row, -count) for row, count in zip(batch["tokens"], counts, strict=True)])
    left, after_left = decode(params, states[0], at_end, np.arange(4) >= 4 - counts[:, None])
    for row, count in enumerate(counts):
        CLOSE(right[row, :count], expected[row, :count])
        CLOSE(left[row, 4 - count :], expected[row, :count])
        for leaf, left_leaf, stepped in zip(*(jax.tree.leaves(x.states) for x in (after, after_left, states[count])), strict=True):
            CLOSE(leaf[row], stepped[row])
            CLOSE(left_leaf[row], stepped[row])


def test_states_go_back_and_change_places():
    model, params = make("luong-dot")
    batch = random_batch()
    start = model.start_decode(params, batch, 4)
    after = model.decode(params, start, batch["tokens"][:, :2])[1]
    accepted = model.accept(params, start, after, batch["tokens"][:, :2], np.array([2, 0, 2, 0]))
    for now, long, old in zip(*(jax.tree.leaves(x.states) for x in (accepted, after, start)), strict=True):
        CLOSE(now[::2], long[::2])
        np.testing.assert_array_equal(now[1::2], old[1::2])
    copies = model.take(start, np.array([1, 1]))
    ahead = model.decode(params, copies, batch["tokens"][:2, :1])[1]
    assert np.any(ahead.states[0][0][0] != ahead.states[0][0][1])
    jax.tree.map(np.testing.assert_array_equal, *(places(ahead, np.array([1, 0])) for places in (model.take, model.reorder)))


def test_prompts_without_a_source_are_an_error():
    with pytest.raises(ConfigError, match="reads a source"):
        make("luong")[0].init_decode(1, 4)


@each_variant
def test_flops_are_the_compilers(variant):
    """Unrolled, since XLA counts the body of a loop once."""
    length = 8
    model = build(**VARIANTS[variant] | {"width": 128, "unroll": length, "embedding_width": 96})
    params = jax.eval_shape(model.init, jax.random.key(0))
    row = jax.ShapeDtypeStruct((1, length), np.int32)
    batch = {f"{side}{name}": row for side in ("", "source_") for name in ("tokens", "segments", "positions")}
    program = jax.jit(lambda params, batch: model.logits(params, model.apply(params, batch))).lower(params, batch)
    # XLA adds element-wise work (of additive attention also S x A a target): never less, and at most 4 % here.
    assert 1.0 <= program.cost_analysis()["flops"] / (length * model.forward_flops(length)) < 1.04


@pytest.mark.parametrize("variant", ["bahdanau-tied", "luong-dot"])
def test_a_longer_source_costs_its_scores_and_its_mean(variant):
    model, _ = make(variant)
    assert model.forward_flops(30) - model.forward_flops(10) == 20 * (2 * WIDTH + 2 * model.spec.memory_width)


@each_variant
def test_every_parameter_is_in_a_group_of_the_optimizer(variant):
    model, params = make(variant)
    groups = optim.groups(params)
    assert groups["encoder"]["embedding"]["embedding"] == groups["decoder"]["embedding"]["embedding"] == "embedding"
    assert ("unembedding" in params) == (not model.spec.tie_embeddings)
    assert model.unembedding(params).shape == (model.spec.output_width, VOCAB)


def varied(variant, **changes):
    """The variant's model with some of its shape changed, for the same parameters."""
    model, _ = make(variant)
    return dataclasses.replace(model, module=seq2seq.Seq2Seq(dataclasses.replace(model.spec, **changes)))


def test_recomputing_changes_no_gradient():
    one, other = (jax.jit(jax.grad(lambda p, m=m: jnp.sum(jnp.sin(m.apply(p, random_batch())))))(make("bahdanau-tied")[1])
                  for m in (make("bahdanau-tied")[0], varied("bahdanau-tied", remat="full")))
    jax.tree.map(CLOSE, one, other)


@pytest.mark.parametrize("variant", ["bahdanau", "luong"])
def test_bfloat16_is_near_float32(variant):
    hidden, _ = runner(variant)(make(variant)[1], random_batch())
    rounded = jax.jit(varied(variant, dtype="bfloat16").apply)(make(variant)[1], random_batch())
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(np.float32), hidden, atol=0.1)  # roundings of 2^-9, through scores of size 5


def test_dropout_is_random_by_row_and_only_in_training():
    params, same = make("luong-dot")[1], {name: np.repeat(value[:1], 2, axis=0) for name, value in random_batch().items()}
    apply = jax.jit(varied("luong-dot", dropout=0.5).apply)
    quiet, loud = apply(params, same), apply(params, same, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(quiet[0], quiet[1])
    assert np.max(np.abs(loud[0] - loud[1])) > 0.01 and np.max(np.abs(loud - quiet)) > 0.01


def test_rows_roll_by_their_own_shifts_and_gradients_roll_back():
    rng = np.random.default_rng(0)
    x, by, shifts = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4, 2)), np.array([0, 1, 4])
    expected = np.stack([np.roll(row, shift, axis=0) for row, shift in zip(x, shifts, strict=True)])
    CLOSE(seq2seq.rolled(x, shifts), expected)
    back = np.stack([np.roll(row, -shift, axis=0) for row, shift in zip(by, shifts, strict=True)])
    CLOSE(jax.grad(lambda x: jnp.sum(by * seq2seq.rolled(x, shifts)))(jnp.asarray(x)), back)


@pytest.mark.parametrize(("settings", "message"), [
    ({"attention": "luong_dot"}, "luong_dot needs"), ({"reverse_source": True}, "reverse_source changes nothing"),
    ({"attention": "bahdanau", "input_feeding": True}, "model.attention=bahdanau has none: use luong or luong_dot"),
    ({"attention": "none", "input_feeding": True}, "model.attention=none has none"),
])
def test_impossible_combinations_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_data_without_a_source_is_an_error():
    with pytest.raises(ConfigError, match="reads a source"):
        seq2seq.build(config.default().model, Sizes(VOCAB, 8), Layout())


PAD, BOS, EOS, COPY, REVERSE = range(5)
LETTERS = 8


def tasks(seed, rows, held_out):
    """Random words of 3 to 6 letters, each behind the order to copy or to reverse it; a tenth of all words is held out."""
    rng, sources, targets = np.random.default_rng(seed), [], []
    while len(sources) < rows:
        word = rng.integers(5, 5 + LETTERS, rng.integers(3, 7)).tolist()
        order = int(rng.integers(COPY, REVERSE + 1))
        if (sum(place * letter for place, letter in enumerate(word, 3)) % 10 == 0) == held_out:
            sources.append([order, *word, EOS])
            targets.append([*(word[::-1] if order == REVERSE else word), EOS])
    return sources, targets


def pairs(sources, targets):
    batch = source_batch(sources, 8)
    side = source_batch(targets, 7)
    before = np.pad(side["source_tokens"][:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
    return batch | {"tokens": before, "targets": side["source_tokens"], "segments": side["source_segments"],
                    "weights": side["source_segments"].astype(np.float32), "positions": side["source_positions"]}


SLOW = pytest.mark.slow


# luong_dot, which reads from the left alone, mistakes a few words of repeated letters at a width of 48, after 3,200 steps too.
@pytest.mark.parametrize(("cell", "attention", "bidirectional", "width", "steps"), [
    ("lstm", "luong", True, 48, 400), pytest.param("lstm", "bahdanau", True, 48, 400, marks=SLOW),
    pytest.param("gru", "bahdanau", False, 48, 800, marks=SLOW), pytest.param("gru", "luong", True, 48, 800, marks=SLOW),
    pytest.param("rnn", "bahdanau", True, 48, 1600, marks=SLOW), pytest.param("lstm", "luong_dot", False, 128, 1600, marks=SLOW),
])
def test_words_that_it_never_saw_are_copied_and_reversed(cell, attention, bidirectional, width, steps):
    section, rows, batches = config.default().model, 64, 100
    section.update(cell=cell, attention=attention, bidirectional=bidirectional, width=width, layers=1, tie_embeddings=False)
    vocab = 5 + LETTERS
    model = seq2seq.build(section, Sizes(vocab, 8, vocab), Layout())
    update = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.01, steps)))
    data = {name: jnp.asarray(value).reshape(batches, rows, -1) for name, value in pairs(*tasks(0, rows * batches, False)).items()}

    def loss(params, batch):
        hidden = model.apply(params, batch)
        return losses.dense_loss(hidden, model.unembedding(params), batch["targets"], batch["weights"])[0] / jnp.sum(batch["weights"])

    def step(carry, number):
        params, state = carry
        gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[number % batches], data))
        change, state = update.update(gradient, state)
        return (optax.apply_updates(params, change), state), None

    params = jax.jit(model.init)(jax.random.key(0))
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))((params, update.init(params)))
    sources, targets = tasks(1, 256, True)
    options = {"room": 8, "beams": 1, "alpha": 0.0, "bos_id": BOS, "eos_id": EOS, "banned": (PAD, BOS)}
    written = jax.jit(functools.partial(search, model=model, **options))(params, source_batch(sources, 8), 8).tokens
    assert [row[row >= 0].tolist() for row in np.asarray(written)] == targets
