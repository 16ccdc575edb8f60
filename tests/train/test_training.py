"""Training end to end on a tiny corpus: exact resume, every mesh and accumulation alike, what happens when numbers or jobs go wrong."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lm import config as configs
from lm.errors import ConfigError, NonFiniteError
from lm.metrics.writers import read_lines
from lm.objectives.causal import Causal
from lm.parallel import make_mesh
from lm.run import open_run
from lm.train import job as jobs
from lm.train import loop, set_up, train
from lm.train.step import gradients, row_noise

EXACT = ("loss", "grad_norm", "param_norm", "update_norm", "learning_rate", "tokens")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """60 documents of unequal length, one a line."""
    words = re.findall(r"\w+", "we the people of union in order to form a more perfect state and secure peace for all")
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 60))) for _ in range(60)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tiny(corpus):
    """A config that compiles in seconds; overrides as keyword arguments with __ for the dot."""

    def make(**overrides):
        base = {
            "model.width": "16", "model.layers": "2", "data.source": f"text:{corpus}", "data.documents": "line", "data.tokenizer": "bytes",
            "data.context": "24", "data.global_batch": "8", "data.validation_fraction": "0.2", "train.steps": "6", "train.log_every": "1",
            "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "checkpoint.every": "0", "eval.every": "0", "data.workers": "1",
        }
        if overrides.get("model__name", "transformer") == "transformer":
            base |= {"model.heads": "2", "model.scan_layers": "false"}
        base |= {name.replace("__", "."): str(value) for name, value in overrides.items()}
        return configs.validate(configs.override(configs.default(), base))

    return make


def one_device(monkeypatch):
    """Leaves the first of the simulated devices."""
    monkeypatch.setattr(jobs, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


def lines(workdir, kind="train"):
    """The lines of one kind in a run's metrics."""
    return [line for line in read_lines(workdir / "metrics.jsonl") if line["kind"] == kind]


def saved(workdir, step):
    """Every array of a checkpoint, as it was trained."""
    job = set_up(open_config(workdir), workdir)
    checkpoints = loop.Checkpoints(workdir / "checkpoints", read_only=True)
    return jax.tree.leaves(checkpoints.restore(job.items(job.abstract_state()), step).items)


def open_config(workdir):
    """The resolved config of a run."""
    return open_run(workdir).config


class Killed(BaseException):
    """Ends a run where no handler of the project's sees it, like a kill."""


@pytest.mark.parametrize(("devices", "overrides"), [
    (1, {"model__dropout": 0.1, "train__ema": 0.9}),
    (8, {"model__dropout": 0.1, "mesh__replica": 2, "mesh__fsdp": 4}),
    (8, {"model__name": "lstm", "optim__name": "muon", "model__dropout": 0.1}),
])
def test_a_killed_run_resumes_bit_for_bit(tiny, tmp_path, monkeypatch, devices, overrides):
    if devices == 1:
        one_device(monkeypatch)
    config = tiny(checkpoint__every=3, eval__every=2, optim__schedule="cosine", optim__warmup=2, **overrides)
    train(config, tmp_path / "straight")

    with monkeypatch.context() as patch:
        settle = loop.Loop._when_due

        def die(self, done, last):
            settle(self, done, last)
            if done == 4:
                self._settle()
                self.checkpoints.wait()
                raise Killed

        patch.setattr(loop.Loop, "_when_due", die)
        with pytest.raises(Killed):
            train(config, tmp_path / "killed")
    assert [line["step"] for line in lines(tmp_path / "killed")] == [1, 2, 3, 4]
    train(config, tmp_path / "killed")

    for kind in ("train", "eval"):
        straight, resumed = lines(tmp_path / "straight", kind), lines(tmp_path / "killed", kind)
        assert [line["step"] for line in straight] == [line["step"] for line in resumed]
        names = EXACT if kind == "train" else ("nats_per_token", "bits_per_byte", "stderr")
        for a, b in zip(straight, resumed, strict=True):
            assert {name: a[name] for name in names} == {name: b[name] for name in names}
    pairs = list(zip(saved(tmp_path / "straight", 6), saved(tmp_path / "killed", 6), strict=True))
    assert len(pairs) > 10
    for a, b in pairs:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_every_mesh_gives_the_losses_of_one_device(tiny, tmp_path, monkeypatch, name):
    losses = {}
    three = {"mesh__tensor": 2, "mesh__fsdp": 2, "mesh__replica": 2}
    meshes = {"one": {}, "replica": {"mesh__replica": 8}, "fsdp": {"mesh__fsdp": 8, "mesh__replica": 1}, "three": three}
    scan = {}
    if name == "transformer":
        scan = {"model__scan_layers": True}
        meshes["three"] = {"mesh__tensor": 2, "mesh__context": 2, "mesh__stage": 2}
    for label, overrides in meshes.items():
        with monkeypatch.context() as patch:
            if label == "one":
                one_device(patch)
            train(tiny(model__name=name, model__dropout=0.1, eval__batch=3, eval__stride=7, **scan, **overrides), tmp_path / label)
        losses[label] = [[line[key] for key in ("loss", "grad_norm", "param_norm")] for line in lines(tmp_path / label)]
        losses[label].append([line["bits_per_byte"] for line in lines(tmp_path / label, "eval")] * 3)
    for label in meshes:
        np.testing.assert_allclose(losses[label], losses["one"], rtol=2e-6)


