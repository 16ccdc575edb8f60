"""Recurrent encoder-decoders: Sutskever et al. (2014) without attention, Bahdanau et al. (2015) and Luong et al. (2015) with it.

The decoder starts from the encoder's last states, through a learnt bridge where the encoder reads both ways. Bahdanau's attention is
read by the decoder's first layer at every step; Luong's comes after the layers ("global"), so that these run over all times at once,
unless model.input_feeding gives the first layer the attentional state of the step before. With attention the last hidden state is
tanh(W [context; state]), Luong's attentional state.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.errors import ConfigError
from lm.layers import seq_attention
from lm.layers.dense import Embedding, Kernel, Unembedding, dropout, project
from lm.layers.recurrence import GATES, Recurrence, empty_state
from lm.layers.seq_attention import AttentiveRecurrence, Memory, SteppedLayer
from lm.models.base import Sizes
from lm.models.encoder_decoder_base import EncoderDecoder
from lm.parallel import Layout, constrain, gathered


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape of a recurrent encoder-decoder, with nothing left to default. `attention` is none, bahdanau, luong or luong_dot."""

    cell: str
    attention: str
    vocab_size: int
    source_vocab: int
    layers: int
    width: int
    embedding_width: int
    bidirectional: bool
    reverse_source: bool
    residual: bool
    tie_embeddings: bool
    dropout: float
    dtype: str
    unroll: int
    remat: str
    input_feeding: bool = False

    @property
    def memory_width(self) -> int:
        """Width M of what the encoder gives for a source token."""
        return self.width * (2 if self.bidirectional else 1)

    @property
    def output_width(self) -> int:
        """Rows of the output matrix."""
        return self.embedding_width if self.tie_embeddings else self.width


class Encoded(NamedTuple):
    """What a decoder needs of its sources: a memory (None without attention) and its own first states, a tuple for each layer.

    With input feeding one more tuple holds the last attentional state [B, O].
    """

    memory: Memory | None
    states: tuple[tuple[jax.Array, ...], ...]


class Encoder(nn.Module):
    """Source tokens to states [B, S, M], and the last states [B, M] of each layer."""

    spec: Spec

    @nn.compact
    def __call__(self, tokens, real, noise=None):
        s = self.spec
        lengths = jnp.sum(real, axis=1)
        x = Embedding(s.source_vocab, s.embedding_width, time="scan_time", name="embedding")(tokens, s.dtype)
        x = dropout(x, s.dropout, noise, 0)
        last_states = []
        for layer in range(s.layers):
            if s.bidirectional:
                forward, last = self.direction(f"forward_{layer}", x, lengths, False)
                backward, first = self.direction(f"backward_{layer}", x, lengths, True)
                y = jnp.concatenate([forward, backward], axis=-1)
                last = tuple(jnp.concatenate(both, axis=-1) for both in zip(last, first, strict=True))
            else:
                y, last = self.direction(f"layer_{layer}", x, lengths, s.reverse_source)
            y = dropout(y, s.dropout, noise, 1 + layer)
            x = constrain(x + y if s.residual and layer > 0 else y, "batch", "scan_time", "act_width")
            last_states.append(last)
        return x, tuple(last_states)

    @nn.nowrap
    def direction(self, name, x, lengths, backward: bool):
        """(outputs [B, S, D] in the order of the source, state after the last token read); called inside `__call__`."""
        s, length = self.spec, x.shape[1]
        padding = length - lengths
        # The padding goes to the front, where it cannot touch the last state, and the state starts empty at the first token.
        x = x[:, ::-1] if backward else rolled(x, padding)
        restart = jnp.arange(length) <= padding[:, None]
        recurrence = nn.remat(Recurrence) if s.remat == "full" else Recurrence
        y, state = recurrence(s.cell, s.width, s.unroll, name=name)(x, empty_state(s.cell, x.shape[0], s.width), restart)
        return y[:, ::-1] if backward else rolled(y, -padding), state


