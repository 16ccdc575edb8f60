"""The cost model: closed forms on programs that are written for it, and a train step of the TPU compiler's."""

import gzip
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import hlo
from lm.describe.collectives import annotated
from lm.errors import PlanError
from lm.hlo.collectives import Collective
from lm.hlo.work import work
from lm.layers.splash import visited
from lm.plan.chips import CHIPS
from lm.plan.device import Device, fill
from lm.plan.kernels import kernel_flops
from lm.plan.machine import Times
from lm.plan.network import SLICE_SECONDS, Network
from lm.plan.products import Product, products
from lm.plan.roofline import estimate_on

V5E = CHIPS["v5e"]
STORED = pathlib.Path(__file__).parents[1] / "hlo" / "llama_v5e.txt.gz"


def device(kind="v5e", shape=(2, 2), mesh=None):
    """One device of a slice, with its network."""
    places = [types.SimpleNamespace(coords=(*place, 0), slice_index=0, core_on_chip=0) for place in np.ndindex(*shape)]
    mesh = mesh or {"fsdp": len(places)}
    return Device(CHIPS[kind], Network(np.array(places).reshape(tuple(mesh.values())), tuple(mesh), CHIPS[kind]))


@pytest.fixture(scope="module")
def llama():
    """See tests/hlo/conftest.py."""
    return hlo.parse(gzip.decompress(STORED.read_bytes()).decode())


ADDITION = """HloModule add
ENTRY %main (a: f32[1024,4096], b: f32[1024,4096]) -> f32[1024,4096] {
  %a = f32[1024,4096]{1,0} parameter(0)
  %b = f32[1024,4096]{1,0:S(1)} parameter(1)
  ROOT %c = f32[1024,4096]{1,0} add(%a, %b)
}
"""


class Counting:
    """A machine on which every product takes a second for each FLOP, a collective 100 s, and all else nothing."""

    peak_flops, bandwidth, clock_hz = 1.0, 1e30, 1.0

    def times(self, module, step, done, multiplied):
        return Times(products=sum(product.flops for product in multiplied))

    def network_seconds(self, collective, algorithm="", full=False):
        return 100.0


def test_a_product_takes_what_the_matrix_units_need():
    text = """HloModule product
ENTRY %main (a: bf16[4096,4096], b: bf16[4096,4096]) -> bf16[4096,4096] {
  %a = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[4096,4096]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
}
"""
    found = estimate_on(device(), hlo.parse(text), {"fsdp": 4})
    assert found.flops == 2 * 4096**3
    assert found.bytes == 3 * 2 * 4096**2
    assert found.seconds == pytest.approx(2 * 4096**3 / (V5E.peak_flops["bf16"] * V5E.product_share))
    assert found.lower_bound == pytest.approx(2 * 4096**3 / V5E.peak_flops["bf16"])
    assert found.bound == "compute"
    assert found.compiler_seconds is None
    assert [row["class"] for row in found.by_class] == ["products"]


@pytest.mark.parametrize(("cycles", "seconds"), [("1500", 1e-6), (str(2**63 - 1), None)])
def test_the_compilers_cycles_are_taken_where_it_gives_any(cycles, seconds):
    text = ADDITION.replace("add(%a, %b)", f'add(%a, %b), backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}')
    assert estimate_on(device(), hlo.parse(text), {"fsdp": 4}).compiler_seconds == (seconds and pytest.approx(seconds))


@pytest.mark.parametrize(("cycles", "start"), [("1000000", V5E.start_cycles), ("16", 16), (str(2**63 - 1), 0), ("", 0)])
def test_an_instruction_takes_its_start_besides_its_work_and_never_more_than_the_compiler_says(cycles, start):
    estimated = f', backend_config={{"estimated_cycles":"{cycles}"}}' if cycles else ""
    found = estimate_on(device(), hlo.parse(ADDITION.replace("add(%a, %b)", f"add(%a, %b){estimated}")), {"fsdp": 4})
    without = estimate_on(device(), hlo.parse(ADDITION), {"fsdp": 4})
    assert found.starting == pytest.approx(start / V5E.clock_hz) and without.starting == 0
    assert found.seconds == pytest.approx(without.seconds + start / V5E.clock_hz)
    assert found.lower_bound == without.lower_bound


