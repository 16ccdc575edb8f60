"""Components: FLOPs that add up to the account that training has, and that a trace of the model counts alike."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from lm import models
from lm.describe.components import components, part_of
from lm.describe.config import model_of
from lm.models import logits_of
from lm.parallel import AXES
from tests.describe.conftest import CASES

LENGTH, VOCAB = 16, 300
AROUND = ("embedding projection", "output projection", "prediction head", "output matrix")
ONE = dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(("objective", "family"), CASES, ids=["-".join(case) for case in CASES])
def test_components_add_up_to_what_training_counts_and_to_all_parameters(tiny, objective, family):
    trained, model = model_of(tiny(objective, family), ONE)
    forward = trained.flops_by_component(model)
    assert sum(forward.values()) == trained.forward_flops(model)
    assert sum(trained.flops_by_component(model).values()) * 3 == pytest.approx(trained.train_flops(model), rel=1e-12)
    if isinstance(model, models.CountedModel):
        assert forward == {}
        return
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    rows = [{"component": part_of(jax.tree_util.keystr(path, simple=True, separator="/")), "entries": leaf.size, "bytes": {}}
            for path, leaf in leaves]
    table = components(rows, forward, 3.0)
    assert sum(row["parameters"] for row in table) == sum(leaf.size for _, leaf in leaves)
    assert sum(row["forward_flops_per_token"] for row in table) == pytest.approx(trained.forward_flops(model), rel=1e-12)
    # Products have parameters of the same name, but for those with each other, and with tables that are embeddings too.
    bare = {re.sub(r"^\w+: ", "", row["component"]) for row in table if not row["parameters"]}
    assert bare <= {"output matrix", "attention scores", "cross-attention scores", "scores"}
    assert all(row["forward_flops_per_token"] > 0 for row in table if row["component"] not in (
        "embeddings", "norms", "prediction head", "emission", "start", "relative positions") and not row["component"].endswith("norms"))


def products(jaxpr, times=1, scope=""):
    """(FLOPs, names of the modules around it, whether it has batch dimensions) of every product of a trace, loops multiplied."""
    for equation in jaxpr.eqns:
        name = f"{scope}/{equation.source_info.name_stack}"
        if equation.primitive.name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            yield 2 * times * equation.outvars[0].aval.size * math.prod(sizes[axis] for axis in contracted), name, bool(batch)
            continue
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr") or equation.params.get("fun_jaxpr")
        if inner is not None:
            turns = equation.params["length"] if equation.primitive.name == "scan" else 1
            yield from products(getattr(inner, "jaxpr", inner), times * turns, name)


def component_of(name, batched):
    """By the modules of a Transformer or a recurrent model; the side is the first of them, where there are two."""
    found = re.search(r"(encoder|decoder|generator|discriminator)/", name)
    side = f"{found[1]}: " if found else ""
    if "cross_attention" in name:
        return f"{side}cross-attention {'scores' if batched else 'projections'}"
    if "attention" in name:
        return f"{side}attention {'scores' if batched else 'projections'}"
    if "feed_forward" in name:
        return f"{side}feed-forward"
    if "layer_" in name:
        return f"{side}recurrence"
    return "around the layers"


@pytest.mark.parametrize(("family", "settings"), [
    ("transformer", {"activation": "swiglu", "kv_heads": 1}),
    ("transformer", {"scan_layers": False, "head_width": 48, "tie_embeddings": False}),
    ("lstm", {"embedding_width": 64}),
    ("gru", {"tie_embeddings": False}),
    ("encoder", {"embedding_width": 32}),
    ("encoder_decoder", {"encoder_layers": 3, "kv_heads": 2}),
])
def test_a_trace_of_the_forward_pass_counts_every_component_alike(tiny, family, settings):
    config = tiny(family=family, objective={"encoder": "masked", "encoder_decoder": "translation"}.get(family, "causal"))
    section = config.model
    section.update({"layers": 2, "width": 128, "heads": 4, "remat": "none"} | settings)
    model = models.build(section, VOCAB, LENGTH, source_vocab=VOCAB if family == "encoder_decoder" else 0)
    row = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    batch = dict.fromkeys(model.example(), row)

    def logits(params, batch):
        return logits_of(model.apply(params, batch), model.unembedding(params))

    counted = {}
    params = jax.eval_shape(model.init, jax.random.key(0))
    for flops, name, batched in products(jax.make_jaxpr(logits)(params, batch).jaxpr):
        component = component_of(name, batched)
        counted[component] = counted.get(component, 0) + flops / LENGTH
    expected = {}
    for name, flops in model.flops_by_component(LENGTH, causal=False).items():
        name = "around the layers" if name in AROUND else name
        expected[name] = expected.get(name, 0) + flops
    assert counted == pytest.approx(expected)


@pytest.mark.parametrize(("path", "part"), [
    ("decoder/layers/cross_attention/query/kernel", "decoder: cross-attention projections"),
    ("layer_11/attention/query_norm/scale", "norms"), ("layers/attention_norm/scale", "norms"), ("final_norm/bias", "norms"),
    ("layers/attention/value/bias", "attention projections"), ("encoder/embedding/embedding", "embeddings"),
    ("generator/stack/layers/feed_forward/up/kernel", "generator: feed-forward"), ("keys/kernel", "decoder: attention projections"),
    ("encoder/backward_0/recurrent", "encoder: recurrence"), ("unembedding/kernel", "output matrix"),
    ("layers/experts/kernel", "experts"), ("emission", "emission"),  # no line: the module
])
def test_a_parameter_belongs_to_a_part_by_its_path(path, part):
    assert part_of(path) == part


def test_a_component_without_parameters_has_a_row_and_one_without_products_too():
    sizes = {"parameters": 8, "gradients": 8, "optimizer": 16, "ema": 0}
    rows = [{"component": name, "entries": 2, "bytes": sizes} for name in ("norms", "embeddings", "feed-forward", "feed-forward")]
    table = components(rows, {"attention scores": 5.0, "feed-forward": 7.0}, 3.0)
    assert [row["component"] for row in table] == ["embeddings", "attention scores", "feed-forward", "norms"]
    assert [row["train_flops_per_token"] for row in table] == [0, 15, 21, 0]
    assert [row["bytes"].get("optimizer", 0) for row in table] == [16, 0, 32, 16]
