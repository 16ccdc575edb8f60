"""Our side of the benchmark of decoding: `lm.generate.Generator`, as `scripts/generate.py` calls it, on prompts that are tokens already."""

import functools

import jax
import numpy as np

from lm import models
from lm.bench.rounds import seconds_of
from lm.bench.shapes import Shape, config_of
from lm.generate import Generator, Sampling

GREEDY = Sampling(temperature=0.0)


class Tokens:
    """A tokenizer in name: the text of a prompt is its number, and its tokens are known. No token ends a document."""

    eos_id, stop_ids, prompt_bos = -1, (-1,), True

    def __init__(self, start: int, vocab_size: int):
        self.bos_id, self.pad_id, self.vocab_size = start, start, vocab_size
        self.prompts: list[list[int]] = []

    def encode(self, text: str) -> np.ndarray:
        """The tokens of prompt number `text` after its first, which the generator puts before it."""
        return np.array(self.prompts[int(text)][1:], np.int32)


class Decoding:
    """Continues prompts greedily with fresh weights; see `lm.bench.worker`. `start` is the first token of every prompt.

    `info` has what a new token must read and compute: `weights` in bytes, whatever the batch, then `cache` in bytes and `flops` of a row
    that holds `tokens` tokens.
    """

    def __init__(self, shape: list, start: int, tokens: int):
        shape = Shape(*shape)
        model = models.build(config_of(shape).model, shape.vocab_size, shape.context)
        self.params = jax.jit(model.init)(jax.random.key(0))
        self._tokenizer = Tokens(start, shape.vocab_size)
        self._generator = Generator(model, self.params, self._tokenizer)
        cache = jax.eval_shape(functools.partial(model.init_decode, 1, tokens))
        # A row of the position table is read, not the table; the token embedding is the output matrix too.
        weights = [leaf.nbytes for name, leaf in named(self.params).items() if "/positions/" not in name]
        self.info = {"weights": sum(weights), "cache": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)),
                     "flops": model.forward_flops(tokens, causal=False)}

    def save(self, file: str):
        """Writes all weights, by name, for a peer to read."""
        np.savez(file, **named(self.params))

    def tokens(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """The `new` tokens after each prompt."""
        self._tokenizer.prompts = prompts
        return [done.tokens for done in self._generator([str(i) for i in range(len(prompts))], new, GREEDY)]

    def seconds(self, prompts: list[list[int]], new: int, count: int) -> list[float]:
        """Seconds that this takes, each of some times."""
        return seconds_of(lambda: self.tokens(prompts, new), count)


def named(params) -> dict[str, jax.Array]:
    """{"a/b/c": leaf} of nested dicts."""
    return {"/".join(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
