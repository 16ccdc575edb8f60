"""Runs that launch a plan: what it loads, what it refuses and why, and what its first line compares."""

import dataclasses
import functools
import json
import os
import pickle
import random
import signal
import time

import jax
import numpy as np
import pytest

from lm import config as configs
from lm.config import planned as plans
from lm.errors import ConfigError
from lm.metrics.writers import read_lines
from lm.parallel import make_mesh
from lm.train import job as jobs
from lm.train import loop, planned, set_up, train
from tests.uncached import uncached

ESTIMATE = {"estimated_step_seconds": 0.25, "estimated_mfu": 0.5, "hbm_bytes_per_chip": 1000, "chips": 8, "topology": "cpu:8", "fits": True}
EXACT = ("step", "loss", "grad_norm", "param_norm", "update_norm", "learning_rate", "tokens")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """60 documents, one a line."""
    rng, words, path = random.Random(0), ["we", "the", "people", "of", "union"], tmp_path_factory.mktemp("planned") / "text.txt"
    path.write_text("".join(" ".join(rng.choices(words, k=rng.randint(3, 60))) + "\n"
                            for _ in range(60)))
    return path


@pytest.fixture(scope="session")
def given(text):
    """Overrides of a config that compiles in seconds, as on a command line."""
    return {
        "model.width": "16", "model.layers": "1", "model.heads": "2", "model.scan_layers": "false", "data.source": f"text:{text}",
        "data.documents": "line", "data.tokenizer": "bytes", "data.context": "24", "data.global_batch": "8", "mesh.fsdp": "2",
        "data.validation_fraction": "0.2", "train.steps": "5", "train.log_every": "2", "metrics.tensorboard": "false",
        "metrics.peak_flops": "1e9", "checkpoint.every": "0", "eval.every": "0", "eval.split": "none", "data.workers": "1",
        "optim.schedule": "constant",  # so that the length of the run is no part of the program
    }


@pytest.fixture(scope="session")
def tiny(given):
    """A config; overrides as keyword arguments with __ for the dot."""

    def make(**overrides):
        changed = {name.replace("__", "."): str(value) for name, value in overrides.items()}
        return configs.validate(configs.override(configs.default(), given | changed))

    return make


def facts(config, job, shape, lowered):
    """What a plan has under "launch"."""
    return planned.facts(job, shape, lowered) | {"config": configs.to_json(config), "not_stored": "the moon is full"}


def write_plan(config, folder, **values):
    """What scripts/plan.py leaves of a config for a run: plan.json and the executable."""
    folder.mkdir(exist_ok=True)
    job = set_up(config, folder / "none")
    with jax.set_mesh(job.mesh), uncached():
        [(shape, lowered)] = job.lowered_steps().items()
        stored, why = planned.packed(lowered.compile())
    assert why == ""
    (folder / "executable").write_bytes(stored)
    (folder / "plan.json").write_text(json.dumps(ESTIMATE | {"launch": facts(config, job, shape, lowered)} | values))
    return folder


def changed_plan(folder, source, change):
    """A copy of a plan whose "launch" is changed."""
    folder.mkdir()
    (folder / "executable").write_bytes((source / "executable").read_bytes())
    values = json.loads((source / "plan.json").read_text())
    change(values["launch"])
    (folder / "plan.json").write_text(json.dumps(values))
    return plans.read(folder)


@pytest.fixture(scope="session")
def plan(tiny, tmp_path_factory):
    """The folder of a plan of `tiny()`."""
    return write_plan(tiny(), tmp_path_factory.mktemp("a plan"))


@pytest.fixture(scope="session")
def straight(tiny, tmp_path_factory):
    """The work directory of `tiny()`, trained without a plan."""
    train(tiny(checkpoint__every=3), folder := tmp_path_factory.mktemp("straight"))
    return folder


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Fails where a train step is compiled."""

    def compile_step(self, lowered=None):
        raise AssertionError("compiled")

    monkeypatch.setattr(jobs.Job, "compile_step", compile_step)


def lines(workdir):
    """The lines of a run's metrics."""
    return read_lines(workdir / "metrics.jsonl")


