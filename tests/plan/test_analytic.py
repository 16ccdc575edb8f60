"""Bounds of memory and time: closed forms, what grows with what, and that no compiled program is under them."""

import math

import pytest

from lm.errors import ConfigError
from lm.plan import analytic, layouts, planning, topology
from lm.plan.analytic import Account, limits_of
from lm.plan.traced import Traced
from tests.plan.tiny import tiny

V5E = topology.parse("v5e:2x2")
WIDTH, LAYERS, CONTEXT, VOCABULARY, FF = 256, 2, 256, 2048, 704
MATRICES = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * FF)
VECTORS = (2 * LAYERS + 1) * WIDTH
PARAMETERS = MATRICES + VOCABULARY * WIDTH + VECTORS
# Of which a device of four has; vectors are copied.
PART = (MATRICES + VOCABULARY * WIDTH) / 4 + VECTORS


@pytest.fixture(scope="module")
def account():
    return Account(tiny())


def bound(account, config, target=V5E):
    limits = limits_of(target, config.model.dtype)
    return account.bound(layouts.own(config, limits.devices), limits, config.data.global_batch)


def test_parameters_and_optimizer_are_cut_over_fsdp_and_whole_over_replicas(account):
    whole = bound(account, tiny(mesh__fsdp=1, mesh__replica=-1)).parts
    assert whole["params"] == 4 * PARAMETERS
    assert whole["optimizer"] == 8 * PARAMETERS + 4  # and a count of steps
    cut = bound(account, tiny()).parts
    assert cut["params"] == 4 * PART and cut["optimizer"] == 8 * PART + 4
    zero1 = bound(account, tiny(layout__zero=1)).parts
    assert (zero1["params"], zero1["optimizer"]) == (whole["params"], cut["optimizer"])


def test_rows_keep_the_inputs_of_layers_under_full_remat(account):
    stream = LAYERS * CONTEXT * WIDTH * 2
    beside = account.traced.row("full").kept - stream
    assert 0 < beside < 8 * CONTEXT * WIDTH * 4  # of the norm and the loss at the end
    assert account.traced.row("full").logits == CONTEXT * VOCABULARY * 4


def test_remat_keeps_less_and_computes_more(account):
    rows = {remat: account.traced.row(remat) for remat in ("none", "dots", "full")}
    assert rows["none"].kept > rows["dots"].kept > rows["full"].kept
    assert rows["none"].flops < rows["dots"].flops < rows["full"].flops
    # Of a layer, dots keeps the products: query, key and value, the output of attention's heads, gate and up.
    products = LAYERS * CONTEXT * (3 * WIDTH + 2 * FF) * 2
    assert rows["dots"].kept - rows["full"].kept == pytest.approx(products, rel=0.35)
    assert rows["dots"].kept - rows["full"].kept >= products


def test_flops_are_those_of_products_three_times_over(account):
    dense = 6 * CONTEXT * (MATRICES + VOCABULARY * WIDTH)
    row = account.traced.row("none")
    assert row.head_flops == 6 * CONTEXT * VOCABULARY * WIDTH
    # Attention goes by four blocks: 5 / 8 of the scores, in two products, three times over.
    scores = 5 / 8 * LAYERS * 2 * 2 * CONTEXT**2 * WIDTH * 3
    assert row.flops == pytest.approx(dense + scores, rel=1e-6)


def test_stages_tensors_and_contexts_share_the_work(account):
    config = tiny(model__heads=2)
    alone = bound(account, config).times["compute"]
    for axes in ({"mesh__tensor": 2}, {"mesh__context": 2}, {"mesh__replica": 2}):
        assert bound(account, tiny(mesh__fsdp=2, **axes | {"mesh__replica": axes.get("mesh__replica", 1)})).times["compute"] == alone
    piped = bound(account, tiny(mesh__fsdp=2, mesh__stage=2, layout__microbatches=4)).times["compute"]
    layers = account.traced.row("full").flops - account.traced.row("full").head_flops
    head = account.traced.row("full").head_flops
    assert piped / alone == pytest.approx((layers * 5 / 4 + head) / (layers + head), rel=1e-6)  # a bubble of a fifth


def test_accumulation_and_chunks_save_memory(account):
    plain, accumulated, chunked = (bound(account, tiny(**keys)).parts for keys in
                                   ({}, {"train__accumulate": 2}, {"train__loss_chunk": 64}))
    assert accumulated["activations"] == plain["activations"] / 2 and accumulated["accumulated"] == 4 * PART
    assert chunked["logits"] == plain["logits"] / 4


