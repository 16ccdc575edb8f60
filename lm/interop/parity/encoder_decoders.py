"""Encoder-decoders of transformers, small and random: T5 as first published, versions 1.1 and FLAN, and mT5. Needs the extra parity."""

import functools

from lm.interop.parity import Case
from lm.interop.parity.random_models import random_model

# Heads whose widths do not make up that of the model, stacks of unlike depth, and distances beyond the last bucket.
SIZES = {"vocab_size": 263, "d_model": 24, "d_kv": 10, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3,
         "relative_attention_num_buckets": 12, "relative_attention_max_distance": 40, "decoder_start_token_id": 0}
VERSION_1_1 = SIZES | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def _case(name: str, kind: str, untied: bool = False, **entries) -> Case:
    return Case(name, functools.partial(random_model, f"{kind}Config", f"{kind}ForConditionalGeneration",
                                        untied=("lm_head",) if untied else (), **entries))


CASES = (
    _case("t5", "T5", **SIZES),
    _case("t5, as deep both ways", "T5", **SIZES | {"num_decoder_layers": 3, "feed_forward_proj": "gelu", "layer_norm_epsilon": 1e-5}),
    _case("t5 v1.1 and flan-t5", "T5", untied=True, **VERSION_1_1),
    _case("t5 v1.1, silu", "T5", untied=True, **VERSION_1_1 | {"feed_forward_proj": "gated-silu"}),
    _case("t5, tied without scale", "T5", **VERSION_1_1),
    _case("mt5", "MT5", untied=True, **SIZES | {"feed_forward_proj": "gated-gelu"}),
    _case("mt5, tied", "MT5", **SIZES),
)