@pytest.mark.parametrize("count", [2, 4])
def test_accumulation_is_exact_under_uneven_weights(tiny, tmp_path, monkeypatch, count):
    one_device(monkeypatch)
    job = set_up(tiny(), tmp_path)
    batch = job.batch(0)
    batch["weights"] = np.random.default_rng(0).random(batch["weights"].shape, np.float32) * (np.arange(8)[:, None] % 3)
    params = job.model.init(jax.random.key(0))

    def gradients_by(config):
        return jax.jit(lambda params, batch: gradients(job.model, job.objective, params, batch, row_noise(1, 0, 8), config))(params, batch)

    whole, parts = gradients_by(tiny()), gradients_by(tiny(train__accumulate=count))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(np.abs(a).max()))


def test_training_learns_and_the_last_line_says_so(tiny, tmp_path, corpus):
    result = train(tiny(train__steps=120, optim__learning_rate=0.01), tmp_path)
    assert set(result) == {"step", "loss", "tokens", "tokens_per_second", "mfu", "workdir"}
    assert result["step"] == 120 and result["tokens"] <= 120 * 8 * 24
    first, last = lines(tmp_path)[0], lines(tmp_path)[-1]
    assert first["loss"] == pytest.approx(np.log(259), abs=0.3)
    assert last["loss"] < 0.6 * first["loss"]
    evaluation = lines(tmp_path, "eval")[-1]
    counts = np.bincount(np.frombuffer(corpus.read_bytes(), np.uint8)) / corpus.stat().st_size
    entropy = -sum(share * np.log2(share) for share in counts if share)
    assert evaluation["bits_per_byte"] < entropy and evaluation["step"] == 120  # more than the frequencies of letters


def test_the_running_mean_of_the_weights_follows_its_definition(tiny, tmp_path):
    config = tiny(train__ema=0.5, train__steps=3, checkpoint__every=1, checkpoint__keep=9)
    train(config, tmp_path)
    job = set_up(config, tmp_path)
    read = loop.Checkpoints(tmp_path / "checkpoints", read_only=True)
    history = [read.restore(job.items(job.abstract_state()), step).items for step in (1, 2, 3)]
    expected = history[0]["ema"]
    for items in history[1:]:
        expected = jax.tree.map(lambda mean, new: 0.5 * mean + 0.5 * new, expected, items["params"])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), items["ema"], expected)


