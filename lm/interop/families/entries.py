"""The entries of a config.json, each accounted for: what nobody reads and is not known to be harmless is an error, not a guess."""

from lm.errors import ConfigError

# Entries that say how to train, store, serve or generate, but not what the model computes.
HARMLESS = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_flash_attn_2_enabled", "_name_or_path", "_num_labels",
    "architectures", "attention_dropout", "attn_pdrop", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "chunk_size_feed_forward", "classifier_dropout", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "embd_pdrop", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "hidden_dropout", "id2label", "initializer_range",
    "is_llama_config", "label2id", "length_penalty", "max_length", "min_length", "model_max_length", "model_type", "n_ctx",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "remove_invalid_values", "reorder_and_upcast_attn", "repetition_penalty", "resid_pdrop", "return_dict", "return_dict_in_generate",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tokenizer_class", "tokenizer_padding_side", "top_k", "top_p",
    "torch_dtype", "transformers.js_config", "transformers_version", "typical_p", "unk_token_id", "unsloth_fixed", "unsloth_version",
    "use_bfloat16", "use_cache",
))


def unsupported(name: str, value, allowed) -> ConfigError:
    """The error of an entry whose value we do not have."""
    return ConfigError(f"config.json has {name}={value!r}, but only {' or '.join(repr(one) for one in allowed)} can be read")


class Entries:
    """Reads a config.json entry by entry and remembers which. An entry that is null reads as one that is not there."""

    def __init__(self, description: dict):
        self._entries = description
        self._read: set[str] = set()

    def get(self, name: str, default=None):
        """The value of an entry, of any type."""
        self._read.add(name)
        value = self._entries.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Whether there is such an entry, even one that is null."""
        self._read.add(name)
        return name in self._entries

    def count(self, name: str, default: int | None = None) -> int:
        """A positive whole number. ConfigError when it is none, or is not there and has no default."""
        value = self._needed(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"config.json has {name}={value!r}, which is not a positive whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number. ConfigError as for `count`."""
        value = self._needed(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"config.json has {name}={value!r}, which is not a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or False; ConfigError for anything else."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise unsupported(name, value, (True, False))
        return value

    def choice(self, name: str, choices: dict):
        """What an entry's value is called here. ConfigError when it is not among the choices, or is not there."""
        value = self._needed(name, None)
        if not isinstance(value, str) or value not in choices:
            raise unsupported(name, value, choices)
        return choices[value]

    def only(self, name: str, *allowed):
        """ConfigError when there is an entry with another value."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise unsupported(name, value, allowed)

    def finish(self):
        """ConfigError for an entry that was not read, says something, and may change what the model computes."""
        if self._entries.get("quantization_config"):
            raise ConfigError("config.json has quantization_config: its weights are not the model's own; take the model as it was before")
        for name, value in self._entries.items():
            harmless = name in self._read or name in HARMLESS or name.startswith("summary_") or _every_layer_is_full(name, value)
            if not harmless and value not in (None, False, [], {}, ""):
                raise ConfigError(f"config.json has {name}={value!r}, which is not known for model_type={self._entries.get('model_type')}: "
                                  "take the entry out if it does not change what the model computes")

    def _needed(self, name: str, default):
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"config.json has no {name}: is this the config of the model's weights?")
        return value


def _every_layer_is_full(name: str, value) -> bool:
    """Layers that all attend to everything are what a family is that reads no layer_types."""
    return name == "layer_types" and isinstance(value, list) and all(kind == "full_attention" for kind in value)
