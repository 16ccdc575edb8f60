"""Is this a run that can work? Every key alone, then the keys together; nothing here touches data or devices."""

import difflib
import math
import re

from lm.config import durations
from lm.config.key import Key
from lm.config.model_keys import COUNTED, ENCODER_DECODER, ENCODERS, GATED, POSITIONS, REMAT_NAMES, SCALING_KEYS, TRANSFORMERS
from lm.config.objective_keys import OF_WORDS, TRAINS
from lm.config.schema import SCHEMA
from lm.errors import ConfigError

# Optimizers whose rates muP knows: those whose steps have the same size whatever that of the gradient, and Muon.
MUP_OPTIMIZERS = ("adamw", "adam", "lion", "muon")
# Objectives whose models are evaluated by the likelihood of rows of text.
LIKELIHOODS = ("causal", "infill", "prefix")


def unknown_key(key: str) -> ConfigError:
    """The error for a key that the schema does not have, with the nearest one that it has."""
    leaves = {name.rsplit(".", 1)[-1]: name for name in reversed(SCHEMA)}  # of equal ones the first of the schema
    by_name = difflib.get_close_matches(key, SCHEMA, n=1, cutoff=0.6)
    by_leaf = [leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.6)]
    # An attribute that a config file sets is known by its leaf alone.
    near = by_name + by_leaf if "." in key else by_leaf + by_name
    hint = f"; did you mean {near[0]}?" if near else "; lm/config/schema.py lists the keys"
    return ConfigError(f"unknown config key {key}{hint}")


def check_value(name: str, value):
    """The value as the schema's type (an int becomes a float where a float is meant); ConfigError when it does not fit."""
    key = SCHEMA[name]
    if key.kind == "duration":
        durations.parse(name, value)
        return value
    if key.kind in ("strings", "floats"):
        return _check_tuple(name, value, str if key.kind == "strings" else float)
    wanted = type(key.default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name}={value!r} is {_article(type(value))}, but {_article(wanted)} is meant: {key.doc}")
    _check_range(name, value, key)
    return value


def _article(kind: type) -> str:
    name = {str: "string", bool: "true/false value", int: "whole number", float: "decimal number"}.get(kind, kind.__name__)
    return f"a {name}"


def _check_tuple(name, value, wanted):
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{name}={value!r} is not a list")
    items = tuple(float(item) if wanted is float and type(item) is int else item for item in value)
    for item in items:
        if type(item) is not wanted:
            raise ConfigError(f"{name}: {item!r} is {_article(type(item))}, but {_article(wanted)} is meant")
        if wanted is float and not math.isfinite(item):
            raise ConfigError(f"{name}: {item} is not a finite number")
    return items


def _check_range(name: str, value, key: Key):
    if key.choices is not None and value not in key.choices:
        allowed = ", ".join(str(choice) for choice in key.choices)
        reason = " (float16 overflows without loss scaling; use bfloat16)" if value == "float16" else ""
        raise ConfigError(f"{name}={value!r} is not allowed: use {allowed}{reason}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number")
    bounds = [(key.minimum, lambda v, b: v >= b, "at least"), (key.maximum, lambda v, b: v <= b, "at most"),
              (key.above, lambda v, b: v > b, "above")]
    for bound, holds, words in bounds:
        if bound is not None and not holds(value, bound):
            raise ConfigError(f"{name}={value} is not allowed: it must be {words} {bound}")


