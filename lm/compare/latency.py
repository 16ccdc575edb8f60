"""How long a model takes for a token: one row, decoded greedily by `lm.generate`."""

import statistics
import types

import numpy as np

from lm.generate import Generator, Sampling
from lm.models import LanguageModel
from lm.run import Run

PROMPT = NEW = 128  # tokens of the prompt and new ones; half of the context where that is less
_SEED = 0
_ENDLESS = -1  # stands for the end of a document, so that no row ends before its last token


def decodes(model, objective) -> bool:
    """Whether a model with its objective continues a text."""
    return isinstance(model, LanguageModel) and not objective.paired


def decode_latency(run: Run, params, repeats: int = 5) -> dict | None:
    """{"milliseconds_per_token", "prefill_tokens_per_second"} at batch 1 on one device, medians; None for models that do not decode.

    A token's time is that of all new ones less that of the first, the prompt's is that to its first new token; "milliseconds_per_token" is
    None where noise hides it. The prompt is drawn at random: what it says costs nothing.
    """
    if not decodes(run.model, run.objective):
        return None
    length = max(1, min(PROMPT, run.config.data.context // 2))
    new = max(2, min(NEW, run.config.data.context // 2))
    tokenizer = types.SimpleNamespace(stop_ids=(_ENDLESS,), bos_id=run.tokenizer.bos_id, pad_id=run.tokenizer.pad_id, prompt_bos=False,
                                      vocab_size=run.tokenizer.vocab_size)
    generator = Generator(run.model, params, tokenizer, prefix=run.objective.bidirectional_prompts)
    prompt = np.random.default_rng(_SEED).integers(0, run.tokenizer.vocab_size, length).astype(np.int32)
    # In turns, so that what else the machine does is in both; the first turn compiles.
    turns = [[_seconds(generator, prompt, count) for count in (1, new)] for _ in range(1 + repeats)][1:]
    rest = statistics.median(whole - first for first, whole in turns)
    return {"milliseconds_per_token": 1e3 * rest / (new - 1) if rest > 0 else None,
            "prefill_tokens_per_second": length / statistics.median(first for first, _ in turns)}


def _seconds(generator: Generator, prompt: np.ndarray, new: int) -> float:
    """Seconds to `new` tokens after a prompt."""
    generator([prompt], new, Sampling(temperature=0.0))
    return generator.seconds