class Decoder(nn.Module):
    """Target tokens [B, T] to hidden states, after a source."""

    spec: Spec

    @nn.compact
    def __call__(self, tokens, encoded: Encoded, noise=None, valid=None):
        """(hidden [B, T, O], attention weights [B, T, S] or None, states of each layer)."""
        s, memory, weights = self.spec, encoded.memory, None
        first = 1 + s.layers  # of the dropouts after the encoder's
        x = embedded = dropout(self.embedding(tokens), s.dropout, noise, first)
        if s.input_feeding:
            return self.fed(x, encoded, noise, valid)
        never, new_states = jnp.zeros(tokens.shape, bool), []
        recurrence = nn.remat(Recurrence) if s.remat == "full" else Recurrence
        for layer, state in enumerate(encoded.states):
            if s.attention == "bahdanau" and layer == 0:
                attentive = AttentiveRecurrence(s.cell, s.width, s.unroll, s.remat == "full", name="layer_0")
                y, context, weights, state = attentive(x, state, memory, valid)
            else:
                y, state = recurrence(s.cell, s.width, s.unroll, name=f"layer_{layer}")(x, state, never, valid)
            y = dropout(y, s.dropout, noise, first + 1 + layer)
            x = constrain(x + y if s.residual and layer > 0 else y, "batch", "scan_time", "act_width")
            new_states.append(state)
        if s.attention.startswith("luong"):
            weights = seq_attention.softmax_over(memory.real, seq_attention.multiplicative_scores(x, memory.keys))
            context = seq_attention.read(memory, weights)
        if s.attention != "none":
            # Bahdanau's output sees the last token too.
            parts = [context, x] + ([embedded] if s.attention == "bahdanau" else [])
            x = jnp.tanh(self.dense(jnp.concatenate(parts, axis=-1), "attentional", s.output_width))
        elif s.output_width != s.width:
            x = self.dense(x, "projection", s.output_width)
        return x, weights, tuple(new_states)

    @nn.nowrap
    def fed(self, x, encoded: Encoded, noise, valid):
        """What `__call__` gives, with input feeding; called inside it."""
        s = self.spec
        layers = [SteppedLayer(s.cell, s.width, s.unroll, name=f"layer_{layer}")(None if layer else x, s.width if layer else s.output_width,
                                                                                  x.dtype) for layer in range(s.layers)]
        attentional = Kernel(s.output_width, ("width", "cell"), name="attentional")(s.memory_width + s.width, x.dtype)
        ones = jnp.ones((*x.shape[:2], s.width), x.dtype)
        dropped = noise is not None and s.dropout
        masks = [dropout(ones, s.dropout, noise, 2 + s.layers + layer) if dropped else None for layer in range(s.layers)]
        how = seq_attention.Feeding(s.cell, s.residual, s.unroll, s.remat == "full")
        return seq_attention.fed_decoder(how, layers, attentional, encoded.memory, encoded.states, masks, valid)

    @nn.nowrap
    def embedding(self, tokens):
        """[B, T, E]; called inside `__call__`."""
        return Embedding(self.spec.vocab_size, self.spec.embedding_width, time="scan_time", name="embedding")(tokens, self.spec.dtype)

    @nn.nowrap
    def dense(self, x, name: str, width: int):
        """x times a matrix of its own; called inside `__call__`."""
        (y,) = project(x, [Kernel(width, ("width", "cell"), name=name)(x.shape[-1], x.dtype)], "batch", "scan_time", "act_width")
        return constrain(y, "batch", "scan_time", "act_width")


