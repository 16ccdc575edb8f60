"""The table of docs/scale.md: how far each layout on eight devices is from one device.

    python tests/parallel/equality.py
"""

import os
import pathlib
import sys


def main():
    """Prints one line of Markdown per layout."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    import jax
    import numpy as np

    from lm import hlo
    from tests.parallel.conftest import run_step
    from tests.parallel.test_layouts import ALL, one_device

    print("| layout | keys | loss | worst gradient | sent by a device in a step |\n|---|---|---|---|---|")
    for name, overrides in ALL.items():
        many, one = (run_step(tuple(sorted(keys.items())), count) for keys, count in ((overrides, 8), (one_device(overrides), 1)))
        worst = max(np.abs(a - b).max() / np.abs(b).max()
                    for a, b in zip(jax.tree.leaves(many.gradients), jax.tree.leaves(one.gradients), strict=True))
        keys = " ".join(f"{key.split('__')[1]}={value}" for key, value in overrides.items() if not key.startswith("model"))
        traffic = ", ".join(f"{row['count']} {row['kind']}" for row in hlo.summed(hlo.collectives(hlo.parse(many.hlo), {})))
        print(f"| {name} | {keys} | {abs(many.loss / one.loss - 1):.0e} | {worst:.0e} | {traffic} |", flush=True)


if __name__ == "__main__":
    main()
