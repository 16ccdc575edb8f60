"""BERT as the transformers library stores it (config.json and model.safetensors), and sentence embeddings (Reimers and Gurevych 2019)."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.errors import ConfigError, DataError
from lm.interop.tables import Row, dense, norm, parameters
from lm.models import Sizes, encoder
from lm.parallel import Layout

_THEIRS, _OURS = "encoder.layer.{layer}", "body/stack/{layer}"
TABLE: tuple[Row, ...] = (
    Row("embeddings.word_embeddings.weight", "inputs/tokens/embedding"),
    Row("embeddings.position_embeddings.weight", "inputs/positions/embedding"),
    Row("embeddings.token_type_embeddings.weight", "inputs/types/embedding"),
    *norm("embeddings.LayerNorm", "inputs/norm"),
    *dense(f"{_THEIRS}.attention.self.query", f"{_OURS}/attention/query"),
    *dense(f"{_THEIRS}.attention.self.key", f"{_OURS}/attention/key"),
    *dense(f"{_THEIRS}.attention.self.value", f"{_OURS}/attention/value"),
    *dense(f"{_THEIRS}.attention.output.dense", f"{_OURS}/attention/output"),
    *norm(f"{_THEIRS}.attention.output.LayerNorm", f"{_OURS}/attention_norm"),
    *dense(f"{_THEIRS}.intermediate.dense", f"{_OURS}/feed_forward/up"),
    *dense(f"{_THEIRS}.output.dense", f"{_OURS}/feed_forward/down"),
    *norm(f"{_THEIRS}.output.LayerNorm", f"{_OURS}/feed_forward_norm"),
    *dense("pooler.dense", "pooler"),
    *dense("cls.predictions.transform.dense", "masked/transform"),
    *norm("cls.predictions.transform.LayerNorm", "masked/norm"),
    Row("cls.predictions.bias", "masked/bias"),
    *dense("cls.seq_relationship", "next_sentence"),
)
# The tied output matrix and its bias once more, and numbers that need no storing.
IGNORED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "embeddings.position_ids")
# The other library's name of a non-linearity to ours.
ACTIVATIONS = {"gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}


def load_bert(folder, scan_layers: bool = True) -> tuple[encoder.EncoderModel, dict]:
    """(model, float32 parameters) of a folder with config.json and model.safetensors: BertModel, with or without its training heads.

    ConfigError where the config asks for what the model does not have, DataError where a file or a tensor is missing.
    """
    try:
        from safetensors.numpy import load_file  # an extra: training needs none of it
    except ImportError as error:
        raise ConfigError("reading .safetensors needs the package safetensors: pip install -e '.[parity]'") from error

    folder = pathlib.Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise DataError(f"there is no {name} in {folder}: name the folder of a model that the transformers library has saved")
    return from_tensors(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"), scan_layers)


def from_tensors(description: dict, tensors: dict[str, np.ndarray], scan_layers: bool = True) -> tuple[encoder.EncoderModel, dict]:
    """(model, parameters) of what config.json says and of the tensors by their names."""
    tensors = {name.removeprefix("bert."): value for name, value in tensors.items()}
    model = _model(description, set(tensors), scan_layers)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, parameters(TABLE, tensors, shapes, IGNORED)


def _model(description: dict, names: set[str], scan_layers: bool) -> encoder.EncoderModel:
    for key, only in (("model_type", "bert"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
        if key in description and description[key] != only:
            raise ConfigError(f"config.json has {key}={description[key]!r}, but only {only!r} can be read")
    activation = description["hidden_act"]
    if activation not in ACTIVATIONS:
        raise ConfigError(f"config.json has hidden_act={activation!r}, but only {', '.join(ACTIVATIONS)} can be read")
    section = config.default().model
    section.update(
        name="encoder", layers=description["num_hidden_layers"], width=description["hidden_size"], heads=description["num_attention_heads"],
        ff_width=description["intermediate_size"], activation=ACTIVATIONS[activation], positions="learned", norm="layernorm",
        norm_position="post", norm_eps=description["layer_norm_eps"], bias=True, token_types=description["type_vocab_size"],
        pooler="pooler.dense.weight" in names, next_sentence="cls.seq_relationship.weight" in names, scan_layers=scan_layers)
    model = encoder.build(section, Sizes(description["vocab_size"], description["max_position_embeddings"]), Layout())
    spec = dataclasses.replace(model.spec, masked_head="cls.predictions.bias" in names)
    return dataclasses.replace(model, module=encoder.Encoder(spec))


def sentence_embeddings(model, params, batch: dict) -> jax.Array:
    """[B, D] in float32, of length 1: the mean of each row's hidden states, padding apart. Inner products are cosine similarities."""
    hidden = model.encode(params, batch).astype(jnp.float32)
    real = (batch["segments"] > 0).astype(jnp.float32)[..., None]
    mean = jnp.sum(hidden * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1.0)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
