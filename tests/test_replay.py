"""Replay: a step made again is the step that was, and what is wrong with it is found where it is."""

import dataclasses
import functools
import json
import random
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm import config as configs
from lm import losses
from lm.checkpoint import Checkpoints
from lm.errors import ConfigError, DataError, NonFiniteError
from lm.metrics.writers import read_lines
from lm.parallel import AXES, make_mesh
from lm.replay import replay, suspects, watch
from lm.replay.rerun import mesh_of
from lm.run import open_run
from lm.train import job as jobs
from lm.train import set_up, train
from lm.train.step import row_noise

STEPS = 8
WORDS = re.findall(r"\w+", "we the people of union in order to form a more perfect state and secure peace for all")


def config_of(corpus, **overrides):
    """A config that compiles in seconds; overrides as keyword arguments with __ for the dot."""
    base = {
        "model.width": "16", "model.layers": "2", "data.source": f"text:{corpus}", "data.documents": "line", "data.tokenizer": "bytes",
        "data.context": "24", "data.global_batch": "8", "data.validation_fraction": "0", "train.steps": str(STEPS), "train.log_every": "1",
        "train.accumulate": "8", "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "eval.split": "none", "data.workers": "1",
    }
    base |= {"model.heads": "2"} if overrides.get("model__name", "transformer") == "transformer" else {}
    base |= {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return configs.validate(configs.override(configs.default(), base))


def train_on_one_device(config, workdir):
    """A run on one device, which says so; replay then uses one of the eight that tests have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        try:
            train(config, workdir)
        finally:
            file = workdir / "environment.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"devices": ["cpu:cpu"]}))


@pytest.fixture(scope="session", autouse=True)
def fast_compilation(tmp_path_factory):
    """Compiles with little optimization and keeps programs between tests and processes: most of the time would go there."""
    keys = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")), "jax_persistent_cache_min_compile_time_secs": 0.1,
            "jax_disable_most_optimizations": True}
    with pytest.MonkeyPatch.context() as patch:
        before = {key: jax.config.values[key] for key in keys}
        for key, value in keys.items():
            patch.setenv(key.upper(), str(value))  # for processes that tests start
            jax.config.update(key, value)
        yield
        for key, value in before.items():
            jax.config.update(key, value)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """200 documents, one a line; every third has a character of its own."""
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(200)]
    lines[::3] = [f"{line[:9]}{chr(0x3A + place % 39)}{line[9:]}" for place, line in enumerate(lines[::3])]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def transformer(corpus, tmp_path_factory):
    """A run with everything that has to come out again: dropout, micro-batches, a running mean, layers in a scan."""
    workdir = tmp_path_factory.mktemp("runs") / "transformer"
    train_on_one_device(config_of(corpus, model__dropout=0.2, train__ema=0.9, checkpoint__every=3, checkpoint__keep=9), workdir)
    return workdir


@pytest.fixture(scope="session")
def lstm(corpus, tmp_path_factory):
    """A recurrent run whose output matrix is not its embedding, with the last checkpoint alone."""
    workdir = tmp_path_factory.mktemp("runs") / "lstm"
    train_on_one_device(config_of(corpus, model__name="lstm", model__layers=1, model__tie_embeddings="false", model__dropout=0.1,
                                  checkpoint__every=0), workdir)
    return workdir


def files_of(folder):
    """{path: (time of change, bytes)} of everything in a folder."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))}


def job_and_checkpoint(workdir, step):
    """(job on one device, the checkpoint nearest to a step)."""
    config = open_run(workdir).config
    job = set_up(config, workdir, mesh=make_mesh(config.mesh, jax.devices()[:1]))
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    return job, checkpoints.restore(job.items(job.abstract_state()), min(checkpoints.steps(), key=lambda other: abs(other - step)))


def tampered(workdir, target, step, change):
    """A copy of a run with a checkpoint of one step alone, whose parameters `change` has changed in place."""
    shutil.copytree(workdir, target, ignore=shutil.ignore_patterns("checkpoints"))
    _, restored = job_and_checkpoint(workdir, step)
    params = jax.tree.map(np.array, restored.items["params"])
    change(params)
    placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, restored.items["params"])
    checkpoints = Checkpoints(target / "checkpoints", keep=9)
    checkpoints.save(step, restored.items | {"params": placed}, restored.meta)
    checkpoints.close()
    return target


