"""ELECTRA (Clark et al. 2020): a small generator fills in masked tokens, and the model tells which tokens are its fillings."""

import dataclasses
import math

import flax.linen as nn
import jax

from lm.models import encoder, transformer
from lm.models.base import Model, Sizes, on_side
from lm.parallel import Layout


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shapes of the two encoders; their embeddings are one."""

    generator: encoder.Spec
    discriminator: encoder.Spec


class Electra(nn.Module):
    """Both encoders behind one embedding."""

    spec: Spec

    def setup(self):
        generator, discriminator = self.spec.generator, self.spec.discriminator
        self.inputs = encoder.Inputs(discriminator)
        self.generator, self.masked = encoder.Body(generator, number=1), encoder.MaskedHead(generator)
        self.discriminator, self.replaced = encoder.Body(discriminator), encoder.ReplacedHead(discriminator)

    def __call__(self, batch, noise=None):
        """What the generator predicts masked tokens from, [B, T, E + 1]."""
        if self.is_initializing():
            self.discriminate(batch)
        return self.masked(self.generator(self.inputs(batch), batch, noise))

    def encode(self, batch, noise=None):
        """The discriminator's hidden states [B, T, D]."""
        return self.discriminator(self.inputs(batch), batch, noise)

    def discriminate(self, batch, noise=None):
        """[B, T] in float32: the logit that a token is not the text's own."""
        return self.replaced(self.encode(batch, noise))


class ElectraModel(Model):
    """The interface of `Model` for ELECTRA. Of its two batches, the generator's has masks and the discriminator's their fillings.

    `apply` and `unembedding` are the generator's.
    """

    @property
    def spec(self) -> Spec:
        """The module's shape."""
        return self.module.spec

    def example(self) -> dict:
        """The smallest batch that shows the module's parameters."""
        batch = super().example()
        return batch | {"types": batch["tokens"]} if self.spec.discriminator.types else batch

    def unembedding(self, params) -> jax.Array:
        """The generator's output matrix [E + 1, V] in float32, its bias in the last row."""
        return encoder.output_matrix(params["inputs"], params["masked"])

    def encode(self, params, batch: dict, noise: jax.Array | None = None) -> jax.Array:
        """The discriminator's hidden states [B, T, D], which other tasks start from."""
        return self.module.apply({"params": params}, batch, noise, method="encode")

    def discriminate(self, params, batch: dict, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] in float32: the logit that a token was replaced."""
        return self.module.apply({"params": params}, batch, noise, method="discriminate")

    def flops_by_component(self, context: int, causal: bool = True) -> dict[str, float]:
        """FLOPs per token of both forward passes, with the generator's logits of every token; all keys of a row count."""
        generator, discriminator = self.spec.generator, self.spec.discriminator
        bodies = on_side("generator", encoder.body_flops(generator, context)) | \
            on_side("discriminator", encoder.body_flops(discriminator, context))
        return bodies | self.prediction_flops() | encoder.replaced_flops(discriminator)

    def prediction_flops(self) -> dict[str, float]:
        """The part of `flops_by_component` in which the generator predicts a token."""
        return encoder.head_flops(self.spec.generator)


def smaller(block: transformer.Spec, share: float) -> transformer.Spec:
    """A Transformer with about that share of another's heads, of the same width each, and so of its widths."""
    heads = max(1, round(block.heads * share))
    return dataclasses.replace(block, heads=heads, kv_heads=heads if block.kv_heads == block.heads else math.gcd(heads, block.kv_heads),
                               width=block.width * heads // block.heads, ff_width=block.ff_width * heads // block.heads)


def build(model, sizes: Sizes, layout: Layout) -> ElectraModel:
    """The pair of encoders of the config's model section, which describes the discriminator."""
    discriminator = encoder.spec_of(model, sizes, layout)
    generator = dataclasses.replace(discriminator, block=smaller(discriminator.block, model.generator_share))
    return ElectraModel(Electra(Spec(generator, discriminator)), sizes.vocab, sizes.context)
