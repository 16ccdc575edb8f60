"""Start-up: what a command line costs before JAX, and the first step of a new process, with nothing compiled before and with all of it."""

import pathlib
import subprocess
import sys
import tempfile
import time

from lm.bench.command import Options
from lm.bench.rounds import interleave, speed_ratio, spread
from lm.bench.worker import Side
from lm.errors import BenchError

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = str(ROOT / "scripts/train.py")
# Commands, and the exit code of each.
COMMANDS = {
    "python": (["-c", "pass"], 0),
    "import lm": (["-c", "import lm"], 0),
    "import jax": (["-c", "import jax"], 0),
    "--help": ([TRAIN, "--help"], 0),
    "config error": ([TRAIN, f"--config={ROOT}/configs/quickstart.py", "--workdir=unused", "--config.train.step=1"], 2),
}
TORCH_COMMANDS = {"import torch": (["-c", "import torch"], 0)}
# Whose first steps: a side, and whether it keeps what it compiles.
OURS = {"ours": ("lm.bench.startup:FirstStep", {}, True)}
TORCH = {"torch eager": ("lm.bench.peers.pytorch:Training", {"compiled": False}, False),
         "torch compiled": ("lm.bench.peers.pytorch:Training", {"compiled": True}, True)}
COLD, WARM = "first step, cold", "first step, warm"
# Most seconds that are wanted of ours; the last is for M.
TARGETS = {"--help": 0.5, "config error": 1.0, f"ours: {WARM}": 5.0}


class FirstStep:
    """A process up to the loss of its first step; see `lm.bench.worker`."""

    def __init__(self, shape: list):
        self._shape = shape

    def first(self) -> dict:
        """`lm.bench.ours.Training.first`, with `after_import`: seconds from when JAX was imported to the loss."""
        import jax  # noqa: F401 - it is what is timed

        imported = time.perf_counter()
        from lm.bench.ours import Training

        return Training(self._shape).first() | {"after_import": time.perf_counter() - imported}


def run(options: Options) -> dict:
    """See `lm.bench.command`; a row per command and kind of first step, in seconds from the start of a process to its end or its loss.

    A warm first step finds on disk what the cold one before it has compiled; `kept_bytes` is how much. The ratio is that of cold
    first steps, to the compiled one of the peer.
    """
    commands = COMMANDS | (TORCH_COMMANDS if options.against else {})
    sides = OURS | (TORCH if options.against else {})
    turns = {name: lambda name=name, command=command: {name: _command(*command)} for name, command in commands.items()}
    turns |= {name: lambda name=name, side=side: _first_steps(name, options, *side) for name, side in sides.items()}
    measured = interleave(turns, options.rounds)
    kept = {name: spread([turn.pop("kept_bytes") for turn in measured[name]])["median"] for name, (*_, keeps) in sides.items() if keeps}
    seconds = {what: [turn[what] for turn in some] for some in measured.values() for what in some[0]}
    result = {"name": "startup", "shape": options.shape_name, "family": options.shape.family, "kept_bytes": kept,
              "rows": [_row(what, values) for what, values in seconds.items()], "seconds": seconds}
    return result | (_compare(options.against, seconds) if options.against else {})


def _command(arguments: list[str], code: int) -> float:
    """Seconds of a command; BenchError unless it ends with its code."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)
    seconds = time.perf_counter() - start
    if done.returncode != code:
        said = " ".join(done.stderr.split())[-500:]
        raise BenchError(f"python {' '.join(arguments)} ended with exit code {done.returncode}, not {code}: {said}")
    return seconds


def _first_steps(name: str, options: Options, target: str, settings: dict, keeps: bool) -> dict[str, float]:
    """Seconds of a cold first step, and where programs are kept of a warm one, in a new process each."""
    found, losses = {}, []
    with tempfile.TemporaryDirectory() as folder:
        variables = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": folder,
                     "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "TORCHINDUCTOR_CACHE_DIR": folder}
        for kind in (COLD, WARM) if keeps else (COLD,):
            start = time.perf_counter()
            with Side(target, {"shape": options.shape, **settings}, variables) as side:
                first = side("first")
                found[f"{name}: {kind}"] = time.perf_counter() - start
            if "after_import" in first:
                found[f"{name}: {kind}, after import jax"] = first["after_import"]
            losses.append(first["loss"])
        if keeps:
            found["kept_bytes"] = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
    if target == OURS["ours"][0] and len(set(losses)) > 1:
        raise BenchError(f"the first loss is {losses[0]} cold and {losses[1]} warm: report it, and set JAX_ENABLE_COMPILATION_CACHE=false")
    return found


def _row(what: str, seconds: list[float]) -> dict:
    found = spread(seconds)
    row = {"what": what, "seconds": found["median"], "low_s": found["low"], "high_s": found["high"]}
    return row | ({"target_s": TARGETS[what]} if what in TARGETS else {})


def _compare(against: str, seconds: dict[str, list[float]]) -> dict:
    """Cold first steps, ours and the peer's compiled one; the others in `ratios`, above 1 where ours is faster."""
    pairs = {f"{peer}, {kind}": (seconds[f"ours: first step, {kind}"], seconds[f"{peer}: first step, {kind}"])
             for peer, (*_, keeps) in TORCH.items() for kind in (("cold", "warm") if keeps else ("cold",))}
    ratios = {name: speed_ratio(*([[value] for value in values] for values in pair)) for name, pair in pairs.items()}
    ours, peer = (spread(values)["median"] for values in pairs["torch compiled, cold"])
    return {"ratios": ratios, "against": against, "setting": "torch compiled", "measure": COLD, "unit": "s", "ours": ours, "peer": peer,
            "ratio": ratios["torch compiled, cold"]["ratio"]}
