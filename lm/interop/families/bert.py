"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), DistilBERT (Sanh et al. 2019) and either half of ELECTRA (Clark et al. 2020).

All of them are encoders of ours, which differ in their embeddings and heads. A discriminator and a generator of ELECTRA come in two
folders and are two encoders: one tells replaced tokens, the other predicts hidden ones.
"""

from typing import NamedTuple

from lm.errors import ConfigError
from lm.interop.families.base import Reading
from lm.interop.families.decoder import PLAIN, called
from lm.interop.families.entries import Entries
from lm.interop.families.ours import family
from lm.interop.tables import Row, dense, row

POOLER, MASKED, NEXT, REPLACED = "pooler", "masked", "next_sentence", "replaced"
# A tensor that shows that a head is there, and the heads of an architecture, for a config.json that has no tensors yet.
SHOWS = {"pooler.dense.weight": POOLER, "cls.seq_relationship.weight": NEXT, "discriminator_predictions.dense.weight": REPLACED,
         "cls.predictions.transform.dense.weight": MASKED, "lm_head.dense.weight": MASKED, "vocab_transform.weight": MASKED,
         "generator_predictions.dense.weight": MASKED}
ARCHITECTURES = {"Model": {POOLER}, "ForPreTraining": {POOLER, MASKED, NEXT}, "ForMaskedLM": {MASKED},
                 "ForNextSentencePrediction": {POOLER, NEXT}}
# Numbers from 0 on, which some versions have stored.
BUFFERS = (r"(.*\.)?embeddings\.(position_ids|token_type_ids)",)
EPSILON = 1e-12  # of all norms of DistilBERT
# Entries that only training reads, and old ones that nothing does.
UNREAD = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds",
          "output_past", "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
          "pooler_size_per_head", "pooler_type")
LAYER = "body/stack/{layer}"


class Style(NamedTuple):
    """How the tensors of a model are called: what comes before the names of its body ("bert." or nothing), and what its norms have."""

    prefix: str
    scale: str = "weight"
    offset: str = "bias"

    def norm(self, theirs: str, ours: str) -> tuple[Row, Row]:
        """The rows of a LayerNorm."""
        return row(f"{theirs}.{self.scale}", f"{ours}/scale"), row(f"{theirs}.{self.offset}", f"{ours}/bias")


def _style(kind: str, description: dict, names: set[str]) -> Style:
    whole = any(name.startswith(f"{kind}.") for name in names) if names else not _architecture(description).endswith("Model")
    # The oldest files have TensorFlow's names.
    old = any(name.endswith("LayerNorm.gamma") for name in names)
    return Style(f"{kind}." if whole else "", *(("gamma", "beta") if old else ()))


def _architecture(description: dict) -> str:
    return (description.get("architectures") or ["Model"])[0]


def _heads(kind: str, description: dict, names: set[str]) -> set[str]:
    if names:
        bare = {name.removeprefix(f"{kind}.") for name in names}
        return {head for name, head in SHOWS.items() if name in bare}
    heads = next((heads for end, heads in ARCHITECTURES.items() if _architecture(description).endswith(end)), set())
    if kind == "electra":
        return {REPLACED} if _architecture(description).endswith("ForPreTraining") else heads - {POOLER}
    return heads - {POOLER} if kind == "distilbert" else heads


def _keys(entries: Entries, heads: set[str], offset: int = 0, /, **others) -> dict[str, object]:
    """The keys of every encoder; `others` are of the section model."""
    if MASKED in heads:
        entries.only("tie_word_embeddings", True)
    for name in ("tie_word_embeddings", *UNREAD):
        entries.get(name)
    entries.only("position_embedding_type", "absolute")
    for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        entries.only(name, False)
    longest = entries.count("max_position_embeddings", 512) - offset
    section = {
        "name": "encoder", "vocab_rows": entries.count("vocab_size"), "max_positions": longest, "position_offset": offset,
        "positions": "learned", "norm": "layernorm", "norm_position": "post", "bias": True, "pooler": POOLER in heads,
        "next_sentence": NEXT in heads, "masked_head": MASKED in heads, "replaced_head": REPLACED in heads, **others}
    entries.finish()
    keys = {f"model.{name}": value for name, value in section.items()}
    return keys | {"objective.name": "masked", "objective.sentences": "next" if NEXT in heads else "none"}


def _sizes(entries: Entries) -> dict[str, object]:
    """Keys of the section model that BERT, RoBERTa and ELECTRA store under the same names."""
    return {"layers": entries.count("num_hidden_layers"), "width": entries.count("hidden_size"),
            "heads": entries.count("num_attention_heads"), "ff_width": entries.count("intermediate_size"),
            "norm_eps": entries.number("layer_norm_eps", EPSILON), "token_types": entries.count("type_vocab_size", 2),
            "activation": entries.choice("hidden_act", PLAIN)}


def _body(style: Style) -> tuple[Row, ...]:
    """The rows of embeddings and layers, as BERT, RoBERTa and ELECTRA call them."""
    layer = f"{style.prefix}encoder.layer.{{layer}}"
    names = {"attention.self.query": "attention/query", "attention.self.key": "attention/key", "attention.self.value": "attention/value",
             "attention.output.dense": "attention/output", "intermediate.dense": "feed_forward/up", "output.dense": "feed_forward/down"}
    embeddings = {"word": "tokens", "position": "positions", "token_type": "types"}
    return (
        *(row(f"{style.prefix}embeddings.{their}_embeddings.weight", f"inputs/{our}/embedding") for their, our in embeddings.items()),
        *style.norm(f"{style.prefix}embeddings.LayerNorm", "inputs/norm"),
        *(entry for their, our in names.items() for entry in dense(f"{layer}.{their}", f"{LAYER}/{our}")),
        *style.norm(f"{layer}.attention.output.LayerNorm", f"{LAYER}/attention_norm"),
        *style.norm(f"{layer}.output.LayerNorm", f"{LAYER}/feed_forward_norm"),
    )


def _if(there: bool, rows) -> tuple[Row, ...]:
    return tuple(rows) if there else ()


def _masked(style: Style, transform: str, norm: str, bias: str) -> tuple[Row, ...]:
    """The rows of the head that predicts hidden tokens."""
    return (*dense(transform, "masked/transform"), *style.norm(norm, "masked/norm"), row(bias, "masked/bias"))


def _read_bert(description: dict, names: set[str]) -> Reading:
    entries, heads, style = Entries(description), _heads("bert", description, names), _style("bert", description, names)
    keys = _keys(entries, heads, **_sizes(entries))
    head = "cls.predictions"
    table = (
        *_body(style),
        *_if(POOLER in heads, dense(f"{style.prefix}pooler.dense", "pooler")),
        *_if(MASKED in heads, _masked(style, f"{head}.transform.dense", f"{head}.transform.LayerNorm", f"{head}.bias")),
        *_if(NEXT in heads, dense("cls.seq_relationship", "next_sentence")),
    )
    tied = {f"{head}.decoder.weight": f"{style.prefix}embeddings.word_embeddings.weight", f"{head}.decoder.bias": f"{head}.bias"}
    return Reading(keys, table, tied if MASKED in heads else {}, BUFFERS)


def _read_roberta(description: dict, names: set[str]) -> Reading:
    entries, heads, style = Entries(description), _heads("roberta", description, names), _style("roberta", description, names)
    # Row pad_token_id is that of padding, and the first token's is the next.
    pad = entries.get("pad_token_id", 1)
    if not isinstance(pad, int) or pad < 0:
        raise ConfigError(f"config.json has pad_token_id={pad!r}, which is not a whole number from 0 on")
    keys = _keys(entries, heads, pad + 1, head_activation="gelu_erf", **_sizes(entries))
    head = "lm_head"
    table = (
        *_body(style),
        *_if(POOLER in heads, dense(f"{style.prefix}pooler.dense", "pooler")),
        *_if(MASKED in heads, _masked(style, f"{head}.dense", f"{head}.layer_norm", f"{head}.bias")),
    )
    tied = {f"{head}.decoder.weight": f"{style.prefix}embeddings.word_embeddings.weight", f"{head}.decoder.bias": f"{head}.bias"}
    return Reading(keys, table, tied if MASKED in heads else {}, BUFFERS)


def _read_electra(description: dict, names: set[str]) -> Reading:
    entries, heads, style = Entries(description), _heads("electra", description, names), _style("electra", description, names)
    sizes = _sizes(entries)
    width = entries.count("embedding_size", sizes["width"])
    keys = _keys(entries, heads, embedding_width=width, head_activation="gelu_erf" if MASKED in heads else "", **sizes)
    found, head = "discriminator_predictions", "generator_predictions"
    table = (
        *_body(style),
        *_if(width != sizes["width"], dense(f"{style.prefix}embeddings_project", "body/projection")),
        *_if(REPLACED in heads, (*dense(f"{found}.dense", "replaced/transform"), *dense(f"{found}.dense_prediction", "replaced/output"))),
        *_if(MASKED in heads, _masked(style, f"{head}.dense", f"{head}.LayerNorm", "generator_lm_head.bias")),
    )
    tied = {"generator_lm_head.weight": f"{style.prefix}embeddings.word_embeddings.weight"}
    return Reading(keys, table, tied if MASKED in heads else {}, BUFFERS)


def _read_distilbert(description: dict, names: set[str]) -> Reading:
    entries, heads, style = Entries(description), _heads("distilbert", description, names), _style("distilbert", description, names)
    entries.only("tie_weights_", True)
    sizes = {"layers": entries.count("n_layers"), "width": entries.count("dim"), "heads": entries.count("n_heads"),
             "ff_width": entries.count("hidden_dim"), "activation": entries.choice("activation", PLAIN)}
    keys = _keys(entries, heads, norm_eps=EPSILON, token_types=0, **sizes)
    layer = f"{style.prefix}transformer.layer.{{layer}}"
    matrices = {"attention.q_lin": "attention/query", "attention.k_lin": "attention/key", "attention.v_lin": "attention/value",
                "attention.out_lin": "attention/output", "ffn.lin1": "feed_forward/up", "ffn.lin2": "feed_forward/down"}
    table = (
        row(f"{style.prefix}embeddings.word_embeddings.weight", "inputs/tokens/embedding"),
        row(f"{style.prefix}embeddings.position_embeddings.weight", "inputs/positions/embedding"),
        *style.norm(f"{style.prefix}embeddings.LayerNorm", "inputs/norm"),
        *(entry for their, our in matrices.items() for entry in dense(f"{layer}.{their}", f"{LAYER}/{our}")),
        *style.norm(f"{layer}.sa_layer_norm", f"{LAYER}/attention_norm"),
        *style.norm(f"{layer}.output_layer_norm", f"{LAYER}/feed_forward_norm"),
        *_if(MASKED in heads, _masked(style, "vocab_transform", "vocab_layer_norm", "vocab_projector.bias")),
    )
    tied = {"vocab_projector.weight": f"{style.prefix}embeddings.word_embeddings.weight"}
    return Reading(keys, table, tied if MASKED in heads else {}, BUFFERS)


def _described(model, spec, sizes, architecture: str) -> dict:
    """The config.json of BERT, and what RoBERTa and ELECTRA share with it."""
    return {
        "architectures": [architecture], "vocab_size": sizes.vocab, "hidden_size": spec.width, "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads, "intermediate_size": spec.ff_width, "hidden_act": called(spec.activation, PLAIN),
        "layer_norm_eps": spec.norm_eps, "type_vocab_size": max(1, model.token_types), "max_position_embeddings": sizes.context,
        "hidden_dropout_prob": spec.dropout, "attention_probs_dropout_prob": 0.0, "tie_word_embeddings": True}


def _bert(model, spec, sizes) -> dict:
    if model.next_sentence:
        kind = "BertForPreTraining" if model.masked_head else "BertForNextSentencePrediction"
    else:
        kind = "BertForMaskedLM" if model.masked_head else "BertModel"
    return _described(model, spec, sizes, kind)


def _roberta(model, spec, sizes) -> dict:
    described = _described(model, spec, sizes, "RobertaForMaskedLM" if model.masked_head else "RobertaModel")
    offset = max(1, model.position_offset)
    return described | {"pad_token_id": offset - 1, "max_position_embeddings": sizes.context + offset}


def _electra(model, spec, sizes) -> dict:
    kind = "ForPreTraining" if model.replaced_head else "ForMaskedLM" if model.masked_head else "Model"
    return _described(model, spec, sizes, f"Electra{kind}") | {"embedding_size": model.embedding_width or model.width}


def _distilbert(model, spec, sizes) -> dict:
    return {"architectures": [f"DistilBert{'ForMaskedLM' if model.masked_head else 'Model'}"], "vocab_size": sizes.vocab,
            "max_position_embeddings": sizes.context, "n_layers": spec.layers, "n_heads": spec.heads, "dim": spec.width,
            "hidden_dim": spec.ff_width, "activation": called(spec.activation, PLAIN), "dropout": spec.dropout,
            "attention_dropout": 0.0, "sinusoidal_pos_embds": False, "tie_word_embeddings": True}


FAMILIES = (
    family("encoder", "bert", _read_bert, _bert),
    family("encoder", "distilbert", _read_distilbert, _distilbert),
    family("encoder", "roberta", _read_roberta, _roberta),
    family("encoder", "electra", _read_electra, _electra),
)