def parameters(workdir, config, step):
    """The arrays of a checkpoint."""
    job = set_up(config, workdir)
    return jax.tree.leaves(loop.Checkpoints(workdir / "checkpoints", read_only=True).restore(job.items(job.abstract_state()), step).items)


def assert_same_run(some, other, config, step=5):
    """The same numbers in every line, and the same arrays at the end, to the bit."""
    assert [[line[name] for name in EXACT] for line in lines(some)] == [[line[name] for name in EXACT] for line in lines(other)]
    for a, b in zip(parameters(some, config, step), parameters(other, config, step), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_planned_run_loads_its_program_and_is_the_run_without_a_plan(tiny, plan, straight, tmp_path, nothing_compiles, capsys):
    train(tiny(checkpoint__every=3), tmp_path / "run", plans.read(plan))
    assert f"loaded the executable of {plan}: the train step is not compiled" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", straight, tiny())


def test_a_run_that_sigterm_stopped_goes_on_with_its_plan(tiny, plan, straight, tmp_path, monkeypatch, nothing_compiles, capsys):
    when_due = loop.Loop._when_due

    def stop(self, done, last):
        when_due(self, done, last)
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_when_due", stop)
        train(tiny(), tmp_path / "run", plans.read(plan))
    assert "SIGTERM: saved step 3" in capsys.readouterr().err
    train(tiny(), tmp_path / "run", plans.read(plan))
    assert "resuming at step 3 of 5" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", straight, tiny())


def test_devices_are_in_the_order_of_the_mesh(tiny, straight, tmp_path, monkeypatch, capsys):
    """As on a torus, where it is not that of their numbers."""
    devices = [jax.devices()[index] for index in (7, 2, 5, 0, 1, 6, 3, 4)]
    monkeypatch.setattr(jobs, "make_mesh", functools.partial(make_mesh, devices=devices))
    folder = write_plan(tiny(), tmp_path / "plan")
    assert json.loads((folder / "plan.json").read_text())["launch"]["order"] != planned.order(make_mesh(tiny().mesh))
    train(tiny(checkpoint__every=3), tmp_path / "run", plans.read(folder))
    assert "the train step is not compiled" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", straight, tiny())


def test_the_first_line_after_the_first_step_compares(tiny, plan, tmp_path, nothing_compiles, capsys):
    train(tiny(), tmp_path / "run", plans.read(plan))
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 2, 4, 5] and ["planned" in line for line in found] == [False, True, False, False]
    line = found[1]
    assert line["planned"] == {"step_seconds": 0.25, "mfu": 0.5, "peak_bytes": 1000}
    tokens = (line["tokens"] - found[0]["tokens"]) / line["tokens_per_second"]
    assert line["measured"]["step_seconds"] == pytest.approx(tokens) and line["measured"]["mfu"] == line["mfu"]
    assert line["measured"]["peak_bytes"] is None and line["ratio"]["peak_bytes"] is None  # a CPU does not tell
    assert line["ratio"]["step_seconds"] == pytest.approx(tokens / 0.25) and line["ratio"]["mfu"] == pytest.approx(line["mfu"] / 0.5)
    said = capsys.readouterr().err
    assert said.count("measured against planned: step ") == 1 and f"{tokens / 0.25:.2f} x)" in said


def test_the_first_step_of_a_process_is_not_compared_unless_there_is_no_other(tiny, plan, tmp_path, monkeypatch, nothing_compiles):
    train(tiny(train__steps=1), tmp_path / "one", plans.read(plan))
    assert ["planned" in line for line in lines(tmp_path / "one")] == [True]
    train(tiny(train__steps=2), tmp_path / "resumed", plans.read(plan))
    stop_at = loop.processes.stop_at
    monkeypatch.setattr(loop.processes, "stop_at", lambda done, name: (done == 3 and time.sleep(2)) or stop_at(done, name))
    train(tiny(train__steps=8), tmp_path / "resumed", plans.read(plan))
    found = lines(tmp_path / "resumed")
    assert [line["step"] for line in found if "planned" in line] == [2, 4]
    # Of steps 3 and 4 the second alone is compared, and the clock has them both.
    line = found[2]
    tokens = (line["tokens"] - found[1]["tokens"]) / 2  # all batches are full
    assert line["measured"]["step_seconds"] == pytest.approx(tokens / line["tokens_per_second"])
    assert line["measured"]["step_seconds"] < 0.9
    assert line["time"]["step"] > 2


