"""Decoders against the transformers library, small and random: logits, the cache, gradients, and models of ours over there."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, models
from lm.generate import Sampling, loops
from lm.interop.checkpoint_files import write_tensors
from lm.interop.families import family_of, written
from lm.interop.parity.decoders import CASES
from lm.interop.tables import parameters, tensors
from lm.models import Sizes

torch, transformers = (pytest.importorskip(name, reason="needs the extra parity: scripts/test.sh --parity")
                       for name in ("torch", "transformers"))
# Beyond every window and original context; beyond most; within all of them.
LENGTHS, WIDTH, PROMPT = (90, 77, 31), 90, 70
# Rows of the full pass stand on the left, on the right and on the left; a prompt's all on the right, as decoding has them.
MIXED, PROMPTS = (0, WIDTH - 77, 0), tuple(WIDTH - length for length in LENGTHS)
# Compiling costs more than running here.
fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


def case(name):
    return next(case for case in CASES if case.name == name)


def placed(rows, starts):
    """(tokens, segments, positions), each [B, T] in int32, of rows that begin at `starts`."""
    tokens, segments, positions = (np.zeros((len(rows), WIDTH), np.int32) for _ in range(3))
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        here = slice(start, start + len(row))
        tokens[index, here], segments[index, here], positions[index, here] = row, 1, np.arange(len(row))
    return tokens, segments, positions


def at_rows(values, starts):
    """What stands at the tokens of each row, of [B, T, ...]."""
    return [np.asarray(value)[start : start + length] for value, start, length in zip(values, starts, LENGTHS, strict=True)]


def their_logits(theirs, rows, by_length):
    """Logits of each row: of padded rows together, or one by one from the shortest on where the longest changes the rotation of all."""
    with torch.no_grad():
        if by_length:
            return [theirs(torch.tensor(row)[None].long(), use_cache=False).logits[0].numpy() for row in reversed(rows)][::-1]
        tokens, segments, positions = (torch.tensor(x).long() for x in placed(rows, MIXED))
        return at_rows(theirs(tokens, attention_mask=segments, position_ids=positions, use_cache=False).logits.numpy(), MIXED)


def imported(theirs):
    """(their description, their tensors, the reading of both, the model section) of a model of transformers."""
    description = json.loads(theirs.config.to_json_string())
    named = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    reading = family_of(description).read(description, set(named))
    named = {name: array for name, array in named.items() if name not in reading.tied}
    section = config.default().model
    section.update({key.removeprefix("model."): value for key, value in reading.keys.items() if key.startswith("model.")})
    return description, named, reading, section


def built(section, reading, named, scan_layers):
    """(model, parameters)."""
    section.scan_layers = scan_layers
    model = models.build(section, section.vocab_rows, section.max_positions)
    return model, parameters(reading.table, named, jax.eval_shape(model.init, jax.random.key(0)))


def full_pass(model, params, rows):
    """Logits at the tokens of each row."""
    batch = dict(zip(("tokens", "segments", "positions"), placed(rows, MIXED), strict=True))
    return at_rows(fast(lambda params, batch: model.logits(params, model.apply(params, batch)))(params, batch), MIXED)


def cached_pass(model, params, rows):
    """The same from a prompt of PROMPT slots and single steps after it, where the rotation goes by the whole length from the start."""
    def decode(params, tokens, valid):
        state = model.expecting(model.init_decode(len(rows), WIDTH), jnp.array(LENGTHS))
        logits, state = model.decode_step(params, state, tokens[:, :PROMPT], valid)

        def step(state, now):
            logits, state = model.decode_step(params, state, now[:, None])
            return state, logits[:, 0]

        _, steps = jax.lax.scan(step, state, tokens[:, PROMPT:].T)
        return jnp.concatenate([logits, jnp.swapaxes(steps, 0, 1)], axis=1)

    tokens, segments, _ = placed(rows, PROMPTS)
    return at_rows(fast(decode)(params, tokens, segments[:, :PROMPT] > 0), PROMPTS)


def assert_close(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_with_padding_and_with_the_cache_are_theirs_and_tensors_go_back_bit_for_bit(case):
    theirs = case.make()
    _, named, reading, section = imported(theirs)
    rows = [np.random.default_rng(length).integers(0, section.vocab_rows, length).astype(np.int32) for length in LENGTHS]
    expected = their_logits(theirs, rows, section.rope_scaling in ("dynamic", "longrope"))
    assert min(np.std(logits) for logits in expected) > 0.3
    model, params = built(section, reading, named, scan_layers=False)
    assert_close(full_pass(model, params, rows), expected)
    assert_close(cached_pass(model, params, rows), expected)
    back = dict(tensors(reading.table, params))
    assert back.keys() == named.keys() and all(back[name].tobytes() == named[name].tobytes() for name in named)
    model, params = built(section, reading, named, scan_layers=True)
    assert_close(full_pass(model, params, rows), expected)
    assert {name: array.tobytes() for name, array in tensors(reading.table, params)} == {name: x.tobytes() for name, x in named.items()}


def test_cases_are_all_of_the_families_and_scalings():
    kinds = {re.split(r"Config", case.make.args[0])[0] for case in CASES}
    assert kinds == {"GPT2", "GPTNeoX", "Llama", "Mistral", "Qwen2", "Qwen3", "Olmo2", "Phi3", "Arcee"}


@pytest.mark.parametrize("name", ["gpt2", "gpt2, untied, relu", "llama", "llama, one key head, tied"])
def test_gradients_are_theirs(name):
    theirs = case(name).make()
    _, named, reading, section = imported(theirs)
    model, params = built(section, reading, named, scan_layers=True)
    tokens = np.random.default_rng(0).integers(0, section.vocab_rows, (2, 60))
    logits = theirs(torch.tensor(tokens), use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.tensor(tokens[:, 1:]).reshape(-1)).backward()
    theirs_by_name = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    expected = parameters(reading.table, theirs_by_name, jax.eval_shape(model.init, jax.random.key(0)))
    batch = {"tokens": tokens.astype(np.int32), "segments": np.ones_like(tokens), "positions": np.tile(np.arange(60), (2, 1))}

    def loss(params):
        logs = jax.nn.log_softmax(model.logits(params, model.apply(params, batch))[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logs, batch["tokens"][:, 1:, None], axis=-1))

    for path, gradient in jax.tree_util.tree_leaves_with_path(fast(jax.grad(loss))(params)):
        other = functools.reduce(lambda tree, key: tree[key.key], path, expected)
        assert np.max(np.abs(gradient - other)) <= 1e-3 * np.max(np.abs(other)) + 1e-7, path  # biases of keys have none


OURS = {
    "quickstart": {"activation": "relu2", "tie_embeddings": False},
    "llama": {"activation": "swiglu", "kv_heads": 2, "norm_eps": 1e-5, "rope_scaling": "llama3", "rope_factor": 4.0,
              "rope_original_context": 16},
    "gpt2": {"positions": "learned", "norm": "layernorm", "bias": True},
    "neox": {"norm": "layernorm", "bias": True, "rope_share": 0.5, "parallel_residual": True, "tie_embeddings": False},
    "windows": {"activation": "swiglu", "attention_window": 7, "window_from": 1, "attention_bias": "inputs"},
    "olmo2": {"activation": "swiglu", "qk_norm": True, "qk_norm_over": "all", "norm_position": "output"},
    "longrope": {"activation": "swiglu", "rope_scaling": "longrope", "rope_share": 0.5, "rope_factor": 4.0, "rope_original_context": 16,
                 "rope_short_factors": (1.0, 1.5), "rope_long_factors": (2.0, 3.5)},
    "dynamic": {"activation": "geglu_erf", "rope_scaling": "dynamic", "rope_factor": 4.0, "rope_original_context": 16, "bias": True},
}


@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_computes_and_continues_the_same_there(name, tmp_path):
    settings = config.default()
    settings.model.update(OURS[name] | {"width": 32, "heads": 4, "layers": 2})
    sizes, context = Sizes(41, 64, 0, 1), 64
    model = models.build(settings.model, sizes.vocab, context)
    params, rng = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (rng.normal(size=leaf.shape) * 0.25 + (path[-1].key == "scale")).astype(np.float32), params)
    description = written(settings, sizes)
    (tmp_path / "config.json").write_text(json.dumps(description | {"dtype": "float32"}))
    write_tensors(tmp_path, tensors(family_of(description).read(description, set()).table, params))
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    @fast
    def logits(params, tokens, length):  # padded, so that one program serves all lengths
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        batch = {"tokens": tokens, "segments": (places < length).astype(jnp.int32), "positions": jnp.where(places < length, places, 0)}
        return model.logits(params, model.apply(params, batch))

    ours = np.random.default_rng(0).integers(0, sizes.vocab, (2, 60)).astype(np.int32)
    start = torch.tensor(ours[:, :40]).long()
    with torch.no_grad():
        np.testing.assert_allclose(logits(params, ours, 40)[:, :40], theirs(start, use_cache=False).logits.numpy(), rtol=0, atol=1e-4)
        continued = theirs.generate(start, max_new_tokens=20, do_sample=False, use_cache=False).numpy()
    for end in range(40, 60):
        ours[:, end] = np.argmax(logits(params, ours, end)[:, end - 1], axis=-1)
    np.testing.assert_array_equal(ours, continued)


@pytest.mark.parametrize(("name", "start", "most"), [
    ("llama, dynamic", 20, 50), ("llama, dynamic", 60, 20), ("llama, longrope, long", 20, 40), ("llama, longrope, long", 50, 20),
    ("llama, longrope, short", 60, 20), ("phi3, longrope, long", 40, 20), ("phi3, longrope, short", 61, 20),
])
def test_greedy_text_with_the_cache_is_theirs_on_both_sides_of_the_original_context_and_across_it(name, start, most):
    """A prompt's rotation goes by its length, a later token's by the row up to it; keys keep theirs. max_tokens changes nothing."""
    theirs = case(name).make()
    _, named, reading, section = imported(theirs)
    model, params = built(section, reading, named, scan_layers=True)
    prompt = np.random.default_rng(start).integers(3, section.vocab_rows, (1, start)).astype(np.int32)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(torch.tensor(prompt).long(), max_new_tokens=most, do_sample=False, use_cache=True).numpy()
    for room in (most, most + 20):
        got = fast(functools.partial(loops.sample, model=model, room=room, sampling=Sampling(temperature=0.0), eos_id=-1, banned=()))(
            params, prompt, jnp.array([start]), most, 0, ())
        np.testing.assert_array_equal(got.tokens[0, :most], expected[0, start:])
