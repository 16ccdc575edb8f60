"""The work of instructions: against XLA's own account of programs for CPUs, loops that are written out, and counts by hand."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from lm import hlo
from lm.hlo.products import _met
from lm.hlo.text import arrays
from tests.hlo import stored


def totals(text):
    """Sums over everything that a program runs: {product FLOPs, other operations, transcendentals, bytes}."""
    module = hlo.parse(text)
    sums = dict.fromkeys(("flops", "elementwise", "transcendentals", "bytes"), 0)
    for one in hlo.executed(module):
        found = hlo.work(module, one)
        for name in ("flops", "elementwise", "transcendentals"):
            sums[name] += one.times * getattr(found, name)
        sums["bytes"] += one.times * (found.read + found.written)
    return sums


def ones(*shape):
    return jnp.ones(shape)


def attention(q, k, v):
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(jnp.einsum("bhtd,bhsd->bhts", q, k)), v)


def convolution(**settings):
    return lambda image, kernel: jax.lax.conv_general_dilated(image, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)


@pytest.mark.parametrize(("function", "arguments"), [
    (jnp.dot, (ones(8, 16), ones(16, 32))),
    (lambda x, w: jnp.tanh(x @ w) * 2 + 1, (ones(8, 16), ones(16, 32))),
    (lambda x, y: jnp.einsum("bij,bkj->bik", x, y), (ones(3, 8, 16), ones(3, 4, 16))),
    (lambda x, y: jnp.einsum("abcd,dceb->ae", x, y), (ones(3, 4, 5, 6), ones(6, 5, 7, 4))),
    (jax.nn.softmax, (ones(8, 16),)),
    (attention, (ones(2, 3, 8, 16),) * 3),
    (jax.grad(lambda w, x: (jnp.tanh(x @ w) ** 2).sum()), (ones(16, 32), ones(8, 16))),
    (lambda table, at: jax.lax.dynamic_slice(table, (at, 0), (5, 16)) * 2, (ones(100, 16), 3)),
    (convolution(window_strides=(2, 1), padding=[(1, 2), (0, 1)], lhs_dilation=(1, 3), rhs_dilation=(2, 1)),
     (ones(2, 9, 7, 3), ones(3, 2, 3, 5))),
    (convolution(window_strides=(1, 1), padding="SAME", feature_group_count=2), (ones(2, 6, 5, 4), ones(3, 3, 2, 6))),
    (convolution(window_strides=(1, 1), padding="VALID", batch_group_count=2), (ones(4, 6, 5, 3), ones(3, 2, 3, 6))),
])
def test_programs_without_loops_do_what_xla_counts(function, arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    ours, theirs = totals(compiled.as_text()), compiled.cost_analysis()
    assert ours["flops"] + ours["elementwise"] == theirs["flops"]
    assert ours["transcendentals"] == theirs.get("transcendentals", 0)
    assert ours["bytes"] == theirs["bytes accessed"]


def test_a_loop_does_what_its_turns_do_written_out():
    def step(x, w):
        return jnp.tanh(x @ w) + x

    def written_out(x, weights):
        for w in weights:
            x = step(x, w)
        return x

    arguments = ones(8, 16), ones(5, 16, 16)
    scanned, flat = (totals(jax.jit(function).lower(*arguments).compile().as_text()) for function in
                     (lambda x, weights: jax.lax.scan(lambda carry, w: (step(carry, w), None), x, weights)[0], written_out))
    assert scanned["flops"] == flat["flops"] == 5 * 2 * 8 * 16 * 16
    assert scanned["transcendentals"] == flat["transcendentals"] == 5 * 8 * 16
    # The loop reads one matrix a turn, not all of them.
    assert flat["bytes"] < scanned["bytes"] < 2 * flat["bytes"]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_multiply_adds_that_meet_the_image_are_those_of_a_search(stride):
    for results, window, image, low, holes, apart in itertools.product((1, 4, 7), (1, 3, 8), (1, 5), (-2, 0, 3), (1, 2, 4), (1, 3)):
        met = sum(0 <= place <= (image - 1) * holes and place % holes == 0 for result in range(results) for step in range(window)
                  for place in [result * stride + step * apart - low])
        assert _met(results, window, image, stride, low, holes, apart) == met


# What the TPU compiler makes of products: of heads with and without their transpose, of a sum over two axes, and of plain ones.
@pytest.mark.parametrize(("result", "image", "kernel", "attributes", "products"), [
    ("f32[32,256,512]", "bf16[32,256,128]", "bf16[32,512,128]", "window={size=32 stride=31 lhs_dilate=32}, dim_labels=0bf_0oi->0bf",
     32 * 256 * 512 * 128),
    ("f32[32,256,128]", "bf16[32,256,512]", "bf16[32,512,128]", "window={size=32 stride=31 lhs_dilate=32}, dim_labels=0bf_0io->0bf",
     32 * 256 * 512 * 128),
    ("f32[1,256,384]", "bf16[8,128,256]", "bf16[8,128,384]", "window={size=8}, dim_labels=0fb_0io->0bf", 8 * 128 * 256 * 384),
    ("bf16[4096,22016]", "bf16[4096,4096]", "f32[4096,22016]", "dim_labels=bf_io->bf", 4096 * 4096 * 22016),
    ("bf16[4,256,768]", "f32[4,256,512]", "bf16[512,768,1]", "window={size=1}, dim_labels=0bf_io0->0bf", 4 * 256 * 512 * 768),
])
def test_convolutions_of_a_tpu_count_as_the_products_they_stand_for(result, image, kernel, attributes, products):
    found = of_one(f"""ENTRY %main (a: {image}, b: {kernel}) -> {result} {{
  %a = {image} parameter(0)
  %b = {kernel}{{S(1)}} parameter(1)
  ROOT %c = {result} convolution(%a, %b), {attributes}
}}""")
    assert (found.flops, found.type, found.elementwise) == (2 * products, "bf16", 0)
    assert (found.read, found.written) == (arrays(image)[0].bytes, arrays(result)[0].bytes)  # the kernel lies in VMEM


def of_one(text, name=None):
    """The work of an instruction of the entry, its last one unless named."""
    module = hlo.parse(text)
    return next(hlo.work(module, one) for one in reversed(hlo.executed(module))
                if one.computation == module.entry and name in (None, one.instruction.name))


# A stack of eight layers: a fusion that reads one, one that writes one in place, one that does both and hands on what it does not touch.
STACK = """HloModule jit_f