def test_a_sum_of_arrays_takes_what_memory_needs():
    found = estimate_on(device(), hlo.parse(ADDITION), {"fsdp": 4})
    assert found.bytes == 2 * 4 * 1024 * 4096  # b is in VMEM
    assert found.seconds == pytest.approx(found.bytes / (V5E.hbm_bandwidth * V5E.hbm_share))
    assert found.bound == "memory"


ASYNCHRONOUS = """HloModule step
ENTRY %main (a: f32[1024,4096], w: f32[1024,4096]) -> f32[4096,4096] {
  %a = f32[1024,4096]{1,0} parameter(0)
  %w = f32[1024,4096]{1,0} parameter(1)
  %start = (f32[1024,4096]{1,0}, f32[4096,4096]{1,0}) all-gather-start(%w), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %b = f32[1024,4096]{1,0} add(%a, %a)
  %done = f32[4096,4096]{1,0} all-gather-done(%start)
  ROOT %c = f32[4096,4096]{1,0} add(%done, %done)
}
"""


def test_an_asynchronous_collective_costs_what_is_not_hidden():
    machine = device()
    found = estimate_on(machine, hlo.parse(ASYNCHRONOUS), {"fsdp": 4})
    (row,) = (row for row in found.by_class if row["class"] == "collectives")
    gather = machine.network_seconds(Collective("all-gather", "fsdp", 4, 1, 4 * 4096**2, 0, True, ""))
    moved = 3 * 4 * 4096  # for each of the rows that an addition reads twice and writes
    beside = 1024 * moved / (V5E.hbm_bandwidth * V5E.hbm_share)
    assert row["seconds"] == pytest.approx(gather)
    assert row["exposed_seconds"] == pytest.approx(gather - beside)
    after = 4096 * moved / (V5E.hbm_bandwidth * V5E.hbm_share)
    assert found.seconds == pytest.approx(gather + after)
    assert found.bound == "network"


# A gather within each slice while a sum over the slices is under way.
BOTH = """HloModule step, num_partitions=4
ENTRY %main (a: f32[4194304], w: f32[1024,4096]) -> f32[4194304] {
  %a = f32[4194304]{0} parameter(0)
  %w = f32[1024,4096]{1,0} parameter(1)
  %none = token[] after-all()
  %recv = (f32[4194304]{0}, u32[], token[]) recv(%none), channel_id=7, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %start = (f32[1024,4096]{1,0}, f32[4096,4096]{1,0}) all-gather-start(%w), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %done = f32[4096,4096]{1,0} all-gather-done(%start)
  %got = (f32[4194304]{0}, token[]) recv-done(%recv), channel_id=7
  ROOT %r = f32[4194304]{0} get-tuple-element(%got), index=0
}
"""


def test_networks_within_and_between_slices_run_side_by_side():
    found = estimate_on(Counting(), hlo.parse(BOTH), {"replica": 2, "fsdp": 4})
    assert [row["count"] for row in found.by_class if row["class"] == "collectives"] == [2]
    assert found.seconds == found.lower_bound == 100
    twice = BOTH.replace("  %got", "  %next = f32[16384,4096]{1,0} all-gather(%done), replica_groups={{0,1,2,3}}, dimensions={0}\n  %got")
    found = estimate_on(Counting(), hlo.parse(twice), {"replica": 2, "fsdp": 4})
    assert found.seconds == found.lower_bound == 200


