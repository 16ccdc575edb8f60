"""GPT-3 of 175B parameters (Brown et al. 2020) on C4, laid out for 2,048 chips.

    python scripts/plan.py --config=configs/gpt3.py --topology=v5p:8x16x16
    python scripts/train.py --config=configs/gpt3.py --workdir=runs/gpt3

Sizes, batch, rate and length are table 2.1 and appendix B. Every layer's attention is dense, where GPT-3 alternates with locally banded
sparse attention. The tables of tokens have 50,304 rows for 50,257 ids, so that tensor parallelism cuts them; C4 is prepared as
configs/c4.py says.

Expect: no result, since we have not trained it; tests/goldens/plans/gpt3.txt has what is planned (memory, collectives, MFU).
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.data.source = "tfds:c4/en:train"
    config.data.validation_source = "tfds:c4/en:validation"
    config.data.tokenizer = "bytebpe"
    config.data.tokenizer_sample_bytes = 1_000_000_000
    config.data.vocab_size = 50_257
    config.data.context = 2048
    config.data.global_batch = 1536  # 3.2 million tokens
    config.model.layers = 96
    config.model.width = 12_288
    config.model.heads = 96
    config.model.vocab_rows = 50_304
    config.model.positions = "learned"
    config.model.norm = "layernorm"
    config.model.norm_eps = 1e-5
    config.model.bias = True
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.optim.learning_rate = 0.6e-4
    config.optim.warmup = "375e6 tokens"
    config.optim.weight_decay = 0.1
    config.train.steps = "300e9 tokens"
    config.checkpoint.every = "0.5%"
    config.eval.every = "0.5%"
    config.eval.max_tokens = 10_000_000
    config.mesh.replica = 1
    config.mesh.fsdp_outer = 16
    config.mesh.fsdp = 16
    config.mesh.tensor = 8
    return config
