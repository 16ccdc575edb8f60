"""A description of what a plan has compiled: scripts/plan.py's folder, read."""

import gzip
import pathlib
import zlib

from lm import config as configs
from lm.config.planned import values_of
from lm.describe.collectives import annotated, device_of
from lm.describe.config import describe, place_of
from lm.errors import PlanError
from lm.hlo.text import parse
from lm.plan.topology import parse as topology_of


def describe_plan(folder: str | pathlib.Path) -> dict:
    """The description (see `lm.describe.describe`) of the config of a plan on its topology, with its "plan" (plan.json) and
    "collectives" (see `lm.describe.collectives.annotated`) and a "note": why these have no seconds, where the TPU
    compiler that knows is not installed. PlanError where the program beside it cannot be read."""
    plan = values_of(folder)
    config, topology = configs.from_json(plan["config"]), topology_of(plan["topology"])
    place = place_of(config, topology)
    path = pathlib.Path(folder) / "program.hlo.gz"
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, zlib.error) as error:
        raise PlanError(f"{path} cannot be read ({error}): plan again with scripts/plan.py --out={folder}") from error
    device, note = None, ""
    try:
        device = device_of(place.sizes, topology)
    except PlanError as error:
        note = f"collectives have no seconds: {error}"
    found = annotated(parse(text), place.sizes, device) if text else []
    return describe(config, place) | {"plan": plan, "collectives": found, "note": note if found else ""}
