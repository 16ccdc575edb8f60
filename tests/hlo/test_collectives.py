"""Collectives are counted as often as they run, with the bytes of their results and what a ring sends for them."""

import jax
import jax.numpy as jnp
import pytest

from lm import hlo
from lm.errors import LmError
from lm.hlo import Collective
from lm.parallel import AXES, make_mesh
from tests.hlo import stored

HLO = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[4], bf16[2,3])) -> (s32[], f32[4], bf16[2,3]) {
  %p = (s32[], f32[4]{0}, bf16[2,3]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %y = bf16[2,3]{1,0} get-tuple-element(%p), index=2
  %r = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %r0 = f32[4]{0} get-tuple-element(%r), index=0
  %r1 = bf16[2,3]{1,0} get-tuple-element(%r), index=1
  ROOT %t = (s32[], f32[4]{0}, bf16[2,3]{1,0}) tuple(%i, %r0, %r1)
}

%until (p: (s32[], f32[4], bf16[2,3])) -> pred[] {
  %p = (s32[], f32[4]{0}, bf16[2,3]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%outer (p: (s32[], f32[4], bf16[2,3])) -> (s32[], f32[4], bf16[2,3]) {
  %p = (s32[], f32[4]{0}, bf16[2,3]{1,0}) parameter(0)
  %w = (s32[], f32[4]{0}, bf16[2,3]{1,0}) while(%p), condition=%until, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %x = f32[4]{0} get-tuple-element(%w), index=1
  %g = f32[8]{0} all-gather(%x), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %t = (s32[], f32[4]{0}, bf16[2,3]{1,0}) copy(%w)
}

%wrapped (q: f32[16]) -> f32[2] {
  %q = f32[16]{0} parameter(0)
  ROOT %s = f32[2]{0} reduce-scatter(%q), channel_id=5, replica_groups={}, dimensions={0}, to_apply=%add
}

ENTRY %main (p: (s32[], f32[4], bf16[2,3])) -> f32[2] {
  %p = (s32[], f32[4]{0}, bf16[2,3]{1,0}) parameter(0)
  %w = (s32[], f32[4]{0}, bf16[2,3]{1,0}) while(%p), condition=%until, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %x = f32[4]{0} get-tuple-element(%w), index=1
  %s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,4},{4,0}}
  %d = f32[4]{0} collective-permute-done(%s)
  %a = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), channel_id=4, replica_groups={}, dimensions={0}
  %e = f32[32]{0} all-gather-done(%a)
  %f = f32[16]{0} slice(%e), slice={[0:16]}
  %o = ((f32[16]{0}), f32[2]{0}, u32[]) async-start(%f), calls=%wrapped
  ROOT %c = f32[2]{0} async-done(%o)
}
"""
MESH = {"replica": 2, "fsdp": 4}


def of(text, mesh):
    return hlo.collectives(hlo.parse(text), mesh)


def test_loops_multiply_and_asynchronous_ones_count_once():
    assert of(HLO, MESH) == [
        Collective("all-reduce", "fsdp", 4, 15, 15 * (16 + 12), 15 * 2 * 28 * 3 // 4, False, ""),
        Collective("all-gather", "replica", 2, 5, 5 * 32, 5 * 32 // 2, False, ""),
        Collective("collective-permute", "replica", 2, 1, 16, 16, True, ""),
        Collective("all-gather", "replica+fsdp", 8, 1, 128, 128 * 7 // 8, True, ""),
        Collective("reduce-scatter", "replica+fsdp", 8, 1, 8, 8 * 7, True, ""),
    ]


def test_one_made_of_several_is_blamed_on_the_largest_of_them():
    """The compiler combines small sums with large ones, and calls the whole after its first."""
    text = """HloModule jit_f, num_partitions=2
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: f32[4], q: f32[64,4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %q = f32[64,4]{1,0} parameter(1)
  %scale = f32[4]{0} negate(%p), metadata={op_name="jit(f)/norm/neg" source_file="/x/lm/layers/norms.py" source_line=3}
  %grad = f32[64,4]{1,0} negate(%q), metadata={op_name="jit(f)/up/dot" source_file="/x/lm/layers/dense.py" source_line=9}
  %moved = f32[64,4]{0,1} copy(%grad)
  %r = (f32[4]{0}, f32[64,4]{0,1}) all-reduce(%scale, MOVED), channel_id=1, replica_groups={}, to_apply=%add, NAMED
  ROOT %o = f32[4]{0} get-tuple-element(%r), index=0
}
""".replace("NAMED", 'metadata={op_name="jit(f)/norm/neg" source_file="/x/lm/layers/norms.py" source_line=3}')
    (largest,) = hlo.collectives(hlo.parse(text.replace("MOVED", "%moved")), {"fsdp": 2})
    assert (largest.source, largest.op_name, largest.bytes) == ("lm/layers/dense.py:9", "jit(f)/up/dot", 4 * (4 + 256))
    (unknown,) = hlo.collectives(hlo.parse(text.replace("MOVED", "%q")), {"fsdp": 2})
    assert unknown.source == "lm/layers/norms.py:3"


def test_what_a_device_keeps_is_not_sent():
    to_themselves = HLO.replace("{{0,4},{4,0}}", "{{0,0},{4,4}}").replace("{{0,1,2,3},{4,5,6,7}}", "[8,1]<=[8]")
    assert {one.kind for one in of(to_themselves, MESH)} == {"all-gather", "reduce-scatter"}


def test_sums_are_by_kind_and_axis():
    assert hlo.summed(of(HLO, MESH) + of(HLO, MESH)[:1]) == [
        {"kind": "all-gather", "axis": "replica", "count": 5, "bytes": 160, "sent": 80},
        {"kind": "all-gather", "axis": "replica+fsdp", "count": 1, "bytes": 128, "sent": 112},
        {"kind": "all-reduce", "axis": "fsdp", "count": 30, "bytes": 840, "sent": 1260},
        {"kind": "reduce-scatter", "axis": "replica+fsdp", "count": 1, "bytes": 8, "sent": 56},
        {"kind": "collective-permute", "axis": "replica", "count": 1, "bytes": 16, "sent": 16}]


def test_a_loop_of_unknown_length_around_a_collective_is_an_error_and_around_none_is_not():
    unknown = HLO.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    with pytest.raises(LmError, match="no known number of turns: %w"):
        of(unknown, MESH)
    silent = unknown.replace("all-reduce(%x, %y)", "custom-call(%x, %y)")
    assert {one.kind for one in of(silent, MESH)} == {"all-gather", "collective-permute", "reduce-scatter"}


def test_what_xla_prints_of_a_loop_is_understood():
    def local(x):
        return jax.lax.scan(lambda carry, _: (jax.lax.psum(carry, "replica") / 8, None), x, length=7)[0]

    with jax.set_mesh(make_mesh(dict.fromkeys(AXES, 1) | {"replica": 8})):
        spec = jax.sharding.PartitionSpec("replica")
        run = jax.jit(jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False))
        (found,) = of(run.lower(jnp.ones((16, 3))).compile().as_text(), dict.fromkeys(AXES, 1) | {"replica": 8})
        assert found[:6] == ("all-reduce", "replica", 8, 7, 7 * 2 * 3 * 4, 7 * 2 * 24 * 7 // 8)


@pytest.mark.parametrize("axis", ["data", "model"])
@pytest.mark.parametrize(("send", "kind", "results"), [
    (lambda x, axis: jax.lax.all_gather(x, axis), "all-gather", 4 * 24),
    (lambda x, axis: jax.lax.psum_scatter(x, axis, scatter_dimension=0, tiled=True), "reduce-scatter", 24 // 4),
    (lambda x, axis: jax.lax.all_to_all(x, axis, 0, 0, tiled=True), "all-to-all", 24),
    (lambda x, axis: jax.lax.ppermute(x, axis, [(0, 1), (1, 2)]), "collective-permute", 24),
])
def test_each_kind_is_along_the_axis_that_sent_it(axis, send, kind, results):
    sizes = {"data": 4, "model": 2} if axis == "data" else {"data": 2, "model": 4}
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec(("data", "model"))
    run = jax.jit(jax.shard_map(lambda x: send(x, axis), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    found = of(run.lower(jnp.ones((8 * 8, 3))).compile().as_text(), sizes)
    assert {(one.kind, one.axis) for one in found} == {(kind, axis)}
    assert sum(one.bytes for one in found) == 4 * results


# The forms of the TPU compiler: a gather that starts in one fusion, goes on in a second beside other work, and ends in a third; an
# all-reduce of which a fusion keeps this device's part; and a sum over slices through their hosts.
TPU = """HloModule jit_f, is_scheduled=true, num_partitions=4

