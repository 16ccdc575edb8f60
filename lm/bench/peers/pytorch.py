"""PyTorch: a GPT-2 on `scaled_dot_product_attention`, and `nn.LSTM`, eager and by `torch.compile`, with the fused AdamW."""

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lm.bench.rounds import best_seconds
from lm.bench.shapes import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Shape, heads_of, random_tokens
from lm.bench.worker import peak_memory


class Block(nn.Module):
    """Attention and feed-forward, pre-norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        width, self.heads = shape.width, heads_of(shape)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        """[B, T, D] to [B, T, D]."""
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(width, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Tokens [B, T] to logits [B, T, V]; embeddings are tied."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(shape.vocab_size, shape.width), nn.Embedding(shape.context, shape.width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, tokens):
        """Logits."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class LSTM(nn.Module):
    """Tokens [B, T] to logits [B, T, V]; embeddings are tied."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.cells = nn.LSTM(shape.width, shape.width, shape.layers, batch_first=True)

    def forward(self, tokens):
        """Logits."""
        return F.linear(self.cells(self.tokens(tokens))[0], self.tokens.weight)


class Training:
    """Trains one shape; see `lm.bench.worker`. `info` has what this model has more of than ours."""

    def __init__(self, shape: list, compiled: bool):
        torch.manual_seed(0)
        self._shape, self._compiled = Shape(*shape), compiled
        tokens = torch.from_numpy(random_tokens(self._shape)).long()
        self._tokens, self._targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        second_biases = 4 * self._shape.width * self._shape.layers if self._shape.family == "lstm" else 0
        self.info = {"extra_parameters": second_biases, "why": "nn.LSTM has a second bias in each layer" if second_biases else ""}

    def build(self, shape: Shape) -> nn.Module:
        """The model: a module from tokens [B, T] to logits [B, T, V]."""
        return (LSTM if shape.family == "lstm" else GPT)(shape)

    def first(self) -> dict:
        """The first step, cold: seconds from nothing made or compiled to its loss."""
        start = time.perf_counter()
        self._start()
        (loss,) = self.steps(1, losses=True)
        return {"seconds": time.perf_counter() - start, "loss": loss, "parameters": sum(p.numel() for p in self._model.parameters())}

    def _start(self):
        model = self._model = self.build(self._shape)
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)

        def loss(tokens, targets):
            return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

        self._loss = torch.compile(loss) if self._compiled else loss

    def steps(self, count: int, losses: bool = False) -> list[float]:
        """Seconds of each of some steps, or their losses."""
        seconds, values = [], []
        for _ in range(count):
            start = time.perf_counter()
            loss = self._loss(self._tokens, self._targets)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
            self._optimizer.step()
            values.append(loss.item())
            seconds.append(time.perf_counter() - start)
        return values if losses else seconds

    def memory(self) -> int:
        """Peak bytes of the process."""
        return peak_memory()


class Products:
    """Square matrix products, as `lm.bench.limits.Products`."""

    def __init__(self, sizes: Sequence[int], types: Sequence[str]):
        self._cases = [(kind, size, torch.ones((size, size), dtype=getattr(torch, kind))) for kind in types for size in sizes]
        self.turn()

    def turn(self) -> list[dict]:
        """FLOP/s of each type and size."""
        return [{"type": kind, "size": size, "flops": 2 * size**3 / best_seconds(lambda x=x: x @ x)} for kind, size, x in self._cases]
