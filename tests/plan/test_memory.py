"""What memory holds and when, on a program and reports small enough to do by hand."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.hlo.text import parse
from lm.plan import memory
from lm.train.step import TrainState

TEXT = """HloModule jit_train_step, is_scheduled=true

FileNames
1 "/home/somebody/lm/layers/dense.py"
2 "/home/somebody/lm/models/transformer.py"

FunctionNames
1 "matmul"

FileLocations
1 {file_name_id=1 function_name_id=1 line=22 end_line=22 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=182 end_line=182 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%body (p: (s32[], f32[4,256], f32[256])) -> (s32[], f32[4,256], f32[256]) {
  %p = (s32[], f32[4,256]{1,0}, f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %stack = f32[4,256]{1,0} get-tuple-element(%p), index=1
  %x = f32[256]{0} get-tuple-element(%p), index=2
  %made = f32[256]{0} multiply(%x, %x), metadata={op_name="jit(train_step)/jvp(Model)/while/body/layers/dot" stack_frame_id=1}
  %put = f32[4,256]{1,0} fusion(%stack, %made, %i), kind=kLoop, calls=%fused, metadata={op_name="STACKED" stack_frame_id=2}
  ROOT %t = (s32[], f32[4,256]{1,0}, f32[256]{0}) tuple(%i, %put, %made)
}

ENTRY %main (w: f32[256], m: f32[256]) -> f32[256] {
  %w = f32[256]{0} parameter(0), metadata={op_name="state.params[\\'w\\']"}
  %m = f32[256]{0} parameter(1), metadata={op_name="state.opt_state[0].mu[\\'w\\']"}
  %room = f32[4,256]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,256]{1,0}, f32[256]{0}) tuple(%zero, %room, %w)
  %loop = (s32[], f32[4,256]{1,0}, f32[256]{0}) while(%start), condition=%cond, body=%body
  %kept = f32[4,256]{1,0} get-tuple-element(%loop), index=1
  %grad = f32[256]{0} reduce(%kept, %zero), to_apply=%add, metadata={op_name="jit(train_step)/transpose(jvp(Model))/add" stack_frame_id=1}
  ROOT %new = f32[256]{0} add(%w, %grad), metadata={op_name="jit(train_step)/add"}
}
""".replace("\\'", "\\\\'").replace("STACKED", "jit(train_step)/jvp(Model)/while/body/dynamic_update_slice")

RANGES = """HloLiveRange (max 9):
  InstructionSequence:
    0:w
  BufferLiveRange:
    w{}:0-9
    m{}:0-9
    room{}:2-3
    p{1}:3-4
    made{}:3-4
    fast{}:3-4
    put{}:4-5
    loop{1}:5-7
    grad{}:7-9
    new{}:8-9
  Live ranges at 4 (peak):
"""
ASSIGNED = """BufferAssignment:
allocation 0: size 1024, page 0, parameter 0:
 value: <1 w @0> (size=1024,offset=0): f32[256]{0:T(256)}
allocation 1: size 1024, page 0, parameter 1:
 value: <2 m @0> (size=1024,offset=0): f32[256]{0:T(256)}
allocation 2: size 6144, page 0, preallocated-temp:
 value: <3 room @0> (size=4096,offset=0): f32[4,256]{1,0:T(8,128)}
 value: <4 made @0> (size=1024,offset=4096): f32[256]{0:T(256)}
 value: <6 grad{} @0> (size=1024,offset=4096): f32[256]{0:T(256)}
 value: <7 new @0> (size=1024,offset=5120): f32[256]{0:T(256)}
 value: <8 put @0> (size=4096,offset=0): f32[4,256]{1,0:T(8,128)}
 value: <9 p{1} (phi) @0> (size=4096,offset=0): f32[4,256]{1,0:T(8,128)}
 value: <10 loop{1} (phi) @0> (size=4096,offset=0): f32[4,256]{1,0:T(8,128)}
allocation 3: size 4096, color 1, page 0, preallocated-temp:
 value: <5 fast @1> (size=4096,offset=0): f32[1024]{0:T(256)S(1)}
