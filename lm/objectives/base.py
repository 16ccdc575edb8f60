"""What an objective offers to data, training and evaluation."""

import abc

import jax.numpy as jnp
import numpy as np

from lm import models
from lm.data.feed import TrainingData
from lm.data.packing import Rows, read_rows
from lm.data.store import TokenStore
from lm.parallel import Layout


class Objective(abc.ABC):
    """What is predicted from what: rows of data become batches, and what a model makes of them becomes sums of losses.

    `options` are the config's objective section. `extra_tokens` ids of its own (a mask, sentinels) follow the tokenizer's; a row is
    made of `raw` tokens of text and counts as `row_tokens`; `measure` names the evaluation in lm/evaluate that can say something
    honest about models so trained; `paired` objectives read pairs of texts, the others texts.
    """

    extra_tokens = 0
    measure = "likelihood"
    paired = False
    bidirectional_prompts = False  # True where a model learns to read its prompt as a whole
    scores_text = True  # False where there is nothing to say of text that was not trained on

    def __init__(self, options, tokenizer, context: int, seed: int):
        self.options, self.tokenizer, self.context, self.seed = options, tokenizer, context, seed
        self.source_tokenizer = None
        self.raw = self.row_tokens = context

    def marks(self) -> dict[str, int]:
        """Ids of its own (`extra_tokens`) by the roles that the tokenizers of other libraries have for them, such as mask_token."""
        return {}

    @property
    def vocab_size(self) -> int:
        """Ids that the model must know."""
        return self.tokenizer.vocab_size + self.extra_tokens

    @property
    def source_vocab_size(self) -> int:
        """Ids of the sources that a model reads, where it reads any."""
        return (self.source_tokenizer or self.tokenizer).vocab_size + self.extra_tokens

    def model(self, config, layout: Layout = Layout()) -> models.Model:  # noqa: B008 - it is immutable
        """The model of a config, over the ids of this objective."""
        return models.build(config.model, self.vocab_size, self.context, layout, self.source_vocab_size, self.tokenizer.bos_id)

    def read(self, store: TokenStore, rows: np.ndarray, examples: np.ndarray) -> Rows:
        """Some rows [B] of a store that is cut into rows of `raw` tokens; `examples` [B] are what `build` will get with them."""
        return read_rows(store, np.asarray(rows) * self.raw, self.raw)

    def stores(self, prepared, split: str) -> list:
        """The stores of a split."""
        return prepared.split_stores(split)

    def data(self, prepared, config) -> TrainingData:
        """The training examples: by default rows of `context` consecutive tokens of the training stores."""
        return TrainingData(prepared.split_stores("train"), tuple(prepared.weights), self.context, config.data.global_batch, config.seed)

    @abc.abstractmethod
    def build(self, rows: Rows, examples: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of B rows; `examples` [B], their global indices, decide whatever is drawn at random."""

    @abc.abstractmethod
    def loss(self, model, params, batch, *, z_loss: float = 0.0, chunk: int = 0, noise=None):
        """(sum of losses to minimise, sum to report); both are divided by the sum of the weights of the whole batch.

        With `noise` [B], a random key per row, the model drops units.
        """

    def tokens(self, batch):
        """How many tokens a batch holds, padding apart."""
        return jnp.sum(batch["segments"] > 0)

    def tokens_per_step(self, data) -> float:
        """How many `tokens` a step of the data holds, on average."""
        return data.global_batch * self.row_tokens

    def flops_by_component(self, model) -> dict[str, float]:
        """FLOPs of a forward pass for each of `tokens`; see `lm.models.base.Model.flops_by_component`."""
        return model.flops_by_component(self.context)

    def forward_flops(self, model) -> float:
        """FLOPs of a forward pass for each of `tokens`: the sum of `flops_by_component`."""
        return sum(self.flops_by_component(model).values())

    def train_flops(self, model) -> float:
        """FLOPs of forward and backward for each of `tokens`; what is computed again does not count."""
        return 3 * self.forward_flops(model)