APART = """HloModule step
%wrapped (p: bf16[64,32], q: bf16[32,16]) -> bf16[64,16] {
  %p = bf16[64,32]{1,0} parameter(0)
  %q = bf16[32,16]{1,0} parameter(1)
  ROOT %inner = bf16[64,16]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (a: bf16[64,32], b: bf16[32,16]) -> bf16[64,16] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %start = ((bf16[64,32]{1,0}, bf16[32,16]{1,0}), bf16[64,16]{1,0}, u32[]) async-start(%a, %b), calls=%wrapped
  %all = bf16[32,16]{1,0} all-reduce(%b), replica_groups={{0,1,2,3}}
  ROOT %done = bf16[64,16]{1,0} async-done(%start)
}
"""


def test_work_that_runs_apart_costs_what_is_not_hidden():
    flops = 2 * 64 * 32 * 16
    found = estimate_on(Counting(), hlo.parse(APART), {"fsdp": 4})
    rows = {row["class"]: row for row in found.by_class}
    assert found.flops == rows["products"]["seconds"] == found.seconds == flops
    assert rows["products"]["exposed_seconds"] == flops - 100  # the sum runs meanwhile
    assert found.bound == "compute"
    # On one and the same unit nothing is gained.
    second = "dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    busy = APART.replace("%all = bf16[32,16]{1,0} all-reduce(%b), replica_groups={{0,1,2,3}}", f"%other = bf16[64,16]{{1,0}} {second}")
    assert estimate_on(Counting(), hlo.parse(busy), {"fsdp": 4}).seconds == 2 * flops


def test_a_slice_that_runs_apart_is_a_copy():
    text = """HloModule step
%wrapped (p: f32[1024,4096]) -> f32[512,4096] {
  %p = f32[1024,4096]{1,0} parameter(0)
  ROOT %part = f32[512,4096]{1,0:S(1)} slice(%p), slice={[0:512], [0:4096]}
}
ENTRY %main (a: f32[1024,4096]) -> f32[512,4096] {
  %a = f32[1024,4096]{1,0} parameter(0)
  %start = ((f32[1024,4096]{1,0}), f32[512,4096]{1,0:S(1)}, u32[]) async-start(%a), calls=%wrapped
  ROOT %done = f32[512,4096]{1,0:S(1)} async-done(%start)
}
"""
    found = estimate_on(device(), hlo.parse(text), {"fsdp": 4})
    assert [row["class"] for row in found.by_class] == ["copies"]
    assert found.bytes == 4 * 512 * 4096
    assert found.seconds == found.by_class[0]["exposed_seconds"] == pytest.approx(found.bytes / (V5E.hbm_bandwidth * V5E.hbm_share))
    assert found.bound == "memory"


def test_loops_are_multiplied():
    def function(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y @ y), x)

    text = jax.jit(function).lower(jnp.ones((64, 64))).compile().as_text()
    found = estimate_on(Counting(), hlo.parse(text), {})
    assert found.flops == found.seconds == 7 * 2 * 64**3
    assert found.by_class[0]["count"] == 7


def test_a_train_step_adds_up(llama):
    mesh = {"fsdp": 4}
    found = estimate_on(device(), llama, mesh)
    rows = {row["class"]: row for row in found.by_class}
    assert found.flops == sum(one.times * work(llama, one).flops for one in hlo.executed(llama))
    assert found.seconds == pytest.approx(sum(row["exposed_seconds"] for row in found.by_class), rel=1e-6)
    assert all(row["exposed_seconds"] <= row["seconds"] * (1 + 1e-6) for name, row in rows.items() if name != "collectives")
    assert found.lower_bound < found.seconds
    assert rows["attention"]["flops"] < rows["products"]["flops"]
    counted = hlo.collectives(llama, mesh)
    assert rows["collectives"]["count"] == sum(one.count for one in counted)
    slow = estimate_on(Counting(), llama, mesh)
    assert slow.seconds <= found.flops + 100 * rows["collectives"]["count"]


def test_products_have_the_flops_of_their_instructions(llama):
    for one in hlo.executed(llama):
        flops = sum(product.flops for product in products(llama, one.instruction, one.computation))
        assert flops == pytest.approx(work(llama, one).flops, rel=1e-9)


