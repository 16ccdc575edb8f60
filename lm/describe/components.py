"""The parts of a model, by the names of its parameters; FLOPs name theirs alike (`lm.models.base.Model.flops_by_component`)."""

import re

# First match wins; what no line matches is named after the module that it belongs to.
PARTS: tuple[tuple[str, str], ...] = (
    (r"(^|[/_])(norm|norm_\d+)/\w+$|\w*norm\w*/(scale|bias)$", "norms"),
    (r"(^|/)replaced/", "replaced head"),
    (r"(^|/)masked/", "prediction head"),
    (r"(^|/)(pooler|next_sentence|follows)/", "sentence head"),
    (r"(^|/)cross_attention/", "cross-attention projections"),
    (r"(^|/)(attention|attentional|query|energy|keys)/", "attention projections"),
    (r"(^|/)relative\w*/embedding$", "relative positions"),
    (r"embedding$", "embeddings"),
    (r"^unembedding/kernel$", "output matrix"),
    (r"(^|/)feed_forward/", "feed-forward"),
    (r"^(inputs|\w+_inputs|generator|discriminator|body)/projection/", "embedding projection"),
    (r"(^|/)projection/", "output projection"),
    (r"(^|/)(layer|forward|backward)_\d+/(input|recurrent|bias|recurrent_bias)$", "recurrence"),
    (r"^bridge/", "bridge"),
    (r"^(bridges_\w+|mean|log_variance)/", "code"),
    (r"^hidden/", "hidden layer"),
    (r"^transition$", "transitions"),
)
# What stands first in a path and before the name of a part, where a model has two of a kind.
SIDES = ("encoder", "decoder", "generator", "discriminator")
# Parts that a model has once, wherever they are.
_WHOLE = ("embeddings", "output projection")


def part_of(path: str) -> str:
    """The part of a model that a parameter belongs to, by its path such as `layers/attention/query/kernel`."""
    modules = path.split("/")
    part = next((part for pattern, part in PARTS if re.search(pattern, path)), modules[-2:][0])
    side = "decoder" if modules[0] == "keys" else modules[0]
    return f"{side}: {part}" if side in SIDES and part not in _WHOLE else part


def components(rows: list[dict], forward: dict[str, float], training: float) -> list[dict]:
    """[{"component", "parameters", "bytes", "forward_flops_per_token", "train_flops_per_token"}], embeddings first and norms last.

    `rows` are the parameters of `lm.describe.parameters`; `forward` are FLOPs by component, of which training takes `training` times as
    many. `bytes` of one device are {"parameters", "gradients", "optimizer", "ema"}.
    """
    found = list(dict.fromkeys(row["component"] for row in rows))
    names = list(dict.fromkeys([*(name for name in found if name.endswith("embeddings")), *forward,
                                *sorted(found, key=lambda name: name.endswith("norms"))]))
    table = []
    for name in names:
        own = [row for row in rows if row["component"] == name]
        size = {kind: sum(row["bytes"][kind] for row in own) for kind in (own[0]["bytes"] if own else ())}
        table.append({"component": name, "parameters": sum(row["entries"] for row in own), "bytes": size,
                      "forward_flops_per_token": forward.get(name, 0.0), "train_flops_per_token": training * forward.get(name, 0.0)})
    return table
