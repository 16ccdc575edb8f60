"""A description against what a run really makes: bytes on devices, shardings, and what two configs differ in."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm import config as configs
from lm import describe, optim
from lm.describe.config import model_of
from lm.describe.difference import begin_apart
from lm.describe.page import difference_rows, initial
from lm.describe.parameters import cuts, grouped
from lm.errors import ConfigError
from lm.parallel import make_mesh
from lm.plan import topology
from lm.train.step import init_state, state_shardings

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize("keys", [
    {"mesh__replica": 2, "mesh__fsdp": 4, "train__ema": 0.9},
    {"mesh__replica": 1, "mesh__fsdp": 4, "mesh__tensor": 2, "model__scan_layers": False},
    {"mesh__replica": 1, "mesh__fsdp": 8, "layout__zero": 1},
    {"mesh__replica": 4, "mesh__fsdp": 2, "optim__name": "adafactor", "train__ema": 0.9},
    {"mesh__replica": 2, "mesh__fsdp": 4, "optim__name": "muon"},
    {"mesh__replica": 8, "layout__offload": "optimizer"},
])
def test_bytes_of_a_device_are_those_that_its_arrays_take(tiny, keys):
    config = tiny(model__width=64, data__global_batch=16, **keys)
    described = describe.describe(config, describe.place_of(config, devices=8))
    mesh = make_mesh(config.mesh)
    _, model = model_of(config, dict(mesh.shape))
    optimizer, with_ema = optim.optimizer(config.optim), bool(config.train.ema)
    shardings = state_shardings(model, optimizer, mesh, with_ema, config.layout)
    state = jax.jit(lambda key: init_state(model, optimizer, key, with_ema), out_shardings=shardings.state)(jax.random.key(0))

    def held(tree, where="device"):
        arrays = [leaf for leaf in jax.tree.leaves(tree) if (leaf.sharding.memory_kind == "pinned_host") == (where == "host")]
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in arrays)

    counters = 64  # what an optimizer counts is not of a parameter
    memory = described["memory"]
    assert memory["parameters"] == held(state.params) and memory["ema"] == held(state.ema)
    assert held(state.opt_state) - counters <= memory["optimizer"] <= held(state.opt_state)
    assert held(state.opt_state, "host") - counters <= memory["host"] <= held(state.opt_state, "host")
    gradients = jax.tree.map(lambda leaf, where: np.prod(where.shard_shape(leaf.shape)) * 4, state.params, shardings.gradients)
    assert memory["gradients"] == sum(jax.tree.leaves(gradients))
    assert sum(sum(row["bytes"].values()) for row in described["components"]) == sum(memory[kind] for kind in (
        "parameters", "gradients", "optimizer", "ema"))
    for row, where in zip(described["parameters"], jax.tree.leaves(shardings.state.params), strict=True):
        again = NamedSharding(mesh, jax.sharding.PartitionSpec(*[tuple(axes) or None for axes in row["sharding"]]))
        assert again.is_equivalent_to(where, len(row["shape"])), row["name"]


def test_activations_grow_with_the_rows_of_a_device_and_shrink_when_they_are_computed_again(tiny):
    def kept(**keys):
        config = tiny(model__width=64, **keys)
        return describe.describe(config, traced=True)["memory"]

    whole, half = kept(model__remat="none"), kept(model__remat="none", mesh__replica=2)
    assert whole["activations"] == 2 * half["activations"] and whole["logits"] == 2 * half["logits"] > 0
    assert kept(model__remat="full")["activations"] < whole["activations"] / 3
    assert describe.describe(tiny(model__width=64))["memory"]["activations"] is None


def test_a_place_has_the_mesh_of_the_config_and_the_memory_of_the_chips(tiny):
    config = tiny(mesh__replica=1, mesh__fsdp=4)
    assert describe.place_of(config).devices == 4 and describe.place_of(config).limit is None
    place = describe.place_of(config, topology.parse("v5e:2x2"))
    assert place.sizes["fsdp"] == 4 and place.limit == 16 * 2**30
    assert describe.describe(config, place)["memory"]["limit"] == place.limit
    with pytest.raises(ConfigError, match="does not use the 8 devices"):
        describe.place_of(config, devices=8)
    with pytest.raises(ConfigError, match="not a multiple of the 2 slices"):
        describe.place_of(tiny(mesh__replica=1, mesh__fsdp=8), topology.parse("2xv5e:2x2"))
    assert describe.place_of(tiny(mesh__replica=2, mesh__fsdp=4), topology.parse("2xv5e:2x2")).devices == 8
    with pytest.raises(ConfigError, match="global_batch"):
        describe.place_of(tiny(mesh__fsdp=16, mesh__replica=1))


def test_equal_layers_are_one_row_and_nothing_is_lost(tiny):
    config = tiny(model__layers=3, model__scan_layers=False)
    rows = describe.describe(config)["parameters"]
    merged = grouped(rows)
    (query,) = [row for row in merged if row["name"].endswith("query/kernel")]
    assert query["name"] == "layer_*/attention/query/kernel" and query["count"] == 3
    assert sum(row["entries"] for row in merged) == sum(row["entries"] for row in rows)
    assert sum(row["bytes"]["optimizer"] for row in merged) == sum(row["bytes"]["optimizer"] for row in rows)
    # Layers that differ stay apart: the first cell of an LSTM reads embeddings of another width.
    lstm = grouped(describe.describe(tiny(family="lstm", model__layers=3, model__embedding_width=8))["parameters"])
    assert [row["count"] for row in lstm if "input" in row["name"]] == [1, 2]


def test_first_values_and_cuts_are_told_in_a_word():
    assert [initial(value) for value in (None, [1.0, 0.0], [1e-5, 0.02], [-6.28, 1.2765])] == ["-", "1", "0 ± 0.02", "-6.28 ± 1.28"]
    sizes = {"fsdp": 4, "expert": 2, "tensor": 8}
    assert cuts({"sharding": [[], ["fsdp", "expert"], ["tensor"]]}, sizes) == "-, fsdp 4 x expert 2, tensor 8"
    assert cuts({"sharding": [[], []]}, sizes) == "whole"


def test_a_comparison_says_what_differs_in_everything_that_is_described(tiny):
    first = tiny(optim__weight_decay=0.1, model__tie_embeddings=True, model__width=64)
    same = describe.compare(first, first, traced=True)
    assert not any(same.values()) and describe.text_of_difference(same) == "no difference"
    second = configs.override(first, {"model.layers": "4", "model.tie_embeddings": "false", "optim.weight_decay": "0", "mesh.fsdp": "4",
                                      "mesh.replica": "1"})
    difference = describe.compare(first, second, describe.place_of(first), describe.place_of(second), traced=True)
    assert difference["config"]["model.layers"] == [2, 4] and difference["mesh"]["fsdp"] == [1, 4]
    name = "layer_0/attention/query/kernel" if "layer_0/attention/query/kernel" in difference["group"] else "layers/attention/query/kernel"
    assert difference["group"][name] == ["matrix, decays", "matrix"]
    assert difference["parameters"]["unembedding/kernel"][0] is None
    assert difference["sharding"]["inputs/tokens/embedding"] == [[[], []], [[], ["fsdp"]]]
    # A matrix that writes to the residual stream begins smaller in a deeper model.
    output = name.replace("query", "output")
    a, b = difference["init"][output]
    assert a[1] / b[1] == pytest.approx(2**0.5, rel=0.02) and name not in difference["init"]
    assert difference["flops"]["feed-forward"][1] == 2 * difference["flops"]["feed-forward"][0]
    assert "output matrix" not in difference["flops"]
    assert {"parameters", "activations"} <= difference["memory"].keys() and "feed-forward" in difference["state"]
    assert "2, 4" not in describe.text_of_difference(difference) and "sharding" in describe.text_of_difference(difference)


@pytest.mark.parametrize(("first", "second", "apart"), [
    ([0.0, 0.0], [1.0, 0.0], True), ([1.0, 0.0], [1.0, 0.0], False), ([0.0, 0.0], [0.0, 0.0], False), ([0.1, 2e-9], [0.1 + 1e-9, 0], False),
    ([0.0, 0.0], [0.0, 0.02], True), ([1e-4, 0.02], [-1e-4, 0.0201], False), ([0.0, 0.02], [0.0, 0.03], True), (None, [1.0, 0.0], False),
])
def test_constants_are_compared_by_their_means_and_draws_by_how_far_they_spread(first, second, apart):
    assert begin_apart(*({"init": value, "entries": 5000} for value in (first, second))) is apart
    assert difference_rows({"init": {"a/scale": [[0.0, 0.0], [1.0, 0.02]]}})[0].items() >= {"first": "0", "second": "1 ± 0.02"}.items()


def test_a_page_has_every_parameter_and_what_a_device_holds(tiny):
    config = tiny(mesh__replica=1, mesh__fsdp=4, model__layers=2)
    described = describe.describe(config, describe.place_of(config, topology.parse("v5e:2x2")), traced=True)
    text = describe.text_of(described)
    assert "on v5e:2x2, 4 devices as fsdp 4" in text and "attention scores" in text and "-, fsdp 4" in text
    assert text.split("memory of a device")[1].splitlines()[0].endswith(" of 17.18 GB installed") and "activations, at least" in text
    assert " of 17.18 GB installed</span>" in describe.html_of(described)
    assert describe.text_of(describe.describe(tiny(family="ngram"))) == "ngram: made by counting; its size follows from the text"