%begin (p0: bf16[8,4]) -> (bf16[8,4], bf16[32,4], u32[]) {
  %p0 = bf16[8,4]{1,0} parameter(0)
  %gather.1 = bf16[32,4]{1,0} all-gather(%p0), replica_groups={{0,1,2,3}}, backend_config={"async_collective_fusion_config":{}}
  ROOT %start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}, u32[]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%go-on (p1: bf16[8,4]) -> (f32[2], bf16[32,4]) {
  %p1 = bf16[8,4]{1,0} parameter(0)
  %gather.2 = bf16[32,4]{1,0} all-gather(%p1), replica_groups={{0,1,2,3}}, backend_config={"async_collective_fusion_config":{}}
  %other = f32[2]{0} constant({1, 2})
  ROOT %t = (f32[2]{0}, bf16[32,4]{1,0}) tuple(%other, %gather.2)
}

%end (p2: bf16[8,4]) -> bf16[32,4] {
  %p2 = bf16[8,4]{1,0} parameter(0)
  %gather.3 = bf16[32,4]{1,0} all-gather(%p2), replica_groups={{0,1,2,3}}, backend_config={"async_collective_fusion_config":{}}
  ROOT %done = bf16[32,4]{1,0} custom-call(%p2, %gather.3), custom_call_target="AsyncCollectiveDone"
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%scatter (p3: f32[16]) -> f32[4] {
  %p3 = f32[16]{0} parameter(0)
  %whole = f32[16]{0} all-reduce(%p3), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  ROOT %own = f32[4]{0} dynamic-slice(%whole, %id), dynamic_slice_sizes={4}
}

ENTRY %main (x: bf16[8,4], g: f32[16]) -> f32[4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %g = f32[16]{0} parameter(1)
  %f0 = (bf16[8,4]{1,0}, bf16[32,4]{1,0}, u32[]) fusion(%x), calls=%begin, metadata={source_file="/a/lm/layers/dense.py" source_line=66}
  %f1 = (f32[2]{0}, bf16[32,4]{1,0}) fusion(%x), kind=kLoop, calls=%go-on
  %f2 = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%end
  %own = f32[4]{0} fusion(%g), kind=kCustom, calls=%scatter
  %none = token[] after-all()
  %send = (f32[4]{0}, u32[], token[]) send(%own, %none), channel_id=6, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[4]{0}, u32[], token[]) recv(%none), channel_id=7, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %got = (f32[4]{0}, token[]) recv-done(%recv), channel_id=7
  ROOT %r = f32[4]{0} get-tuple-element(%got), index=0
}
"""


def test_fusions_of_a_tpu_count_a_collective_where_it_starts_and_a_sum_over_slices_is_along_the_first_axis():
    assert of(TPU, {"replica": 3, "stage": 1, "fsdp": 4}) == [
        Collective("all-gather", "fsdp", 4, 1, 256, 256 * 3 // 4, True, "lm/layers/dense.py:66"),
        Collective("reduce-scatter", "fsdp", 4, 1, 16, 16 * 3, False, ""),
        Collective("all-reduce", "replica", 3, 1, 16, 2 * 16 * 2 // 3, True, "", True),
    ]


def scattered(inside):
    """The collectives of a fusion of these lines, with an index %id to slice at."""
    return of(f"""HloModule jit_f, num_partitions=4

