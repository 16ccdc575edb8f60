"""scripts/train.py with what the tests need: $DUMP is a folder for the batches, $STUCK=INDEX:STEP stops a process before a step."""

import os
import pathlib
import runpy
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np

from lm.parallel import processes
from lm.train import loop


def stuck_here():
    """What a stack of a stuck process shows."""
    time.sleep(600)


class Feed(loop.Feed):
    """Dumps this process's part of every batch under its place in the whole."""

    def __iter__(self):
        stuck = os.environ.get("STUCK", "")
        for step, batch in super().__iter__():
            if stuck == f"{processes.index()}:{step}":
                stuck_here()
            if "DUMP" in os.environ:
                parts = {f"{key}|{'|'.join(str(part.start or 0) for part in shard.index)}": np.asarray(shard.data)
                         for key, value in batch.items() for shard in value.addressable_shards}
                np.savez(pathlib.Path(os.environ["DUMP"]) / f"{step}-{processes.index()}.npz", **parts)
            yield step, batch


loop.Feed = Feed
sys.argv[0] = str(pathlib.Path(__file__).parents[2] / "scripts/train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
