"""Runs whose speed others have published (lm/plan/published_runs.py has them all, with sources), as configs: configs/published.py:NAME.

    python scripts/plan.py --config=configs/published.py:v5p-32b --topology=v5p:4x4x4
    python scripts/plan.py --published
    python scripts/train.py --config=configs/published.py:v5p-32b --workdir=runs/v5p-32b

Expect: the second command plans every one of them and sets its estimate beside what was measured; docs/plan.md has the table. The third
has not been run.
"""

from lm.plan import published_runs


def get_config(name="v5p-32b"):
    """The config of a published run."""
    return published_runs.config_of(name)