def check_combinations(config):
    """Keys that are fine alone and wrong together."""
    _check_family_keys(config)
    _check_objective(config)
    _check_model(config)
    _check_mup(config)
    _check_em(config)
    if config.train.init and config.model.name in COUNTED:
        raise ConfigError(f"train.init is not read by model.name={config.model.name}, which is made by counting: remove it")
    data, train = config.data, config.train
    if not data.source or any(not source for source in data.source):
        raise ConfigError("data.source is empty: name at least one source, such as sotu or text:FOLDER/*.txt")
    if data.weights and len(data.weights) != len(data.source):
        raise ConfigError(f"data.weights has {len(data.weights)} entries for {len(data.source)} sources in data.source")
    if any(weight <= 0 for weight in data.weights):
        raise ConfigError("data.weights must all be above 0: leave a source out instead of giving it no weight")
    if data.global_batch % train.accumulate:
        raise ConfigError(f"data.global_batch={data.global_batch} cannot be cut into train.accumulate={train.accumulate} micro-batches")
    if train.loss_chunk and data.context % train.loss_chunk:
        raise ConfigError(f"train.loss_chunk={train.loss_chunk} does not divide data.context={data.context}")
    check_eval(config)
    if config.eval.split == "test" and data.test_fraction == 0 and not any(s.startswith("store:") for s in data.source):
        raise ConfigError("eval.split=test needs data.test_fraction above 0")
    _check_mesh(config.mesh)
    if not re.fullmatch(r"((cpu|gpu|tpu)(:[1-9]\d*)?)?", config.processes.require_accelerator):
        raise ConfigError(f"processes.require_accelerator={config.processes.require_accelerator} is not allowed: use cpu, gpu or tpu, "
                          "with or without a number of devices as in tpu:256, or nothing")


def check_eval(config):
    """ConfigError where rows of an evaluation are not what the model can read."""
    model, data, given = config.model, config.data, config.eval.context
    name, context = ("eval.context", given) if given else ("data.context", data.context)
    if config.eval.stride > context:
        raise ConfigError(f"eval.stride={config.eval.stride} is more than {name}={context}: some tokens would not be scored")
    if config.eval.pseudo_tokens and config.objective.name != "masked":
        raise ConfigError(f"eval.pseudo_tokens={config.eval.pseudo_tokens} is for objective.name=masked, and not for "
                          f"{config.objective.name}: remove it")
    if not given:
        return
    if config.objective.name not in LIKELIHOODS:
        raise ConfigError(f"eval.context={given} is for objective.name={', '.join(LIKELIHOODS)}, whose evaluation is a likelihood of rows "
                          f"of text, and not for {config.objective.name}: remove it")
    longest = model.max_positions or (data.context if model.positions == "learned" else given)
    if model.name in TRANSFORMERS and given > longest:
        raise ConfigError(f"eval.context={given} is more than the {longest} tokens that the model can take (by model.max_positions or "
                          "model.positions=learned): lower it, or use positions without a table")
    chunk = config.train.loss_chunk
    if chunk and given % min(chunk, given):
        raise ConfigError(f"train.loss_chunk={chunk} does not divide eval.context={given}: use a multiple of it")


def _check_mesh(mesh):
    sizes = {axis: mesh[axis] for axis in (name.removeprefix("mesh.") for name in SCHEMA if name.startswith("mesh."))}
    for axis, size in sizes.items():
        if size == 0 or size < -1:
            raise ConfigError(f"mesh.{axis}={size} is not allowed: use a number of devices, or -1 for all that are left")
    left = [f"mesh.{axis}" for axis, size in sizes.items() if size == -1]
    if len(left) > 1:
        raise ConfigError(f"{' and '.join(left)} are {'both' if len(left) == 2 else 'all'} -1: only one axis can take the devices "
                          "that are left")


def _check_family_keys(config):
    for name, key in SCHEMA.items():
        if key.families is None or config.model.name in key.families:
            continue
        if config.model[name.removeprefix("model.")] != key.default:
            raise ConfigError(f"{name} is not read by model.name={config.model.name} (only by {', '.join(key.families)}): remove it")


def _check_em(config):
    model, optim = config.model.name, config.optim
    if (model == "hmm") != (optim.name == "em"):
        raise ConfigError(f"optim.name={optim.name} does not train model.name={model}: model.name=hmm, and no other, needs optim.name=em")
    if optim.name != "em":
        return
    needed = {"optim.learning_rate": 1.0, "optim.schedule": "constant", "optim.warmup": 0, "optim.clip": 0.0, "optim.weight_decay": 0.0,
              "train.z_loss": 0.0, "train.ema": 0.0}
    for name, value in needed.items():
        section, leaf = name.split(".")
        if config[section][leaf] != value:
            raise ConfigError(f"{name}={config[section][leaf]} does not go with optim.name=em, whose steps lead to exact counts: "
                              f"set {name}={value}")