@pytest.fixture(scope="session")
def bench(transformer, lstm):
    """{run: what it takes to examine its step 7 with other parameters}, so that many cases share a compilation."""
    return {"transformer": Bench(transformer, 7), "lstm": Bench(lstm, 7)}


class Bench:
    """A step of a run, whose parameters can be changed before it is examined."""

    def __init__(self, workdir, step):
        self.job, restored = job_and_checkpoint(workdir, step)
        self.params = jax.tree.map(np.array, restored.items["params"])
        self.batch, self.noise = self.job.batch(step - 1), row_noise(self.job.config.seed, step - 1, 8)
        self.history = [line for line in read_lines(workdir / "metrics.jsonl") if line["step"] < step]
        self.examiner = watch.Examiner(self.job.model, self.job.objective, self.job.config, self.job.mesh)

    def examined(self, change=lambda params: None):
        """(whole, rows) with parameters changed in place."""
        params = jax.tree.map(np.copy, self.params)
        change(params)
        params = self.examiner.place(params)
        whole = self.examiner.batch(params, self.batch, self.noise)
        return whole, [self.examiner.row(params, self.batch, self.noise, row, whole.weights) for row in range(8)]

    def judged(self, change):
        """The suspect."""
        return suspects.judge(self.examiner.tensors, *self.examined(change), [], self.history)

    def own_token(self):
        """(token, row, place) of a token that one row alone has among its inputs."""
        tokens = self.batch["tokens"]
        for token in np.unique(tokens[tokens < 256]):
            rows, places = np.nonzero(tokens == token)
            if len(rows) == 1:
                return int(token), int(rows[0]), int(places[0])
        raise AssertionError("no row has a token of its own: change the corpus")


def table_of(params):
    """The input embedding of a model."""
    return (params["embedding"] if "embedding" in params else params["inputs"]["tokens"])["embedding"]


def test_a_step_comes_out_again_bit_for_bit_with_its_documents_and_nothing_is_suspect(transformer, capsys):
    before = files_of(transformer)
    result = replay(transformer, 8, bisect=True)
    assert files_of(transformer) == before
    line = read_lines(transformer / "metrics.jsonl")[-1]
    assert (result["step"], result["from_checkpoint"], result["rerun_steps"], result["checked_steps"]) == (8, 6, 1, [7, 8])
    assert result["agrees"] is True and result["relative_difference"] == 0
    for name in ("loss", "grad_norm"):
        assert result[name] == line[name] == result[f"recorded_{name}"]
    assert result["suspect"] is None and "nothing is suspect" in capsys.readouterr().out
    job, _ = job_and_checkpoint(transformer, 6)
    assert list(dict.fromkeys(piece["id"] for piece in result["documents"])) == job.data.documents(7)
    batch = job.batch(7)
    for piece in result["documents"]:  # where it says that they are, they are
        (first, stop), (a, b) = piece["row_tokens"], piece["store_tokens"]
        np.testing.assert_array_equal(batch["targets"][piece["row"], first:stop], job.data.stores[0].read(a, b))
        document = [job.data.stores[0].document_id(i) for i in range(job.data.stores[0].num_documents)].index(piece["id"])
        assert piece["document_tokens"] == [a - job.data.stores[0].offsets[document], b - job.data.stores[0].offsets[document]]
    assert sum(stop - first for first, stop in (piece["row_tokens"] for piece in result["documents"])) == 8 * 24
    # Dropout of each row alone is that of the step: the mean of the rows is the loss of the batch.
    assert np.mean([example["loss"] for example in result["examples"]]) == pytest.approx(line["loss"], rel=1e-6)
    squares = [entry["gradient"]["norm"] ** 2 for entry in result["layers"] if "weight" in entry]
    assert np.sqrt(sum(squares)) == pytest.approx(line["grad_norm"], rel=1e-5)


def test_without_an_old_checkpoint_the_run_is_made_again_from_its_start(lstm, capsys):
    result = replay(lstm, 3)
    assert (result["from_checkpoint"], result["rerun_steps"], result["agrees"], result["checked_steps"]) == (0, 2, True, [1, 2, 3])
    assert "of steps 8: training again from the initial state, 2 steps" in capsys.readouterr().err
    assert result["examples"] == [] and result["suspect"] is None