class Bridge(nn.Module):
    """The encoder's last states [B, 2 D] as the decoder's first [B, D]: tanh of a product, without the tanh for the LSTM's cell."""

    spec: Spec

    @nn.compact
    def __call__(self, last_states):
        if not self.spec.bidirectional:
            return last_states
        return tuple(tuple(self.one(f"{part}_{layer}", x) for part, x in zip("hc", state, strict=False))
                     for layer, state in enumerate(last_states))

    @nn.nowrap
    def one(self, name, x):
        """One state; called inside `__call__`."""
        kernel = Kernel(self.spec.width, ("width", "cell"), bias=True, name=name)(x.shape[-1], x.dtype)
        (y,) = project(x[:, None], [kernel], "batch", "scan_time", "act_width")
        return y[:, 0] if name.startswith("c") else jnp.tanh(y[:, 0])


class Seq2Seq(nn.Module):
    """Encoder, bridge and decoder."""

    spec: Spec

    def setup(self):
        s = self.spec
        self.encoder, self.bridge, self.decoder = Encoder(s), Bridge(s), Decoder(s)
        if s.attention in ("bahdanau", "luong"):
            self.keys = Kernel(s.width, ("width", "cell"))
        if not s.tie_embeddings:
            self.unembedding = Unembedding(s.vocab_size, s.width)

    def __call__(self, batch, noise=None):
        """Hidden states [B, T, O] of the targets."""
        return self.attend(batch, noise)[0]

    def attend(self, batch, noise=None):
        """(hidden states [B, T, O], attention weights [B, T, S] or None)."""
        if not self.spec.tie_embeddings:
            self.unembedding()  # so that `init` makes it
        return self.decoder(batch["tokens"], self.encode(batch, noise), noise)[:2]

    def encode(self, batch, noise=None) -> Encoded:
        """What the decoder needs of the sources."""
        s, real = self.spec, batch["source_segments"] > 0
        values, last_states = self.encoder(batch["source_tokens"], real, noise)
        keys = self.keys if s.attention in ("bahdanau", "luong") else None
        memory = None if s.attention == "none" else seq_attention.remembered(values, real, keys)
        fed = ((jnp.zeros((len(real), s.output_width), jnp.float32),),) if s.input_feeding else ()
        return Encoded(memory, (*self.bridge(last_states), *fed))

    def decode(self, tokens, encoded: Encoded, valid=None):
        """(hidden states [B, n, O], what `encoded` becomes after the tokens)."""
        hidden, _, states = self.decoder(tokens, encoded, None, valid)
        return hidden, encoded._replace(states=states)


@jax.custom_vjp
def rolled(x, shifts):
    """Rows of x [B, S, N] moved towards their ends by `shifts` [B]; what leaves comes back in front.

    The gradient is written out: moved back, where autodiff would add up row by row.
    """
    places = (jnp.arange(x.shape[1]) - shifts[:, None]) % x.shape[1]
    return jax.vmap(lambda row, place: row[place])(x, places)


rolled.defvjp(lambda x, shifts: (rolled(x, shifts), shifts), lambda shifts, gradient: (rolled(gradient, -shifts), None))


