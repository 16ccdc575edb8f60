"""Encoders of transformers, small and random, with every head that one of ours has. Needs the extra parity."""

import functools

from lm.interop.parity import Case
from lm.interop.parity.random_models import random_model

SIZES = {"vocab_size": 267, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
         "max_position_embeddings": 101, "layer_norm_eps": 1e-12}
ELECTRA = SIZES | {"embedding_size": 14}
DISTILBERT = {"vocab_size": 267, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 99}
# Positions begin after the row of padding, which is none of the tokens that are compared.
ROBERTA = SIZES | {"pad_token_id": 261, "max_position_embeddings": 370, "layer_norm_eps": 1e-5}


def _case(name: str, kind: str, architecture: str, **entries) -> Case:
    return Case(name, functools.partial(random_model, f"{kind}Config", architecture, **entries))


CASES = (
    _case("bert", "Bert", "BertForPreTraining", **SIZES),
    _case("bert without heads", "Bert", "BertModel", **SIZES | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    _case("bert, masked tokens alone", "Bert", "BertForMaskedLM", **SIZES | {"hidden_act": "relu", "type_vocab_size": 3}),
    _case("bert, next sentences alone", "Bert", "BertForNextSentencePrediction", **SIZES),
    _case("roberta", "Roberta", "RobertaForMaskedLM", **ROBERTA),
    _case("roberta without heads", "Roberta", "RobertaModel", **ROBERTA | {"pad_token_id": 262, "type_vocab_size": 1}),
    _case("distilbert", "DistilBert", "DistilBertForMaskedLM", **DISTILBERT),
    _case("distilbert without heads", "DistilBert", "DistilBertModel", **DISTILBERT | {"activation": "relu"}),
    _case("electra, discriminator", "Electra", "ElectraForPreTraining", **ELECTRA),
    _case("electra, generator", "Electra", "ElectraForMaskedLM", **ELECTRA | {"hidden_act": "relu"}),
    _case("electra, one width", "Electra", "ElectraForPreTraining", **ELECTRA | {"embedding_size": 24, "hidden_act": "silu"}),
)
