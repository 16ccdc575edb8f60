"""BERT large (Devlin et al. 2019), 336M parameters, on C4, laid out for 16 chips.

    python scripts/plan.py --config=configs/bert.py --topology=v6e:4x4
    python scripts/train.py --config=configs/bert.py --workdir=runs/bert-large

Sizes are section 3's, batch, rate and length appendix A.2's, with pairs of sentences in rows of 512 tokens (BERT began with rows of 128).
The text is C4 (configs/c4.py says how it is prepared) and not BooksCorpus and Wikipedia.

Expect: no result, since we have not trained it; tests/goldens/plans/bert-large.txt has what is planned (memory, collectives, MFU).
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.data.source = "tfds:c4/en:train"
    config.data.validation_source = "tfds:c4/en:validation"
    config.data.tokenizer = "wordpiece"
    config.data.tokenizer_sample_bytes = 1_000_000_000
    config.data.vocab_size = 30_522
    config.data.context = 512
    config.data.global_batch = 256
    config.model.name = "encoder"
    config.model.layers = 24
    config.model.width = 1024
    config.model.heads = 16
    config.model.positions = "learned"
    config.model.norm = "layernorm"
    config.model.norm_position = "post"
    config.model.norm_eps = 1e-12
    config.model.bias = True
    config.model.activation = "gelu_erf"
    config.model.next_sentence = True
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.objective.name = "masked"
    config.objective.sentences = "next"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.warmup = 10_000
    config.optim.weight_decay = 0.01
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-6
    config.train.steps = 1_000_000
    config.checkpoint.every = "0.5%"
    config.eval.every = "0.5%"
    config.eval.max_tokens = 1_000_000
    config.mesh.replica = 1
    config.mesh.fsdp = 16
    config.layout.zero = 1  # parameters are small: whole on every chip, they are gathered once a step
    return config
