"""What models write: samples for a report, of prompts that were asked for or of passages that the runs of a comparison have in common."""

import itertools
from collections.abc import Sequence

from lm.compare.latency import decodes
from lm.data.prepare import PreparedData
from lm.generate import Generator, Sampling
from lm.run import Run

TEMPERATURES = (0.0, 0.8)  # of the samples of each prompt: greedy, and drawn
# Of passages: how many, of how many words, in how many documents and within how much of the text of each (in code points).
PASSAGES, WORDS, DOCUMENTS, WITHIN = 2, 8, 32, 2000
_LONGEST, _UNSPACED = 48, 16  # code points of a passage; of one in a text without blanks
_BYTES = 4  # of a character at most; no token has fewer than one
_SEED = 0


def samples(run: Run, params, prompts: Sequence[str]) -> list[dict]:
    """[{"prompt", "text", "temperature"}]: each prompt continued greedily and, with a seed of its own, by chance; [] without decoding."""
    if not prompts or not decodes(run.model, run.objective):
        return []
    generator = Generator(run.model, params, run.tokenizer, prefix=run.objective.bidirectional_prompts)
    found = []
    for temperature in TEMPERATURES:
        completions = generator(list(prompts), sampling=Sampling(temperature=temperature), seed=_SEED)
        found += [{"prompt": prompts[done.prompt], "text": run.tokenizer.continuation(done.tokens), "temperature": temperature}
                  for done in completions]
    return sorted(found, key=lambda sample: prompts.index(sample["prompt"]))


def passages(run: Run, prepared: PreparedData) -> list[str]:
    """A few words of some of the first documents of the text that a run is scored on, as far as its model has room for them.

    They depend on that text alone, so that runs with other tokenizers, which lose nothing of it, have the same ones; [] without decoding.
    """
    if not decodes(run.model, run.objective):
        return []
    room, found = run.model.max_positions, {}
    for store in prepared.split_stores(run.config.eval.split):
        for start, stop in itertools.pairwise(store.offsets[: DOCUMENTS + 1].tolist()):
            text = run.tokenizer.decode_bytes(store.read(start, min(stop, start + _BYTES * WITHIN))).decode(errors="ignore")[:WITHIN]
            passage = _passage(text)
            if passage and (room is None or len(run.tokenizer.encode(passage)) + run.tokenizer.prompt_bos < room):
                found[passage] = None
    return sorted(found, key=len, reverse=True)[:PASSAGES]  # a text of single words has no better ones


def _passage(text: str) -> str:
    """Words from the middle of a text, or how it begins where it has no blanks, as Chinese; empty where there is too little."""
    half = len(text) // 2
    if not any(letter.isspace() for letter in text):
        return text[:min(half, _UNSPACED)]
    return " ".join(text[half:].split()[1:WORDS + 1])[:_LONGEST].strip()  # the first may have begun before
