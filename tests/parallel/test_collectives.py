"""Collectives are counted as often as they run, with the bytes of their results."""

import jax
import jax.numpy as jnp
import pytest

from lm.parallel import AXES, make_mesh
from lm.parallel.collectives import Traffic, collectives

HLO = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %r = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), channel_id=1, to_apply=%add
}

%until (p: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %w = (s32[], f32[4]) while(%p), condition=%until, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %g = f32[8]{0} all-gather(%x), channel_id=2, dimensions={0}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%p), condition=%until, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %s = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=3, source_target_pairs={{0,1}}
  %d = f32[2]{0} collective-permute-done(%s)
  %a = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), channel_id=4, dimensions={0}
}
"""


def test_loops_multiply_and_asynchronous_ones_count_once():
    assert collectives(HLO) == {"all-reduce": Traffic(15, 15 * (16 + 12)), "all-gather": Traffic(5 + 1, 5 * 32 + 128),
                                "collective-permute": Traffic(1, 8)}


def test_a_loop_of_unknown_length_around_a_collective_is_an_error_and_around_none_is_not():
    unknown = HLO.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    with pytest.raises(ValueError, match="no known number of turns"):
        collectives(unknown)
    assert collectives(unknown.replace("all-reduce(", "add(")).keys() == {"all-gather", "collective-permute"}


def test_what_xla_prints_of_a_loop_is_understood():
    def local(x):
        return jax.lax.scan(lambda carry, _: (jax.lax.psum(carry, "replica") / 8, None), x, length=7)[0]

    with jax.set_mesh(make_mesh(dict.fromkeys(AXES, 1) | {"replica": 8})):
        spec = jax.sharding.PartitionSpec("replica")
        run = jax.jit(jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False))
        assert collectives(run.lower(jnp.ones((16, 3))).compile().as_text()) == {"all-reduce": Traffic(7, 7 * 2 * 3 * 4)}
