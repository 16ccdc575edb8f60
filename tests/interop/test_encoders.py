"""BERT, RoBERTa, DistilBERT and ELECTRA: their configs and tensors, and on small random models the transformers library's outputs."""

import re

import jax
import numpy as np
import pytest

from lm import config, losses, models
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError, DataError
from lm.interop import parity
from lm.interop.convert import export_run, import_run
from lm.interop.families import FAMILIES, written
from lm.interop.parity.encoders import CASES
from lm.interop.parity.random_models import random_model
from lm.interop.tables import parameters, tensors
from lm.models import Sizes, logits_of
from tests.interop.their_models import PARITY, build, fast, imported, own_run, padded, random_tree, read, same_trees, settings

LENGTHS = (97, 60, 3)
BERT = {"model_type": "bert", "architectures": ["BertForPreTraining"], "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12}
ROBERTA = BERT | {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "pad_token_id": 1}
DISTILBERT = {"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "vocab_size": 41, "dim": 24, "n_layers": 3,
              "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 32, "activation": "gelu"}
ELECTRA = BERT | {"model_type": "electra", "architectures": ["ElectraForPreTraining"], "embedding_size": 14}
GENERATOR = ELECTRA | {"architectures": ["ElectraForMaskedLM"]}
DESCRIPTIONS = {"bert": BERT, "roberta": ROBERTA, "distilbert": DISTILBERT, "discriminator": ELECTRA, "generator": GENERATOR}


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_tensors_come_back_as_they_went(kind, scan_layers):
    reading = read(DESCRIPTIONS[kind])
    model = build(reading, scan_layers=scan_layers)
    params = random_tree(model)
    named = dict(tensors(reading.table, params))
    # What the tensors show is what the architecture said.
    again = read({**DESCRIPTIONS[kind], "architectures": ["Other"]}, named)
    assert again.keys == reading.keys and again.table == reading.table
    back = parameters(again.table, named, jax.eval_shape(model.init, jax.random.key(0)))
    same_trees(back, params)


def test_names_may_come_without_that_of_the_model_and_norms_with_the_oldest_names():
    names = dict(tensors(read(BERT).table, random_tree(build(read(BERT)))))
    assert "bert.encoder.layer.2.output.LayerNorm.weight" in names and "bert.pooler.dense.bias" in names
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for name in names}
    bare = {name.removeprefix("bert.") for name in old}
    for these in (old, bare):
        model = build(read(BERT, these))
        assert set(dict(tensors(read(BERT, these).table, random_tree(model)))) == these


def test_heads_are_those_that_have_tensors():
    names = set(dict(tensors(read(BERT).table, random_tree(build(read(BERT))))))
    masked = {name for name in names if "pooler" not in name and "seq_relationship" not in name}
    keys = read(BERT, masked).keys
    assert [keys[f"model.{name}"] for name in ("masked_head", "pooler", "next_sentence", "replaced_head")] == [True, False, False, False]
    assert keys["objective.sentences"] == "none" and read(BERT, names).keys["objective.sentences"] == "next"
    assert set(random_tree(build(read(BERT, {name for name in masked if not name.startswith("cls.")})))) == {"inputs", "body"}


def test_roberta_begins_after_the_row_of_padding():
    keys = read(ROBERTA).keys
    assert (keys["model.position_offset"], keys["model.max_positions"]) == (2, 30)
    assert read(ROBERTA | {"pad_token_id": 5}).keys["model.max_positions"] == 26
    params = random_tree(build(read(ROBERTA)))
    assert params["inputs"]["positions"]["embedding"].shape == (32, 24)


@pytest.mark.parametrize(("description", "change", "message"), [
    (BERT, {"hidden_act": "mish"}, "config.json has hidden_act='mish'"),
    (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key', but only 'absolute'"),
    (BERT, {"is_decoder": True}, "is_decoder=True, but only False"),
    (BERT, {"add_cross_attention": True}, "add_cross_attention=True"),
    (BERT, {"tie_word_embeddings": False}, "tie_word_embeddings=False, but only True"),
    (BERT, {"new_layers": 3}, "new_layers=3, which is not known for model_type=bert"),
    (BERT, {"hidden_size": None}, "config.json has no hidden_size"),
    (BERT, {"layer_norm_eps": "small"}, "layer_norm_eps='small', which is not a positive number"),
    (ROBERTA, {"pad_token_id": -1}, "pad_token_id=-1"),
    (ROBERTA, {"hidden_act": "gelu_10"}, "hidden_act='gelu_10'"),
    (DISTILBERT, {"activation": "tanh"}, "activation='tanh'"),
    (DISTILBERT, {"tie_weights_": False}, "tie_weights_=False, but only True"),
    (ELECTRA, {"embedding_size": 0}, "embedding_size=0, which is not a positive whole number"),
    (GENERATOR, {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    (BERT, {"model_type": "albert"}, "model_type='albert'"),
])
def test_what_we_do_not_have_is_one_line_that_names_it(description, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read(description | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_model_of_ours_is_written_as_the_family_that_it_fits(kind):
    ours = settings(read(DESCRIPTIONS[kind]))
    description = written(ours, Sizes(41, ours.model.max_positions))
    assert all(description[key] == DESCRIPTIONS[kind][key] for key in ("model_type", "architectures"))
    assert read(description).keys == read(DESCRIPTIONS[kind]).keys


@pytest.mark.parametrize(("change", "key"), [
    ({"positions": "rope"}, "model.positions='rope'"), ({"norm": "rmsnorm"}, "model.norm='rmsnorm'"),
    ({"norm_position": "pre"}, "model.norm_position='pre'"), ({"bias": False}, "model.bias=False"),
    ({"activation": "geglu"}, "model.activation='geglu'"), ({"kv_heads": 1}, "model.kv_heads=1"), ({"qk_norm": True}, "model.qk_norm=True"),
    ({"head_width": 16}, "model.head_width=16"), ({"attention_bias": "none"}, "model.attention_bias='none'"),
    ({"token_types": 0}, "model.token_types=0"), ({"replaced_head": True}, "model.replaced_head=True"),
    ({"position_offset": 1}, "model.position_offset=1"), ({"head_activation": "relu"}, "model.head_activation='relu'"),
    ({"pooler": True, "next_sentence": False}, "model.pooler=True"), ({"scale_attention": False}, "model.scale_attention=False"),
])
def test_a_model_of_ours_without_a_counterpart_is_refused_by_its_key(change, key):
    ours = settings(read(BERT))
    ours.model.update(change)
    with pytest.raises(ConfigError, match=re.escape(key)):
        FAMILIES["bert"].write(ours, Sizes(41, 32))


@pytest.mark.parametrize(("change", "architecture"), [
    ({"embedding_width": 8, "next_sentence": False}, "ElectraForMaskedLM"), ({"masked_head": False}, "BertForNextSentencePrediction"),
    ({"next_sentence": False, "masked_head": False}, "ElectraModel"),
    ({"position_offset": 2, "next_sentence": False}, "RobertaForMaskedLM"),
    ({"next_sentence": False, "masked_head": False, "pooler": True}, "BertModel"),
])
def test_a_model_goes_to_the_first_family_that_holds_it_exactly(change, architecture):
    ours = settings(read(BERT))
    ours.model.update({"pooler": False, **change})
    assert written(ours, Sizes(41, 32))["architectures"] == [architecture]


def test_sentence_embeddings_are_means_of_real_tokens_of_length_one():
    model = build(read(BERT))
    params = random_tree(model)
    tokens, segments, positions = padded((9, 2, 5), 41, np.random.default_rng(0))
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "types": np.zeros_like(tokens)}
    hidden = np.asarray(model.encode(params, batch), np.float64)
    means = np.stack([row[keep > 0].mean(axis=0) for row, keep in zip(hidden, segments, strict=True)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(model.sentence_embeddings(params, batch), expected, rtol=1e-4, atol=1e-5)


def test_a_tensor_of_another_task_is_named():
    model = build(read(BERT))
    named = dict(tensors(read(BERT).table, random_tree(model))) | {"classifier.weight": np.zeros((2, 24), np.float32)}
    with pytest.raises(DataError, match=r"tensor classifier\.weight \(of 1 such\) has no place"):
        parameters(read(BERT, named).table, named, jax.eval_shape(model.init, jax.random.key(0)))


# From here on beside the transformers library.


@pytest.fixture(scope="module")
def torch():
    """PyTorch, where transformers is there too."""
    pytest.importorskip("transformers", reason=PARITY)
    return pytest.importorskip("torch", reason=PARITY)


def make(name):
    return next(case for case in CASES if case.name == name).make()


def rows_of(theirs, lengths=LENGTHS):
    """(our batch, their arguments, which tokens are real) of random rows with types; padding has the id that they know it by."""
    kinds, pad = getattr(theirs.config, "type_vocab_size", 0), theirs.config.pad_token_id or 0
    rng = np.random.default_rng(1)
    tokens, segments, positions = padded(lengths, 259, rng, least=2)
    tokens = np.where(segments > 0, tokens, pad)
    types = rng.integers(0, max(1, kinds), tokens.shape).astype(np.int32) * segments
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "types": types}
    arguments = {"input_ids": tokens, "attention_mask": segments} | ({"token_type_ids": types} if kinds else {})
    return batch, arguments, segments > 0


def run(torch, theirs, arguments):
    with torch.no_grad():
        return theirs(**{name: torch.tensor(value, dtype=torch.long) for name, value in arguments.items()}, output_hidden_states=True)


def close(ours, theirs, where=slice(None)):
    np.testing.assert_allclose(np.asarray(ours)[where], theirs.detach().numpy()[where], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_padded_rows_come_out_as_theirs_and_tensors_go_back_bit_for_bit(torch, case, scan_layers):
    theirs = case.make()
    reading, named, model, params = imported(theirs, scan_layers=scan_layers)
    batch, arguments, real = rows_of(theirs)
    expected = run(torch, theirs, arguments)
    hidden = fast(model.encode)(params, batch)
    close(hidden, expected.hidden_states[-1], real)
    if model.spec.masked_head:
        logits = logits_of(model.predict(params, hidden), model.unembedding(params))
        close(logits, expected.prediction_logits if model.spec.next_sentence else expected.logits, real)
    if model.spec.next_sentence:
        close(model.follows(params, hidden), expected.seq_relationship_logits if model.spec.masked_head else expected.logits)
    elif model.spec.pooler:
        close(model.pool(params, hidden), expected.pooler_output)
    if model.spec.replaced_head:
        close(model.discriminate(params, batch), expected.logits, real)
    back = dict(tensors(reading.table, params))
    assert back.keys() == named.keys() and all(back[name].tobytes() == named[name].tobytes() for name in named)


def test_gradients_of_berts_loss_are_theirs(torch):
    theirs = make("bert")
    reading, _, model, params = imported(theirs)
    batch, arguments, real = rows_of(theirs)
    chosen = real & (np.random.default_rng(2).random(real.shape) < 0.3)
    targets, follows = np.random.default_rng(3).integers(0, 259, real.shape), np.array([0, 1, 1])

    def loss(params):
        encoded = model.encode(params, batch)
        total, _ = losses.loss(model.predict(params, encoded), model.unembedding(params), targets, chosen.astype(np.float32))
        log_p = jax.nn.log_softmax(model.follows(params, encoded))
        return total / chosen.sum() - log_p[np.arange(3), follows].mean()

    labels = {"labels": np.where(chosen, targets, -100), "next_sentence_label": follows}
    found = theirs(**{name: torch.tensor(value, dtype=torch.long) for name, value in (arguments | labels).items()})
    found.loss.backward()
    value, gradients = fast(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, found.loss.item(), rtol=1e-5)
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    got = dict(tensors(reading.table, gradients))
    assert got.keys() == expected.keys()
    largest = max(np.abs(one).max() for one in expected.values())
    for name, one in expected.items():
        # The softmax does not see what all keys have in common.
        assert name.endswith("self.key.bias") or np.abs(one).max() > 1e-5 * largest, f"{name} has no gradient to compare"
        np.testing.assert_allclose(got[name], one, rtol=0, atol=1e-3 * np.abs(one).max() + 1e-6 * largest, err_msg=name)


def test_both_halves_of_our_electra_are_theirs(torch):
    section = config.default().model
    section.update(name="electra", layers=2, width=32, heads=4, ff_width=48, embedding_width=16, activation="gelu_erf", positions="learned",
                   norm="layernorm", norm_position="post", norm_eps=1e-12, bias=True, generator_share=0.5)
    model = models.build(section, 267, 101)
    shapes, params, found = jax.eval_shape(model.init, jax.random.key(0)), {}, []
    sizes = {"vocab_size": 267, "embedding_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 101}
    # The generator is as wide as the embedding, so that there is no projection in either library.
    discriminator = random_model("ElectraConfig", "ElectraForPreTraining", hidden_size=32, num_attention_heads=4, intermediate_size=48,
                                 **sizes)
    generator = random_model("ElectraConfig", "ElectraForMaskedLM", hidden_size=16, num_attention_heads=2, intermediate_size=24, **sizes)
    generator.electra.embeddings.load_state_dict(discriminator.electra.embeddings.state_dict())
    for theirs, body, head in ((discriminator, "discriminator", "replaced"), (generator, "generator", "masked")):
        reading, named, _, _ = imported(theirs)
        table = [row._replace(ours=tuple(path.replace("body/", f"{body}/") for path in row.ours)) for row in reading.table]
        params |= parameters(table, named, {part: shapes[part] for part in ("inputs", body, head)})
        batch, arguments, real = rows_of(theirs)
        found.append(run(torch, theirs, arguments).logits)
    close(fast(model.discriminate)(params, batch), found[0], real)
    close(logits_of(fast(model.apply)(params, batch), model.unembedding(params)), found[1], real)


@pytest.mark.parametrize(("section", "kind"), [
    ({"positions": "learned", "norm": "layernorm", "norm_position": "post", "bias": True, "activation": "gelu_erf"}, "BertForMaskedLM"),
    ({"positions": "learned", "norm": "layernorm", "norm_position": "post", "bias": True, "activation": "gelu_erf", "embedding_width": 8,
      "scan_layers": False}, "ElectraForMaskedLM"),
])
def test_a_model_of_ours_opens_there_and_says_the_same(torch, tmp_path, section, kind):
    workdir = own_run(tmp_path / "run", "encoder", "masked", **section)
    result = export_run(workdir, tmp_path / "out")
    assert type(pytest.importorskip("transformers").AutoModelForMaskedLM.from_pretrained(tmp_path / "out")).__name__ == kind
    assert parity.compare(workdir, tmp_path / "out") < 1e-4
    # Bytes and what is theirs, then what the objective hides with and begins rows with.
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, len(tokenizer)) == (259, 260, 261, 262)
    assert tokenizer("a<mask>")["input_ids"] == [260, 97, 259, 258]
    pair = tokenizer("a", "b", return_token_type_ids=True)
    assert (pair["input_ids"], pair["token_type_ids"]) == ([260, 97, 261, 98, 261], [0, 0, 0, 1, 1])
    again = import_run(tmp_path / "out", tmp_path / "again", tokenizer=ByteTokenizer())
    assert (again["family"], again["parameters"]) == (result["family"], result["parameters"])
