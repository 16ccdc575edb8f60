"""The text of compiled programs: types, operands, attributes and where an instruction comes from."""

import time

import pytest

from lm import hlo
from lm.hlo.text import arrays, bits

TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=4, replica_count=2

FileNames
1 "/somewhere/site-packages/flax/scan.py"
2 "/somewhere/lm/models/transformer.py"
3 "/somewhere/lm/layers/dense.py"

FunctionNames
1 "scan"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=20 end_line=20 column=1 end_column=2}
3 {file_name_id=3 function_name_id=1 line=30 end_line=30 column=1 end_column=2}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=1 parent_frame_id=1}

%inside.1 (p: f32[2]) -> f32[2] {
  ROOT %p = f32[2]{0} parameter(0), metadata={op_name="jit(f)/call (fast) calls=%none"}
}, execution_thread="host"

ENTRY %main (x: f32[2], y: (f32[2], /*index=1*/s32[])) -> f32[2] {
  %x = f32[2]{0:T(128)S(1)} parameter(0), metadata={stack_frame_id=2}
  %y = (f32[2]{0}, /*index=1*/s32[]) parameter(1), metadata={stack_frame_id=3}
  %c.1 = s32[2]{0} constant({3, -4}), metadata={stack_frame_id=4}
  %k.1 = ((f32[2]{0}), f32[1]{0:S(1)}, s32[]{:S(2)}) custom-call(%x, /*index=1*/%c.1), target="kernel", frontend_attributes={kernel={
"of":"{\\"block\\": 128}"
}}, metadata={op_name="jit(f)/a \\"b\\"" source_file="/checkout/lm/losses.py" source_line=7}
  ROOT %f-2 = f32[2]{0} fusion(%x, %k.1), kind=kLoop, calls=%inside.1
}
"""


def test_instructions_are_read_with_what_they_take_and_give():
    module = hlo.parse(TEXT)
    assert (module.name, module.entry, module.partitions, list(module.computations)) == ("jit_f", "main", 8, ["inside.1", "main"])
    assert list(module.computations["main"]) == ["x", "y", "c.1", "k.1", "f-2"]
    assert [one.opcode for one in module.instructions()] == ["parameter", "parameter", "parameter", "constant", "custom-call", "fusion"]
    kernel, fusion = module.computations["main"]["k.1"], module.root("main")
    assert [(one.type, one.dims, one.space) for one in kernel.results] == [("f32", (2,), 0), ("f32", (1,), 1), ("s32", (), 2)]
    assert kernel.operands == ("x", "c.1") and fusion.operands == ("x", "k.1")
    assert '"of":"{\\"block\\": 128}"' in kernel.attributes and kernel.attributes.startswith('target="kernel"')
    assert (fusion.name, fusion.called, module.root("inside.1").name) == ("f-2", {"calls": ("inside.1",)}, "p")
    assert module.computations["main"]["c.1"].literal == "{3, -4}" and module.computations["main"]["y"].literal == "1"


def test_an_instruction_knows_the_innermost_line_of_the_package_that_it_comes_from():
    main = hlo.parse(TEXT).computations["main"]
    assert main["x"].source == "lm/models/transformer.py:20"  # through a frame of another package
    assert main["y"].source == "lm/layers/dense.py:30"
    assert main["c.1"].source == ""  # no line of this package is above it
    assert (main["k.1"].source, main["k.1"].op_name) == ("lm/losses.py:7", 'jit(f)/a \\"b\\"')
    counted_from_0 = TEXT
    for number in (1, 2, 3):
        counted_from_0 = counted_from_0.replace(f"parent_frame_id={number}", f"parent_frame_id={number - 1}")
    assert {name: one.source for name, one in hlo.parse(counted_from_0).computations["main"].items()} == {
        name: one.source for name, one in main.items()}


@pytest.mark.parametrize(("file", "source"), [
    ("/home/u/lm/.venv/lib/python3.11/site-packages/flax/linen/module.py", ""),
    ("/home/u/lm/.venv/lib/python3.11/site-packages/other/lm/layers/dense.py", ""),
    ("/home/u/lm/layers/.venv/lib/site-packages/flax/core.py", ""),
    ("/home/u/lm/scripts/train.py", ""),
    ("/home/u/lm/lm/layers/dense.py", "lm/layers/dense.py:20"),
    ("/home/u/lm/.venv/lib/python3.11/site-packages/lm/layers/dense.py", "lm/layers/dense.py:20"),
])
def test_a_checkout_may_be_called_as_the_package(file, source):
    text = TEXT.replace("/somewhere/lm/models/transformer.py", file)
    assert hlo.parse(text).computations["main"]["x"].source == source


def test_computations_that_are_called_have_roles():
    text = TEXT.replace("kind=kLoop, calls=%inside.1", "true_computation=%inside.1, false_computation=%b, to_apply=%c, "
                        "branch_computations={%d, %e}, body=%f, condition=%g")
    assert hlo.parse(text).root("main").called == {"branches": ("inside.1", "b", "d", "e"), "to_apply": ("c",), "body": ("f",),
                                                   "condition": ("g",)}


@pytest.mark.parametrize(("type", "count"), [("pred", 8), ("bf16", 16), ("f8e4m3fn", 8), ("s4", 4), ("c64", 64), ("token", 0)])
def test_elements_have_the_bits_of_their_type(type, count):
    assert bits(type) == count


@pytest.mark.parametrize(("type", "size", "stored"), [
    ("f32[3,5]{1,0}", 60, 60),
    ("f32[4096,64]{1,0:T(8,128)}", 4096 * 64 * 4, 4096 * 128 * 4),
    ("f32[4096,64]{0,1:T(8,128)}", 4096 * 64 * 4, 4096 * 64 * 4),
    ("bf16[2,3,5,7]{3,1,2,0:T(8,128)(2,1)S(1)}", 420, 2 * 5 * 8 * 128 * 2),
    ("f32[300]{0:T(256)}", 1200, 2048),
    ("f32[]{:T(128)S(6)}", 4, 512),
    ("s4[9]{0}", 5, 5),
    ("token[]", 0, 0),
    ("f32[0,8]{1,0:T(8,128)}", 0, 0),
    ("s32[<=6]{0}", 24, 24),
])
def test_an_array_takes_its_elements_and_in_its_layout_whole_tiles(type, size, stored):
    (array,) = arrays(type)
    assert (array.bytes, array.stored) == (size, stored)


def test_what_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no computation in it is marked ENTRY"):
        hlo.parse("HloModule jit_f\n")
    with pytest.raises(ValueError, match="no operation"):
        hlo.parse(TEXT.replace("fusion(%x, %k.1)", "fusion"))
    with pytest.raises(ValueError, match="not closed"):
        hlo.parse(TEXT.replace("fusion(%x, %k.1), kind=kLoop, calls=%inside.1", "fusion(%x"))


def test_a_program_of_a_tpu_is_read_whole(llama):
    main = llama.computations[llama.entry]
    assert len(llama.instructions()) == 4896
    assert llama.partitions == 4
    for computation, instructions in llama.computations.items():
        assert computation in llama.roots
        for one in instructions.values():
            assert all(operand in instructions for operand in one.operands)
            assert all(name in llama.computations for names in one.called.values() for name in names)
            assert one.results or one.opcode in ("tuple", "while"), one
    parameters = [one.results[0] for one in main.values() if one.opcode == "parameter"]
    # A quarter of the weights and of Adam's two moments, with the scales of norms whole, and the weights of two rows of tokens.
    matrices = 2 * (4 * 256 * 256 + 3 * 256 * 512) + 2 * 512 * 256
    assert sum(array.size for array in parameters if array.type == "f32") == 3 * (matrices // 4 + 5 * 256) + 2 * 256
    sources = {one.source for one in llama.instructions()}
    assert "" in sources and any(source.startswith("lm/layers/attention.py:") for source in sources)
    assert all(source == "" or source.startswith("lm/") for source in sources)


def test_reading_does_not_take_long(llama):
    lines = [f"  %a.{at + 1} = f32[8,128]{{1,0:T(8,128)S(1)}} add(%a.{at}, %a.{at}), metadata={{op_name=\"jit(f)/add\"}}"
             for at in range(20_000)]
    text = "\n".join(["ENTRY %main (a: f32[8,128]) -> f32[8,128] {", "  %a.0 = f32[8,128]{1,0} parameter(0)", *lines, "}"])
    start = time.perf_counter()
    assert len(hlo.parse(text).instructions()) == 20_001
    assert time.perf_counter() - start < 5  # about 0.2 s on an idle core