def test_memory_is_that_of_a_chip(tiny, plan, monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    class Mesh:
        size, local_devices = 8, [Device(300), Device(500)]

    job = dataclasses.replace(set_up(tiny(), "none"), mesh=Mesh())
    read = plans.read(plan)
    assert planned.compared(read, job, 0.5, 0.25)["ratio"] == {"step_seconds": 2.0, "mfu": 0.5, "peak_bytes": 0.5}
    two_a_chip = read._replace(values=read.values | {"chips": 4})
    comparison = planned.compared(two_a_chip, job, 0.5, 0.25)
    assert comparison["measured"]["peak_bytes"] == 1000
    assert planned.told(comparison) == ("measured against planned: step 0.5 s (planned 0.25 s, 2.00 x); MFU 25.0% (planned 50.0%, 0.50 x); "
                                        "memory 1,000 bytes a chip (planned 1,000 bytes a chip, 1.00 x)")


def heard(plan, job, monkeypatch, other="compiled"):
    """(what `planned.steps` gives, what it says); `other` stands for what is compiled."""
    said = []
    monkeypatch.setattr(jobs.Job, "compile_step", lambda self, lowered: dict.fromkeys(lowered, other))
    with jax.set_mesh(job.mesh):
        return planned.steps(plan, job, said.append, job.lowered_steps()), said


CHANGES = {
    "version": (lambda launch: launch["versions"].update(jax="0.0.1"), {}, "it was made with jax 0.0.1 and here is jax"),
    "flags": (lambda launch: launch.update(flags=["--xla_other"]), {}, "it was made with XLA_FLAGS or LIBTPU_INIT_ARGS '--xla_other'"),
    "order": (lambda launch: launch.update(order="0"), {}, "the devices here have other numbers or places"),
    "constant": (lambda launch: None, {"optim__learning_rate": 0.002, "seed": 3},
                 "its program has seed=0 (here 3), optim.learning_rate=0.001 (here 0.002)"),
    "steps": (lambda launch: None, {"train__steps": "1152 tokens", "optim__schedule": "cosine"},
              "its program has train.steps=5 (here 6), optim.schedule='constant' (here 'cosine')"),
    "program": (lambda launch: launch.update(program="0"), {}, "its program has changed: lm or JAX's settings are not"),
    "shape": (lambda launch: launch.update(batch=[8, 12]), {}, "it is for batches of [8, 12], of which there are none here"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_program_is_compiled_and_the_run_says_why(name, tiny, plan, tmp_path, monkeypatch):
    change, overrides, why = CHANGES[name]
    other = changed_plan(tmp_path / "plan", plan, change)
    steps, [said] = heard(other, set_up(tiny(**overrides), tmp_path), monkeypatch)
    assert steps == {(8, 24): "compiled"} and said.startswith(f"compiling, not loading the executable of {other.folder}: {why}")


def test_an_executable_that_cannot_be_loaded_is_compiled(tiny, plan, tmp_path, monkeypatch):
    other, job = changed_plan(tmp_path / "plan", plan, lambda launch: None), set_up(tiny(), tmp_path)
    payload, *trees = pickle.loads((plan / "executable").read_bytes())
    for content in (b"", b"no pickle", pickle.dumps(7), pickle.dumps((payload[: len(payload) // 2], *trees))):
        (tmp_path / "plan/executable").write_bytes(content)
        steps, [said] = heard(other, job, monkeypatch)
        assert steps == {(8, 24): "compiled"} and "it cannot be loaded (" in said
    (tmp_path / "plan/executable").unlink()
    assert "plan: there is none: the moon is full" in heard(other, job, monkeypatch)[1][0]


def test_a_process_that_cannot_load_it_has_all_compile(tiny, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(planned.processes, "gather", lambda what, value: [value, "its disk is full"])
    steps, said = heard(plans.read(plan), set_up(tiny(), tmp_path), monkeypatch)
    assert steps == {(8, 24): "compiled"} and said == [f"compiling, not loading the executable of {plan}: its disk is full"]


def test_batches_of_other_shapes_are_compiled_beside_it(tiny, plan, tmp_path, monkeypatch):
    job = set_up(tiny(), tmp_path)
    monkeypatch.setattr(type(job.data), "shapes", lambda self: {(8, 24): 0, (16, 24): 0})
    steps, said = heard(plans.read(plan), job, monkeypatch)
    assert steps.pop((16, 24)) == "compiled" and said == [f"loaded the executable of {plan}: 1 other shapes to compile"]
    assert isinstance(steps[8, 24], jax.stages.Compiled)


def test_a_program_from_jaxs_own_cache_is_not_stored():
    with uncached():
        program = jax.jit(lambda x: x + 1).lower(1.0).compile()
        assert planned.packed(program)[1] == ""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", "somewhere")
    try:
        stored, why = planned.packed(program)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert stored is None and "unset JAX_COMPILATION_CACHE_DIR" in why


def test_a_program_of_another_layout_is_not_taken_for_this_one(tiny, plan, tmp_path):
    """Even where all that plan.json says is alike."""
    job = set_up(tiny(), tmp_path)
    with jax.set_mesh(job.mesh):
        [lowered] = job.lowered_steps().values()
        for other in ({"mesh__fsdp": 4}, {"model__width": 32}, {"train__ema": 0.9}):
            there = write_plan(tiny(**other), tmp_path / "plan")
            assert planned._load(plans.read(there), job, lowered) == (None, "it takes arrays of other shapes or shardings")
        assert planned._load(plans.read(plan), job, lowered)[1] == ""


def test_nor_one_of_another_tree_of_the_same_arrays(tiny, tmp_path):
    one, other = (jax.jit(lambda tree: tree).lower({name: jax.ShapeDtypeStruct((3,), "float32")}) for name in ("a", "b"))
    assert not planned._takes(other.compile(), one, set_up(tiny(), tmp_path))


@pytest.mark.parametrize(("change", "words"), [
    ({"platform": "tpu", "kind": "TPU v5 lite", "sides": [2, 4, 1]}, "(8 x TPU v5 lite, 2x4x1 a slice), and here are 8 x cpu"),
    ({"count": 4}, "is for cpu:8 (4 x cpu), and here are 8 x cpu"), ({"slices": 2}, "8 x cpu in 2 slices"),
])
def test_other_devices_are_refused_before_anything_is_done(change, words, tiny, plan, tmp_path):
    other = changed_plan(tmp_path / "plan", plan, lambda launch: launch["devices"].update(change))
    with pytest.raises(ConfigError, match="start the run there, or plan for what is here") as error:
        train(tiny(), tmp_path / "run", other)
    assert words in str(error.value) and not list((tmp_path / "run").glob("*.json"))


def test_a_slice_that_lies_the_other_way_round_is_the_planned_one(tiny, plan, tmp_path, monkeypatch):
    here = {"platform": "tpu", "kind": "TPU v5 lite", "count": 8, "slices": 1, "sides": [4, 2, 1]}
    monkeypatch.setattr(planned, "device_facts", lambda devices: here)
    for sides, fits in (([2, 4, 1], True), ([4, 2, 1], True), ([8, 1, 1], False)):
        other = changed_plan(tmp_path / str(sides), plan, lambda launch, sides=sides: launch.update(devices=here | {"sides": sides}))
        if fits:
            planned.check_devices(other, tiny())
        else:
            with pytest.raises(ConfigError, match="8x1x1 a slice"):
                planned.check_devices(other, tiny())


def test_another_mesh_and_another_vocabulary_are_refused(tiny, plan, tmp_path):
    with pytest.raises(ConfigError, match=r"mesh.replica=2 here and 4 there, mesh.fsdp=4 here and 2 there.*--config.mesh.fsdp=2"):
        train(tiny(mesh__fsdp=4), tmp_path / "run", plans.read(plan))
    other = changed_plan(tmp_path / "plan", plan, lambda launch: launch.update(vocabulary=[32000, 32000]))
    with pytest.raises(ConfigError, match="vocabulary of 32,000 ids, and this run's tokenizer makes it 259"):
        train(tiny(), tmp_path / "run", other)
    assert not list((tmp_path / "run").glob("*.json"))


def test_devices_are_described_by_slice():
    class Device:
        platform, device_kind = "tpu", "TPU v5 lite"

        def __init__(self, number, slice_index):
            self.slice_index, self.coords = slice_index, (number % 4 + 2, number // 4, 0)

    devices = [Device(number, index) for index in (1, 0) for number in range(8)]
    assert planned.device_facts(devices) == {"platform": "tpu", "kind": "TPU v5 lite", "count": 16, "slices": 2, "sides": [4, 2, 1]}


class TestConfig:
    """lm.config.planned: which config a plan launches."""

    @pytest.fixture
    def file(self, given, tmp_path):
        """A config file of `tiny()`."""
        path = tmp_path / "tiny.py"
        path.write_text(f"from lm import config\ndef get_config():\n    return config.override(config.default(), {given!r})\n")
        return str(path)

    def test_the_plans_own_overrides_are_applied(self, file, plan, tmp_path, tiny):
        overrides = {"model.remat": "full", "train.accumulate": 2, "model.scan_layers": False, "data.buckets": [4.0, 8.0]}
        config = tiny(model__remat="full", train__accumulate=2, data__buckets="4,8")
        found = changed_plan(tmp_path / "plan", plan, lambda launch: launch.update(config=configs.to_json(config)))
        found = found._replace(values=found.values | {"overrides": overrides})
        assert configs.flatten(plans.load(found, file, {})) == configs.flatten(config)
        same = plans.load(found, file, {"train.accumulate": "2", "model.scan_layers": "0", "train.log_every": "7"})
        assert (same.train.accumulate, same.train.log_every) == (2, 7)
        with pytest.raises(ConfigError, match=r"--config.train.accumulate=4 contradicts the plan .* train.accumulate=2: leave it out"):
            plans.load(found, file, {"train.accumulate": "4"})

    def test_without_a_file_the_config_is_the_plans(self, plan, tiny):
        read = plans.read(plan)
        assert configs.flatten(plans.load(read, None, {})) == configs.flatten(tiny())
        assert plans.load(read, None, {"seed": "5"}).seed == 5
        with pytest.raises(ConfigError, match=r"model\.width is 32 here and 16 there"):
            plans.load(read, None, {"model.width": "32"})

    @pytest.mark.parametrize(("name", "value"), [("model.layers", "2"), ("data.context", "12"), ("train.accumulate", "2"),
                                                 ("layout.zero", "1"), ("optim.name", "lion"), ("model.dtype", "bfloat16")])
    def test_keys_that_decide_what_was_planned_must_be_alike(self, name, value, file, plan, given):
        with pytest.raises(ConfigError, match=rf"of another run: {name} is .* To launch it give --config.{name}={given.get(name, '')}"):
            plans.load(plans.read(plan), file, {name: value})

    def test_other_keys_may_differ(self, file, plan):
        free = {"seed": "7", "optim.learning_rate": "0.1", "train.steps": "2 epochs", "checkpoint.every": "3", "eval.split": "validation",
                "metrics.wandb": "x", "data.workers": "3", "train.log_every": "1", "data.source": "sotu"}
        assert plans.load(plans.read(plan), file, free).seed == 7

    @pytest.mark.parametrize(("content", "words"), [
        (None, "is not the folder of a plan"), ("{", "is not the folder of a plan"), ("7", "is not the folder of a plan"),
        ("[]", "is not the folder of a plan"), ("{}", "does not say launch and topology and fits"),
        (json.dumps(ESTIMATE | {"launch": {}, "fits": False}), "does not fit cpu:8: see its page.txt")])
    def test_what_is_no_plan_to_launch(self, content, words, tmp_path):
        if content:
            (tmp_path / "plan.json").write_text(content)
        with pytest.raises(ConfigError, match=words):
            plans.read(tmp_path)