"""
DUMPS = {"after_optimizations-live-range": RANGES, "after_optimizations-buffer-assignment": ASSIGNED}


def held():
    return memory.buffers(parse(TEXT), DUMPS)


def test_buffers_have_the_line_that_fills_them_and_what_they_are_for():
    found = {(buffer.start, buffer.bytes): buffer for buffer in held()}
    assert len(held()) == 7  # what lies in fast memory is not held by the main one
    for start, stop in ((2, 3), (4, 7)):  # the loop's stack, before and after a layer is put into it
        room = found[start, 4096]
        assert (room.stop, room.source, room.part, room.shape) == (stop, "lm/layers/dense.py:22", "activations", "f32[4,256]")
    assert found[7, 1024].part == "temporaries"
    assert {buffer.part for buffer in held() if buffer.stop - buffer.start == 9} == {"params", "optimizer"}


@pytest.mark.parametrize(("moved", "part", "source"), [
    ("%kept", "activations", "lm/layers/dense.py:22"), ("%grad", "temporaries", "lm/layers/dense.py:22"), ("%w", "temporaries", ""),
])
def test_a_copy_is_what_it_is_a_copy_of_and_one_of_a_parameter_is_a_temporary(moved, part, source):
    """What is kept for the backward pass may be put elsewhere meanwhile, by instructions that nobody wrote."""
    copied = f"""  %out = (f32[4,256], f32[4,256], u32[]) copy-start({moved})
  %copied = f32[4,256]{{1,0}} copy-done(%out)
  ROOT %new ="""
    ranges = RANGES.replace("    new{}:8-9\n", "    new{}:8-9\n    copied{}:8-9\n")
    assigned = ASSIGNED.replace("allocation 3:", " value: <11 copied @0> (size=4096,offset=6144): f32[4,256]{1,0:T(8,128)}\nallocation 3:")
    dumps = {"after_optimizations-live-range": ranges, "after_optimizations-buffer-assignment": assigned}
    (found,) = (buffer for buffer in memory.buffers(parse(TEXT.replace("  ROOT %new =", copied)), dumps)
                if (buffer.start, buffer.bytes) == (8, 4096))
    assert (found.part, found.source) == (part, source)


def test_the_largest_are_of_one_module_and_of_all_layers():
    names = [f"state.params['layer_{i}']['query']['kernel']" for i in range(3)] + ["state.params['unembedding']['kernel']"]
    held = [memory.Buffer(100, 0, 5, "f32[4,4]", name, "", "params") for name in names]
    assert [(row["count"], row["bytes"], row["op_name"]) for row in memory.largest(held)] == [
        (3, 300, "state.params['layer_N']['query']['kernel']"), (1, 100, names[3])]
    assert [row["op_name"] for row in memory.largest(held[2:3])] == [names[2]]


def test_what_is_held_at_each_moment_adds_up():
    # What a loop carries lives on in it and after it, where it was, and counts once while one value of it follows another.
    totals = [size for _, size in memory.timeline(held())]
    assert totals == [2048, 2048, 6144, 7168, 7168, 6144, 6144, 7168, 4096, 4096]
    assert sum(buffer.bytes for buffer in memory.at_peak(held())) == 7168
    # Of what the forward pass made, the stack of all layers and the layer's own result live then.
    assert memory.breakdown(8000, {"params": 1024, "optimizer": 1024}, held()) == {
        "params": 1024, "optimizer": 1024, "activations": 5120, "temporaries": 832}
    assert [row["bytes"] for row in memory.largest(held())] == [4096, 1024, 1024, 1024]
    assert memory.breakdown(8000, {"params": 1024, "optimizer": 1024}, [])["temporaries"] == 5952


def test_the_bytes_of_a_state_are_those_of_one_device_and_not_those_in_the_host():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1), ("fsdp",))
    cut, host = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec(), memory_kind="pinned_host")

    def array(shape, dtype, sharding=cut):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    state = TrainState(array((), np.int32, NamedSharding(mesh, PartitionSpec())), {"w": array((8, 2), np.float32)},
                       ({"mu": array((8, 2), np.float32)}, array((4,), np.float32, host)), {"w": array((8, 2), np.float32)})
    assert memory.state_bytes(state) == {"params": 64, "optimizer": 128}
