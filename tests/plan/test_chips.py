"""The table of chips: numbers of different sources agree with each other."""

import math

import jax
import jax.numpy as jnp
import pytest

from lm import hlo
from lm.hlo.work import expected_cycles
from lm.metrics.flops import KNOWN_PEAKS
from lm.plan import program, topology
from lm.plan.chips import CHIPS

# Matrix units of a chip, in all its cores, of which each multiplies and adds 128 x 128 numbers in a cycle.
UNITS = {"v4": 2 * 4, "v5e": 4, "v5p": 2 * 4}
# GB/s in and out over all links of a chip, of the data sheets.
LINKS = {"v5e": 400, "v5p": 1200, "v6e": 800, "tpu7x": 1200}


@pytest.mark.parametrize("kind", UNITS)
def test_the_peak_is_what_the_matrix_units_do_at_the_clock(kind):
    chip = CHIPS[kind]
    assert UNITS[kind] * 128 * 128 * 2 * chip.clock_hz == pytest.approx(chip.peak_flops["bf16"], rel=0.01)


@pytest.mark.parametrize("kind", LINKS)
def test_links_are_within_what_the_data_sheet_has_for_all_of_them(kind):
    chip = CHIPS[kind]
    both_ways = 2 * chip.dimensions * 2 * chip.link_bandwidth
    assert both_ways == pytest.approx(LINKS[kind] * 1e9, rel=0.11)
    assert both_ways <= LINKS[kind] * 1e9


def test_peaks_are_those_of_the_table_of_devices():
    for kind, name in {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e", "tpu7x": "TPU7x"}.items():
        chip = CHIPS[kind]
        assert chip.kind == kind
        assert chip.peak_flops["bf16"] == chip.devices_per_chip * KNOWN_PEAKS[name]
        assert 0.5 < chip.product_share < 1
        assert 0.5 < chip.hbm_share < 1


@pytest.mark.parametrize("kind", CHIPS)
def test_no_chip_has_less_memory_than_its_compiler_grants(kind):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    device = topology.devices(topology.Topology(kind, topology.shapes(kind)[1]))[0]
    assert 0.9 < program.available(device) * CHIPS[kind].devices_per_chip / CHIPS[kind].hbm_bytes <= 1


@pytest.mark.parametrize("kind", CHIPS)
def test_an_instruction_that_does_next_to_nothing_takes_what_the_table_says(kind, tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[plan]'")
    one = topology.devices(topology.Topology(kind, topology.shapes(kind)[1]))[:1]

    def recurrent(rows, weights):
        def turn(i, carried):
            state = jnp.tanh(carried[0] @ weights + rows[i])
            return state, jax.lax.dynamic_update_index_in_dim(carried[1], state[:, :8].sum(0), i, 0)
        return jax.lax.fori_loop(0, rows.shape[0], turn, (rows[0], jnp.zeros((rows.shape[0], 8))))

    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 8, 128), (128, 128))]
    with jax.set_mesh(jax.make_mesh((1,), ("one",), axis_types=(jax.sharding.AxisType.Auto,), devices=one)), topology.no_flags():
        jax.jit(recurrent).lower(*given).compile(compiler_options={"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True})
    (report,) = tmp_path.glob("*after_codegen.txt")
    cycles = [expected_cycles(one) for one in hlo.parse(report.read_text()).instructions() if "kind=kLoop" in one.attributes]
    assert min(filter(None, cycles)) == pytest.approx(CHIPS[kind].start_cycles, rel=0.02)


@pytest.mark.parametrize(("kind", "shape", "closed"), [
    ("v5e", (16, 16), (True, True)), ("v5e", (8, 16), (False, True)), ("v6e", (4, 4), (False, False)),
    ("v5p", (4, 4, 8), (True, True, True)), ("v5p", (2, 4, 4), (False, False, False)), ("v4", (2, 2, 1), (False, False, False)),
])
def test_which_sides_are_rings(kind, shape, closed):
    assert CHIPS[kind].closed(shape) == closed


def test_newer_chips_do_more_for_each_byte_and_none_has_more_than_its_memory():
    for chip in CHIPS.values():
        assert chip.vmem_bytes < chip.hbm_bytes
        assert 100 < chip.peak_flops["bf16"] / chip.hbm_bandwidth < 700
        assert chip.link_bandwidth < chip.hbm_bandwidth
        assert chip.dcn_bandwidth < chip.link_bandwidth
        assert math.isfinite(chip.price_per_hour)