%fused (p: f32[16], q: f32[64], table: u32[4]) -> f32[4] {{
  %p = f32[16]{{0}} parameter(0)
  %q = f32[64]{{0}} parameter(1)
  %table = u32[4]{{0}} parameter(2)
  %device = u32[] partition-id()
  %at = u32[1]{{0}} dynamic-slice(%table, %device), dynamic_slice_sizes={{1}}
  %id = u32[] bitcast(%at)
{inside}
}}

ENTRY %main (p: f32[16], q: f32[64], table: u32[4]) -> f32[4] {{
  %p = f32[16]{{0}} parameter(0)
  %q = f32[64]{{0}} parameter(1)
  %table = u32[4]{{0}} parameter(2)
  ROOT %f = (f32[4]{{0}}, f32[64]{{0}}) fusion(%p, %q, %table), kind=kCustom, calls=%fused
}}
""", {"fsdp": 4})


SUM = "  %sum = f32[16]{0} all-reduce(%p), replica_groups={{0,1,2,3}}"


@pytest.mark.parametrize(("inside", "kind", "results"), [
    # A slice of something else.
    (f"""{SUM}
  %other = f32[4]{{0}} dynamic-slice(%q, %id), dynamic_slice_sizes={{4}}
  ROOT %t = (f32[4]{{0}}, f32[16]{{0}}) tuple(%other, %sum)""", "all-reduce", 64),
    # A slice beside which the whole is needed.
    (f"""{SUM}
  %own = f32[4]{{0}} dynamic-slice(%sum, %id), dynamic_slice_sizes={{4}}
  ROOT %t = (f32[4]{{0}}, f32[16]{{0}}) tuple(%own, %sum)""", "all-reduce", 64),
    # A slice of something else at the place that the sum says.
    ("""  %place = u32[] all-reduce(%id), replica_groups={{0,1,2,3}}
  ROOT %other = f32[4]{0} dynamic-slice(%q, %place), dynamic_slice_sizes={4}""", "all-reduce", 4),
    # Its own slice among other results, also through a change of type.
    (f"""{SUM}
  %wide = f64[4,4]{{1,0}} convert(%sum)
  %zero = u32[] constant(0)
  %own = f64[1,4]{{1,0}} dynamic-slice(%wide, %id, %zero), dynamic_slice_sizes={{1,4}}
  ROOT %t = (f64[1,4]{{1,0}}, f32[64]{{0}}) tuple(%own, %q)""", "reduce-scatter", 16),
    # Several sums at once, all of them cut.
    ("""  %sums = (f32[16]{0}, f32[64]{0}) all-reduce(%p, %q), replica_groups={{0,1,2,3}}
  %s0 = f32[16]{0} get-tuple-element(%sums), index=0
  %s1 = f32[64]{0} get-tuple-element(%sums), index=1
  %own0 = f32[4]{0} dynamic-slice(%s0, %id), dynamic_slice_sizes={4}
  %own1 = f32[16]{0} dynamic-slice(%s1, %id), dynamic_slice_sizes={16}
  ROOT %t = (f32[4]{0}, f32[16]{0}) tuple(%own0, %own1)""", "reduce-scatter", 16 + 64),
])
def test_a_fusion_scatters_a_sum_of_which_it_keeps_only_slices(inside, kind, results):
    (found,) = scattered(inside)
    assert (found.kind, found.axis, found.bytes) == (kind, "fsdp", results)


def test_fusions_of_a_tpu_move_the_arrays_of_a_collective_once():
    module = hlo.parse(TPU)
    moved = {one.instruction.name: hlo.work(module, one)[2:4] for one in hlo.executed(module)}
    assert (moved["f0"], moved["f1"], moved["f2"], moved["own"]) == ((64, 256), (0, 8), (0, 0), (64, 16))
    assert (moved["send"], moved["recv"], moved["got"]) == ((16, 0), (0, 16), (0, 0))


def check_llama(module):
    """Weights are sent twice and gradients once; what is asynchronous is for the compiler to choose."""
    found = hlo.collectives(module, {"replica": 1, "fsdp": stored.DEVICES})
    assert {(one.axis, one.size) for one in found} == {("fsdp", stored.DEVICES)}
    gathers = [one for one in found if one.kind == "all-gather"]
    assert sum(one.count for one in gathers) == 2 * 7 * stored.LAYERS + 2
    assert sum(one.bytes for one in gathers) == stored.gathered_bytes()
    assert sum(one.sent for one in gathers) == stored.gathered_bytes() * 3 // 4
    # Gradients of every matrix of a layer once in bfloat16, and of both vocabularies in float32; either whole, or this device's part.
    whole = sum(one.bytes for one in found if one.kind == "all-reduce" and one.bytes > 10_000)
    parts = sum(one.bytes for one in found if one.kind == "reduce-scatter")
    assert whole + 4 * parts == 2 * stored.LAYERS * stored.LAYER + 4 * 2 * stored.VOCABULARY * stored.WIDTH
    return gathers


def test_a_llama_on_a_tpu_sends_its_weights_twice_and_its_gradients_once(llama):
    gathers = check_llama(llama)
    assert 0 < sum(one.count for one in gathers if one.asynchronous) < len(gathers)
    # Of the unembedding's, which is moved to where it is used, the compiler keeps the parameter's name alone.
    assert [one.op_name for one in gathers if not one.source.startswith("lm/")] == [r"state.params[\'unembedding\'][\'kernel\']"]


@pytest.mark.slow
def test_the_compiler_that_is_here_gives_such_a_program():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    text, cost = stored.compiled()
    module = hlo.parse(text)
    check_llama(module)
    found = [(one.times, hlo.work(module, one)) for one in hlo.executed(module)]
    assert sum(times * work.flops for times, work in found) == stored.product_flops()
    assert sum(work.flops + work.elementwise for _, work in found) == pytest.approx(cost["flops"], rel=1e-3)