def test_gathers_and_scatters_go_over_all_links_at_best(account):
    found = bound(account, tiny())
    matrices, tables = MATRICES, VOCABULARY * WIDTH
    sent = 3 / 4 * 2 * (2 * matrices + tables + matrices + tables)
    assert found.times["network"] == pytest.approx(sent / (2 * 45e9), rel=1e-6)
    assert found.serial >= sum(found.times.values())


def test_the_network_between_slices_carries_the_parts_of_gradients(account):
    found = bound(account, tiny(mesh__replica=2), topology.parse("2xv5e:2x2"))
    assert found.times["between_slices"] == pytest.approx(2 * PART * 2 / 2 / 3.125e9, rel=1e-6)


def test_axes_have_the_links_of_the_sides_that_they_span():
    limits = limits_of(topology.parse("v5e:16x16"), "bfloat16")
    assert limits.spanned(256) == (2, 4) and limits.spanned(16) == (1, 2) and limits.spanned(4) == (1, 1)
    assert limits_of(topology.parse("v5e:4x4"), "bfloat16").spanned(16) == (2, 2)  # lines: too short for rings


def test_a_mesh_that_leaves_parameters_whole_is_an_error(account):
    config = tiny(data__vocab_size=2049, model__width=258, model__head_width=64)
    with pytest.raises(ConfigError, match="on every device"):
        analytic.lower_bound(config, V5E)


@pytest.mark.parametrize("keys", [
    {"model.name": "lstm"}, {"model.name": "encoder", "objective.name": "masked"},
    pytest.param({"model.name": "encoder_decoder", "objective.name": "span", "objective.form": "encoder_decoder"}, marks=pytest.mark.slow)],
    ids=lambda keys: keys["model.name"])
def test_other_families_have_bounds(keys):
    from lm import config as configs

    base = {"data.context": 128, "data.vocab_size": 1024, "model.layers": 2, "model.width": 128}
    config = configs.validate(configs.override(configs.default(), {key: str(value) for key, value in (base | keys).items()}))
    found = analytic.lower_bound(config, V5E)
    assert 0 < found.memory <= found.likely and 0 < found.seconds <= found.serial
    traced = Traced(config)
    assert traced.row("none").kept > traced.row("full").kept and traced.layer > 0


# Attention's kernel, and the product by which a TPU turns heads round for their positions, are no part of a bound.
PLAIN = {"model__attention_kernel": "xla", "model__positions": "learned"}


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "share"), [
    ({}, 0.85), (PLAIN, 1.0), (PLAIN | {"model__remat": "none", "mesh__tensor": 2, "mesh__fsdp": 2}, 1.0),
], ids=["fsdp", "fsdp-plain", "tensor-plain"])
def test_no_compiled_program_is_under_its_bound(keys, share, tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    config = tiny(**keys)
    plan, found = planning.plan(config, V5E, tmp_path, explain=False), analytic.lower_bound(config, V5E)
    assert plan["fits"] and found.memory <= plan["hbm_bytes_per_chip"]
    assert found.seconds <= 1.02 * plan["lower_bound_seconds"] <= plan["estimated_step_seconds"]
    assert share - 1e-6 <= found.times["compute"] * 197e12 / plan["flops_per_chip"] <= 1 + 1e-6
    assert math.isfinite(found.serial)


def test_what_layers_keep_that_are_no_stack_may_be_made_again_but_for_products_and_some_lies_next_to_the_units():
    def bound(**keys):
        return analytic.lower_bound(tiny(data__global_batch=4096, model__remat=keys.pop("remat", "none"), **keys), V5E)

    stacked, unrolled, dots = bound(model__scan_layers=True), bound(model__scan_layers=False), bound(model__scan_layers=False, remat="dots")
    assert unrolled.memory == dots.memory < stacked.memory and unrolled.parts["activations"] == dots.parts["activations"]
    assert unrolled.likely == stacked.likely
    near = analytic.limits_of(V5E, "bfloat16").fast
    parts = stacked.parts
    assert near > 1e8 and stacked.memory == pytest.approx(
        parts["params"] + parts["optimizer"] + parts["activations"] + max(parts["logits"], parts["gradients"]) - near)
