"""What each layout does, as text: the sharding of every parameter, and what the compiled step sends.

After a change that is meant: `python tests/parallel/test_goldens.py --refresh`, and read the diff.
"""

import os
import pathlib
import sys

import jax
import pytest

from lm import hlo

REFRESH = "LM_REFRESH_GOLDENS"
FOLDER = pathlib.Path(__file__).parents[1] / "goldens" / "layouts"
# Alone, and hybrids of two and of three.
NAMES = ("data", "fsdp", "fsdp-outer", "zero1", "tensor", "context-ring", "context-all-gather", "pipeline-gpipe", "pipeline-circular",
         "fsdp-tensor", "fsdp-tensor-context", "pipeline-fsdp-tensor", "lstm-fsdp", "lstm-tensor")


def report(name: str) -> str:
    """The golden text of a layout."""
    from tests.parallel.conftest import run_step  # not above: `--refresh` runs this file alone
    from tests.parallel.test_layouts import ALL

    step = run_step(tuple(sorted(ALL[name].items())), 8)
    state = step.shardings.state
    overrides = ", ".join(f"{key.replace('__', '.')}={value}" for key, value in ALL[name].items())
    lines = [f"{name}: {overrides}", ""]
    for title, tree in (("parameters", state.params), ("optimizer state beside them", state.opt_state[0])):
        lines.append(f"{title}:")
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree):
            axes = [" x ".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in sharding.spec]
            lines.append(f"  {jax.tree_util.keystr(path, simple=True, separator='/')}: {', '.join(axes) or 'whole'}")
    lines += ["", f"constraints in the step: {step.stablehlo.count('sdy.sharding_constraint')}", "collectives of the compiled step:"]
    sent = hlo.summed(hlo.collectives(hlo.parse(step.hlo), {}))
    lines += [f"  {row['kind']}: {row['count']} times, {row['bytes']:,} bytes" for row in sent]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_does_what_its_golden_says(name):
    file, found = FOLDER / f"{name}.txt", report(name)
    if os.environ.get(REFRESH):
        FOLDER.mkdir(parents=True, exist_ok=True)
        file.write_text(found)
    assert found == file.read_text(), "meant? python tests/parallel/test_goldens.py --refresh"


if __name__ == "__main__":
    assert sys.argv[1:] == ["--refresh"], __doc__
    # Under pytest, whose conftest starts JAX with eight devices.
    os.execve(sys.executable, [sys.executable, "-m", "pytest", __file__], os.environ | {REFRESH: "1"})