def test_shapes_of_products(llama):
    def shapes(function, *arguments):
        module = hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())
        return [product for one in hlo.executed(module) for product in products(module, one.instruction, one.computation)]

    x, y = jnp.ones((3, 8, 16)), jnp.ones((3, 4, 16))
    assert shapes(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), x, y) == [Product(3, 8, 16, 4)]
    assert shapes(jnp.dot, jnp.ones((8, 16)), jnp.ones((16, 32))) == [Product(1, 8, 16, 32)]
    assert shapes(lambda x, y: jax.lax.dot_general(x, y, (((0,), (0,)), ((), ()))), jnp.ones((16, 8)), jnp.ones((16, 32))) == [
        Product(1, 8, 16, 32, straight=False)]
    # As the TPU compiler writes them: heads are a batch, tokens are rows.
    found = {product for one in hlo.executed(llama) for product in products(llama, one.instruction, one.computation)}
    assert any(product.batch > 1 and 128 in (product.inner, product.columns) for product in found)
    assert any(product.batch == 1 and product.rows == 512 and (product.inner, product.columns) == (256, 512) for product in found)


@pytest.mark.parametrize(("product", "tile", "share"), [
    (Product(1, 1024, 512, 512), 128, 1.0), (Product(1, 1024, 64, 512), 128, 0.5),
    (Product(1, 4, 512, 512), 128, 0.5), (Product(1, 512, 512, 1), 128, 1 / 8),
    (Product(32, 1024, 128, 1024), 256, 0.5),
])
def test_small_dimensions_leave_matrix_units_empty(product, tile, share):
    assert fill(product, tile) == pytest.approx(share)


@pytest.mark.parametrize(("attributes", "links"), [
    ("", 2), ('"strategy":"StrategyND","debug":"\\nStrategyND{colors:2 phases:2', 4),
    ('"strategy":"StrategyRing","debug":"\\nStrategyRing{colors:1 phases:1', 2),
    ('"strategy":"UniDirectionNDRingStrategy","debug":"\\nUniDirectionNDRingStrategy{colors:4 phases:2', 4),
    ('"debug":"group_size = 256","emitter":"1DAllGatherNonMajorDimImbalanced"', 2),
    ('"debug":"group_size = 256","emitter":"2DAllGatherNonMajorDim"', 4),
])
def test_the_compiler_says_over_how_many_links_a_collective_goes(attributes, links):
    machine = device(shape=(16, 16))
    algorithm = f'backend_config={{"collective_algorithm_config":{{"emitter":"RotatedPincerEmitter",{attributes}' if attributes else ""
    gather = Collective("all-gather", "fsdp", 256, 2, 2 * 10**9, 0, False, "")
    assert machine.network_seconds(gather, algorithm) == pytest.approx(255 / 256 * 10**9 / (links * V5E.link_bandwidth))
    assert machine.network_seconds(gather, algorithm, full=True) == pytest.approx(255 / 256 * 10**9 / (4 * V5E.link_bandwidth))


SUM = """HloModule sum, num_partitions=4
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
ENTRY %main (x: f32[4096,4096]) -> f32[4096,4096] {
  %x = f32[4096,4096]{1,0} parameter(0)
  ROOT %y = f32[4096,4096]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add, backend_config=ALGORITHM
}
"""


@pytest.mark.parametrize("kind", ["v5e", "tpu7x"])
def test_a_description_has_the_seconds_of_the_plan(llama, kind):
    algorithm = '{"collective_algorithm_config":{"emitter":"A","strategy":"UniDirectionRing","debug":"\\nUniDirectionRing{colors:1 phases:1'
    machine, sizes = device(kind), {"fsdp": 4}
    for module in (llama, hlo.parse(SUM.replace("ALGORITHM", algorithm + '}"}}'))):
        rows = {row["class"]: row for row in estimate_on(machine, module, sizes).by_class}
        assert sum(row["seconds"] for row in annotated(module, sizes, machine)) == pytest.approx(rows["collectives"]["seconds"])


