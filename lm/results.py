"""Tables of what runs measured, made from their work directories alone: nothing is typed by hand."""

import json

from lm.compare.costs import costs
from lm.compare.report import markdown
from lm.errors import DataError
from lm.metrics.writers import read_lines
from lm.run import open_run

# What is said of a run beside its costs, by what its objective can honestly report: {heading: (key of the evaluation or score, format)}.
SCORES = {
    "likelihood": {"bits per byte": ("bits_per_byte", "{:.3f}"), "+-": ("stderr", "{:.3f}")},
    "translation": {"bits per byte of the target": ("bits_per_byte", "{:.3f}"), "BLEU": ("bleu", "{:.1f}"),
                    "pairs translated": ("pairs", "{}")},
    "masked": {"masked accuracy": ("masked_accuracy", "{:.1%}"), "masked nats per token": ("masked_nats_per_token", "{:.3f}"),
               "pseudo-bits per byte": ("pseudo_bits_per_byte", "{:.3f}"),
               "next sentence right": ("next_sentence_accuracy", "{:.1%}")},
    "replaced": {"area under the discriminator's ROC curve": ("discriminator_auc", "{:.3f}"),
                 "discriminator accuracy": ("discriminator_accuracy", "{:.1%}"), "replaced tokens detected": ("replaced_recall", "{:.1%}"),
                 "share replaced": ("replaced_share", "{:.1%}")},
    "loss": {"nats per target": ("loss", "{:.3f}")},
    "words": {"similarity (Spearman)": ("similarity", "{:.3f}"), "gensim's": ("gensim_similarity", "{:.3f}"),
              "analogies right": ("analogy", "{:.1%}"), "gensim's analogies": ("gensim_analogy", "{:.1%}"),
              "words/s": ("words_per_second", "{:,.0f}"), "gensim's words/s": ("gensim_words_per_second", "{:,.0f}")},
    "vae": {"bits per byte, at most": ("bits_per_byte_bound", "{:.3f}"), "by importance sampling": ("bits_per_byte_sampled", "{:.3f}"),
             "nats of KL a sentence": ("kl", "{:.2f}")},
}


def result_of(workdir) -> dict:
    """What a run cost and what its last evaluation, and the scores that other commands left in it (scores/*.json), say.

    Scores of another step than the last, or of another split, are left out.
    """
    run = open_run(workdir)
    lines = read_lines(run.workdir / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        raise DataError(f"{workdir} has no line of training yet: train it first")
    spent, last, evaluations = costs(run, train), train[-1], [line for line in lines if line["kind"] == "eval"]
    scores: dict = {}
    for file in sorted((run.workdir / "scores").glob("*.json")):
        found = json.loads(file.read_text())
        if found.get("step") == last["step"] and found.get("split", run.config.eval.split) == run.config.eval.split:
            scores |= found
    # An evaluation has tokens and seconds of its own; those of training are meant.
    return {**(evaluations[-1] if evaluations else {}), **scores, "run": run.workdir.name, "measure": run.objective.measure,
            "model": run.config.model.name, "objective": run.config.objective.name,
            **{name: spent[name] for name in ("parameters", "tokens", "flops", "seconds")}}


def tables(results: list[dict]) -> str:
    """Markdown: a table for each kind of evaluation among the results, with the columns that one of its runs has something for."""
    parts = []
    for measure, columns in SCORES.items():
        chosen = [result for result in results if result["measure"] == measure]
        if chosen:
            known = {name for result in chosen for name, value in result.items() if value is not None}
            measured = {heading: (key, form) for heading, (key, form) in columns.items() if key in known}
            parts.append(markdown.table([_row(result, measured) for result in chosen]))
    return "\n\n".join(parts)


def _row(result: dict, columns: dict) -> dict:
    costs = {"run": result["run"], "objective": result["objective"], "parameters": f"{result['parameters']:,}",
             "tokens": f"{result['tokens']:,}", "training FLOPs": f"{result['flops']:.2g}" if result["flops"] else "0",
             "seconds": f"{result['seconds']:.0f}"}
    return costs | {heading: "" if result.get(key) is None else form.format(result[key]) for heading, (key, form) in columns.items()}
