"""T5 and ELECTRA against the transformers library, on tiny models with random weights: logits at padded rows, late positions too."""

import jax
import numpy as np
import pytest

from lm import config, models
from lm.interop.bert import TABLE as BERT
from lm.interop.tables import Row, dense, norm, parameters
from lm.models import logits_of

PARITY = "PARITY WITH TRANSFORMERS NOT CHECKED: pip install -e '.[parity]'"
torch, transformers = (pytest.importorskip(name, reason=PARITY) for name in ("torch", "transformers"))
RNG = np.random.default_rng(0)
VOCAB, SOURCE_LENGTHS, LENGTHS = 37, np.array([50, 23, 4]), np.array([40, 9, 33])


def randomize(model):
    """Random values in every parameter of a model of transformers; its tensors by name."""
    named = {}
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.ndim == 1 or "shared" in name or "embeddings" in name or "bias" in name else parameter.shape[-1] ** -0.5
        offset = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        named[name] = (offset + scale * RNG.normal(size=tuple(parameter.shape))).astype(np.float32)
        parameter.data = torch.tensor(named[name])
    return named


def rows(lengths, vocab=VOCAB):
    """(tokens, segments, positions), each [B, T], padded on the right."""
    real = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.where(real, RNG.integers(1, vocab, real.shape), 0)
    return [x.astype(np.int32) for x in (tokens, real, np.broadcast_to(np.arange(lengths.max()), real.shape))]


def long(x):
    return torch.tensor(x, dtype=torch.long)


def t5_table(gated, tied):
    """T5's names; its matrices multiply as ours do but lie the other way round, and it has no biases."""
    def matrices(theirs, ours):
        return [Row(f"{theirs}.{their}.weight", f"{ours}/{our}/kernel", True)
                for their, our in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))]

    def stack(name, feed_forward):
        theirs, ours = f"{name}.block.{{layer}}.layer", f"{name}/{{layer}}"
        up = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
        return [*matrices(f"{theirs}.0.SelfAttention", f"{ours}/attention"),
                Row(f"{theirs}.0.layer_norm.weight", f"{ours}/attention_norm/scale"),
                Row(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{name}/relative/embedding"),
                *[Row(f"{theirs}.{feed_forward}.DenseReluDense.{their}.weight", f"{ours}/feed_forward/{our}/kernel", True)
                  for their, our in up.items()],
                Row(f"{theirs}.{feed_forward}.layer_norm.weight", f"{ours}/feed_forward_norm/scale"),
                Row(f"{name}.final_layer_norm.weight", f"{name}/final_norm/scale")]

    cross = [*matrices("decoder.block.{layer}.layer.1.EncDecAttention", "decoder/{layer}/cross_attention"),
             Row("decoder.block.{layer}.layer.1.layer_norm.weight", "decoder/{layer}/cross_attention_norm/scale")]
    output = [] if tied else [Row("lm_head.weight", "unembedding/kernel")]
    return (Row("shared.weight", "inputs/tokens/embedding"), *stack("encoder", 1), *stack("decoder", 2), *cross, *output)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_t5_is_theirs(version):
    gated = version == "1.1"
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=VOCAB, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_decoder_layers=2, num_heads=4, relative_attention_num_buckets=8,
        relative_attention_max_distance=20, feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
        decoder_start_token_id=0)).eval()
    if gated:  # an output matrix of its own, which this version of transformers gives to stored models alone
        theirs.lm_head = torch.nn.Linear(24, VOCAB, bias=False)
    named = randomize(theirs)
    section = config.default().model
    section.update(name="encoder_decoder", layers=2, encoder_layers=3, width=24, heads=4, head_width=8, ff_width=40, positions="relative",
                   relative_buckets=8, relative_distance=20, scale_attention=False, share_embeddings=True, tie_embeddings=not gated,
                   scale_logits=not gated, activation="geglu" if gated else "relu", scan_layers=gated)
    model = models.build(section, VOCAB, 40, source_vocab=VOCAB)
    params = parameters(t5_table(gated, not gated), named, jax.eval_shape(model.init, jax.random.key(0)))
    (source, source_segments, source_positions), (tokens, segments, positions) = rows(SOURCE_LENGTHS), rows(LENGTHS)
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "source_tokens": source, "source_segments": source_segments,
             "source_positions": source_positions}
    with torch.no_grad():
        expected = theirs(input_ids=long(source), attention_mask=long(source_segments), decoder_input_ids=long(tokens)).logits.numpy()
    logits = jax.jit(lambda params, batch: logits_of(model.apply(params, batch), model.unembedding(params)))(params, batch)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(np.asarray(logits)[segments > 0], expected[segments > 0], rtol=1e-4, atol=1e-4)


