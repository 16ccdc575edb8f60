"""Plays scripts/train.py in a few milliseconds: counts steps in its work directory, goes on from there, saves on SIGTERM."""

import json
import os
import pathlib
import signal
import sys
import time

options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
workdir, steps = pathlib.Path(options["workdir"]), int(options.get("steps", 3))
me = os.environ.get("SLURM_PROCID") or pathlib.Path(os.environ["HOME"]).name
workdir.mkdir(parents=True, exist_ok=True)
(workdir / f"argv-{me}").write_text(json.dumps(sys.argv[1:]))
(workdir / f"environment-{me}").write_text(json.dumps(dict(os.environ)))
(workdir / "config.json").write_text(json.dumps({"config": {"train": {"steps": steps}}}))
checkpoint = workdir / f"step-{me}"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
print(f"{me} from step {step}", file=sys.stderr)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
if "fail" in options:
    sys.exit(int(options["fail"]))
while step < steps and not stopped:
    while step > 1 and "until" in options and not pathlib.Path(options["until"]).exists():
        time.sleep(0.01)
    step += 1
    checkpoint.write_text(str(step))
    if str(step) == options.get("term_at"):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(float(options.get("seconds", 0.01)))
print("a line of standard output")
if me in ("0", "worker-0"):
    print(json.dumps({"step": step, "loss": None, "workdir": str(workdir)}))