def kernel(name):
    """A call of a kernel with the queries of 2 rows of 4 heads, 1,024 positions and a width of 128."""
    instruction = types.SimpleNamespace(name="call", op_name=name)
    return types.SimpleNamespace(instruction=instruction, operands=(hlo.Array("bf16", (8, 1024, 128)), hlo.Array("s8", (1, 2, 2))))


@pytest.mark.parametrize(("part", "count"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_kernels_do_what_their_calls_say(part, count):
    pairs, block = visited(1024)
    step = kernel(f"step/attention/splash_{pairs}_blocks_of_{block}/jit(_splash_attention)/splash_mha_{part}_segmented/pallas_call")
    # Of 2 x 2 blocks the mask hides one whole: 3 / 4 of all pairs of a query and a key, of 8 heads.
    assert kernel_flops(step) == 2 * count * 8 * 0.75 * 1024**2 * 128


def test_kernels_that_nobody_knows_are_named():
    with pytest.raises(PlanError, match="%call"):
        kernel_flops(kernel("jit(train_step)/paged_attention/pallas_call"))


def test_each_device_of_a_chip_has_its_part():
    one, whole = device("tpu7x", (2, 2, 1)), CHIPS["tpu7x"]
    assert one.peak_flops == whole.peak_flops["bf16"] / 2
    assert one.bandwidth == whole.hbm_bandwidth / 2
    between = Collective("all-reduce", "replica", 4, 3, 3 * 10**9, 0, True, "", True)
    assert one.network_seconds(between, full=True) == pytest.approx(2 * 2 * 3 / 4 * 10**9 / whole.dcn_bandwidth)
    assert one.network_seconds(between) == pytest.approx(2 * (2 * 3 / 4 * 10**9 / whole.dcn_bandwidth + SLICE_SECONDS))


@pytest.mark.parametrize(("left", "right", "result", "attributes", "expected"), [
    # Projections into heads: a window over the kernel alone is columns, and no batch.
    ("bf16[4,256,512,1]", "bf16[8,128,512,1]", "bf16[4,256,8,128]",
     "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f", (1, 1024, 512, 1024)),
    # Scores: both operands have the heads.
    ("bf16[32,256,128]", "bf16[32,512,128]", "f32[32,256,512]",
     "window={size=32 stride=31 lhs_dilate=32}, dim_labels=0bf_0oi->0bf", (32, 256, 128, 512)),
])
def test_a_window_is_a_batch_where_both_operands_have_it(left, right, result, attributes, expected):
    text = f"""HloModule product

ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{
  %a = {left}{{0}} parameter(0)
  %b = {right}{{0}} parameter(1)
  ROOT %c = {result}{{0}} convolution(%a, %b), {attributes}
}}
"""
    module = hlo.parse(text)
    (product,) = products(module, module.root("main"), "main")
    assert (product.batch, product.rows, product.inner, product.columns) == expected


def test_of_a_stack_in_the_memory_of_the_host_a_slice_moves_and_its_names_cost_nothing():
    text = """HloModule host

ENTRY %main (stack: bf16[80,1024,1024], new: bf16[1,1024,1024]) -> bf16[80,1024,1024] {
  %stack = bf16[80,1024,1024]{2,1,0:T(8,128)(2,1)S(5)} parameter(0)
  %new = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %pair = (bf16[80,1024,1024]{2,1,0:T(8,128)(2,1)S(5)}, bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)}) tuple(%stack, %new)
  %again = bf16[80,1024,1024]{2,1,0:T(8,128)(2,1)S(5)} get-tuple-element(%pair), index=0
  ROOT %put = bf16[80,1024,1024]{2,1,0:T(8,128)(2,1)S(5)} dynamic-update-slice(%again, %new, %zero, %zero, %zero)
}
"""
    found = estimate_on(device(), hlo.parse(text), {"fsdp": 4})
    # The three indices, padded to a tile each, are read too.
    assert found.seconds == pytest.approx((2 * 1024 * 1024 + 3 * 512) / V5E.host_bandwidth)
