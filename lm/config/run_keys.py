"""The keys of optimizer, training, checkpoints, evaluation, mesh, metrics and processes."""

from lm.config.key import Key, free

OPTIM = {
    "optim.name": Key("adamw", "Optimizer.", choices=("adamw", "adam", "sgd", "adagrad", "adafactor", "lion", "muon", "em")),
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
    "optim.em_prior": Key(0.0, "EM: imaginary counts, as a share of the sum of a table's counts, spread evenly over it.", minimum=0.0),
    "optim.em_exponent": Key(0.0, "EM: the counts of step k replace a share (k + 2)^-exponent of those so far; 0 is EM on the batch alone.",
                             minimum=0.0, maximum=1.0),
}

TRAIN = {
    "train.steps": free(1000, "Length of the run.", kind="duration"),
    "train.init": Key("", "Work directory of a run, or of a model that scripts/convert.py imported, whose latest weights start this "
                          "one; empty draws them."),
    "train.accumulate": free(1, "Micro-batches that a step's rows are cut into, one after the other.", minimum=1),
    "train.log_every": free(10, "Steps between train lines in metrics.jsonl.", minimum=1),
    "train.z_loss": Key(0.0, "Weight of the squared log-normaliser in the loss.", minimum=0.0),
    "train.ema": Key(0.0, "Decay of a running mean of the weights, used for evaluation; 0 is off.", minimum=0.0, maximum=0.999999),
    "train.loss_chunk": free(0, "Positions per row whose logits exist at once; 0 is all of them, on one CPU as many as its caches like.",
                              minimum=0),
    "train.nonfinite": Key("stop", "On a loss or gradient that is not finite: stop, or skip the update and count it.",
                           choices=("stop", "skip")),
}

REST = {
    "seed": Key(0, "Seed of initial weights, data order and dropout.", minimum=0, maximum=2**32 - 1),
    "checkpoint.every": free(500, "Between checkpoints; 0 keeps the last one only.", kind="duration"),
    "checkpoint.keep": free(2, "Most recent checkpoints kept.", minimum=1),
    "checkpoint.keep_every": free(0, "Checkpoints at multiples of this stay for ever; 0 keeps none.", kind="duration"),
    "eval.every": free(500, "Between evaluations; 0 evaluates at the end only.", kind="duration"),
    "eval.split": free("validation", "Split that is evaluated during training.", choices=("train", "validation", "test", "none")),
    "eval.batch": free(0, "Rows of an evaluation batch; 0 is data.global_batch.", minimum=0),
    "eval.stride": free(0, "Tokens scored per row; the rest of the row is context. 0 is the whole row, for n-grams as much as leaves each "
                          "its history.", minimum=0),
    "eval.context": free(0, "Tokens of a row in evaluations of a likelihood; 0 is data.context. Longer ones show how a model goes on "
                            "beyond its training.", minimum=0),
    "eval.max_tokens": free(0, "In training, evaluate whole documents until this many tokens; 0 is the whole split.", minimum=0),
    "eval.pseudo_tokens": free(0, "Tokens of masked models whose pseudo-log-likelihood is taken, at a forward pass each.", minimum=0),
    "mesh.replica": free(-1, "Devices over which the batch is split and parameters are copied; -1 (of one axis) is all that are left."),
    "mesh.stage": free(1, "Pipeline stages, over which the layers are split."),
    "mesh.fsdp": free(1, "Devices over which the batch, the parameters and the optimizer's state are split (see layout.zero)."),
    "mesh.fsdp_outer": free(1, "A second axis like mesh.fsdp, for a torus (16 x 16 chips: 16 each): gradients are scattered along one, "
                               "then the other."),
    "mesh.expert": free(1, "Devices over which experts are split, and the batch; 1, for no family has experts yet."),
    "mesh.context": free(1, "Devices over which every row is split in time."),
    "mesh.tensor": free(1, "Devices over which heads, feed-forward units, cells and the vocabulary are split."),
    "layout.zero": free(3, "What mesh.fsdp splits: 3 is parameters, gradients and optimizer state, 1 the optimizer state alone.",
                         choices=(1, 3)),
    "layout.context": free("ring", "How attention meets the keys of other devices under mesh.context.", choices=("ring", "all_gather")),
    "layout.microbatches": free(0, "Parts of a (micro-)batch that follow each other through the pipeline; 0 is mesh.stage.", minimum=0),
    "layout.repeats": free(1, "Times that a micro-batch goes round the stages: 1 is GPipe, more is the circular schedule.", minimum=1),
    "layout.offload": free("none", "Keep the optimizer's state in the memory of the host between updates.", choices=("none", "optimizer")),
    "metrics.tensorboard": free(True, "Write TensorBoard files."),
    "metrics.wandb": free("", "Weights & Biases project to log to; empty is off."),
    "processes.start_timeout": free(300.0, "Seconds that the processes of a job wait for each other at the start.", above=0.0),
    "processes.heartbeat_timeout": free(100.0, "Seconds without a sign of life after which a process is taken for lost.", minimum=1.0),
    "processes.barrier_timeout": free(600.0, "Seconds that processes wait for each other later on.", above=0.0),
    "processes.step_timeout": free(0.0, "Seconds without the end of a step after which a stuck run ends; 0 waits for ever.", minimum=0.0),
    "processes.require_accelerator": free("", "Devices that there must be over all processes: tpu, gpu or cpu, or with a number such as "
                                               "tpu:256; empty takes what is there."),
    "metrics.peak_flops": free(0.0, "Peak FLOP/s of one device, for MFU; 0 is known by device or measured.", minimum=0.0),
}