%double (d: f32[8,128]) -> f32[8,128] {
  %d = f32[8,128]{1,0} parameter(0)
  ROOT %sum = f32[8,128]{1,0} add(%d, %d)
}

%reads (s: bf16[8,8,128], i: s32[]) -> f32[8,128] {
  %s = bf16[8,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %wide = f32[8,8,128]{2,1,0} convert(%s)
  %one = f32[1,8,128]{2,1,0} dynamic-slice(%wide, %i, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %flat = f32[8,128]{1,0} bitcast(%one)
  ROOT %nested = f32[8,128]{1,0} fusion(%flat), kind=kLoop, calls=%double
}

%writes (s: bf16[8,8,128], u: f32[8,128], i: s32[]) -> bf16[8,8,128] {
  %s = bf16[8,8,128]{2,1,0} parameter(0)
  %u = f32[8,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %narrow = bf16[8,128]{1,0} convert(%u)
  %row = bf16[1,8,128]{2,1,0} bitcast(%narrow)
  ROOT %put = bf16[8,8,128]{2,1,0} dynamic-update-slice(%s, %row, %i, %zero, %zero)
}

%both (s: bf16[8,8,128], other: f32[8,128], u: bf16[1,8,128], i: s32[]) -> (bf16[8,8,128], f32[8,128], f32[]) {
  %s = bf16[8,8,128]{2,1,0} parameter(0)
  %other = f32[8,128]{1,0} parameter(1)
  %u = bf16[1,8,128]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %zero = s32[] constant(0)
  %old = bf16[1,8,128]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %new = bf16[1,8,128]{2,1,0} add(%old, %u)
  %put = bf16[8,8,128]{2,1,0} dynamic-update-slice(%s, %new, %i, %zero, %zero)
  %first = f32[] constant(1)
  ROOT %t = (bf16[8,8,128]{2,1,0}, f32[8,128]{1,0}, f32[]) tuple(%put, %other, %first)
}

%fills (u: bf16[1,8,128], i: s32[]) -> bf16[8,8,128] {
  %u = bf16[1,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = bf16[] constant(0)
  %none = s32[] constant(0)
  %blank = bf16[8,8,128]{2,1,0} broadcast(%zero), dimensions={}
  ROOT %put = bf16[8,8,128]{2,1,0} dynamic-update-slice(%blank, %u, %i, %none, %none)
}

%places (u: bf16[1,8,128], i: s32[]) -> bf16[8,8,128] {
  %u = bf16[1,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %none = s32[] constant(0)
  %new = bf16[8,8,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %put = bf16[8,8,128]{2,1,0} dynamic-update-slice(%new, %u, %i, %none, %none)
}

%picks (table: f32[100,128], at: s32[3]) -> f32[3,128] {
  %table = f32[100,128]{1,0} parameter(0)
  %at = s32[3]{0} parameter(1)
  ROOT %rows = f32[3,128]{1,0} gather(%table, %at), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,128}
}

%adds (table: f32[100,128], at: s32[3], rows: f32[3,128]) -> f32[100,128] {
  %table = f32[100,128]{1,0} parameter(0)
  %at = s32[3]{0} parameter(1)
  %rows = f32[3,128]{1,0} parameter(2)
  ROOT %sum = f32[100,128]{1,0} scatter(%table, %at, %rows), update_window_dims={1}, to_apply=%double
}

ENTRY %main (s: bf16[8,8,128], u: f32[8,128], r: bf16[1,8,128], i: s32[], v: f32[8,128], t: f32[100,128], at: s32[3]) -> f32[8,128] {
  %s = bf16[8,8,128]{2,1,0} parameter(0)
  %u = f32[8,128]{1,0} parameter(1)
  %r = bf16[1,8,128]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %v = f32[8,128]{1,0:S(1)} parameter(4)
  %t = f32[100,128]{1,0} parameter(5)
  %at = s32[3]{0} parameter(6)
  %narrow = f32[100,64]{1,0:T(8,128)} slice(%t), slice={[0:100], [0:64]}
  %read = f32[8,128]{1,0} fusion(%s, %i), kind=kLoop, calls=%reads
  %write = bf16[8,8,128]{2,1,0} fusion(%s, %u, %i), kind=kLoop, calls=%writes
  %cached = bf16[8,8,128]{2,1,0:S(1)} fusion(%s, %v, %i), kind=kLoop, calls=%writes
  %change = (bf16[8,8,128]{2,1,0}, f32[8,128]{1,0}, f32[]) fusion(%s, %u, %r, %i), kind=kLoop, calls=%both
  %fill = bf16[8,8,128]{2,1,0} fusion(%r, %i), kind=kLoop, calls=%fills
  %place = bf16[8,8,128]{2,1,0} fusion(%r, %i), kind=kLoop, calls=%places
  %pick = f32[3,128]{1,0} fusion(%t, %at), kind=kCustom, calls=%picks
  %grow = f32[100,128]{1,0} fusion(%t, %at, %pick), kind=kCustom, calls=%adds
  %fetch = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%u)
  %fetched = f32[8,128]{1,0:S(1)} copy-done(%fetch)
  %keep = (f32[8,128]{1,0}, f32[8,128]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%v)
  %kept = f32[8,128]{1,0} copy-done(%keep)
  %part = ((bf16[8,8,128]{2,1,0}), bf16[2,8,128]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%s), slice={[0:2], [0:8], [0:128]}
  %parted = bf16[2,8,128]{2,1,0:S(1)} slice-done(%part)
  %joined = bf16[8,8,128]{2,1,0:S(1)} custom-call(%parted, %parted), custom_call_target="ConcatBitcast"
  %gather = (bf16[1,8,128]{2,1,0}, bf16[4,8,128]{2,1,0}) all-gather-start(%r), replica_groups={}, dimensions={0}
  %kernel = f32[8,128]{1,0} custom-call(%i, %u, %v), custom_call_target="tpu_custom_call", config={"flops":"77","transcendentals":"5"}
  ROOT %secret = f32[8,128]{1,0} custom-call(%u, %v), custom_call_target="tpu_custom_call"
}
"""
LAYER = 8 * 128 * 2  # bytes of a layer of the stack, in bfloat16
INDEX = 4


@pytest.mark.parametrize(("name", "read", "written"), [
    ("read", LAYER + INDEX, 2 * LAYER),
    ("write", 2 * LAYER + INDEX, LAYER),
    ("cached", INDEX, 0),
    ("change", LAYER + LAYER + INDEX, LAYER + 4),
    ("fill", LAYER + INDEX, 8 * LAYER),
    ("place", LAYER + INDEX, LAYER),
    ("pick", 3 * 128 * 4 + 3 * 4, 3 * 128 * 4),
    ("grow", 2 * 3 * 128 * 4 + 3 * 4, 3 * 128 * 4),  # rows of the table are read, added to and written back
    ("narrow", 100 * 64 * 4, 104 * 128 * 4),  # rows of 64 lie in tiles of 8 by 128
    ("fetch", 2 * LAYER, 0), ("fetched", 0, 0), ("keep", 0, 2 * LAYER), ("kept", 0, 0),
    ("part", 2 * LAYER, 0), ("parted", 0, 0), ("joined", 0, 0),
    ("gather", LAYER, 4 * LAYER),
    ("kernel", INDEX + 2 * LAYER, 2 * LAYER),
])
def test_what_is_touched_in_main_memory_counts(name, read, written):
    found = of_one(STACK, name)
    assert (found.read, found.written) == (read, written)


def test_kernels_say_what_they_do_or_are_unknown():
    kernel, secret = of_one(STACK, "kernel"), of_one(STACK, "secret")
    assert (kernel.flops, kernel.transcendentals, kernel.known, kernel.type) == (77, 5, True, "f32")  # the type of what is largest
    assert (secret.flops, secret.known) == (0, False)
    assert all(hlo.work(hlo.parse(STACK), one).known for one in hlo.executed(hlo.parse(STACK))[:-1])


def test_a_llama_on_a_tpu_does_what_xla_counts_where_loops_turn_once(llama):
    found = [hlo.work(llama, one) for one in hlo.executed(llama)]
    # `cost_analysis` of the stored program says this, with the body of a loop once.
    assert sum(work.flops + work.elementwise for work in found) == pytest.approx(3_348_367_104, rel=5e-4)


def test_a_llama_on_a_tpu_multiplies_what_the_closed_form_says(llama):
    found = [(one.times, hlo.work(llama, one)) for one in hlo.executed(llama)]
    assert sum(times * work.flops for times, work in found) == stored.product_flops()
    assert {work.type for _, work in found if work.flops} == {"bf16"}
    assert all(work.known for _, work in found)
    # Much of a program this small stays in VMEM, but Adam reads weights and two moments from main memory, and writes three back.
    own = (stored.LAYERS * stored.LAYER + 2 * stored.VOCABULARY * stored.WIDTH) // stored.DEVICES
    assert sum(times * work.read for times, work in found) > 3 * 4 * own
    assert 3 * 4 * own < sum(times * work.written for times, work in found) < 6 * 4 * own
