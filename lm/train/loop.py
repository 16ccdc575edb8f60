"""The loop: batches in, state on, metrics one step late, evaluations and checkpoints when due, a clean end whatever happens."""

import contextlib
import functools
import pathlib
import sys
import time

import jax

from lm import config as configs
from lm import evaluate, run
from lm.checkpoint import Checkpoints
from lm.config.model_keys import COUNTED
from lm.config.planned import Plan
from lm.data.feed import Feed
from lm.errors import ConfigError, NonFiniteError
from lm.metrics import Clock, Writers, peak_flops
from lm.metrics.writers import read_lines
from lm.parallel import batch_sharding, processes
from lm.parallel import layout as layouts
from lm.parallel.pipeline import bubble
from lm.parallel.watchdog import Watchdog
from lm.train import planned
from lm.train.counted import count
from lm.train.job import Job, set_up
from lm.train.progress import Progress
from lm.train.stop import Signals, Stopped

MOST_NAMED_DOCUMENTS = 20


def train(config, workdir: str | pathlib.Path, plan: Plan | None = None) -> dict:
    """Trains, or goes on training, a run in a work directory; the last line of `scripts/train.py`. A plan must be of this very run.

    Of several processes all call it; the first alone holds the lock, prepares data before the others do, and writes.
    """
    workdir = pathlib.Path(workdir)
    # The handlers stay until the lock is free, and so until the last save is on disk: a second SIGTERM must not cut it short.
    if config.model.name in COUNTED:
        if processes.count() > 1:
            raise ConfigError(f"model.name={config.model.name} is counted by one process: start one alone")
        with run.lock(workdir):
            return count(config, workdir)
    with Signals() as signals, run.lock(workdir) if processes.is_first() else contextlib.nullcontext():
        try:
            job, clock = _start(config, workdir, plan)
            with Loop(job, clock, signals, plan) as loop:
                return loop.run()
        except Stopped as signal_name:
            print(f"{signal_name} before the first step: there is nothing to save; start again with the same command", file=sys.stderr)
            steps = Checkpoints(workdir / "checkpoints", read_only=True).steps()
            return {"step": steps[-1] if steps else 0, "loss": None, "tokens": None, "tokens_per_second": None, "mfu": None,
                    "workdir": str(workdir)}


def _start(config, workdir, plan) -> tuple[Job, Clock]:
    """Prepares data and sets the run up; all processes agree on it."""
    if plan:
        planned.check_devices(plan, config)
    processes.check_shared(workdir)
    clock = Clock()
    with clock("prepare"):
        job = processes.first_then_all("prepared data", lambda: _set_up(config, workdir, plan))
        processes.same("text or tokenizer", job.prepared.fingerprint, "give all of them the same files in data.source")
        prepared = job.prepared
        note = processes.first("start", lambda: run.start(workdir, config, job.config, prepared))
    if note and processes.is_first():
        print(f"note: {note}", file=sys.stderr)
    return job, clock


def _set_up(config, workdir, plan) -> Job:
    job = set_up(config, workdir, progress=processes.is_first())
    if plan:
        planned.check_vocabulary(plan, job)
    if config.eval.split != "none":
        job.objective.stores(job.prepared, config.eval.split)
    return job