def test_a_command_line_names_what_is_wrong_in_a_checkpoint(transformer, tmp_path):
    def poison(params):
        params["layers"]["feed_forward"]["up"]["kernel"][1, 3, 5] = np.nan

    workdir = tampered(transformer, tmp_path / "run", 6, poison)
    done = subprocess.run([sys.executable, "scripts/replay.py", f"--workdir={workdir}", "--step=7", "--bisect", "--text"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["suspect"]["kind"] == "not finite" and result["suspect"]["row"] is None
    tensor = result["suspect"]["tensor"]
    assert (tensor["what"], tensor["name"], tensor["index"]) == ("parameter", "layers/1/feed_forward/up/kernel", [3, 5])
    assert result["agrees"] is False and result["loss"] is None and result["recorded_loss"] is not None
    assert "this is more than rounding" in done.stdout


def test_the_step_that_a_run_refused_is_found(corpus, tmp_path):
    config = config_of(corpus, model__name="rnn", model__layers=1, optim__name="sgd", optim__learning_rate=1e25, optim__clip=0)
    with pytest.raises(NonFiniteError) as caught:
        train_on_one_device(config, tmp_path)
    step = int(re.search(r"step (\d+):", str(caught.value))[1])
    named = re.search(r"scripts/replay\.py --workdir=(\S+) --step=(\d+)", str(caught.value))
    assert named is None or (named[1], int(named[2])) == (str(tmp_path), step)
    result = replay(tmp_path, step, bisect=True)
    assert (result["from_checkpoint"], result["recorded_loss"]) == (0, None)
    assert result["agrees"] is (True if step > 1 else None)
    assert result["suspect"]["kind"] == "not finite" and result["suspect"]["tensor"]["statistic"] == "nonfinite"


@pytest.mark.parametrize("run", ["transformer", "lstm"])
@pytest.mark.parametrize("value", [np.nan, 1e4])
def test_a_poisoned_embedding_names_the_row_and_the_token(bench, run, value):
    token, row, place = bench[run].own_token()

    def poison(params):
        table_of(params)[token] *= value

    suspect = bench[run].judged(poison)
    assert suspect.rows == [row] and suspect.place == place
    name = {"transformer": "inputs/tokens", "lstm": "embedding"}[run]
    if np.isnan(value):
        assert (suspect.kind, suspect.finding.what, suspect.finding.name) == ("not finite", "parameter", f"{name}/embedding")
    else:
        assert (suspect.kind, suspect.finding.what, suspect.finding.name) == ("out of line", "activation", name)


def test_parameters_as_they_are_give_no_suspect_and_a_broken_layer_is_named(bench):
    assert bench["transformer"].judged(lambda params: None) is None
    assert bench["lstm"].judged(lambda params: None) is None

    def overflow(params):
        params["layer_0"]["recurrent"][2, 7] = np.inf

    suspect = bench["lstm"].judged(overflow)
    assert (suspect.rows, suspect.finding.what, suspect.finding.name) == ([], "parameter", "layer_0/recurrent")


def scaled(examined, trees, names, factor):
    """A copy of something examined, whose tensors of some names have another size."""
    change = {tree: {name: value * np.array([factor, factor, 1, factor if tree == "gradients" else 1]) if name in names else value
                     for name, value in getattr(examined, tree).items()} for tree in trees}
    return dataclasses.replace(examined, **change)


def test_a_row_with_a_large_gradient_is_named_and_one_a_little_larger_is_not(bench):
    tensors = bench["transformer"].examiner.tensors
    whole, rows = bench["transformer"].examined()
    everything = [tensor.name for tensor in tensors]
    below = [name for name in everything if name.startswith("layers/0")]
    large = [scaled(row, ["gradients"], everything, 30) if i == 3 else row for i, row in enumerate(rows)]
    large[3] = scaled(large[3], ["backward"], below, 30)
    suspect = suspects.judge(tensors, whole, large, [], bench["transformer"].history)
    assert suspect.rows == [3] and "gradient norm of row 3" in suspect.reason
    # Backward comes first what is nearest to the loss.
    assert (suspect.finding.what, suspect.finding.name) == ("parameter gradient", "final_norm/scale")
    little = [scaled(row, ["gradients", "backward"], everything, 1.5) if i == 3 else row for i, row in enumerate(rows)]
    assert suspects.judge(tensors, whole, little, [], bench["transformer"].history) is None


def test_a_step_out_of_line_names_the_first_tensor_that_left_the_steps_before(bench):
    tensors, history = bench["transformer"].examiner.tensors, bench["transformer"].history
    whole, rows = bench["transformer"].examined()
    late = [tensor.name for tensor in tensors][-4:]
    spike = dataclasses.replace(scaled(whole, ["forward"], late, 50), nats=whole.nats * 20)
    rows = [scaled(row, ["forward"], late, 50) for row in rows]
    suspect = suspects.judge(tensors, spike, rows, [whole], history)
    assert (suspect.kind, suspect.rows, suspect.finding.name) == ("out of line", [], late[1]) and "the loss of the step" in suspect.reason
    assert "no step before it was made again" in suspects.judge(tensors, spike, rows, [], history).reason
    assert suspects.judge(tensors, whole, rows, [whole], history) is None
    # A row that leaves the others in an earlier tensor than all rows leave the steps before is to blame.
    rows[2] = scaled(rows[2], ["forward"], ["inputs"], 50)
    suspect = suspects.judge(tensors, spike, rows, [whole], history)
    assert (suspect.rows, suspect.finding.what, suspect.finding.name) == ([2], "activation", "inputs")


def test_a_row_out_of_line_in_an_activation_alone_has_to_be_far_out(bench):
    tensors, history = bench["transformer"].examiner.tensors, bench["transformer"].history
    whole, rows = bench["transformer"].examined()
    for factor, culprits in ((50, None), (5000, [6])):
        large = [scaled(row, ["forward"], ["layers/1"], factor) if i == 6 else row for i, row in enumerate(rows)]
        suspect = suspects.judge(tensors, whole, large, [], history)
        assert (suspect and suspect.rows) == culprits


def test_a_row_with_a_large_loss_is_named(bench):
    whole, rows = bench["transformer"].examined()
    rows[1] = dataclasses.replace(rows[1], nats=rows[1].nats * 3)
    suspect = suspects.judge(bench["transformer"].examiner.tensors, whole, rows, [], [])
    assert suspect.rows == [1] and "the loss of row 1" in suspect.reason


def test_a_gradient_alone_that_is_not_finite_is_found_backward(bench):
    tensors = bench["transformer"].examiner.tensors
    whole, rows = bench["transformer"].examined()
    for name in ("layers/0/attention", "layers/0"):
        rows[5].backward[name][0, watch.NONFINITE] = 4
    rows[5].gradients["layers/0/attention/output/kernel"][watch.NONFINITE] = 1
    suspect = suspects.judge(tensors, whole, rows, [], [])
    assert (suspect.rows, suspect.finding.what, suspect.finding.name) == ([5], "activation gradient", "layers/0")


def test_finite_gradients_whose_squares_overflow_are_not_finite_as_in_the_step(bench):
    whole, rows = bench["transformer"].examined()
    name = "layers/1/attention/query/kernel"
    whole, rows[4] = (scaled(examined, ["gradients"], [name], 1e25) for examined in (whole, rows[4]))
    suspect = suspects.judge(bench["transformer"].examiner.tensors, whole, rows, [], [])
    assert (suspect.kind, suspect.rows, suspect.finding.name) == ("not finite", [4], name) and "overflow float32" in suspect.reason


def test_statistics_are_what_they_say():
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    x[1, 2, 3], x[1, 4, 0], x[2] = np.nan, -np.inf, 1e30 * np.sign(x[2])
    x[0, 3, 1] = -9
    found = np.asarray(watch.row_statistics(jax.numpy.asarray(x)))
    finite = x[1][np.isfinite(x[1])]
    np.testing.assert_allclose(found[1], [np.sqrt(np.mean(finite**2)), np.abs(finite).max(), 2, 2], rtol=1e-6)
    np.testing.assert_allclose(found[0], [np.sqrt(np.mean(x[0] ** 2)), 9, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(found[2, :3], [1e30, 1e30, 0], rtol=1e-6)  # whose squares would overflow
    stacked = np.asarray(watch.leaf_statistics(jax.numpy.asarray(x[:1, :, 0]), True))
    column = x[0, :, 0]
    np.testing.assert_allclose(stacked[0], [np.sqrt(np.mean(column**2)), np.abs(column).max(), 0, np.linalg.norm(column)], rtol=1e-6)


def test_activations_logits_and_gradients_are_those_of_the_model(bench):
    b = bench["transformer"]
    whole, rows = b.examined()
    hidden = jax.jit(b.job.model.apply)(b.params, b.batch, b.noise)
    matrix = b.job.model.unembedding(b.params)
    np.testing.assert_allclose(whole.forward["hidden"], watch.row_statistics(hidden), rtol=1e-4)

    def nats(hidden):
        return losses.dense_loss(hidden, matrix, b.batch["targets"], b.batch["weights"])[0]

    of_hidden = watch.row_statistics(jax.jit(jax.grad(nats))(hidden))
    np.testing.assert_allclose(whole.backward["hidden"][:, :2] * whole.total, of_hidden[:, :2], rtol=1e-3)
    np.testing.assert_allclose(whole.forward["logits"], watch.row_statistics(hidden @ matrix), rtol=1e-4)
    chunked = watch._Watched(b.job.model, chunk=6)._logit_statistics(hidden, matrix)
    np.testing.assert_allclose(chunked, watch.row_statistics(hidden @ matrix), rtol=1e-4)
    np.testing.assert_allclose(np.stack([row.forward["layers/1"][0] for row in rows]), whole.forward["layers/1"], rtol=1e-4)
    # A row alone and the batch differ by what they are divided by.
    alone = np.stack([row.backward["layers/0"][0, :2] for row in rows])
    np.testing.assert_allclose(alone / 8, whole.backward["layers/0"][:, :2], rtol=1e-4)


def test_a_row_alone_is_the_same_on_any_mesh_and_with_pipeline_stages_folded_away(bench):
    b = bench["lstm"]
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": 2, "stage": 2, "fsdp": 2})
    examiner = watch.Examiner(b.job.model, b.job.objective, b.job.config, mesh)
    assert dict(examiner.mesh.shape) == dict.fromkeys(AXES, 1) | {"replica": 2, "fsdp": 4}
    here = b.examiner.row(b.examiner.place(b.params), b.batch, b.noise, 5)
    there = examiner.row(examiner.place(b.params), b.batch, b.noise, 5)
    assert (there.loss, there.grad_norm) == pytest.approx((here.loss, here.grad_norm), rel=1e-5)
    np.testing.assert_allclose(there.backward["layer_0"], here.backward["layer_0"], rtol=1e-4)


def test_tensors_are_in_the_order_of_computation(bench):
    names = [tensor.name for tensor in bench["transformer"].examiner.tensors]
    layers = ["attention_norm/scale", "attention_norm", "attention/query/kernel", "attention/key/kernel", "attention/value/kernel",
              "attention/output/kernel", "attention", "feed_forward_norm/scale", "feed_forward_norm", "feed_forward/up/kernel",
              "feed_forward/down/kernel", "feed_forward"]
    stack = [f"layers/{layer}/{name}" if name else f"layers/{layer}" for layer in range(2) for name in [*layers, ""]]
    assert names == ["inputs/tokens/embedding", "inputs/tokens", "inputs", *stack, "final_norm/scale", "final_norm", "hidden", "logits"]


def test_a_mesh_that_does_not_fit_becomes_replicas_that_do(corpus):
    config = config_of(corpus, train__accumulate=1, mesh__replica=2, mesh__fsdp=8)
    assert dict(mesh_of(config, {"devices": ["cpu:cpu"] * 16}).shape) == {**dict.fromkeys(AXES, 1), "replica": 8}
    assert mesh_of(config_of(corpus, train__accumulate=4), {"devices": ["cpu:cpu"] * 16}).size == 2
    assert dict(mesh_of(config_of(corpus, mesh__replica=-1, mesh__fsdp=2), {"devices": ["cpu:cpu"] * 4}).shape)["fsdp"] == 2


def test_a_step_or_run_that_is_not_there_and_changed_data_are_refused(lstm, tmp_path):
    for step in (0, 9):
        with pytest.raises(ConfigError, match=f"step={step} is not a step of .*: its steps are 1 to 8"):
            replay(lstm, step)
    with pytest.raises(ConfigError, match="is not the work directory of a run"):
        replay(tmp_path / "none", 1)
    shutil.copytree(lstm, tmp_path / "run")
    stored = json.loads((lstm / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored | {"data": "0"}))
    with pytest.raises(DataError, match="has changed since it was trained"):
        replay(tmp_path / "run", 3)