class Seq2SeqModel(EncoderDecoder):
    """The interface of `EncoderDecoder`: the decoding state is what the encoder gave, with the decoder's states."""

    @property
    def spec(self) -> Spec:
        """The module's shape."""
        return self.module.spec

    def unembedding(self, params):
        """[D, V], or [E, V] of a tied embedding, in float32."""
        table = params["decoder"]["embedding"]["embedding"] if self.spec.tie_embeddings else params["unembedding"]["kernel"]
        return gathered(table, "vocab", "width").T

    def encode(self, params, batch) -> Encoded:
        """Memory and first states, rows on axis 0."""
        return self.module.apply({"params": params}, batch, method="encode")

    def start_decode(self, params, batch, max_len: int) -> Encoded:
        """What `encode` gives; `max_len` does not matter to a recurrence."""
        return self.encode(params, batch)

    def decode(self, params, state, tokens, valid=None):
        """Hidden states [B, n, D] and the states after the last token."""
        return self.module.apply({"params": params}, tokens, state, valid, method="decode")

    def reorder(self, state, rows):
        """The decoder's states of some rows; sources stay where they are."""
        return state._replace(states=jax.tree.map(lambda x: x[rows], state.states))

    def accept(self, params, before, after, tokens, counts):
        """The states after `counts` tokens, which are read once more: a recurrence does not go back."""
        return self.decode(params, before, tokens, jnp.arange(tokens.shape[1]) < counts[:, None])[1]

    def attention_weights(self, params, batch):
        """[B, T, S] in float32; see `EncoderDecoder`."""
        if self.spec.attention == "none":
            return super().attention_weights(params, batch)
        return self.module.apply({"params": params}, batch, method="attend")[1]

    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """FLOPs per target token of a forward pass over pairs of `context` source and as many target tokens.

        A target sees the whole source, so that `causal` changes nothing.
        """
        s = self.spec
        gates, directions, memory = GATES[s.cell], 2 if s.bidirectional else 1, s.memory_width

        def cell(inputs):
            return 2 * gates * s.width * (inputs + s.width)

        reading = sum(directions * cell(s.embedding_width if layer == 0 else memory) for layer in range(s.layers))
        writing = sum(cell(s.embedding_width if layer == 0 else s.width) for layer in range(s.layers))
        if s.input_feeding:
            writing += 2 * gates * s.width * s.output_width
        if s.attention == "bahdanau":
            writing += 2 * gates * s.width * memory
        flops = {"encoder: recurrence": reading, "decoder: recurrence": writing}
        if s.bidirectional:  # once a pair
            flops["bridge"] = 2 * memory * s.width * s.layers * (2 if s.cell == "lstm" else 1) / context
        if s.attention != "none":
            flops |= {"decoder: attention projections": self._projection_flops(),
                      "decoder: attention scores": 2 * context * (s.width + memory)}
        elif s.output_width != s.width:
            flops["output projection"] = 2 * s.width * s.output_width
        return flops | {"output matrix": 2 * s.output_width * s.vocab_size}

    def _projection_flops(self) -> float:
        """FLOPs per target token of the matrices around attention's scores."""
        s, memory = self.spec, self.spec.memory_width
        flops = 2 * (memory + s.width) * s.output_width
        if s.attention != "luong_dot":
            flops += 2 * memory * s.width  # keys, once a source token
        if s.attention == "bahdanau":
            flops += 2 * s.width * s.width + 2 * s.embedding_width * s.output_width
        return flops


def build(model, sizes: Sizes, layout: Layout) -> Seq2SeqModel:
    """The encoder-decoder of the config's model section; any context will do, and layouts differ in the sizes of the mesh alone."""
    if not sizes.source_vocab:
        raise ConfigError("model.name=seq2seq reads a source, and the data has none: use an objective with pairs of source and target")
    if model.bidirectional and model.attention == "luong_dot":
        raise ConfigError("model.attention=luong_dot needs states of one width: set model.bidirectional=False, or use luong")
    if model.bidirectional and model.reverse_source:
        raise ConfigError("model.reverse_source changes nothing with model.bidirectional=True: use one of them")
    if model.input_feeding and not model.attention.startswith("luong"):
        raise ConfigError("model.input_feeding=True feeds the state after Luong's attention, and "
                          f"model.attention={model.attention} has none: use luong or luong_dot")
    spec = Spec(
        cell=model.cell, attention=model.attention, vocab_size=sizes.vocab, source_vocab=sizes.source_vocab, layers=model.layers,
        width=model.width, embedding_width=model.embedding_width or model.width, bidirectional=model.bidirectional,
        reverse_source=model.reverse_source, residual=model.residual, tie_embeddings=model.tie_embeddings, dropout=model.dropout,
        dtype=model.dtype, unroll=model.unroll, remat=model.remat, input_feeding=model.input_feeding,
    )
    return Seq2SeqModel(Seq2Seq(spec), sizes.vocab, None)
