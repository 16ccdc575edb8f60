"""Configs small enough to be compiled in a test."""

from lm import cli
from lm import config as configs


def tiny(**overrides):
    """A Llama of two layers; `overrides` are keys with __ for the dot."""
    values = {"data.context": 256, "data.global_batch": 8, "data.vocab_size": 2048, "model.layers": 2, "model.width": 256, "model.heads": 2,
              "model.activation": "swiglu", "model.dtype": "bfloat16", "model.remat": "full", "mesh.fsdp": -1, "mesh.replica": 1}
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return configs.override(configs.default(), {key: str(value) for key, value in (values | given).items()})


def made_up() -> dict:
    """Where a plan that no compiler has made says that it lies."""
    folder = cli.cache_folder() / "plans" / "made-up"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.txt").write_text("a page")
    return {"folder": str(folder), "executable": None}
