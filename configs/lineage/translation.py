"""Translation by four encoder-decoders at the same training FLOPs: translation.py:none, :bahdanau, :luong and :transformer.

    python scripts/train.py --config=configs/lineage/translation.py:transformer \\
        --config.data.source=pairs:FILE.tsv --workdir=runs/translation
    python scripts/translate.py --workdir=runs/translation --split=validation --limit=400 --tokenize=zh

Expect, for 24,267 pairs of LibreOffice's help in English and Chinese (Debian packages libreoffice-help-en-us and -zh-cn), BLEU: none
13.6 (and 1.227 bits per byte of the target); luong 35.5 (and 0.900 bits per byte of the target); transformer 13.0 (and 1.155 bits per
byte of the target).
"""

from lm.config import default


def get_config(kind="transformer"):
    """The config; `kind` is the attention of a recurrent encoder-decoder, or transformer."""
    config = default()
    config.objective.name = "translation"
    config.objective.label_smoothing = 0.1
    if kind == "transformer":
        config.model.name = "encoder_decoder"
        config.model.layers = 2
        config.model.width = 192
        config.model.heads = 4
        config.model.scan_layers = False
    else:
        config.model.name = "seq2seq"
        config.model.cell = "lstm"
        config.model.layers = 1
        config.model.width = 256
        config.model.attention = kind
    # One pair of texts a line, with a tab between them: --config.data.source=pairs:FILE.tsv.
    config.data.source = "pairs:pairs.tsv"
    config.data.vocab_size = 4096
    config.data.context = 64
    config.data.buckets = (8, 16, 32)
    config.data.global_batch = 32
    config.train.steps = "6.9e12 flops"
    config.optim.name = "muon"
    config.optim.muon_learning_rate = 0.05
    config.optim.learning_rate = 0.02
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.warmup = "5%"
    config.checkpoint.every = 0
    config.eval.every = 0
    return config