def _check_objective(config):
    chosen = config.objective.name
    for name, key in SCHEMA.items():
        if key.objectives is None or chosen in key.objectives:
            continue
        if config.objective[name.removeprefix("objective.")] != key.default:
            raise ConfigError(f"{name} is not read by objective.name={chosen} (only by {', '.join(key.objectives)}): remove it")
    if config.data.tokenizer == "words" and chosen not in OF_WORDS:
        raise ConfigError(f"data.tokenizer=words loses case, spaces and rare words, so that objective.name={chosen} could not say what "
                          "text costs: use bpe, unigram or bytes")
    if chosen in ("span", "denoisers") and (config.objective.form == "decoder") != (config.model.name == "transformer"):
        wanted = "decoder" if config.model.name == "transformer" else "encoder_decoder"
        raise ConfigError(f"objective.form={config.objective.form} is not for model.name={config.model.name}: use {wanted}")
    if (config.objective.sentences == "next") != config.model.next_sentence:
        raise ConfigError(f"objective.sentences={config.objective.sentences} and model.next_sentence={config.model.next_sentence} do not "
                          "fit: pairs of sentences (next) need the head that tells them apart, and nothing else trains it")
    if config.objective.sentences == "next" and config.model.token_types == 1:
        raise ConfigError("objective.sentences=next tells two parts of a row apart: set model.token_types=2, or 0 for none")
    if config.model.name not in TRAINS[chosen]:
        fitting = [objective for objective, families in TRAINS.items() if config.model.name in families]
        raise ConfigError(f"objective.name={chosen} trains {', '.join(TRAINS[chosen])}, not model.name={config.model.name}: "
                          f"use {' or '.join(fitting)} with it")


def _check_remat(model):
    named = {"model.remat_save": model.remat_save, "model.remat_offload": model.remat_offload}
    for key, names in named.items():
        for name in names:
            if name not in REMAT_NAMES:
                raise ConfigError(f"{key}: there is no tensor {name!r} in a layer: use some of {', '.join(REMAT_NAMES)}")
        if "ff_gate" in names and model.activation not in GATED:
            raise ConfigError(f"{key}: ff_gate is a tensor of model.activation={', '.join(GATED)} alone, not of {model.activation}")
        if names and model.remat != "names":
            raise ConfigError(f"{key} is read by model.remat=names alone, not by model.remat={model.remat}")
    both = set(model.remat_save) & set(model.remat_offload)
    if both:
        raise ConfigError(f"model.remat_save and model.remat_offload both name {', '.join(sorted(both))}: keep it in one place")
    if model.remat == "names" and not any(named.values()):
        raise ConfigError("model.remat=names names no tensor: set model.remat_save or model.remat_offload, or use model.remat=full")


def _check_model(config):
    model = config.model
    if model.name not in TRANSFORMERS + ENCODERS + ENCODER_DECODER:
        if model.remat in ("dots", "names"):
            raise ConfigError(f"model.remat={model.remat} is for transformers; model.name={model.name} takes none or full")
        return
    _check_remat(model)
    check_positions(model)
    if not model.head_width and model.width % model.heads:
        raise ConfigError(f"model.width={model.width} is not a multiple of model.heads={model.heads}: change one, or set model.head_width")
    if model.kv_heads and model.heads % model.kv_heads:
        raise ConfigError(f"model.heads={model.heads} is not a multiple of model.kv_heads={model.kv_heads}")
    if model.positions == "sinusoidal" and model.width % 2:
        raise ConfigError(f"model.positions=sinusoidal needs an even model.width, not {model.width}")
    _check_rope(model, model.max_positions or config.data.context)
    _check_layers(model)


def check_positions(model):
    """ConfigError unless model.positions is one of those that the family has."""
    allowed = POSITIONS[model.name]
    if model.positions not in allowed:
        raise ConfigError(f"model.positions={model.positions} is not for model.name={model.name}: use {', '.join(allowed)}")