def test_a_loss_that_is_not_finite_stops_with_step_and_documents_and_keeps_the_good_checkpoint(tiny, tmp_path, monkeypatch):
    poisoned = Causal.build

    def poison(self, rows, examples):
        batch = poisoned(self, rows, examples)
        poison.calls += 1
        if poison.calls == 6:  # the first call only gives the shapes
            batch["weights"] = batch["weights"] * np.float32(np.nan)
        return batch

    poison.calls = 0
    monkeypatch.setattr(Causal, "build", poison)
    config = tiny(checkpoint__every=2, train__steps=20)
    with pytest.raises(NonFiniteError) as caught:
        train(config, tmp_path)
    message = str(caught.value)
    job = set_up(config, tmp_path)
    assert "step 5:" in message and "checkpoint of step 4 is good" in message and "\n" not in message
    assert all(name in message for name in job.data.documents(4)[:5])
    read = loop.Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert read.steps()[-1] == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(open_run(tmp_path).parameters()[0]))


def test_skipping_leaves_the_state_alone_and_counts(tiny, tmp_path, monkeypatch):
    build = Causal.build

    def poison(self, rows, examples):
        batch = build(self, rows, examples)
        poison.calls += 1
        if poison.calls == 4:
            batch["weights"] = batch["weights"] * np.float32(np.nan)
        return batch

    poison.calls = 0
    monkeypatch.setattr(Causal, "build", poison)
    train(tiny(train__nonfinite="skip", eval__split="none"), tmp_path)
    rows = lines(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert rows[2]["loss"] is None and rows[3]["loss"] is not None
    assert rows[2]["param_norm"] is None or rows[2]["param_norm"] == rows[1]["param_norm"]


def test_another_model_is_refused_and_nothing_is_lost(tiny, tmp_path):
    train(tiny(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"model\.width was 16 and is 32"):
        train(tiny(model__width=32), tmp_path)
    assert before == ((tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "config.json").read_bytes())


def test_a_finished_run_says_so_again(tiny, tmp_path):
    first = train(tiny(), tmp_path)
    assert train(tiny(), tmp_path) == first


def test_a_batch_that_the_devices_do_not_divide_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.global_batch=6 is not a multiple of 8"):
        train(tiny(data__global_batch=6), tmp_path)


def start_process(config, workdir):
    """scripts/train.py with a config given as a file, on one device."""
    file = workdir.parent / f"{workdir.name}.py"
    flat = configs.flatten(config)
    file.write_text(f"from lm import config\ndef get_config():\n    c = config.default()\n    for k, v in {flat!r}.items():\n"
                    "        *p, leaf = k.split('.')\n        node = c\n        for part in p:\n            node = node[part]\n"
                    "        node[leaf] = v\n    return c\n")
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "scripts/train.py", f"--config={file}", f"--workdir={workdir}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process, workdir, step):
    """Returns once metrics.jsonl has a step."""
    for _ in range(1200):
        if lines(workdir) and lines(workdir)[-1]["step"] >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within a minute")


@pytest.mark.slow  # tests/train/test_faults.py is faster and compares bit for bit; this goes through the command alone
def test_sigkill_loses_nothing_and_sigterm_saves_the_step_at_hand(tiny, tmp_path):
    config = tiny(train__steps=4000, checkpoint__every=20, eval__split="none", optim__schedule="constant")
    workdir = tmp_path / "run"
    process = start_process(config, workdir)
    wait_for_step(process, workdir, 50)
    process.kill()
    process.wait()
    before = {line["step"]: line["loss"] for line in lines(workdir)}
    process = start_process(config, workdir)
    wait_for_step(process, workdir, max(before) + 20)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "SIGTERM: saved step" in err and "resuming at step" in err
    after = {line["step"]: line["loss"] for line in lines(workdir)}
    assert list(after) == list(range(1, len(after) + 1))
    assert {step: after[step] for step in before} == before
    assert json.loads(out.splitlines()[-1])["step"] == len(after) == open_run(workdir).checkpoints.steps()[-1]
