"""Prompts that a model was taught to read otherwise than from left to right: as a whole, and around a gap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, models
from lm.data.tokenizers import ByteTokenizer
from lm.generate import Generator, Sampling
from lm.objectives import make

TOKENIZER, CONTEXT = ByteTokenizer(), 32


@pytest.fixture(scope="module")
def model():
    section = config.default().model
    section.update(layers=2, width=16, heads=2, scan_layers=False)
    model = models.build(section, TOKENIZER.vocab_size + 3, CONTEXT)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * (2 * leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 1)  # noqa: E731
    return model, jax.tree.map(draw, shapes)


def best_by_full_passes(model, params, prompt, prefix, count):
    """Greedy tokens, each by a pass over everything so far, of which the prompt sees itself as a whole where `prefix` says so."""
    tokens = [TOKENIZER.bos_id, *TOKENIZER.encode(prompt).tolist()]
    length = len(tokens)
    for _ in range(count):
        row = jnp.array([tokens + [0] * (CONTEXT - len(tokens))])
        times = jnp.arange(CONTEXT)[None]
        batch = {"tokens": row, "segments": (times < len(tokens)).astype(jnp.int32), "positions": times}
        batch |= {"prefix": (times < length).astype(jnp.int32)} if prefix else {}
        logits = np.array(model.apply(params, batch)[0, len(tokens) - 1] @ model.unembedding(params))
        logits[[TOKENIZER.pad_id, TOKENIZER.bos_id, *range(TOKENIZER.vocab_size, model.vocab_size)]] = -np.inf
        tokens.append(int(np.argmax(logits)))
    return tokens[length:]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_prompt_is_read_as_in_training(model, prefix):
    generator = Generator(*model, TOKENIZER, prefix=prefix)
    (completion, other) = generator(["we the people", "ab"], 6, Sampling(temperature=0))
    assert completion.tokens == best_by_full_passes(*model, "we the people", prefix, 6)
    assert other.tokens == best_by_full_passes(*model, "ab", prefix, 6)


def test_the_two_ways_of_reading_differ(model):
    a, b = (best_by_full_passes(*model, "we the people", prefix, 6) for prefix in (True, False))
    assert a != b


def test_ids_are_a_prompt_too(model):
    generator = Generator(*model, TOKENIZER)
    texts, ids = ["we the"], [TOKENIZER.encode("we the")]
    assert generator(texts, 5, Sampling(temperature=0)) == generator(ids, 5, Sampling(temperature=0))


def test_a_gap_is_asked_for_with_ids_that_are_never_written(model):
    section = config.override(config.default(), {"objective.name": "infill", "data.context": str(CONTEXT)})
    objective = make(section, TOKENIZER)
    assert objective.vocab_size == model[0].vocab_size
    prompt = objective.prompt(TOKENIZER.encode("we "), TOKENIZER.encode(" people"))
    assert set(prompt[prompt >= TOKENIZER.vocab_size]) == {objective.pre, objective.suf, objective.mid}
    completions = Generator(*model, TOKENIZER)([prompt], 8, num=4, seed=1)
    assert all(token < TOKENIZER.vocab_size for completion in completions for token in completion.tokens)
    assert [TOKENIZER.decode(completion.tokens) for completion in completions]
