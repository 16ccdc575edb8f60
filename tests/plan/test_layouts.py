"""Layouts to search through: all meshes by brute force, each candidate a config that the run would take, and back from its flags."""

import itertools
import math
import subprocess

import pytest

from lm import cli
from lm import config as configs
from lm.config.planned import as_text
from lm.errors import ConfigError
from lm.parallel import AXES, layout, mesh_sizes
from lm.plan import layouts
from tests.plan.tiny import tiny


@pytest.mark.parametrize(("count", "parts"), [(1, 3), (12, 3), (16, 4)])
def test_factorisations_are_all_there_are(count, parts):
    brute = {each for each in itertools.product(range(1, count + 1), repeat=parts) if math.prod(each) == count}
    found = list(layouts.factorisations(count, parts))
    assert set(found) == brute and len(found) == len(brute)


def brute_meshes(config, devices):
    """Meshes without experts and a second fsdp axis that the run's own check allows with some accumulation."""
    found = set()
    for mesh in itertools.product([1, 2, 4, 8], repeat=len(AXES)):
        sizes = dict(zip(AXES, mesh, strict=True))
        if math.prod(mesh) != devices or sizes["expert"] > 1 or sizes["fsdp_outer"] > 1:
            continue
        try:
            layout.check(config, sizes)
        except ConfigError:
            continue
        found.add(mesh)
    return found


def test_every_mesh_that_can_work_is_among_them_and_every_candidate_can():
    config = tiny(model__heads=4)
    families, out = layouts.enumerate_layouts(config, 8)
    found = {candidate.mesh for family in families for candidate in family}
    assert found == brute_meshes(config, 8)
    assert sum(out.values()) > 0 and all("multiple" in reason for reason in out)
    for family in families[::97]:
        for candidate in family:
            layout.check(layouts.applied(config, candidate), candidate.sizes)


def test_fsdp_is_cut_in_two_along_sides_of_the_torus():
    found = set(layouts.meshes(16, 1, (4, 4)))
    outer, inner = AXES.index("fsdp_outer"), AXES.index("fsdp")
    assert {(mesh[outer], mesh[inner]) for mesh in found if mesh[outer] > 1} == {(4, 2), (4, 4)}


def test_replicas_alone_go_over_slices():
    assert {mesh[0] for mesh in layouts.meshes(4, 2, (1, 2))} == {2, 4}


def test_families_differ_only_in_what_saves_memory():
    families, _ = layouts.enumerate_layouts(tiny(), 4)
    for family in families:
        assert len(set(family)) == len(family)
        assert len({candidate._replace(accumulate=0, loss_chunk=0, offload="") for candidate in family}) == 1


def test_values_as_texts_lead_from_the_config_to_the_candidate():
    config = tiny()
    families, _ = layouts.enumerate_layouts(config, 4)
    for family in families[::53]:
        candidate = family[-1]
        texts = {key: as_text(value) for key, value in candidate.values().items()}
        there = configs.validate(configs.override(config, texts))
        assert configs.to_json(there) == configs.to_json(layouts.applied(config, candidate))
        assert layouts.own(there, 4) == candidate


def test_flags_come_through_a_shell():
    overrides = {"train.steps": "3 epochs", "data.source": "text:/d/*.txt", "model.remat_save": "", "mesh.fsdp": "8"}
    flags = layouts.as_flags(overrides)
    told = subprocess.run(["sh", "-c", f"printf '%s\\n' {flags}"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert cli.Parser().parse_with_overrides(told)[1] == overrides and flags.endswith(" --config.mesh.fsdp=8")


def test_what_a_step_computes_stays():
    config = tiny()
    families, _ = layouts.enumerate_layouts(config, 4)
    for family in families[::53]:
        there = layouts.applied(config, family[0])
        # Layers one by one are other parameters in checkpoints, and the same model.
        assert set(configs.differences(config, there)) <= {"model.scan_layers"}


def test_the_own_layout_is_the_configs():
    config = tiny(mesh__fsdp=2, mesh__replica=-1, layout__zero=1)
    mine = layouts.own(config, 8)
    assert mine.sizes == mesh_sizes(config.mesh, 8) and mine.zero == 1
    with pytest.raises(ConfigError, match="mesh"):
        layouts.own(tiny(mesh__fsdp=3), 8)


def test_without_the_hosts_memory_nothing_is_kept_there():
    families, _ = layouts.enumerate_layouts(tiny(), 4, offload=False)
    assert {(candidate.offload, candidate.send) for family in families for candidate in family} == {("none", ())}
