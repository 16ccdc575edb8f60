"""A training run set up from its config: data, model, optimizer and where every array lies; nothing is compiled yet."""

import ctypes
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import optax

from lm import config as configs
from lm import models, objectives, optim
from lm.data.prepare import PreparedData, prepare
from lm.errors import CheckpointError, ConfigError
from lm.parallel import Layout, batch_sharding, make_mesh
from lm.parallel import layout as layouts
from lm.run import open_run
from lm.train.step import Shardings, TrainState, init_state, jitted_step, state_shardings


@dataclasses.dataclass
class Job:
    """A training run, set up: everything that the loop needs."""

    workdir: pathlib.Path
    config: object
    prepared: PreparedData
    data: object
    model: models.Model
    objective: objectives.Objective
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    learning_rate: object
    lay: Shardings
    layout: Layout
    flops_per_token: float

    @property
    def shardings(self) -> TrainState:
        """Where the state lies."""
        return self.lay.state

    def items(self, tree: TrainState) -> dict:
        """The state, or its abstract form, as the items of a checkpoint."""
        items = {"params": tree.params, "opt_state": tree.opt_state}
        return items | ({"ema": tree.ema} if self.config.train.ema else {})

    @functools.cached_property
    def _init(self):
        """`init_state` under jit, compiled once for all seeds."""
        return jax.jit(functools.partial(init_state, self.model, self.optimizer, with_ema=bool(self.config.train.ema)),
                       out_shardings=self.shardings)

    def initial_state(self, seed: int | None = None) -> TrainState:
        """A fresh state of the config's or another seed, made in place on the mesh; its parameters are those of train.init if there is."""
        with jax.set_mesh(self.mesh):
            state = self._init(jax.random.key(self.config.seed if seed is None else seed))
        if not self.config.train.init:
            return state
        params = starting_parameters(self.config.train.init, self.prepared.tokenizer, self.abstract_state().params)
        return state._replace(params=params, ema=None if state.ema is None else jax.tree.map(jnp.copy, params))

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), self.lay.shapes,
                            self.shardings)

    def resumed_state(self, restored) -> TrainState:
        """The state in a restored checkpoint."""
        step = jax.device_put(jnp.asarray(restored.step, jnp.int32), self.shardings.step)
        return TrainState(step, restored.items["params"], restored.items["opt_state"], restored.items.get("ema"))

    def compiled(self, state: TrainState | None = None, steps: Callable[[dict], "Steps"] | None = None) -> tuple:
        """(the train step, compiled or what `steps` makes of `lowered_steps`; `state` or a fresh one, whose program is traced and compiled
        while the step's, which takes longer, is compiled)."""
        with jax.set_mesh(self.mesh), ThreadPoolExecutor(1) as beside:
            lowered = self.lowered_steps()
            fresh = None if state else beside.submit(self.initial_state)
            step = (steps or self.compile_step)(lowered)
            state = state or fresh.result()
        _release_memory()
        return step, state

    def lowered_steps(self) -> dict[tuple[int, int], jax.stages.Lowered]:
        """The train step, traced and not yet compiled, for each shape of this run's batches; call it under `jax.set_mesh`."""
        sharding, state = batch_sharding(self.mesh), self.abstract_state()
        step = jitted_step(self.model, self.objective, self.optimizer, self.learning_rate, self.config, self.mesh, self.lay)

        def lowered(rows, example):
            row = self.data.batch(example, self.objective.build, slice(1))
            batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=sharding), row)
            return step.lower(state, batch)

        return {shape: lowered(shape[0], example) for shape, example in self.data.shapes().items()}

    def compile_step(self, lowered: dict | None = None) -> "Steps":
        """The train step (see `lowered_steps`) compiled once for each shape of batches; another is an error, not one more compilation."""
        programs = lowered or self.lowered_steps()
        with ThreadPoolExecutor(min(len(programs), os.cpu_count() or 1)) as threads:
            return Steps(zip(programs, threads.map(lambda program: program.compile(), programs.values()), strict=True))

    def batch(self, step: int, part=slice(None)) -> dict:
        """The batch of a step (from 0), or some of its rows."""
        return self.data.batch(step, self.objective.build, part)


def starting_parameters(workdir: str, tokenizer, abstract) -> dict:
    """The latest parameters of another run, laid out as `abstract` says. ConfigError when its tokens are others, CheckpointError when its
    shapes are."""
    other = open_run(workdir)
    if other.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise ConfigError(f"train.init={workdir} has another tokenizer than this run: set "
                          f"data.tokenizer={pathlib.Path(workdir) / 'tokenizer'}")
    item = "ema" if other.config.train.ema else "params"
    restored = other.checkpoints.restore({item: abstract})
    if restored is None:
        raise CheckpointError(f"train.init={workdir} has no checkpoint yet: train it first")
    return restored.items[item]


class Steps(dict):
    """Compiled train steps by the shape of their batches; called, the one that fits runs."""

    def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        """(the state after the step, its metrics)."""
        return self[batch["weights"].shape](state, batch)


def _release_memory():
    """Gives back to the system what compiling has used, which an allocator that keeps freed memory (lm/cli.py) would keep too.

    The peak of GPT-2 M on a CPU fell by a quarter. A C library without malloc_trim has no such allocator.
    """
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def set_up(config, workdir: str | pathlib.Path, progress: bool = False, mesh: jax.sharding.Mesh | None = None) -> Job:
    """Prepares data, resolves the config and lays out the state, by default over all devices; nothing is compiled yet."""
    mesh = mesh or make_mesh(config.mesh)
    layouts.check(config, dict(mesh.shape))
    _check_memory(config, mesh)
    return lay_out(config, workdir, prepare(config.data, config.data.tokenizer_seed, progress=progress), mesh)


def lay_out(config, workdir: str | pathlib.Path, prepared: PreparedData, mesh: jax.sharding.Mesh) -> Job:
    """The job of a config on a mesh, whose devices may be elsewhere: nothing is put on them."""
    layout = Layout.of(config.layout, dict(mesh.shape))
    objective = objectives.make(config, prepared.tokenizer, prepared.source_tokenizer)
    data = objective.data(prepared, config)
    model = objective.model(config, layout)
    flops, tokens = objective.train_flops(model), objective.tokens_per_step(data)
    config = configs.resolve(config, configs.Facts(tokens, data.steps_per_epoch, flops * tokens))
    optimizer, rate = optim.optimizer(config.optim, models.widening(config.model)), optim.schedule(config.optim, config.train.steps)
    lay = state_shardings(model, optimizer, mesh, bool(config.train.ema), config.layout)
    return Job(pathlib.Path(workdir), config, prepared, data, model, objective, mesh, optimizer, rate, lay, layout, flops)


def _check_memory(config, mesh):
    """ConfigError when something is to be kept in the host's memory and the devices' backend has no way to."""
    wants = [name for name, asked in (("layout.offload=optimizer", config.layout.offload == "optimizer"),
                                      ("model.remat_offload", config.model.remat_offload)) if asked]
    device = mesh.local_devices[0]
    # XLA's CPU backend can place a program's inputs there, but ignores what a program itself would send there.
    ignored = device.platform == "cpu" and config.model.remat_offload
    if ignored or (wants and "pinned_host" not in {memory.kind for memory in device.addressable_memories()}):
        raise ConfigError(f"{' and '.join(wants)} need memory of the host, which {device.platform} devices cannot use here: turn it off")
