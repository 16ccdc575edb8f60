"""Decoder-only Transformer: GPT-2 (Radford et al. 2019) to Llama (Touvron et al. 2023), pre-norm throughout."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.layers.attention import Attention, Cache, Place
from lm.layers.dense import Embedding, Unembedding, dropout
from lm.layers.feedforward import FeedForward
from lm.layers.norms import Norm
from lm.layers.positions import rotary_angles, sinusoids
from lm.models.base import LanguageModel
from lm.parallel import Layout, alone, constrain, extent, gathered
from lm.parallel.pipeline import pipeline


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape of a Transformer, with nothing left to default."""

    vocab_size: int
    context: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ff_width: int
    norm: str
    activation: str
    positions: str
    rope_base: float
    qk_norm: bool
    bias: bool
    tie_embeddings: bool
    dropout: float
    dtype: str
    scan_layers: bool
    remat: str
    remat_save: tuple[str, ...]
    remat_offload: tuple[str, ...]
    layout: Layout


class Inputs(nn.Module):
    """[B, T, D] of tokens at positions, both [B, T]."""

    spec: Spec

    @nn.compact
    def __call__(self, tokens, positions):
        s = self.spec
        x = Embedding(s.vocab_size, s.width, name="tokens")(tokens, s.dtype)
        if s.positions == "learned":
            x = x + Embedding(s.context, s.width, ("positions", "width"), name="positions")(positions, s.dtype)
        if s.positions == "sinusoidal":
            x = x * s.width**0.5 + sinusoids(positions, s.width).astype(s.dtype)
        return x


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to its input. `layer` tells the dropouts of layers apart."""

    spec: Spec

    @nn.compact
    def __call__(self, x, layer, segments, angles, noise=None, cache: Cache | None = None, place: Place | None = None):
        s = self.spec
        output_scale = (2 * s.layers) ** -0.5  # the residual stream keeps its size at any depth (GPT-2)
        attention = Attention(s.heads, s.kv_heads, s.head_width, s.bias, s.qk_norm, output_scale, s.layout.context, name="attention")
        y, cache = attention(Norm(s.norm, s.bias, name="attention_norm")(x), segments, angles, cache, place)
        x = x + dropout(y, s.dropout, noise, 1 + 2 * layer)
        feed_forward = FeedForward(s.ff_width, s.activation, s.bias, output_scale, name="feed_forward")
        y = feed_forward(Norm(s.norm, s.bias, name="feed_forward_norm")(x))
        x = x + dropout(y, s.dropout, noise, 2 + 2 * layer)
        return constrain(x, "batch", "residual_time", "act_width"), cache


def rematerialised(wrap, function, spec: Spec, scanned: bool):
    """A layer whose backward pass recomputes what spec.remat says; `wrap` is nn.remat or jax.checkpoint."""
    if spec.remat == "none":
        return function
    # In a scan nothing joins the forward and the backward pass anyway.
    return wrap(function, policy=remat_policy(spec), prevent_cse=not scanned)


def remat_policy(spec: Spec):
    """What jax.checkpoint keeps of a layer (None: its input alone)."""
    if spec.remat == "names":
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(spec.remat_save), names_which_can_be_offloaded=list(spec.remat_offload),
            offload_src="device", offload_dst="pinned_host")
    return {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}[spec.remat]


class Transformer(nn.Module):
    """Tokens to hidden states. Parameters of the layers are stacked [L, ...] with scan_layers, else layer_0, layer_1, ..."""

    spec: Spec

    @nn.compact
    def __call__(self, batch, noise=None):
        s = self.spec
        x = Inputs(s, name="inputs")(batch["tokens"], batch["positions"])
        x = dropout(x, s.dropout, noise, 0)
        angles = rotary_angles(batch["positions"], s.head_width, s.rope_base) if s.positions == "rope" else None
        rows = batch["segments"], angles, noise
        if s.scan_layers and extent("stage") > 1 and not self.is_initializing():
            x = pipeline(self.some_layers, (self.variables["params"]["layers"], jnp.arange(s.layers)), x, rows,
                         microbatches=s.layout.microbatches, repeats=s.layout.repeats)
        else:
            x = self.all_layers(x, rows)
        if not s.tie_embeddings:
            Unembedding(s.vocab_size, s.width, name="unembedding")()
        return Norm(s.norm, s.bias, name="final_norm")(x)

    @nn.nowrap
    def all_layers(self, x, rows):
        """x through every layer, one after the other; called inside `__call__`."""
        s = self.spec
        block = rematerialised(nn.remat, Block, s, s.scan_layers)
        if s.scan_layers:
            stack = nn.scan(block, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True},
                            in_axes=(0, *[nn.broadcast] * 3), length=s.layers, metadata_params={nn.PARTITION_NAME: "layers"})
            return stack(s, name="layers")(x, jnp.arange(s.layers), *rows)[0]
        if alone() and not self.is_initializing():  # traced once for all layers; parameters would be drawn by other keys
            block = nn.jit(block)
        for layer in range(s.layers):
            x, _ = block(s, name=f"layer_{layer}")(x, layer, *rows)
        return x

    @nn.nowrap
    def some_layers(self, chunk, x, rows):
        """Some rows through some layers, whose parameters and numbers are stacked: a stage of the pipeline."""
        s = self.spec

        def one(x, layer):
            params, number = layer
            return Block(s, parent=None).apply({"params": params}, x, number, *rows)[0], None

        return jax.lax.scan(rematerialised(jax.checkpoint, one, s, True), x, chunk)[0]


class Decoding(NamedTuple):
    """The slot of the next token, one for all rows, [], or each row's, [B]; the slot of each row's first token, [B]; a cache per layer."""

    slot: jax.Array
    first: jax.Array
    caches: tuple[Cache, ...]


class TransformerModel(LanguageModel):
    """The interface of `LanguageModel` for a Transformer."""

    @property
    def spec(self) -> Spec:
        """The module's shape."""
        return self.module.spec

    def unembedding(self, params):
        """[D, V] in float32."""
        table = params["inputs"]["tokens"]["embedding"] if self.spec.tie_embeddings else params["unembedding"]["kernel"]
        return gathered(table, "vocab", "width").T

    def init_decode(self, batch_size: int, max_len: int) -> Decoding:
        """Empty caches [B K, S, Dh] with S = max_len slots."""
        s = self.spec
        empty = jnp.zeros((batch_size * s.kv_heads, max_len, s.head_width), s.dtype)
        return Decoding(jnp.int32(0), jnp.zeros(batch_size, jnp.int32), tuple(Cache(empty, empty) for _ in range(s.layers)))

    def decode(self, params, state, tokens, valid=None):
        """Hidden states [B, n, D] and the caches with n slots more in use; there must be as many left."""
        s, slot, first = self.spec, state.slot, state.first
        first = first if valid is None else first + jnp.sum(~valid, axis=1)
        slots = slot[..., None] + jnp.arange(tokens.shape[1])  # [n] or [B, n]
        keys = jnp.arange(state.caches[0].keys.shape[1])
        visible = (keys <= slots[..., None]) & (keys >= first[:, None, None])
        positions = slots - first[:, None]
        angles = rotary_angles(positions, s.head_width, s.rope_base) if s.positions == "rope" else None
        # What lies outside a learned table is padding, or a draft beyond the context: its result is never used.
        table_positions = jnp.clip(positions, 0, s.context - 1) if s.positions == "learned" else positions
        x = Inputs(s).apply({"params": params["inputs"]}, tokens, table_positions)
        caches = []
        for layer, cache in enumerate(state.caches):
            block, place = {"params": self._layer(params, layer)}, Place(slot, visible)
            x, cache = Block(s).apply(block, x, layer, None, angles, None, cache, place)
            caches.append(cache)
        x = Norm(s.norm, s.bias).apply({"params": params["final_norm"]}, x)
        return x, Decoding(slot + tokens.shape[1], first, tuple(caches))

    def take(self, state, rows):
        """The caches of some rows [R], any of them several times."""
        heads = self.spec.kv_heads

        def taken(cache):
            return cache.reshape(-1, heads, *cache.shape[1:])[rows].reshape(-1, *cache.shape[1:])

        return Decoding(state.slot, state.first[rows], jax.tree.map(taken, state.caches))

    def accept(self, params, before, after, tokens, counts):
        """The caches after `counts` tokens: slots beyond them are written again before they are seen."""
        return after._replace(slot=before.slot + counts)

    def _layer(self, params, layer: int):
        if self.spec.scan_layers:
            return jax.tree.map(lambda stacked: stacked[layer], params["layers"])
        return params[f"layer_{layer}"]

    def forward_flops(self, context: int, causal: bool = True) -> float:
        """FLOPs per token of a forward pass; see `LanguageModel`."""
        s = self.spec
        attention_width, kv_width = s.heads * s.head_width, s.kv_heads * s.head_width
        feed_forward = (3 if s.activation == "swiglu" else 2) * s.width * s.ff_width
        dense = 2 * (2 * s.width * attention_width + 2 * s.width * kv_width + feed_forward)
        keys = (context + 1) / 2 if causal else context
        return s.layers * (dense + 2 * 2 * keys * attention_width) + 2 * s.width * s.vocab_size


def build(model, vocab_size: int, context: int, layout: Layout) -> TransformerModel:
    """The Transformer of the config's model section."""
    width, heads = model.width, model.heads
    swiglu_width = -(-8 * width // 3 // 64) * 64
    spec = Spec(
        vocab_size=vocab_size, context=context, layers=model.layers, width=width, heads=heads,
        kv_heads=model.kv_heads or heads, head_width=model.head_width or width // heads,
        ff_width=model.ff_width or (swiglu_width if model.activation == "swiglu" else 4 * width),
        norm=model.norm, activation=model.activation, positions=model.positions, rope_base=model.rope_base, qk_norm=model.qk_norm,
        bias=model.bias, tie_embeddings=model.tie_embeddings, dropout=model.dropout, dtype=model.dtype,
        scan_layers=model.scan_layers, remat=model.remat, remat_save=tuple(model.remat_save), remat_offload=tuple(model.remat_offload),
        layout=layout,
    )
    return TransformerModel(Transformer(spec), vocab_size, context)
