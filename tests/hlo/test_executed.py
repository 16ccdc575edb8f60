"""What a program runs: the order, how often, and which branch."""

import pytest

from lm import hlo
from lm.errors import LmError

TEXT = """HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (f32[4])) -> (f32[4]) {
  %p = (f32[4]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=0
  %twice = f32[4]{0} add(%x, %x)
  ROOT %t = (f32[4]) tuple(%twice)
}

%until (p: (f32[4])) -> pred[] {
  %p = (f32[4]) parameter(0)
  ROOT %less = pred[] constant(true)
}

%outer (p: (f32[4])) -> (f32[4]) {
  %p = (f32[4]) parameter(0)
  ROOT %loop = (f32[4]) while(%p), condition=%until, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

%small (s: f32[4]) -> f32[4] {
  %s = f32[4]{0} parameter(0)
  ROOT %minus = f32[4]{0} negate(%s)
}

%large (l: f32[4]) -> f32[4] {
  %l = f32[4]{0} parameter(0)
  %big = f32[1000]{0} broadcast(%l)
  ROOT %part = f32[4]{0} slice(%big), slice={[0:4]}
}

%later (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  ROOT %root = f32[4]{0} sqrt(%q)
}

ENTRY %main (x: f32[4], which: s32[]) -> f32[] {
  %x = f32[4]{0} parameter(0)
  %which = s32[] parameter(1)
  %t = (f32[4]) tuple(%x)
  %nested = (f32[4]) while(%t), condition=%until, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %start = ((f32[4]), f32[4], s32[]) async-start(%x), calls=%later
  %chosen = f32[4]{0} conditional(%which, %x, %x), branch_computations={%large, %small}
  %called = f32[4]{0} call(%chosen), to_apply=%small
  %done = f32[4]{0} async-done(%start)
  ROOT %r = f32[] reduce(%done, %which), dimensions={0}, to_apply=%add
}
"""


def test_loops_calls_and_asynchronous_calls_are_entered_in_order():
    steps = hlo.executed(hlo.parse(TEXT))
    renaming = ("parameter", "get-tuple-element", "tuple")
    found = [(one.instruction.name, one.times) for one in steps if one.instruction.opcode not in renaming]
    assert found == [("nested", 1), ("less", 5), ("loop", 5), ("less", 15), ("twice", 15), ("start", 1), ("root", 1), ("chosen", 1),
                     ("big", 1), ("part", 1), ("called", 1), ("minus", 1), ("done", 1), ("r", 1)]
    (twice,) = (one for one in steps if one.instruction.name == "twice")
    assert twice.computation == "inner" and [array.dims for array in twice.operands] == [(4,), (4,)]
    (done,) = (one for one in steps if one.instruction.name == "done")
    assert [array.dims for array in done.operands] == [(4,), (4,), ()]  # those of a tuple, flat


def test_the_branch_that_writes_the_most_counts():
    swapped = TEXT.replace("branch_computations={%large, %small}", "true_computation=%small, false_computation=%large")
    for text in (TEXT, swapped):
        names = [one.instruction.name for one in hlo.executed(hlo.parse(text)) if one.instruction.name in ("big", "minus")]
        assert names == ["big", "minus"]  # the second is the call's


def test_a_loop_of_unknown_length_is_an_error_that_names_it_unless_nothing_wanted_is_in_it():
    unknown = TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', ', metadata={op_name="jit(f)/while"}')
    with pytest.raises(LmError, match=r"no known number of turns: %loop \(jit\(f\)/while\)"):
        hlo.executed(hlo.parse(unknown))
    named = unknown.replace("{op_name", '{source_file="/a/lm/losses.py" source_line=3 op_name')
    with pytest.raises(LmError, match=r"%loop \(lm/losses.py:3\)"):
        hlo.executed(hlo.parse(named), lambda one: one.opcode == "add")
    found = hlo.executed(hlo.parse(unknown), lambda one: one.opcode == "negate")
    # Nothing of the loops; and of a conditional, only the branch that has one.
    assert {one.computation for one in found} == {"main", "small"} and all(one.times == 1 for one in found)
    assert hlo.executed(hlo.parse(unknown), lambda one: one.opcode == "dot") == []
