"""A small text and configs over it that train in seconds."""

import contextlib
import functools
import random
import re

import jax
from jax.experimental.compilation_cache import compilation_cache

from lm import config as configs
from lm.config.schema import SCHEMA
from lm.parallel import make_mesh
from lm.train import job as jobs


def write_corpus(folder):
    """60 documents of unequal length, one a line; returns the file."""
    words = re.findall(r"\w+", "we the people of union in order to form a more perfect state and secure peace for all")
    rng = random.Random(0)
    path = folder / "corpus.txt"
    path.write_text("".join(" ".join(rng.choices(words, k=rng.randint(3, 40))) + "\n" for _ in range(60)))
    return path


def small(corpus, **overrides):
    """A config over the text; overrides as keyword arguments with __ for the dot."""
    base = {"model.width": "16", "model.layers": "1", "data.source": f"text:{corpus}", "data.documents": "line", "data.tokenizer": "bytes",
            "data.context": "24", "data.global_batch": "8", "data.validation_fraction": "0.2", "train.steps": "4", "train.log_every": "1",
            "metrics.tensorboard": "false", "metrics.peak_flops": "1e9", "checkpoint.every": "0", "eval.every": "0", "data.workers": "1"}
    name = overrides.get("model__name", "transformer")
    if name == "transformer":
        base |= {"model.heads": "2", "model.scan_layers": "false"}
    if name == "ngram":
        base["model.order"] = "3"
    base = {key: value for key, value in base.items() if SCHEMA[key].families is None or name in SCHEMA[key].families}
    base |= {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return configs.validate(configs.override(configs.default(), base))


def one_device(monkeypatch):
    """Has runs take the first of the simulated devices."""
    monkeypatch.setattr(jobs, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


@contextlib.contextmanager
def compiled_once(folder):
    """A program that is asked for again meanwhile, by a run that is scored or goes on, comes from a folder."""
    options = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0,
               "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in options}

    def choose(chosen):
        for name, value in chosen.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    choose(options)
    try:
        yield
    finally:
        choose(before)
