"""Starts scripts/train.py many times for the price of one: a process that has imported everything forks each of them.

What it starts is a process of its own with its own JAX, which signals and full disks meet like any other. Requests and answers are
lines of JSON: {"start": {"arguments", "environment", "output", "errors"}} gives {"pid"}, {"poll": pid} gives {"code"}, null while it
runs. Faults that no signal or disk can cause come from variables of the process: $HOLD=STEP:FILE waits before a step while FILE
exists, $PACE=SECONDS waits before every step, $STUCK=INDEX:STEP for ever, $SLOW=SECONDS cuts the text into small shards and waits in
each document, $POISON=STEP makes a batch NaN; $DUMP=FOLDER gets the hash of every batch.
"""

import ctypes
import hashlib
import json
import os
import pathlib
import runpy
import signal
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from lm.data import feed, prepare, sources, tokenizers  # noqa: E402
from lm.objectives import base  # noqa: E402
from lm.parallel import launch, processes  # noqa: E402, F401 - imported before the fork, for all
from lm.train import loop  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)


def stuck_here():
    """What a stack of a stuck process shows."""
    time.sleep(600)


class Feed(loop.Feed):
    """Meets the faults between batches."""

    def __iter__(self):
        hold, file = os.environ.get("HOLD", ":").split(":", 1)
        for step, batch in super().__iter__():
            if os.environ.get("STUCK") == f"{processes.index()}:{step}":
                stuck_here()
            if hold == str(step):
                pathlib.Path(file).with_suffix(f".{processes.index()}").touch()
                while pathlib.Path(file).exists():
                    time.sleep(0.005)
            time.sleep(float(os.environ.get("PACE", "0")))
            if "DUMP" in os.environ:
                whole = hashlib.sha256(b"".join(np.asarray(batch[key]).tobytes() for key in sorted(batch))).hexdigest()
                (pathlib.Path(os.environ["DUMP"]) / str(step)).write_text(f"{len(batch['weights'].sharding.device_set)} {whole}")
            yield step, batch


class Data(feed.TrainingData):
    """Gives one batch weights that are not numbers."""

    def batch(self, step, build, part=slice(None)):
        batch = super().batch(step, build, part)
        # Step 0 also gives the shapes before the first step.
        return batch | {"weights": batch["weights"] * np.float32(np.nan)} if os.environ.get("POISON") == str(step) else batch


class SlowBytes(tokenizers.ByteTokenizer):
    """Takes its time."""

    def encode(self, text):
        time.sleep(float(os.environ["SLOW"]))
        return super().encode(text)


def _obey_permissions():
    """Gives up all capabilities: a folder that nobody may write is then closed to root too."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def run(request):
    """Becomes scripts/train.py; never returns."""
    for number, path in ((1, request["output"]), (2, request["errors"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    os.environ.update(request["environment"])
    _obey_permissions()
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: when this launcher ends, so do its processes
    loop.Feed, base.TrainingData = Feed, Data
    if "SLOW" in os.environ:
        sources.SHARD_BYTES, prepare.ByteTokenizer = 700, SlowBytes
    sys.argv = [str(ROOT / "scripts" / "train.py"), *request["arguments"]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def serve():
    """Answers requests until standard input ends."""
    ended = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                sys.stdin.close()
                run(request["start"])
                os._exit(99)
            answer = {"pid": pid}
        else:
            pid = request["poll"]
            if pid not in ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": ended.get(pid)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
