"""How well a run translates: BLEU on a split of its pairs."""

import time

import numpy as np

from lm.data.files import write_json
from lm.errors import ConfigError, DataError
from lm.generate.translate import Translator, bleu, bleu_of, source_batch
from lm.objectives.span import Span
from lm.run import Run, open_run


def translator_of(workdir, step: int | None = None) -> tuple[Run, Translator, int]:
    """(run, translator, step) of a checkpoint, by default the latest. ConfigError unless the run is on pairs."""
    run = open_run(workdir)
    if not run.objective.paired:
        otherwise = "fill gaps with scripts/generate.py --prompt='The ____ of the union'" if isinstance(run.objective, Span) else \
            "use a run with objective.name=translation"
        raise ConfigError(f"{workdir} has model.name={run.config.model.name} and objective.name={run.config.objective.name}, which "
                          f"translates nothing: {otherwise}")
    params, step = run.parameters(step=step)
    return run, Translator(run.model, params, run.tokenizer, run.objective.source_tokenizer), step


def pairs_of(run: Run, split: str, limit: int) -> tuple[list[tuple[str, str]], int]:
    """(the first `limit` pairs of texts of a split (0 is all) whose source fits the model, how many of the split do not fit)."""
    prepared = run.prepare(", or use --input=FILE")
    most, found, left_out = run.model.max_positions or run.config.data.context, [], 0
    for store in prepared.pair_stores(split):
        sizes = np.diff(store.source.offsets)
        fitting = np.flatnonzero(sizes <= most)
        left_out += len(sizes) - len(fitting)
        fitting = fitting[: limit - len(found)] if limit else fitting
        sides = [[tokenizer.decode(tokens[:-1]) for tokens in side.read_documents(fitting)]
                 for side, tokenizer in ((store.source, prepared.source_tokenizer), (store.target, prepared.tokenizer))]
        found += zip(*sides, strict=True)
    return found, left_out


def score(workdir, split: str = "validation", limit: int = 0, beams: int = 4, alpha: float = 0.6, tokenize: str = "13a",
          step: int | None = None) -> tuple[dict, list[tuple[str, str, str]]]:
    """(BLEU, the share of translations that are their reference and how it was measured, (source, translation, reference) of each pair) on
    a split; the former is kept in the run's scores/."""
    if limit < 0:
        raise ConfigError(f"limit={limit} is not allowed: it is a number of pairs, or 0 for all")
    run, translator, step = translator_of(workdir, step)
    pairs, left_out = pairs_of(run, split, limit)
    if not pairs:
        raise DataError(f"the {split} split has no pair that fits data.context={run.config.data.context}")
    references = [target for _, target in pairs]
    if tokenize == "13a" and sum("\u4e00" <= c <= "\u9fff" for text in references for c in text) > sum(map(len, references)) / 4:
        raise ConfigError("the references are Chinese, whose words tokenize=13a does not find: use tokenize=zh")
    bleu_of(references, tokenize)  # what it lacks is said before minutes of search
    start = time.perf_counter()
    translations = [found.text for found in translator([source for source, _ in pairs], beams=beams, alpha=alpha)]
    seconds = time.perf_counter() - start
    exact = sum(text == reference for text, reference in zip(translations, references, strict=True)) / len(pairs)
    result = {"bleu": bleu(translations, references, tokenize), "exact": exact, "pairs": len(pairs), "left_out": left_out, "split": split,
              "step": step, "beams": beams, "alpha": alpha, "tokenize": tokenize, "seconds": round(seconds, 1)}
    if not run.tokenizer.lossless:
        result["tokenizer_lossless"] = False  # references are what its tokens say, not the text itself
    write_json(run.workdir / "scores" / "translation.json", result)
    return result, [(source, text, target) for (source, target), text in zip(pairs, translations, strict=True)]


def attention(run: Run, translator: Translator, text: str, translation: str) -> dict:
    """{"source": tokens [S], "target": tokens [T], "weights" [T][S]}: how much each token of a translation reads of each of its source."""
    source, target = run.objective.source_tokenizer, run.tokenizer
    sides = [[*tokenizer.encode(side).tolist(), tokenizer.eos_id] for tokenizer, side in ((source, text), (target, translation))]
    row = {"tokens": np.array([[target.bos_id, *sides[1][:-1]]], np.int32)}
    row |= {"segments": np.ones_like(row["tokens"]), "positions": np.arange(len(sides[1]), dtype=np.int32)[None]}
    weights = run.model.attention_weights(translator.params, row | source_batch(sides[:1], len(sides[0])))
    names = [[tokenizer.decode([i]) or "</s>" for i in side] for tokenizer, side in zip((source, target), sides, strict=True)]
    return {"source": names[0], "target": names[1], "weights": np.asarray(weights)[0].round(4).tolist()}
