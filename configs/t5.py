"""T5 of 11B parameters (Raffel et al. 2020) with span corruption on C4, laid out for 256 chips.

    python scripts/plan.py --config=configs/t5.py --topology=v5e:16x16
    python scripts/train.py --config=configs/t5.py --workdir=runs/t5-11b

Sizes are section 3.7's, optimizer and rate section 3.1's, batch and length (2,048 rows of 512 inputs and 114 targets, a million steps)
section 3.7's: the width is 1,024, but there are 128 heads of 128 and 65,536 feed-forward units. C4 is prepared as configs/c4.py says.

Expect: no result, since we have not trained it; tests/goldens/plans/t5-11b.txt has what is planned (memory, collectives, MFU).
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.data.source = "tfds:c4/en:train"
    config.data.validation_source = "tfds:c4/en:validation"
    config.data.tokenizer = "unigram"
    config.data.tokenizer_sample_bytes = 1_000_000_000
    config.data.vocab_size = 32_000
    config.data.context = 512
    config.data.global_batch = 2048
    config.model.name = "encoder_decoder"
    config.model.layers = 24
    config.model.width = 1024
    config.model.heads = 128
    config.model.head_width = 128
    config.model.ff_width = 65_536
    config.model.vocab_rows = 32_128
    config.model.activation = "relu"
    config.model.positions = "relative"
    config.model.scale_attention = False
    config.model.share_embeddings = True
    config.model.scale_logits = True
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.objective.name = "span"
    config.optim.name = "adafactor"
    config.optim.learning_rate = 0.01
    config.optim.schedule = "inverse_sqrt"
    config.optim.warmup = 10_000
    config.optim.clip = 0.0
    config.train.steps = 1_000_000
    config.checkpoint.every = "0.5%"
    config.eval.every = "0.5%"
    config.eval.max_tokens = 10_000_000
    config.mesh.replica = 1
    config.mesh.fsdp_outer = 16
    config.mesh.fsdp = 16
    return config
