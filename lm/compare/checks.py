"""What makes runs of a comparison fail, or scores that cannot be compared, found before anything is trained."""

import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from lm import config as configs
from lm.compare import ask as asks
from lm.compare import tuning
from lm.compare.ask import Ask
from lm.config.model_keys import COUNTED
from lm.data.files import read_json
from lm.data.tokenizers import Tokenizer
from lm.errors import ConfigError

# Of an arm: its config as it was written and as it is run, and the most tokens that its model reads, null for any number.
ARM = "arm.json"
# Measures of objectives (`lm.objectives.Objective.measure`) that have bits per byte.
SCORED = ("likelihood", "translation")


def check(ask: Ask, arms: Mapping[str, ConfigDict]) -> dict[str, int | None]:
    """ConfigError for what is wrong with one of the arms and references {name: config as it is run}, or with all together.

    Their text is prepared. Returns the most tokens that each reads in one piece, None for any number and for what does not decode.
    """
    from lm.compare.account import meter_of, prepared_text
    from lm.compare.latency import decodes

    for name, config in arms.items():
        check_arm(ask, name, config)
    texts = {name: prepared_text(config) for name, config in arms.items()}
    tokenizers = {name: text.tokenizer for name, text in texts.items()}
    check_lossless(arms, tokenizers)
    room: dict[str, int | None] = {}
    for name, config in arms.items():
        meter = meter_of(config, texts[name])
        room[name] = model.max_positions if decodes(model := meter.model(), meter.objective) else None
    check_prompts(ask.prompts, tokenizers, room)
    return room


def check_arm(ask: Ask, name: str, config: ConfigDict):
    """ConfigError for what would fail in every run of an arm, as it is run."""
    from lm import objectives

    if config.eval.split == "none":
        raise ConfigError(f"{name} has eval.split=none, and arms are compared by an evaluation: set --config.eval.split=validation")
    measure = objectives.OBJECTIVES[config.objective.name].measure
    if measure not in SCORED:
        raise ConfigError(f"{name} has objective.name={config.objective.name}, whose evaluation has no bits per byte to compare by: leave "
                          "it out, or give it objective.name=causal; scripts/train.py and scripts/report.py show runs of its own measure")
    tuned = ask.tune_keys is not None and name in {entry.name for entry in ask.configs}
    tuning.values_of(config, tuning.keys_of(config, ask.tune_keys) if tuned else (), 1.0)
    if ask.together == "yes" and config.model.name not in COUNTED:
        from lm.compare import together

        together.check(config)


def check_lossless(arms: Mapping[str, ConfigDict], tokenizers: Mapping[str, Tokenizer]):
    """ConfigError where tokenizers differ and one of them loses text: what is lost costs no bits, and bytes are counted before it is."""
    if len({tokenizer.fingerprint() for tokenizer in tokenizers.values()}) == 1:
        return
    lossy = next((name for name, tokenizer in tokenizers.items() if not tokenizer.lossless), None)
    if lossy:
        raise ConfigError(f"{lossy} has data.tokenizer={arms[lossy].data.tokenizer}, which cannot give back every text, and arms differ in "
                          "their tokenizers: what it loses costs it no bits per byte. Give all arms the same data.tokenizer, or each one "
                          "that loses nothing, such as bpe or bytes")


def check_prompts(prompts: Sequence[str], tokenizers: Mapping[str, Tokenizer], room: Mapping[str, int | None]):
    """ConfigError for a prompt of more tokens than an arm reads, with the one that begins a document where the tokenizer wants it."""
    for name, longest in room.items():
        for prompt in prompts if longest else ():
            length = max(1, len(tokenizers[name].encode(prompt)) + tokenizers[name].prompt_bos)
            if length > longest:
                raise ConfigError(f"--prompts={prompt[:40]!r}{'...' * (len(prompt) > 40)} has {length} tokens, and {name} reads "
                                  f"{longest} (data.context): shorten it")


def check_new_prompts(workdir, ask: Ask):
    """`check_prompts` of the arms of a sweep that is planned already, before others than it has are asked of it; loads no JAX."""
    from lm.data.prepare import prepare

    if not (pathlib.Path(workdir) / asks.FILE).exists() or asks.read(workdir).prompts == ask.prompts:
        return
    tokenizers, room = {}, {}
    for entry, _ in ask.entries:
        path = pathlib.Path(workdir) / "arms" / entry.name / ARM
        arm = read_json(path) if path.exists() else {}
        if arm.get("room"):
            data = configs.from_json(arm["config"]).data
            tokenizers[entry.name], room[entry.name] = prepare(data, data.tokenizer_seed).tokenizer, arm["room"]
    check_prompts(ask.prompts, tokenizers, room)
