"""A training run set up from its config: data, model, optimizer and where every array lies; nothing is compiled yet."""

import ctypes
import dataclasses
import functools
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import optax

from lm import config as configs
from lm import models, optim
from lm.data.feed import TrainingData
from lm.data.prepare import PreparedData, prepare
from lm.errors import ConfigError
from lm.metrics import train_flops_per_token
from lm.objectives import causal
from lm.parallel import Layout, batch_sharding, make_mesh
from lm.parallel import layout as layouts
from lm.train.step import Shardings, TrainState, init_state, jitted_step, state_shardings


@dataclasses.dataclass
class Job:
    """A training run, set up: everything that the loop needs."""

    workdir: pathlib.Path
    config: object
    prepared: PreparedData
    data: TrainingData
    model: models.LanguageModel
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
        """`init_state` under jit: its one trace serves `abstract_state` and `initial_state`."""
        return jax.jit(functools.partial(init_state, self.model, self.optimizer, with_ema=bool(self.config.train.ema)),
                       out_shardings=self.shardings)

    def initial_state(self) -> TrainState:
        """A fresh state, made in place on the mesh."""
        with jax.set_mesh(self.mesh):
            return self._init(jax.random.key(self.config.seed))

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        with jax.set_mesh(self.mesh):
            shapes = self._init.eval_shape(jax.random.key(self.config.seed))
        return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, self.shardings)

    def resumed_state(self, restored) -> TrainState:
        """The state in a restored checkpoint."""
        step = jax.device_put(jnp.asarray(restored.step, jnp.int32), self.shardings.step)
        return TrainState(step, restored.items["params"], restored.items["opt_state"], restored.items.get("ema"))

    def compiled(self, state: TrainState | None = None) -> tuple:
        """(the compiled train step, `state` or a fresh one, whose program is compiled beside the step's)."""
        with jax.set_mesh(self.mesh), ThreadPoolExecutor(1) as beside:
            fresh = None if state else beside.submit(self.initial_state)
            step = self.compile_step()
            state = state or fresh.result()
        _release_memory()
        return step, state

    def compile_step(self):
        """The train step compiled once, for the shapes of this run; anything else is an error instead of a second compilation."""
        row, rows, sharding = self.data.batch(0, self.build, slice(1)), self.config.data.global_batch, batch_sharding(self.mesh)
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=sharding), row)
        step = jitted_step(self.model, self.optimizer, self.learning_rate, self.config, self.mesh, self.lay)
        return step.lower(self.abstract_state(), batch).compile()

    def build(self, rows):
        """The batch of some rows."""
        return causal.build(rows, self.prepared.tokenizer.bos_id)


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
    layout = Layout.of(config.layout, dict(mesh.shape))
    prepared = prepare(config.data, config.data.tokenizer_seed, progress=progress)
    data = TrainingData(prepared.split_stores("train"), tuple(prepared.weights), config.data.context, config.data.global_batch, config.seed)
    model = models.build(config.model, prepared.tokenizer.vocab_size, config.data.context, layout)
    flops = train_flops_per_token(model, config.data.context)
    tokens = config.data.global_batch * config.data.context
    config = configs.resolve(config, configs.Facts(tokens, data.steps_per_epoch, flops * tokens))
    optimizer, rate = optim.optimizer(config.optim), optim.schedule(config.optim, config.train.steps)
    lay = state_shardings(model, optimizer, mesh, bool(config.train.ema), config.layout)
    return Job(pathlib.Path(workdir), config, prepared, data, model, mesh, optimizer, rate, lay, layout, flops)


def _check_memory(config, mesh):
    """ConfigError when something is to be kept in the host's memory and the devices' backend has no way to."""
    wants = [name for name, asked in (("layout.offload=optimizer", config.layout.offload == "optimizer"),
                                      ("model.remat_offload", config.model.remat_offload)) if asked]
    device = mesh.local_devices[0]
    # XLA's CPU backend can place a program's inputs there, but ignores what a program itself would send there.
    ignored = device.platform == "cpu" and config.model.remat_offload
    if ignored or (wants and "pinned_host" not in {memory.kind for memory in device.addressable_memories()}):
        raise ConfigError(f"{' and '.join(wants)} need memory of the host, which {device.platform} devices cannot use here: turn it off")
