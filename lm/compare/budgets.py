"""What a comparison holds equal. A budget is KIND:AMOUNT:

| kind | what every arm has as much of | what follows |
|---|---|---|
| parameters | parameters | sizes, by the rule of each family (`lm.compare.rules`) |
| parameters.nonembedding | parameters without tables that have a row for each token or position (Kaplan et al. 2020) | sizes |
| parameters.active | parameters used for one token: all, less the rows that a lookup does not read | sizes |
| inference | FLOPs of decoding one token, at the mean position of the config's context | sizes |
| memory | bytes of training at its peak: arguments and temporaries of the compiled step, as XLA assigns them | sizes |
| flops | FLOPs of training in all, by our one account (`Objective.train_flops`) | sizes and length |
| tokens | tokens of training; sizes stay as they are written | length |
| seconds | seconds in steps on this machine; sizes stay as they are written | length, each arm's own |

Steps and batches are the same in all arms, and so the tokens, for all kinds but `seconds`: arms differ in what they make of the same
text. They share every key of the data that says what a batch is, and every key of the evaluation that says what a score is of. Where the
tokenizer is what is compared, none may lose text, and lengths are such that all see as many bytes; a number of tokens is then the first
config's. With `flops` and no number of tokens, the first config keeps its size and so decides how many steps the budget is; with sizes
kept as written, each arm's length follows from its own FLOPs, and tokens differ.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from lm.config import SCHEMA, flatten
from lm.errors import ConfigError

# What each kind is counted in.
KINDS = {"parameters": "parameters", "parameters.nonembedding": "parameters beside embeddings",
         "parameters.active": "parameters used for a token", "flops": "training FLOPs", "tokens": "tokens", "seconds": "seconds in steps",
         "memory": "bytes of training memory", "inference": "FLOPs of decoding a token"}
# Kinds that sizes are solved for.
SIZED = ("parameters", "parameters.nonembedding", "parameters.active", "flops", "memory", "inference")
# How far from its budget an arm may be, as a share.
TOLERANCE = 0.01
# Keys of the data that say how text becomes tokens, and not which text and which batches.
TOKENIZER_KEYS = tuple(f"data.{leaf}" for leaf in (
    "tokenizer", "vocab_size", "source_tokenizer", "source_vocab_size", "joint_tokenizer", "min_count", "lower_case", "allow_lossy",
    "bos_token", "eos_token", "prompt_bos", "chat_template", "tokenizer_sample_bytes", "tokenizer_seed"))
# Keys that say of which text a score is, and how much of it a token may be told by.
SCORE_KEYS = ("eval.split", "eval.max_tokens", "eval.context", "eval.stride")
# Keys of the data in which runs of one law may differ: they change neither the text nor what is asked of it.
_OF_BATCHES = ("data.global_batch", "data.buckets")


class Budget(NamedTuple):
    """An amount of one of KINDS."""

    kind: str
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:.12g}"

    def to_json(self) -> dict:
        """{"kind", "amount"}."""
        return self._asdict()

    def error(self, met: float) -> float:
        """How far from the amount something is, as a share of it; negative below it."""
        return met / self.amount - 1


def parse(text: str) -> Budget:
    """The budget of KIND:AMOUNT, such as flops:1e13. ConfigError that names the choices."""
    kind, colon, amount = text.partition(":")
    if kind not in KINDS or not colon:
        raise ConfigError(f"--budget={text}: use KIND:AMOUNT such as flops:1e13, where KIND is one of {', '.join(KINDS)}")
    try:
        value = float(amount)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"--budget={text}: {amount or 'nothing'} is not an amount of {KINDS[kind]}: use a number above 0, such as "
                          f"{kind}:1e13")
    return Budget(kind, value)


def check_same_data(configs: dict) -> list[str]:
    """Keys of the tokenizer in which configs {name: config} differ. ConfigError where they differ in other keys that make batches, or in
    what their scores are of."""
    found = differing(configs, (*_data_keys(), *SCORE_KEYS))
    for key, both in found.items():
        if key not in TOKENIZER_KEYS:
            shared = "are scored on the same text in the same way" if key in SCORE_KEYS else "see the same batches"
            raise ConfigError(f"{both}: arms of a comparison {shared}, so give both the same value")
    return list(found)


def check_one_text(configs: dict, by_token: bool) -> list[str]:
    """The same of runs that one law is fitted to, whose batches may differ and whose losses may be `by_token`: ConfigError then where
    tokenizers differ too."""
    found = differing(configs, (*(key for key in _data_keys() if key not in _OF_BATCHES), *SCORE_KEYS, "eval.pseudo_tokens"))
    for key, both in found.items():
        if key not in TOKENIZER_KEYS:
            raise ConfigError(f"{both}: laws are of one text and one evaluation of it; fit such runs apart")
        if by_token:
            raise ConfigError(f"{both}: nats of different tokens are no one loss; use --measure=bits_per_byte")
    return list(found)


def differing(configs: dict, keys: Iterable[str]) -> dict[str, str]:
    """Those of the keys in which a config of {name: config} differs from the first, each with a sentence that says in what."""
    (first, own), *others = [(name, flatten(config)) for name, config in configs.items()]
    found = {}
    for key in keys:
        other = next(((name, flat) for name, flat in others if flat[key] != own[key]), None)
        if other:
            found[key] = f"{first} has {key}={own[key]} and {other[0]} {key}={other[1][key]}"
    return found


def _data_keys() -> list[str]:
    """Keys of the data that change what a run computes."""
    return [key for key, described in SCHEMA.items() if key.startswith("data.") and described.resume != "free"]