class Loop(contextlib.AbstractContextManager):
    """One process's training of a job, from its latest checkpoint to its last step."""

    def __init__(self, job: Job, clock: Clock, signals: Signals, plan: Plan | None = None):
        self._plan = plan
        self.job, self.config, self.clock, self._signals = job, job.config, clock, signals
        keep = job.config.checkpoint
        self.checkpoints = Checkpoints(job.workdir / "checkpoints", keep.keep, keep.keep_every)
        with clock("checkpoint"):
            restored = self.checkpoints.restore(job.items(job.abstract_state()))
        meta = restored.meta if restored else {"tokens": 0, "seconds": 0.0, "skipped": 0}
        self.first = restored.step if restored else 0
        self.tokens, self.skipped, self._seconds_before = meta["tokens"], meta["skipped"], meta["seconds"]
        self.state = job.resumed_state(restored) if restored else None
        metrics = job.config.metrics
        talks = processes.is_first()
        self.writers = Writers(job.workdir, metrics.tensorboard, metrics.wandb, configs.to_json(job.config), self.first, talks)
        self.progress = Progress(self.first, job.config.train.steps, talks)
        self.watchdog = Watchdog(0.0, processes.stuck)
        processes.advise(self._advice)
        self._pending: list[tuple[int, dict]] = []
        self._evaluator = self._saved = None
        self._start = time.perf_counter()

    def run(self) -> dict:
        """Trains to the last step; returns the result that `scripts/train.py` prints."""
        last = self.config.train.steps
        if self.first:
            self.progress.say(f"resuming at step {self.first} of {last}")
        if self.job.mesh.size > 1:
            self.progress.say(f"layout: {layouts.describe(dict(self.job.mesh.shape), self.job.layout, self.config.layout.zero)}")
        if self.job.data.left_out:
            self.progress.say(f"{self.job.data.left_out:,} examples are longer than data.context={self.config.data.context}, and left out "
                              "or cut")
        if self.first >= last:
            return self._result(self._last_line())
        with self.clock("peak"):
            self.peak = self.config.metrics.peak_flops or peak_flops()[0]
        with jax.set_mesh(self.job.mesh):
            with self.clock("compile"):
                loaded = functools.partial(planned.steps, self._plan, self.job, self.progress.say) if self._plan else None
                step, self.state = self.job.compiled(self.state, loaded)
            self._signals.start_loop()
            data = self.config.data
            feed = Feed(self.job.batch, self.first, last, batch_sharding(self.job.mesh), self.job.data.shape, data.prefetch)
            self.watchdog = Watchdog(self.config.processes.step_timeout, processes.stuck)
            with contextlib.closing(feed), contextlib.closing(self.watchdog):
                self._mark(self.first)
                for index, batch in feed:
                    self.state, metrics = step(self.state, batch)
                    self._settle()  # the step before; this one runs on meanwhile
                    self._pending.append((index + 1, metrics))
                    self.clock.seconds["data"] = feed.waited
                    self._when_due(index + 1, last)
                    if processes.stop_at(index + 1, self._signals.name):
                        self._end_early(index + 1)
                        break
        return self._result(self._last_line())

    def _end_early(self, done: int):
        self._settle()
        self._save(done)
        with self.watchdog.longer(self.config.processes.barrier_timeout):
            self.checkpoints.wait()  # what the line says is true
        self.progress.say(f"{processes.stopped_by(self._signals.name)}: saved step {done}; the same command goes on from there")

    def _when_due(self, done: int, last: int):
        every, checkpoint = self.config.eval.every, self.config.checkpoint
        if self.config.eval.split != "none" and (done == last or (every and done % every == 0)):
            self._settle()
            self._evaluate(done)
        if done == last or (checkpoint.every and done % checkpoint.every == 0):
            self._settle()
            self._save(done)
        elif done % self.config.train.log_every == 0:
            self.checkpoints.check()

    def _settle(self):
        """Fetches the metrics of the steps that are pending, checks them and writes the lines that are due."""
        for done, metrics in self._pending:
            values = {name: value.item() for name, value in jax.device_get(metrics).items()}
            self.watchdog.beat(f"step {done}")
            self.progress.advance()
            self.tokens += values.pop("targets")
            if not values.pop("finite"):
                self._not_finite(done, values)
            if done % self.config.train.log_every == 0 or done in (1, self.config.train.steps):
                self._log(done, values)
            elif self._plan and done == self.first + 1:
                # A process's first step warms up: the line that is compared starts after it.
                self._stretch(done)
                self._mark(done)
        self._pending.clear()

    def _not_finite(self, done, values):
        documents = self.job.data.documents(done - 1)
        names = ", ".join(documents[:MOST_NAMED_DOCUMENTS]) + (f" and {len(documents) - MOST_NAMED_DOCUMENTS} more"
                                                               if len(documents) > MOST_NAMED_DOCUMENTS else "")
        what = f"step {done}: loss {values['loss']} and gradient norm {values['grad_norm']} on documents {names}"
        if self.config.train.nonfinite == "skip":
            self.skipped += 1
            self.progress.say(f"skipped an update: {what}")
            return
        saved = f"the checkpoint of step {self._saved or self.first} is good" if self._saved or self.first else "there is no checkpoint yet"
        raise NonFiniteError(f"{what}; {saved}. Lower optim.learning_rate or optim.clip, or set train.nonfinite=skip; look with: python "
                             f"scripts/replay.py --workdir={self.job.workdir} --step={done} --bisect")

    def _mark(self, done: int):
        """Starts a stretch of steps whose speed the next line reports."""
        self._marked = time.perf_counter(), self.tokens, dict(self.clock.seconds), done

    def _stretch(self, done: int) -> tuple[float, float, int]:
        """Of the steps since the mark, whose time goes to the clock: (seconds, targets per second, how many they are)."""
        then, tokens, before, since = self._marked
        spent = {name: self.clock.seconds.get(name, 0.0) - before.get(name, 0.0) for name in ("data", "eval", "checkpoint")}
        seconds = time.perf_counter() - then - spent["eval"] - spent["checkpoint"]  # waiting for data counts as training
        self.clock.add("step", seconds - spent["data"])
        return seconds, (self.tokens - tokens) / max(seconds, 1e-9), done - since

    def _log(self, done: int, values: dict):
        warm = self._marked[-1] > self.first
        seconds, speed, steps = self._stretch(done)
        line = {"step": done, "kind": "train", "tokens": self.tokens, "seconds": self._seconds(), **values,
                "tokens_per_second": speed, "mfu": self.job.flops_per_token * speed / (self.peak * self.job.mesh.size),
                "skipped": self.skipped, "time": self.clock.rounded()}
        stages = self.job.mesh.shape["stage"]
        if stages > 1:
            line["bubble"] = bubble(stages, self.job.layout.microbatches, self.job.layout.repeats)
        comparison = planned.compared(self._plan, self.job, seconds / steps, line["mfu"]) \
            if self._plan and (warm or done == self.config.train.steps) else {}
        self.writers.write(line | comparison)
        self.progress.train(line)
        if comparison:
            self.progress.say(planned.told(comparison))
            self._plan = None
        self._mark(done)

    def _seconds(self):
        return round(self._seconds_before + time.perf_counter() - self._start, 3)

    def _evaluate(self, done: int):
        with self.clock("eval"), self.watchdog.longer(self.config.processes.barrier_timeout):
            job, split = self.job, self.config.eval.split
            if self._evaluator is None:
                self._evaluator = evaluate.make(self.config, job.objective, job.model, job.mesh, job.shardings.params, job.layout)
            params = self.state.ema if self.config.train.ema else self.state.params
            result = self._evaluator(params, job.objective.stores(job.prepared, split), self.config.eval.max_tokens, self.watchdog.beat)
        line = {"step": done, "kind": "eval", "split": split, "seconds": self._seconds(), **result}
        self.writers.write(line)
        self.progress.say(f"step {done}  {split}: {evaluate.headline(job.objective, result)}")

    def _save(self, done: int):
        if self._saved == done:
            return
        with self.clock("checkpoint"), self.watchdog.longer(self.config.processes.barrier_timeout):
            meta = {"tokens": self.tokens, "seconds": self._seconds(), "skipped": self.skipped, "data": self.job.prepared.fingerprint}
            self.checkpoints.save(done, self.job.items(self.state), meta)
        self._saved = done

    def _advice(self) -> str:
        steps = self.checkpoints.steps()
        return "start the same command again" + (f" to go on from step {steps[-1]}" if steps else "")

    def _last_line(self) -> dict:
        lines = [line for line in read_lines(self.writers.path) if line["kind"] == "train"]
        return lines[-1] if lines else {"step": self.first, "loss": None, "tokens": self.tokens, "tokens_per_second": None, "mfu": None}

    def _result(self, line: dict) -> dict:
        return {name: line[name] for name in ("step", "loss", "tokens", "tokens_per_second", "mfu")} | {"workdir": str(self.job.workdir)}

    def __exit__(self, *error):
        self.progress.close()
        try:
            self.checkpoints.close()
        finally:
            self.writers.close()
