"""An LSTM language model of a billion parameters on C4, laid out for 16 chips.

    python scripts/plan.py --config=configs/lstm.py --topology=v5e:4x4
    python scripts/train.py --config=configs/lstm.py --workdir=runs/lstm-1b

It has the two layers of 8,192 cells of the largest LSTM of Jozefowicz et al. (2016), which has 1.04B parameters. Theirs projects each
state to 1,024 units and reads words by their characters; ours has whole states, 32,000 pieces of words, and an embedding of 2,560
units that is also the output matrix, which gives 0.99B. C4 is prepared as configs/c4.py says.

Expect: no result, since we have not trained it; tests/goldens/plans/lstm-1b.txt has what is planned (memory, collectives, MFU).
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.data.source = "tfds:c4/en:train"
    config.data.validation_source = "tfds:c4/en:validation"
    config.data.tokenizer_sample_bytes = 1_000_000_000
    config.data.vocab_size = 32_000
    config.data.context = 128
    config.data.global_batch = 2048  # a step of the recurrence reads its matrix, whatever the rows: 128 a chip
    config.model.name = "lstm"
    config.model.layers = 2
    config.model.width = 8192
    config.model.embedding_width = 2560
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.optim.name = "adagrad"
    config.optim.learning_rate = 0.2
    config.optim.schedule = "constant"
    config.optim.clip = 1.0
    config.train.steps = "50e9 tokens"
    config.checkpoint.every = "0.5%"
    config.eval.every = "0.5%"
    config.eval.max_tokens = 1_000_000
    # The fastest layout that plan.py --search found: nothing is computed again, and each half of the slice holds all of the state.
    config.train.loss_chunk = 16
    config.mesh.replica = 2
    config.mesh.fsdp = 8
    return config
