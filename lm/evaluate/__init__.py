"""Evaluation: what each objective can honestly report of a model, on a split of its data or on other text."""

from collections.abc import Callable

import jax

from lm.config.validate import check_eval
from lm.data.buckets import bucket_lengths
from lm.data.pairs import PairStore
from lm.data.sources import open_source
from lm.data.store import TokenStore
from lm.errors import ConfigError
from lm.evaluate import denoising, likelihood, lower_bound, translation
from lm.parallel import AXES, Layout, make_mesh, replicated
from lm.run import Run, open_run

__all__ = ["MEASURES", "evaluate_run", "evaluate_stores", "headline", "make"]


def _likelihood(config, objective, model, mesh, shardings, layout, batch, stride):
    context = config.eval.context or config.data.context
    return likelihood.Evaluator(model, mesh, objective.tokenizer.bos_id, context, batch, stride, shardings,
                                layout, config.train.loss_chunk)


def _translation(config, objective, model, mesh, shardings, layout, batch, stride):
    lengths = bucket_lengths(tuple(config.data.buckets), config.data.context)
    return translation.Evaluator(objective, model, mesh, lengths, batch, shardings, layout, config.train.loss_chunk)


def _lower_bound(config, objective, model, mesh, shardings, layout, batch, stride):
    return lower_bound.Evaluator(objective, model, mesh, batch, shardings, layout, config.train.loss_chunk)


def _corrupted(kind):
    def build(config, objective, model, mesh, shardings, layout, batch, stride):
        return kind(objective, model, mesh, batch, shardings, layout, config.train.loss_chunk, config.eval.pseudo_tokens)

    return build, kind.headline


# By an objective's `measure`: what makes an evaluator, called as (params, stores, max_tokens, beat) -> dict, and its first line.
MEASURES = {
    "likelihood": (_likelihood, likelihood.headline),
    "translation": (_translation, likelihood.headline),
    "vae": (_lower_bound, lower_bound.headline),
    "loss": _corrupted(denoising.Corrupted),
    "words": _corrupted(denoising.Corrupted),
    "masked": _corrupted(denoising.MaskedText),
    "replaced": _corrupted(denoising.ReplacedTokens),
}


def make(config, objective, model, mesh, shardings=None, layout: Layout = Layout(), batch: int | None = None,  # noqa: B008 - it is immutable
         stride: int | None = None):
    """The evaluator of a run's objective; `shardings` are where the parameters lie, batch and stride are eval.batch and eval.stride."""
    if not objective.scores_text:
        raise ConfigError(f"objective.name={config.objective.name} has nothing to say of other text: set eval.split=none, and ask "
                          "scripts/words.py what its vectors know")
    build, _ = MEASURES[objective.measure]
    batch = batch or config.eval.batch or config.data.global_batch
    evaluator = build(config, objective, model, mesh, shardings, layout, batch, stride or config.eval.stride)
    return evaluator if objective.tokenizer.lossless else _says_lossy(evaluator)


def _says_lossy(evaluator):
    """`evaluator` of tokens that are not all of the text: its bits per byte leave out what was lost, and its results say so."""
    return lambda *arguments, **options: evaluator(*arguments, **options) | {"tokenizer_lossless": False}


def headline(objective, result: dict) -> str:
    """An evaluation in a few words."""
    return MEASURES[objective.measure][1](result)


def evaluate_run(workdir, step: int | None = None, split: str = "validation", data: str | None = None, batch: int | None = None,
                 stride: int | None = None, pseudo_tokens: int | None = None, tell: Callable | None = None,
                 context: int | None = None) -> dict:
    """The evaluation of a run's checkpoint (default: the latest) on a split of its data, or on another source, over all local devices.

    `batch`, `stride`, `pseudo_tokens` and `context` are by default those of the run's eval section. Of a model that gives text a
    likelihood, `tell` is called with what every token cost (`likelihood.Evaluator.__call__`).
    """
    run = open_run(workdir)
    for option, given, measure in (("stride", stride, "likelihood"), ("context", context, "likelihood"),
                                   ("pseudo_tokens", pseudo_tokens, "masked")):
        if given is not None and run.objective.measure != measure:
            raise ConfigError(f"--{option} is not for objective.name={run.config.objective.name}: leave it out")
    if pseudo_tokens is not None and pseudo_tokens < 0:
        raise ConfigError(f"pseudo_tokens={pseudo_tokens} is not allowed: it must be at least 0")
    if pseudo_tokens is not None:
        run.config.eval.pseudo_tokens = pseudo_tokens
    for option, given in (("batch", batch), ("context", context), ("stride", stride)):
        if given is not None and given < 1:
            raise ConfigError(f"{option}={given} is not allowed: it must be at least 1")
    run.config.eval.update(context=context or run.config.eval.context, stride=stride or run.config.eval.stride)
    check_eval(run.config)
    stores = _other_stores(run, data) if data else run.objective.stores(run.prepare(", or use --data=FILE"), split)
    return evaluate_stores(run, stores, step, batch, stride, tell) | {"split": None if data else split, "data": data}


def evaluate_stores(run: Run, stores: list, step: int | None = None, batch: int | None = None, stride: int | None = None,
                    tell: Callable | None = None) -> dict:
    """{"step", ...the evaluation of stores of the objective's kind}, by a run's checkpoint over all local devices; see `evaluate_run`."""
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"replica": -1})
    params, step = run.parameters(replicated(mesh), step)
    evaluator = make(run.config, run.objective, run.model, mesh, replicated(mesh), batch=batch, stride=stride)
    with jax.set_mesh(mesh):
        result = evaluator(params, stores, tell=tell) if tell else evaluator(params, stores)
    return {"step": step, **result}


def _other_stores(run: Run, data: str) -> list:
    source = open_source(data, run.config.data)
    pairs = run.objective.paired
    if source.paired != pairs:
        raise ConfigError(f"{data} holds {'pairs' if source.paired else 'texts'}, and {run.workdir} was trained on "
                          f"{'pairs: give pairs:FILE' if pairs else 'texts'}")
    if pairs:
        return [PairStore.from_documents(source.documents(), run.objective.source_tokenizer, run.tokenizer)]
    return [TokenStore.from_documents(source.documents(), run.tokenizer)]
