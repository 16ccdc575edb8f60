"""How often loops turn: against a count by hand, and against what XLA itself writes beside loops of programs for CPUs."""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest

from lm import hlo

LOOP = """HloModule jit_f

%fused (a: s32[], b: s32[]) -> (s32[], f32[]) {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  %sum = s32[] {operation}(%a, %b)
  %f = f32[] constant(1.5)
  ROOT %t = (s32[], f32[]) tuple(%sum, %f)
}}

%below (l: s32[], r: s32[]) -> pred[] {{
  %l = s32[] parameter(0)
  %r = s32[] parameter(1)
  ROOT %less = pred[] compare(%l, %r), direction={direction}
}}

%body (p: (f32[], s32[], s32[])) -> (f32[], s32[], s32[]) {{
  %p = (f32[], s32[], s32[]) parameter(0)
  %old = s32[] get-tuple-element(%p), index=1
  %limit = s32[] get-tuple-element(%p), index=2
  %step = s32[] constant({step})
  %fusion = (s32[], f32[]) fusion(%old, %step), kind=kLoop, calls=%fused
  %new = s32[] get-tuple-element(%fusion), index=0
  %copy = s32[] copy(%new)
  %x = f32[] get-tuple-element(%p), index=0
  ROOT %t = (f32[], s32[], s32[]) tuple(%x, %copy, %limit)
}}

%until (p: (f32[], s32[], s32[])) -> pred[] {{
  %p = (f32[], s32[], s32[]) parameter(0)
  %now = s32[] get-tuple-element(%p), index=1
  %limit = s32[] get-tuple-element(%p), index=2
  ROOT %fusion = pred[] fusion(%now, %limit), kind=kLoop, calls=%below
}}

ENTRY %main (x: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %first = s32[] constant({first})
  %last = s32[] constant({last})
  %t = (f32[], s32[], s32[]) tuple(%x, %first, %last)
  %w = (f32[], s32[], s32[]) while(%t), condition=%until, body=%body
  ROOT %r = f32[] get-tuple-element(%w), index=0
}}
"""
HOLDS = {"LT": int.__lt__, "LE": int.__le__, "GT": int.__gt__, "GE": int.__ge__, "NE": int.__ne__, "EQ": int.__eq__}
LONG = 50  # turns of a loop that would never end


def turns_in(text):
    module = hlo.parse(text)
    return [hlo.trips(module, one) for one in module.instructions() if one.opcode == "while"]


@pytest.mark.parametrize("direction", HOLDS)
def test_turns_follow_from_start_step_and_bound(direction):
    for first, last, step, operation in itertools.product((-3, 0, 4), (-4, 0, 1, 9), (-2, 0, 1, 3), ("add", "subtract")):
        now, turns = first, 0
        while HOLDS[direction](now, last) and turns < LONG:
            now, turns = now + step if operation == "add" else now - step, turns + 1
        found = turns_in(LOOP.format(direction=direction, first=first, last=last, step=step, operation=operation))
        assert found == [None if turns == LONG else turns], (first, last, step, operation)


def test_loops_whose_turns_depend_on_data_are_not_known():
    known = LOOP.format(direction="LT", first=0, last=9, step=1, operation="add")
    assert turns_in(known) == [9]
    outer = "%outer = (s32[], s32[]) parameter(1)\n  %first = s32[] get-tuple-element(%outer), index=1"
    for old, new in [("%first = s32[] constant(0)", "%first = s32[] parameter(1)"), ("%first = s32[] constant(0)", outer),
                     ("tuple(%x, %copy, %limit)", "tuple(%x, %step, %limit)"), ("tuple(%x, %copy, %limit)", "tuple(%x, %limit, %limit)"),
                     ("add(%a, %b)", "multiply(%a, %b)"),
                     ("tuple(%x, %first, %last)", "custom-call(%x, %first, %last)"), ("tuple(%x, %copy, %limit)", "tuple(%x, %copy, %new)"),
                     ("fusion(%now, %limit), kind=kLoop, calls=%below", "and(%now, %limit)"), ("constant(1)", "constant({1, 2})")]:
        assert old in known and turns_in(known.replace(old, new)) == [None], new


def nested(x):
    def inner(carry, _):
        return jnp.tanh(carry @ x), carry.sum()

    return jax.lax.fori_loop(3, 10, lambda _, carry: jax.lax.scan(inner, carry, length=5)[0], x)


@pytest.mark.parametrize(("function", "turns", "unknown"), [
    (nested, [7, 5], 0),
    # XLA for CPUs may put a small loop into a call of its own, where its start is not seen.
    (lambda x: jax.lax.scan(lambda carry, row: (jnp.sin(carry * row), row), x[0], x, reverse=True)[0], [8], 1),
    (lambda x: jax.lax.while_loop(lambda state: state[0] > -4, lambda state: (state[0] - 3, jnp.sin(state[1])), (11, x))[1], [5], 1),
])
def test_turns_are_those_that_xla_writes_where_it_does(function, turns, unknown):
    text = jax.jit(function).lower(jnp.ones((8, 8))).compile().as_text()
    written, found = (turns_in(text) for text in (text, re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", text)))
    assert sorted(written) == sorted(turns)
    assert found in (written, [None] * unknown)


def test_loops_of_a_tpu_turn_once_for_each_layer(llama):
    assert [hlo.trips(llama, one) for one in llama.instructions() if one.opcode == "while"] == [2, 2]
