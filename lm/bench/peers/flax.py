"""Plain Flax, as its documentation shows it: `nn.MultiHeadDotProductAttention`, `nn.RNN(nn.OptimizedLSTMCell)`, optax, one jitted step."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lm.bench.shapes import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Shape, heads_of, random_tokens
from lm.bench.worker import peak_memory

INITIAL = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Attention and feed-forward, pre-norm."""

    shape: Shape

    @nn.compact
    def __call__(self, x, mask):
        width = self.shape.width
        x = x + nn.MultiHeadDotProductAttention(heads_of(self.shape))(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class GPT(nn.Module):
    """Tokens [B, T] to logits [B, T, V]; embeddings are tied."""

    shape: Shape

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(self.shape.vocab_size, self.shape.width, embedding_init=INITIAL)
        positions = nn.Embed(self.shape.context, self.shape.width, embedding_init=INITIAL)
        x = table(tokens) + positions(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.shape.layers):
            x = Block(self.shape)(x, mask)
        return table.attend(nn.LayerNorm()(x))


class LSTM(nn.Module):
    """Tokens [B, T] to logits [B, T, V]; embeddings are tied."""

    shape: Shape

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(self.shape.vocab_size, self.shape.width, embedding_init=INITIAL)
        x = table(tokens)
        for _ in range(self.shape.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.shape.width))(x)
        return table.attend(x)


class Training:
    """Trains one shape; see `lm.bench.worker`."""

    def __init__(self, shape: list):
        shape = Shape(*shape)
        self._model = (LSTM if shape.family == "lstm" else GPT)(shape)
        matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
        adamw = optax.adamw(LEARNING_RATE, *BETAS, EPSILON, weight_decay=WEIGHT_DECAY, mask=matrices)
        self._optimizer = optax.chain(optax.clip_by_global_norm(CLIP), adamw)
        tokens = random_tokens(shape)
        self._batch = jax.device_put((tokens[:, :-1], tokens[:, 1:]))
        self.info = {}

    def first(self) -> dict:
        """The first step, cold: seconds from nothing compiled to its loss."""
        start = time.perf_counter()
        self._params = jax.jit(self._model.init)(jax.random.key(0), self._batch[0])
        self._state = jax.jit(self._optimizer.init)(self._params)

        def step(params, state, tokens, targets):
            def loss(params):
                return optax.softmax_cross_entropy_with_integer_labels(self._model.apply(params, tokens), targets).mean()

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = self._optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        self._step = jax.jit(step, donate_argnums=(0, 1))
        (loss,) = self.steps(1, losses=True)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        return {"seconds": time.perf_counter() - start, "loss": loss, "parameters": parameters}

    def steps(self, count: int, losses: bool = False) -> list[float]:
        """Seconds of each of some steps, or their losses."""
        seconds, values = [], []
        for _ in range(count):
            start = time.perf_counter()
            self._params, self._state, loss = self._step(self._params, self._state, *self._batch)
            values.append(loss.item())
            seconds.append(time.perf_counter() - start)
        return values if losses else seconds

    def memory(self) -> int:
        """Peak bytes of the process."""
        return peak_memory()
