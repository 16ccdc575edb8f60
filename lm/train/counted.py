"""Training by counting: the same data, budget, run directory, evaluation and result as `lm.train.loop`, without gradients.

What is counted may come from an ARPA file instead, and go into one.
"""

import dataclasses
import pathlib
import time

import numpy as np

from lm import config as configs
from lm import evaluate, models, objectives, run
from lm.data.feed import TrainingData
from lm.data.prepare import PreparedData, prepare
from lm.errors import ConfigError
from lm.metrics import Writers
from lm.metrics.writers import read_lines
from lm.models import ngram
from lm.parallel import AXES, make_mesh
from lm.tables import Tables
from lm.train.progress import Progress

_EXAMPLES = 1 << 20  # whose places are looked up at once


def seen_tokens(data: TrainingData, steps: int) -> list[np.ndarray]:
    """Of each store, which tokens [tokens] are targets in the first `steps` batches."""
    seen = [np.zeros(size, bool) for size in data.order.sizes]
    for first in range(0, steps * data.global_batch, _EXAMPLES):
        examples = np.arange(first, min(first + _EXAMPLES, steps * data.global_batch))
        sources, rows = data.order.locate(examples)
        for source, part in enumerate(seen):
            part[rows[sources == source]] = True
    return [np.repeat(part, data.context)[: store.num_tokens] for part, store in zip(seen, data.stores, strict=True)]


@dataclasses.dataclass
class Counting:
    """A run of a counted model, set up."""

    workdir: pathlib.Path
    config: object
    prepared: PreparedData
    objective: objectives.Objective
    data: TrainingData
    model: models.CountedModel
    tables: Tables
    progress: Progress

    def settle(self, counted: dict, tokens: int, seconds: float):
        """Evaluates tables that were made of some tokens in some seconds, writes what there is to say of them, and saves them."""
        steps = self.config.train.steps
        last = self.data.batch(steps - 1, self.objective.build)
        loss = float(np.sum(last["weights"] * self.model.token_nats(counted, last)) / max(1.0, last["weights"].sum()))
        # What belongs to gradients is null.
        line = {"step": steps, "kind": "train", "tokens": tokens, "seconds": round(seconds, 3), "loss": loss, "grad_norm": None,
                "param_norm": None, "update_norm": None, "learning_rate": None, "tokens_per_second": tokens / seconds, "mfu": 0.0,
                "parameters": int(sum(array.size for array in counted.values() if array.dtype.kind == "f"))}
        metrics = self.config.metrics
        writers = Writers(self.workdir, metrics.tensorboard, metrics.wandb, configs.to_json(self.config), 0)
        try:
            writers.write(line)
            self.progress.say(f"{tokens:,} tokens in {seconds:.1f} s; loss of the last batch {loss:.4f}")
            if self.config.eval.split != "none":
                writers.write(self._evaluation(counted))
        finally:
            writers.close()
        self.tables.save(steps, counted, {"tokens": tokens, "data": self.prepared.fingerprint})

    def _evaluation(self, counted: dict) -> dict:
        split, start = self.config.eval.split, time.perf_counter()
        evaluator = evaluate.make(self.config, self.objective, self.model, make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1}))
        result = evaluator(counted, self.objective.stores(self.prepared, split), self.config.eval.max_tokens)
        self.progress.say(f"step {self.config.train.steps}  {split}: {evaluate.headline(self.objective, result)}")
        seconds = round(time.perf_counter() - start, 3)
        return {"step": self.config.train.steps, "kind": "eval", "split": split, "seconds": seconds, **result}


def set_up(config, workdir: pathlib.Path) -> Counting:
    """Prepares the data and starts the run directory, or checks that it is that of the same run."""
    prepared = prepare(config.data, config.data.tokenizer_seed, progress=True)
    objective = objectives.make(config, prepared.tokenizer, prepared.source_tokenizer)
    data = objective.data(prepared, config)
    resolved = configs.resolve(config, configs.Facts(objective.tokens_per_step(data), data.steps_per_epoch, 0.0))
    note = run.start(workdir, config, resolved, prepared)
    progress = Progress(0, resolved.train.steps)
    if note:
        progress.say(f"note: {note}")
    return Counting(workdir, resolved, prepared, objective, data, objective.model(config), Tables(workdir / "checkpoints"), progress)


def count(config, workdir: pathlib.Path) -> dict:
    """Counts what a run of the config would train on and evaluates it; returns the result that `scripts/train.py` prints."""
    job = set_up(config, workdir)
    if job.config.train.steps not in job.tables.steps():
        start, seen = time.perf_counter(), seen_tokens(job.data, job.config.train.steps)
        counted = job.model.fit(job.data.stores, seen)
        job.settle(counted, int(sum(part.sum() for part in seen)), time.perf_counter() - start)
    line = [line for line in read_lines(workdir / "metrics.jsonl") if line["kind"] == "train"][-1]
    return {name: line[name] for name in ("step", "loss", "tokens", "tokens_per_second", "mfu")} | {"workdir": str(workdir)}


def export_arpa(workdir, file: str, step: int | None = None) -> dict:
    """Writes the tables of an n-gram run as an ARPA file; {file, order, ngrams: {n: how many}}."""
    opened = run.open_run(workdir)
    if not isinstance(opened.model, ngram.NGramModel):
        raise ConfigError(f"{workdir} has model.name={opened.config.model.name}: only n-grams have ARPA files")
    fitted = opened.model.of(opened.parameters(step=step)[0])
    ngram.write_arpa(fitted, file, _words(opened.tokenizer))
    return {"file": str(file), "order": fitted.order, "ngrams": fitted.sizes}


def import_arpa(config, workdir, file: str) -> dict:
    """Makes a run of an ARPA file, whose words are the pieces of the config's tokenizer, and evaluates it; as `export_arpa`."""
    if config.model.name != "ngram":
        raise ConfigError(f"model.name={config.model.name} has no ARPA files: use a config with model.name=ngram")
    workdir = pathlib.Path(workdir)
    with run.lock(workdir):
        job, start = set_up(config, workdir), time.perf_counter()
        if job.config.train.steps in job.tables.steps():
            raise ConfigError(f"{workdir} has tables already: use another --workdir")
        read = ngram.read_arpa(file, _words(job.prepared.tokenizer))
        if read.order != config.model.order:
            raise ConfigError(f"{file} is of order {read.order}: set model.order={read.order}, not {config.model.order}")
        job.settle(read.tables, 0, time.perf_counter() - start)
    return {"file": str(file), "order": read.order, "ngrams": read.sizes}


def _words(tokenizer) -> list[str]:
    """What an ARPA file calls the ids of a tokenizer. ConfigError for one that begins and ends documents with one token."""
    if tokenizer.bos_id == tokenizer.eos_id:
        raise ConfigError("ARPA files, and what reads them, need <s> and </s>, and this tokenizer has one token for both: use a "
                          "data.tokenizer that has two, such as bytebpe")
    return ngram.pieces_of(tokenizer)