def _check_mup(config):
    model, base = config.model, config.model.mup_base_width
    if not base:
        return
    if model.tie_embeddings:
        raise ConfigError(f"model.mup_base_width={base} has one rate for the embedding and another for the output matrix, which "
                          "model.tie_embeddings makes one: set model.tie_embeddings=false")
    if config.optim.name not in MUP_OPTIMIZERS:
        raise ConfigError(f"model.mup_base_width={base} knows the rates of optim.name={', '.join(MUP_OPTIMIZERS)}, not of "
                          f"{config.optim.name}: use one of them")
    if config.optim.name == "adam" and config.optim.weight_decay:
        raise ConfigError(f"model.mup_base_width={base} has decay beside the step, and optim.name=adam adds it to gradients: use adamw")
    if model.embedding_width:
        raise ConfigError(f"model.embedding_width={model.embedding_width} stays while model.width grows from model.mup_base_width={base}: "
                          "set model.embedding_width=0")
    if not model.scale_attention:
        raise ConfigError(f"model.mup_base_width={base} sets how logits of attention are scaled: set model.scale_attention=true")


def _check_rope(model, context):
    for leaf in ("rope_share", "rope_scaling", *SCALING_KEYS):
        scalings, value, default = SCALING_KEYS.get(leaf), model[leaf], SCHEMA[f"model.{leaf}"].default
        if value != default and model.positions != "rope":
            raise ConfigError(f"model.{leaf}={value} is read by model.positions=rope alone, not by {model.positions}: remove it")
        if value != default and scalings and model.rope_scaling not in scalings:
            raise ConfigError(f"model.{leaf}={value} is read by model.rope_scaling={', '.join(scalings)} alone, not by "
                              f"{model.rope_scaling}: remove it")
    if model.positions != "rope":
        return
    head_width = model.head_width or model.width // model.heads
    turned = int(head_width * model.rope_share)
    if turned % 2 or not turned:
        raise ConfigError(f"model.positions=rope turns pairs of units, but the head width is {head_width}: make it even"
                          if model.rope_share == 1 else
                          f"model.rope_share={model.rope_share} of a head width of {head_width} is {turned} units, but pairs are turned: "
                          "choose a share that gives an even number above 0")
    _check_scaling(model, turned, model.rope_original_context or context)


def _check_scaling(model, turned: int, context: int):
    if model.rope_scaling == "dynamic" and turned == 2:
        raise ConfigError("model.rope_scaling=dynamic stretches all wavelengths but the first, and 2 turned units have no other: turn more")
    if model.rope_scaling in ("yarn", "longrope") and context < 2:
        raise ConfigError(f"model.rope_scaling={model.rope_scaling} needs an original context of at least 2 tokens, not {context}")
    if model.rope_scaling == "llama3" and model.rope_high_frequency <= model.rope_low_frequency:
        raise ConfigError(f"model.rope_high_frequency={model.rope_high_frequency} must be above model.rope_low_frequency="
                          f"{model.rope_low_frequency}")
    if model.rope_scaling == "yarn" and model.rope_beta_fast < model.rope_beta_slow:
        raise ConfigError(f"model.rope_beta_fast={model.rope_beta_fast} must be at least model.rope_beta_slow={model.rope_beta_slow}")
    if model.rope_scaling != "longrope":
        return
    for leaf in ("rope_short_factors", "rope_long_factors"):
        if len(model[leaf]) != turned // 2:
            raise ConfigError(f"model.{leaf} has {len(model[leaf])} entries for {turned // 2} wavelengths, one for each pair of units")
        if any(factor <= 0 for factor in model[leaf]):
            raise ConfigError(f"model.{leaf} must all be above 0")


def _check_layers(model):
    if model.parallel_residual and model.norm_position != "pre":
        raise ConfigError(f"model.parallel_residual reads a normalised input, which model.norm_position={model.norm_position} has not: set "
                          "model.norm_position=pre")
    if model.qk_norm_over != "head" and not model.qk_norm:
        raise ConfigError(f"model.qk_norm_over={model.qk_norm_over} is read with model.qk_norm=true alone: set it, or remove the other")
    if model.window_from and not model.attention_window:
        raise ConfigError(f"model.window_from={model.window_from} is read with model.attention_window alone: set it, or remove the other")
    if model.window_from >= model.layers:
        raise ConfigError(f"model.window_from={model.window_from} leaves model.attention_window no layer of model.layers={model.layers}: "
                          "set model.attention_window=0 and model.window_from=0, or a lower model.window_from")
