"""How well a run translates: BLEU on a split of its pairs."""

import json
import time

import numpy as np

from lm.data.files import write_json
from lm.data.prepare import prepare
from lm.errors import ConfigError, DataError
from lm.generate.translate import Translator, bleu
from lm.models.encoder_decoder_base import EncoderDecoder
from lm.run import Run, open_run


def translator_of(workdir, step: int | None = None) -> tuple[Run, Translator]:
    """(run, translator) of a work directory. ConfigError unless its model reads a source."""
    run = open_run(workdir)
    if not isinstance(run.model, EncoderDecoder):
        raise ConfigError(f"{workdir} has model.name={run.config.model.name}, which reads no source: use scripts/generate.py")
    params, _ = run.parameters(step=step)
    return run, Translator(run.model, params, run.tokenizer, run.objective.source_tokenizer or run.tokenizer)


def pairs_of(run: Run, split: str, limit: int) -> list[tuple[str, str]]:
    """The first `limit` pairs of texts of a split (0 is all) whose source fits the model."""
    prepared = prepare(run.config.data, run.config.data.tokenizer_seed, progress=True)
    if prepared.fingerprint != json.loads((run.workdir / "config.json").read_text())["data"]:
        raise DataError(f"the data of {run.workdir} has changed since it was trained: restore it, or use --input=FILE")
    most, found = run.model.max_positions or run.config.data.context, []
    for store in prepared.pair_stores(split):
        fitting = np.flatnonzero(np.diff(store.source.offsets) <= most)
        fitting = fitting[: limit - len(found)] if limit else fitting
        sides = [[tokenizer.decode(tokens[:-1]) for tokens in side.read_documents(fitting)]
                 for side, tokenizer in ((store.source, prepared.source_tokenizer), (store.target, prepared.tokenizer))]
        found += zip(*sides, strict=True)
    return found


def score(workdir, split: str = "validation", limit: int = 0, beams: int = 4, alpha: float = 0.6, tokenize: str = "13a",
          step: int | None = None) -> tuple[dict, list[tuple[str, str, str]]]:
    """(BLEU and how it was measured, (source, translation, reference) of each pair) on a split; the former is kept in the run's scores/."""
    run, translator = translator_of(workdir, step)
    pairs = pairs_of(run, split, limit)
    if not pairs:
        raise DataError(f"the {split} split has no pair that fits data.context={run.config.data.context}")
    start = time.perf_counter()
    translations = [found.text for found in translator([source for source, _ in pairs], beams=beams, alpha=alpha)]
    seconds = time.perf_counter() - start
    result = {"bleu": bleu(translations, [target for _, target in pairs], tokenize), "pairs": len(pairs), "split": split, "beams": beams,
              "alpha": alpha, "tokenize": tokenize, "seconds": round(seconds, 1)}
    write_json(run.workdir / "scores" / "translation.json", result)
    return result, [(source, text, target) for (source, target), text in zip(pairs, translations, strict=True)]