def electra_table():
    """BERT's names under `electra.`, with other heads."""
    body = [Row(f"electra.{row.theirs}", row.ours.replace("body/", "discriminator/"), row.transpose) for row in BERT
            if row.ours.startswith(("inputs/", "body/"))]
    return (*body, *dense("electra.embeddings_project", "discriminator/projection"),
            *dense("discriminator_predictions.dense", "replaced/transform"),
            *dense("discriminator_predictions.dense_prediction", "replaced/output"))


def generator_table():
    """The generator's."""
    body = [row._replace(ours=row.ours.replace("discriminator/", "generator/")) for row in electra_table() if "replaced/" not in row.ours]
    return (*body, *dense("generator_predictions.dense", "masked/transform"), *norm("generator_predictions.LayerNorm", "masked/norm"),
            Row("generator_lm_head.bias", "masked/bias"))


def test_both_halves_of_electra_are_theirs():
    section = config.default().model
    section.update(name="electra", layers=2, width=32, heads=4, ff_width=48, embedding_width=16, activation="gelu_erf", positions="learned",
                   norm="layernorm", norm_position="post", norm_eps=1e-12, bias=True, generator_share=0.5)
    model = models.build(section, VOCAB, 40)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shared = {"vocab_size": VOCAB, "embedding_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 40, "hidden_act": "gelu"}
    discriminator = transformers.ElectraForPreTraining(transformers.ElectraConfig(
        **shared, hidden_size=32, num_attention_heads=4, intermediate_size=48)).eval()
    generator = transformers.ElectraForMaskedLM(transformers.ElectraConfig(
        **shared, hidden_size=16, num_attention_heads=2, intermediate_size=24, tie_word_embeddings=True)).eval()
    named, inputs = randomize(discriminator), {"inputs": shapes["inputs"]}
    params = parameters(electra_table(), named, inputs | {name: shapes[name] for name in ("discriminator", "replaced")})
    tokens, segments, positions = rows(LENGTHS)
    types = RNG.integers(0, 2, tokens.shape).astype(np.int32)
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "types": types}
    arguments = {"input_ids": long(tokens), "attention_mask": long(segments), "token_type_ids": long(types)}
    with torch.no_grad():
        expected = discriminator(**arguments).logits.numpy()
    got = np.asarray(jax.jit(model.discriminate)(params, batch))
    np.testing.assert_allclose(got[segments > 0], expected[segments > 0], rtol=1e-4, atol=1e-4)

    # The generator is as wide as the embedding here, so that there is no projection in either library; embeddings are the discriminator's.
    named = randomize(generator)
    table = [row for row in generator_table() if "projection" not in row.ours]
    tied = ("generator_lm_head.weight",)
    params |= parameters(table, named, inputs | {name: shapes[name] for name in ("generator", "masked")}, tied)
    with torch.no_grad():
        expected = generator(**arguments).logits.numpy()
    got = jax.jit(lambda params, batch: logits_of(model.apply_generator(params, batch), model.unembedding(params)))(params, batch)
    np.testing.assert_allclose(np.asarray(got)[segments > 0], expected[segments > 0], rtol=1e-4, atol=1e-4)
