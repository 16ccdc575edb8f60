"""T5, its version 1.1 and mT5: their configs and tensors, and on small random models the logits, gradients and texts of transformers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import losses
from lm.errors import ConfigError, DataError
from lm.generate.translate import Translator, search, source_batch
from lm.interop import parity
from lm.interop.convert import export_run
from lm.interop.families import FAMILIES, written
from lm.interop.parity.encoder_decoders import CASES
from lm.interop.tables import parameters, tensors
from lm.models import Sizes
from lm.run import open_run
from tests.interop.their_models import PARITY, build, fast, imported, own_run, padded, random_tree, read, same_trees, settings

# Longer than the farthest bucket of distances.
SOURCES, TARGETS = (70, 23, 4), (61, 9, 33)
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "vocab_size": 37, "d_model": 24,
      "d_kv": 10, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 12,
      "relative_attention_max_distance": 40, "feed_forward_proj": "relu", "layer_norm_epsilon": 1e-6, "decoder_start_token_id": 0}
VERSION_1_1 = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MT5 = VERSION_1_1 | {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
DESCRIPTIONS = {"1.0": T5, "1.1": VERSION_1_1, "mt5": MT5, "tied without scale": VERSION_1_1 | {"scale_decoder_outputs": False}}


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("version", DESCRIPTIONS)
def test_tensors_come_back_as_they_went(version, scan_layers):
    reading = read(DESCRIPTIONS[version])
    model = build(reading, scan_layers=scan_layers)
    params = random_tree(model)
    named = dict(tensors(reading.table, params))
    assert named["encoder.block.2.layer.0.SelfAttention.q.weight"].shape == (30, 24)
    assert ("lm_head.weight" in named) == (version != "1.0")
    back = parameters(reading.table, named, jax.eval_shape(model.init, jax.random.key(0)))
    same_trees(back, params)


@pytest.mark.parametrize(("description", "output", "expected"), [
    (T5, False, (True, True)), (T5, True, (True, True)), (VERSION_1_1, True, (False, False)), (VERSION_1_1, False, (True, False)),
    # transformers 5 stores its own words for version 1.1, and never scales mT5.
    (T5 | {"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, (False, False)),
    (MT5, True, (False, False)), (MT5 | {"tie_word_embeddings": True}, False, (True, False)),
])
def test_logits_come_from_the_embedding_and_are_scaled_as_theirs(description, output, expected):
    names = {name for name, _ in tensors(read(T5).table, random_tree(build(read(T5))))} | ({"lm_head.weight"} if output else set())
    reading = read(description, names)
    assert (reading.keys["model.tie_embeddings"], reading.keys["model.scale_logits"]) == expected
    assert reading.tied.get("lm_head.weight") == ("shared.weight" if expected[0] else None)


def test_the_embedding_may_lie_under_another_name():
    names = {name for name, _ in tensors(read(T5).table, random_tree(build(read(T5))))}
    names = names - {"shared.weight"} | {"decoder.embed_tokens.weight"}
    reading = read(T5, names)
    assert set(dict(tensors(reading.table, random_tree(build(reading))))) == names
    assert reading.tied["shared.weight"] == "decoder.embed_tokens.weight"


def test_a_matrix_that_is_stored_twice_must_be_one():
    reading = read(DESCRIPTIONS["tied without scale"])
    model = build(reading)
    named = dict(tensors(reading.table, random_tree(model)))
    np.testing.assert_array_equal(named["shared.weight"], named["lm_head.weight"])
    named["lm_head.weight"] = named["lm_head.weight"] + 1
    with pytest.raises(DataError, match=r"shared\.weight and lm_head\.weight differ"):
        parameters(reading.table, named, jax.eval_shape(model.init, jax.random.key(0)))


@pytest.mark.parametrize(("change", "message"), [
    ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj='gated-tanh', but only relu"), ({"is_decoder": True}, "is_decoder=True"),
    ({"dense_act_fn": "gelu"}, "dense_act_fn='gelu', but only 'relu'"), ({"is_gated_act": True}, "is_gated_act=True, but only False"),
    ({"decoder_start_token_id": None}, "decoder_start_token_id=None"), ({"is_encoder_decoder": False}, "is_encoder_decoder=False"),
    ({"scale_decoder_outputs": 3}, "scale_decoder_outputs=3"), ({"d_kv": None}, "config.json has no d_kv"),
    ({"relative_attention_type": "new"}, "relative_attention_type='new', which is not known for model_type=t5"),
    ({"model_type": "mt5", "scale_decoder_outputs": True}, "scale_decoder_outputs=True, but only False"),
    ({"model_type": "umt5"}, "model_type='umt5'"),
])
def test_what_we_do_not_have_is_one_line_that_names_it(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read(T5 | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["1.0", "1.1", "tied without scale"])
def test_a_model_of_ours_is_written_as_t5(version):
    ours = settings(read(DESCRIPTIONS[version]))
    description = written(ours, Sizes(37, 512, 37, 5))
    assert read(description).keys == read(DESCRIPTIONS[version]).keys
    assert description["decoder_start_token_id"] == 5


@pytest.mark.parametrize(("change", "key"), [
    ({"positions": "rope"}, "model.positions='rope'"), ({"norm": "layernorm"}, "model.norm='layernorm'"),
    ({"bias": True}, "model.bias=True"), ({"scale_attention": True}, "model.scale_attention=True"),
    ({"share_embeddings": False}, "model.share_embeddings=False"),
    ({"norm_position": "post"}, "model.norm_position='post'"), ({"activation": "geglu_erf"}, "model.activation='geglu_erf'"),
    ({"kv_heads": 1}, "model.kv_heads=1"), ({"qk_norm": True}, "model.qk_norm=True"),
])
def test_a_model_of_ours_without_a_counterpart_is_refused_by_its_key(change, key):
    ours = settings(read(T5))
    ours.model.update(change)
    with pytest.raises(ConfigError, match=re.escape(key)):
        FAMILIES["t5"].write(ours, Sizes(37, 512, 37, 5))


# From here on beside the transformers library.


@pytest.fixture(scope="module")
def torch():
    """PyTorch, where transformers is there too."""
    pytest.importorskip("transformers", reason=PARITY)
    return pytest.importorskip("torch", reason=PARITY)


def make(name):
    return next(case for case in CASES if case.name == name).make()


def pairs():
    """(our batch, their arguments, which targets are real)."""
    rng = np.random.default_rng(1)
    (source, source_segments, source_positions), (tokens, segments, positions) = padded(SOURCES, 263, rng), padded(TARGETS, 263, rng)
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "source_tokens": source, "source_segments": source_segments,
             "source_positions": source_positions}
    return batch, {"input_ids": source, "attention_mask": source_segments, "decoder_input_ids": tokens}, segments > 0


def as_longs(torch, arguments):
    return {name: torch.tensor(value, dtype=torch.long) for name, value in arguments.items()}


def step_by_step(model, params, batch):
    """Logits [B, T, V] of single steps with the cache."""
    def decode(params, batch):
        def step(state, now):
            logits, state = model.decode_step(params, state, now[:, None])
            return state, logits[:, 0]

        _, steps = jax.lax.scan(step, model.start_decode(params, batch, batch["tokens"].shape[1]), batch["tokens"].T)
        return jnp.swapaxes(steps, 0, 1)

    return fast(decode)(params, batch)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_of_padded_pairs_and_with_the_cache_are_theirs_and_tensors_go_back_bit_for_bit(torch, case, scan_layers):
    theirs = case.make()
    reading, named, model, params = imported(theirs, scan_layers=scan_layers)
    batch, arguments, real = pairs()
    with torch.no_grad():
        expected = theirs(**as_longs(torch, arguments)).logits.numpy()
    assert np.std(expected) > 0.1
    logits = fast(lambda params, batch: model.logits(params, model.apply(params, batch)))(params, batch)
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(step_by_step(model, params, batch))[real], expected[real], rtol=1e-4, atol=1e-4)
    back = dict(tensors(reading.table, params))
    assert back.keys() == named.keys() and all(back[name].tobytes() == named[name].tobytes() for name in named)


@pytest.mark.parametrize("name", ["t5", "t5 v1.1 and flan-t5"])
def test_gradients_are_theirs(torch, name):
    theirs = make(name)
    reading, _, model, params = imported(theirs)
    batch, arguments, real = pairs()
    targets = np.random.default_rng(2).integers(0, 263, real.shape)

    def loss(params):
        hidden = model.apply(params, batch)
        return losses.loss(hidden, model.unembedding(params), targets, real.astype(np.float32))[0] / real.sum()

    found = theirs(**as_longs(torch, arguments | {"labels": np.where(real, targets, -100)}))
    found.loss.backward()
    value, gradients = fast(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, found.loss.item(), rtol=1e-5)
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    got = dict(tensors(reading.table, gradients))
    assert got.keys() == expected.keys()
    for name, one in expected.items():
        largest = np.abs(one).max()
        assert largest > 0, f"{name} has no gradient to compare"
        np.testing.assert_allclose(got[name], one, rtol=0, atol=1e-3 * largest, err_msg=name)


@pytest.mark.parametrize("name", ["t5", "t5 v1.1 and flan-t5"])
def test_greedy_texts_are_theirs(torch, name):
    theirs = make(name)
    _, _, model, params = imported(theirs)
    sources = [row[:length].tolist() for row, length in zip(pairs()[0]["source_tokens"], SOURCES, strict=True)]
    batch = source_batch(sources, max(SOURCES))
    # Both write no padding, which is what texts begin with here.
    decoded = fast(lambda params, batch: search(params, batch, np.int32(30), model=model, room=30, beams=1, alpha=0.0, bos_id=0, eos_id=1,
                                                banned=(0,)))(params, batch)
    arguments = as_longs(torch, {"input_ids": batch["source_tokens"], "attention_mask": batch["source_segments"]})
    texts = theirs.generate(**arguments, max_new_tokens=30, do_sample=False, num_beams=1, suppress_tokens=[0], eos_token_id=1,
                            pad_token_id=0)
    for mine, other in zip(np.asarray(decoded.tokens), texts[:, 1:].numpy(), strict=True):
        mine = mine[mine >= 0]
        end = np.flatnonzero(other == 1)
        other = other[: end[0]] if len(end) else other
        np.testing.assert_array_equal(mine[mine != 1], other)
    assert len({tuple(row) for row in np.asarray(decoded.tokens).tolist()}) == len(sources)


@pytest.mark.parametrize("section", [{"activation": "relu", "tie_embeddings": True}, {"activation": "geglu", "tie_embeddings": False},
                                     {"activation": "relu", "tie_embeddings": True, "scale_logits": True}])
def test_a_model_of_ours_opens_there_and_writes_the_same_texts(torch, tmp_path, section):
    workdir = own_run(tmp_path / "run", "encoder_decoder", "translation", encoder_layers=3, positions="relative", scale_attention=False,
                      share_embeddings=True, **section)
    export_run(workdir, tmp_path / "out")
    assert parity.compare(workdir, tmp_path / "out") < 1e-4
    opened = open_run(workdir)
    translate = Translator(opened.model, opened.parameters()[0], opened.tokenizer, opened.tokenizer, rows=2)
    texts = ["It is a fine day.", "Yes."]
    mine = [found.text for found in translate(texts, beams=1, alpha=0.0, max_tokens=24)]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    sources = source_batch([[*opened.tokenizer.encode(text).tolist(), opened.tokenizer.eos_id] for text in texts], 24)
    written = theirs.generate(**as_longs(torch, {"input_ids": sources["source_tokens"], "attention_mask": sources["source_segments"]}),
                              max_new_tokens=24, do_sample=False, num_beams=1, suppress_tokens=[256, 257])
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in written] == mine and len(set(mine)) == 2
