"""Our side of the benchmarks: the train step of `scripts/train.py`, without its loop."""

import time

import jax
import numpy as np

from lm import models, optim
from lm.bench.shapes import Shape, config_of, random_tokens
from lm.bench.worker import peak_memory
from lm.metrics import train_flops_per_token
from lm.parallel import make_mesh
from lm.train.step import init_state, jitted_step, state_shardings


class Training:
    """Trains one shape; see `lm.bench.worker`."""

    def __init__(self, shape: list, overrides: dict | None = None):
        shape = Shape(*shape)
        config = config_of(shape)
        for key, value in (overrides or {}).items():
            section, name = key.split(".")
            config[section][name] = value
        self._config, self._mesh = config, make_mesh(config.mesh)
        self._model = models.build(config.model, shape.vocab_size, shape.context)
        self._optimizer = optim.optimizer(config.optim)
        tokens = random_tokens(shape)
        rows = np.ones((shape.batch, shape.context), np.int32)
        self._batch = jax.device_put({
            "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": rows.astype(np.float32), "segments": rows,
            "positions": np.broadcast_to(np.arange(shape.context, dtype=np.int32), rows.shape),
        })
        self.info = {"flops": train_flops_per_token(self._model, shape.context) * shape.tokens}

    def first(self) -> dict:
        """The first step, cold: seconds from nothing compiled to its loss."""
        start = time.perf_counter()
        config, lay = self._config, state_shardings(self._model, self._optimizer, self._mesh, False, self._config.layout)
        with jax.set_mesh(self._mesh):
            make = jax.jit(lambda key: init_state(self._model, self._optimizer, key, False), out_shardings=lay.state)
            self._state = make(jax.random.key(0))
            step = jitted_step(self._model, self._optimizer, optim.schedule(config.optim, 1000), config, self._mesh, lay)
            self._step = step.lower(self._state, self._batch).compile()
        (loss,) = self.steps(1, losses=True)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        return {"seconds": time.perf_counter() - start, "loss": loss, "parameters": parameters}

    def steps(self, count: int, losses: bool = False) -> list[float]:
        """Seconds of each of some steps, or their losses."""
        seconds, values = [], []
        for _ in range(count):
            start = time.perf_counter()
            self._state, metrics = self._step(self._state, self._batch)
            values.append(metrics["loss"].item())
            seconds.append(time.perf_counter() - start)
        return values if losses else seconds

    def memory(self) -> int:
        """Peak bytes of the process."""
        return peak_memory()
