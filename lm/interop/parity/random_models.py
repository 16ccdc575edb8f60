"""Small models of transformers with random parameters, in which a tensor that is swapped, missing or turned round shows."""

import numpy as np

from lm.interop.parity import torch_and_transformers


def random_model(configuration: str, architecture: str, untied: tuple[str, ...] = (), **entries):
    """A model by the names of its classes, with `entries` in its config; the layers named in `untied` get a matrix of their own.

    Parameters are larger than a fresh model's, whose small logits and unit scales would hide errors.
    """
    torch, transformers = torch_and_transformers()
    model = getattr(transformers, architecture)(getattr(transformers, configuration)(**entries)).eval()
    for name in untied:
        old = getattr(model, name)
        setattr(model, name, torch.nn.Linear(old.in_features, old.out_features, bias=old.bias is not None))
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        value = rng.normal(size=tuple(parameter.shape)) * _scale(name, parameter)
        value += 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0  # a norm's
        parameter.data = torch.tensor(value.astype(np.float32))
    return model


def _scale(name: str, parameter) -> float:
    looked_up = parameter.ndim == 1 or any(part in name for part in ("shared", "embed", "wte", "wpe", "relative_attention_bias"))
    return 0.3 if looked_up else parameter.shape[-1] ** -0.5
