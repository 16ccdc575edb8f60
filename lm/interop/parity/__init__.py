"""Do both libraries compute the same? Models of transformers (PyTorch) beside what they are here, on random tokens.

Needs the extra parity.
"""

import importlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import models, run
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.interop import convert
from lm.interop.checkpoint_files import open_tensors

LENGTH = 96  # tokens of a compared row; a model that takes fewer gets as many as it takes


class Case(NamedTuple):
    """A small model of transformers with random parameters: what `make` gives. It has at least the 259 ids of bytes."""

    name: str
    make: Callable


def cases() -> Iterator[Case]:
    """All of them, family by family."""
    for name in ("decoders", "encoders", "encoder_decoders"):
        yield from importlib.import_module(f"lm.interop.parity.{name}").CASES


def torch_and_transformers():
    """Both modules. ConfigError where they are not installed."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError("comparing with transformers needs PyTorch and transformers: pip install -e '.[parity]'") from error
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def compare(workdir, folder, step: int | None = None, dtype: str = "float32", length: int = LENGTH, rows: int = 2) -> float:
    """The largest difference of outputs between a run and the folder that it came from, or went to, on random tokens.

    Both compute in float32, with weights that are rounded to `dtype`, as the folder's are.
    """
    opened = run.open_run(workdir)
    params, _ = opened.parameters(step=step)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    length = min(length, opened.model.max_positions or length)
    tokens = np.random.default_rng(0).integers(0, opened.tokenizer.vocab_size, (rows, length))
    outputs = _COMPARED[opened.config.model.name]
    return max(float(np.max(np.abs(ours - theirs))) for ours, theirs in outputs(opened.model, params, tokens, pathlib.Path(folder)))


def batch_of(tokens: np.ndarray, prefix: str = "") -> dict:
    """Whole rows [B, T] as a batch."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return {f"{prefix}tokens": jnp.asarray(tokens, jnp.int32), f"{prefix}segments": jnp.ones(tokens.shape, jnp.int32),
            f"{prefix}positions": positions}


def _opened(folder: pathlib.Path, kind: str):
    """A model of transformers in float32, from a folder or a .gguf file."""
    torch, transformers = torch_and_transformers()
    if folder.suffix != ".gguf":
        return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # What from_pretrained does with such a file, but that asks for the package accelerate first.
    config = transformers.AutoConfig.from_pretrained(folder.parent, gguf_file=folder.name)
    model = getattr(transformers, kind).from_config(config).float().eval()
    model.load_state_dict(load_gguf_checkpoint(str(folder), return_tensors=True, model_to_load=model)["tensors"], strict=False)
    model.tie_weights()
    return model


def _decoder(model, params, tokens, folder):
    torch, _ = torch_and_transformers()
    ours = model.logits(params, model.apply(params, batch_of(tokens)))
    with torch.no_grad():
        theirs = _opened(folder, "AutoModelForCausalLM")(torch.tensor(tokens)).logits
    yield np.asarray(ours), theirs.numpy()


def _encoder(model, params, tokens, folder):
    """Hidden states, and what the heads make of them."""
    torch, _ = torch_and_transformers()
    batch, spec = batch_of(tokens), model.spec
    batch["types"] = jnp.zeros_like(batch["tokens"])
    with torch.no_grad():
        theirs = _opened(folder, _architecture(folder))(torch.tensor(tokens), output_hidden_states=True)
    encoded = model.encode(params, batch)
    yield np.asarray(encoded), theirs.hidden_states[-1].numpy()
    if spec.masked_head:
        logits = theirs.prediction_logits if spec.next_sentence else theirs.logits
        yield np.asarray(models.logits_of(model.apply(params, batch), model.unembedding(params))), logits.numpy()
    if spec.next_sentence:
        follows = theirs.seq_relationship_logits if spec.masked_head else theirs.logits
        yield np.asarray(model.follows(params, encoded)), follows.numpy()
    elif spec.replaced_head:
        yield np.asarray(model.discriminate(params, batch)), theirs.logits.numpy()
    elif spec.pooler:
        yield np.asarray(model.pool(params, encoded)), theirs.pooler_output.numpy()


def _architecture(folder: pathlib.Path) -> str:
    """The class whose outputs are compared: heads are those of this class. ConfigError where config.json names none or several."""
    named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ConfigError(f"{folder / 'config.json'} has architectures={named!r}, but a comparison needs the one class that saved the "
                          'weights: add it, as in ["BertForMaskedLM"]')
    return named[0]


def _encoder_decoder(model, params, tokens, folder):
    torch, _ = torch_and_transformers()
    targets = tokens[:, ::-1].copy()
    ours = model.logits(params, model.apply(params, batch_of(targets) | batch_of(tokens, "source_")))
    with torch.no_grad():
        theirs = _opened(folder, "AutoModelForSeq2SeqLM")(input_ids=torch.tensor(tokens), decoder_input_ids=torch.tensor(targets)).logits
    yield np.asarray(ours), theirs.numpy()


_COMPARED = {"transformer": _decoder, "encoder": _encoder, "encoder_decoder": _encoder_decoder}


def check(case: Case, folder) -> dict:
    """One case in and out: {"case", "reference", "family", "parameters", "max_abs_diff", "round_trip"}; its files go under `folder`."""
    folder = pathlib.Path(folder)
    theirs, workdir, back = folder / "theirs", folder / "run", folder / "back"
    model = case.make()
    model.save_pretrained(theirs)
    imported = convert.import_run(theirs, workdir, tokenizer=ByteTokenizer())
    difference = compare(workdir, theirs)
    convert.export_run(workdir, back)
    return {"case": case.name, "reference": type(model).__name__, "family": imported["family"],
            "parameters": imported["parameters"], "max_abs_diff": difference, "round_trip": same_tensors(theirs, back)}


def same_tensors(folder, other) -> bool:
    """True where two folders have the same tensors, bit for bit and in the same types."""
    ones, others = open_tensors(folder), open_tensors(other)
    return set(ones) == set(others) and all(
        ones[name].dtype == others[name].dtype and ones[name].shape == others[name].shape and ones[name].tobytes() == others[name].tobytes()
        for name in ones)



def table(found: list[dict]) -> str:
    """Markdown of what `check` gave of several cases: a line for each family."""
    _, transformers = torch_and_transformers()
    families: dict[str, list[dict]] = {}
    for one in found:
        families.setdefault(one["family"], []).append(one)
    lines = ["| family | reference | cases | largest difference of outputs | there and back |", "| --- | --- | --- | --- | --- |"]
    for family, its in families.items():
        same = "bit for bit" if all(one["round_trip"] for one in its) else "changed"
        reference = f"transformers {transformers.__version__}, {' and '.join(sorted({one['reference'] for one in its}))}"
        lines.append(f"| {family} | {reference} | {len(its)} | {max(one['max_abs_diff'] for one in its):.1e} | {same} |")
    return "\n".join(lines)
