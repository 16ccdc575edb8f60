"""What every script shares: `--config=FILE` with `--config.a.b=v` overrides, one line of error, exit codes 0, 1 and 2."""

import argparse
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import pathlib
import platform
import stat
import sys
import traceback
import warnings
from collections.abc import Sequence

from lm.errors import ConfigError, LmError

# Freed memory is kept, and huge pages are asked for.
MEMORY_TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"
# Of compiled programs kept on disk, in all; beyond it the oldest go.
MOST_KEPT_BYTES = 2**30
# Lines of /proc/cpuinfo.
_OF_A_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags",
                   "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message):
        raise ConfigError(message)

    def add_config(self, required: bool = True):
        """Adds --config and documents the overrides."""
        self.add_argument("--config", required=required, metavar="FILE[:ARG]",
                          help="config file; --config.a.b=v overrides a key (lm/config/schema.py lists them)")

    def add_processes(self):
        """Adds --coordinator, --processes and --process."""
        self.add_argument("--coordinator", metavar="HOST:PORT", help="of a job of several processes: where process 0 listens")
        self.add_argument("--processes", type=int, metavar="N", help="how many there are; they all run this same command")
        self.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")

    def parse_with_overrides(self, argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
        """Arguments, and {"a.b": "v"} from every --config.a.b=v or --config.a.b v."""
        overrides, rest = {}, []
        arguments = iter(argv)
        for argument in arguments:
            if not argument.startswith("--config."):
                rest.append(argument)
                continue
            name, equals, value = argument.removeprefix("--config.").partition("=")
            value = value if equals else next(arguments, None)
            if value is None:
                raise ConfigError(f"--config.{name} has no value: write --config.{name}=VALUE")
            overrides[name] = value
        return self.parse_args(rest), overrides


def alone(arguments: argparse.Namespace) -> bool:
    """True unless flags or variables hint at a job of several processes, which `lm.parallel.launch` then looks into."""
    hints = ("LM_PROCESS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX")
    return arguments.process is None and not any(name in os.environ for name in hints)


def load_config(arguments: argparse.Namespace, overrides: dict[str, str]):
    """The validated config that a command line asks for."""
    from lm import config

    return config.load(arguments.config, overrides)


def numbers(flag: str, text: str | None, usual: Sequence[float]) -> tuple[float, ...]:
    """The numbers of a flag's list, the usual ones where it is not given."""
    try:
        return tuple(usual) if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--{flag}={text} is not a list of numbers, such as {','.join(f'{number:g}' for number in usual)}") from error


def print_result(result: dict):
    """One JSON object on the last line of standard output."""
    sys.stdout.flush()
    print(json.dumps(result), flush=True)


def table(rows: Sequence[dict]) -> str:
    """Rows as aligned columns; a column is every key that a row has, and stands left where all it has is text."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    texts = {column for column in columns if all(isinstance(row.get(column, ""), str) for row in rows)}
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    sides = [str.ljust if column in texts else str.rjust for column in columns]
    return "\n".join("  ".join(side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)).rstrip() for line in cells)


def _cell(value) -> str:
    """Numbers to four digits, large ones with commas."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def human(number: float) -> str:
    """A number with its thousands as a letter, ready for a unit: `1.5 G`."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(number) < 1000 or unit == "E":
            return f"{number:.4g} {unit}"
        number /= 1000


def run(main):
    """Calls main(argv), turns errors into one line on standard error and the process into an exit code."""
    if "--debug" not in sys.argv:
        # Orbax narrates its options as warnings, and prints the traceback of a failed save that is reported in a line below.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        sys.unraisablehook = _unraisable
    warnings.formatwarning = _warning
    try:
        code = main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever a library raises, a user gets a line and --debug the traceback
        code, text = describe(error)
        if "--debug" in sys.argv and not isinstance(error, KeyboardInterrupt):
            traceback.print_exception(error)
        else:
            print(text if isinstance(error, KeyboardInterrupt) else f"error: {text}", file=sys.stderr)
    sys.exit(code or 0)


def _warning(message, *_):
    """A warning as one line; to JAX's about a program that it could not read or write (it compiles it then) belongs what to do."""
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    fix = f"; free space, or delete {kept} if this comes again" if kept and "persistent compilation cache" in str(message) else ""
    return f"warning: {' '.join(str(message).split())}{fix}\n"


def _unraisable(unraisable):
    """Shows what could not be raised, unless it is what TensorStore's threads meet when a save has failed, which has a line of its own."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def describe(error: BaseException) -> tuple[int, str]:
    """(exit code, one line) of an error."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    text = str(error)
    if not isinstance(error, (LmError, OSError)):
        text = f"{type(error).__name__}: {text.strip() or 'no message'} (--debug shows where)"
    return 2 if isinstance(error, ConfigError) else 1, " ".join(text.splitlines())


def keep_memory():
    """Restarts this process once with an allocator that keeps freed memory and asks for huge pages.

    XLA's CPU backend maps its temporaries anew in every step; keeping them made steps 1.13 to 1.16 times as fast. It only
    matters where the CPU is the device, only works before start-up, and leaves a GLIBC_TUNABLES of the user's alone.
    """
    accelerators = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0", "/dev/kfd")
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or any(map(os.path.exists, accelerators)):
        return
    os.environ["GLIBC_TUNABLES"] = MEMORY_TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def cache_root() -> str:
    """$LM_CACHE, else ~/.cache/lm, as it is written."""
    return os.environ.get("LM_CACHE") or "~/.cache/lm"


def cache_folder() -> pathlib.Path:
    """Where what can be made again is kept: $LM_CACHE, else ~/.cache/lm."""
    return pathlib.Path(cache_root()).expanduser().absolute()


def keep_compilations():
    """Has JAX keep on disk what it compiles, for the next process that asks for the same program; call it before JAX is imported.

    JAX names a program by its text, the versions, flags and devices. What it was compiled on has a folder of its own: it may end in an
    illegal instruction on another processor. A JAX_COMPILATION_CACHE_DIR of the user's is left alone; empty, nothing is kept. Of several
    processes only the first would write, and the others not find it on their own disks: they keep nothing unless told where.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        root = cache_folder() / f"xla-{os.getuid()}"  # programs are run: those of another user are not for us
        folder = root / processor()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        _keep_newest(root, MOST_KEPT_BYTES)
    except (OSError, RuntimeError) as error:  # a RuntimeError is that there is no home
        warnings.warn(f"compiled programs are not kept ({error}): set LM_CACHE to a folder of yours, or JAX_COMPILATION_CACHE_DIR to "
                      "nothing", stacklevel=2)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def processor(cpuinfo: str = "/proc/cpuinfo") -> str:
    """A name for what programs are compiled for here: 16 hex digits over the processor, its instruction sets and how many may be used."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = [f"{platform.machine()} {usable}\n"]
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as lines:
            first = itertools.takewhile(str.strip, lines)  # of all cores
            told += [line for line in first if line.split(":")[0].strip() in _OF_A_PROCESSOR]
    except FileNotFoundError:
        told.append(platform.node())  # no Linux: a machine by its name
    return hashlib.blake2b("".join(told).encode(), digest_size=8).hexdigest()


def _keep_newest(folder: pathlib.Path, most: int):
    """Deletes the oldest files below a folder until half of `most` bytes are left, if they have more; others may do the same at once."""
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            files += [(status.st_mtime, status.st_size, path)] if stat.S_ISREG(status.st_mode) else []
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files) if total > most else ():
        if total <= most // 2:
            return
        path.unlink(missing_ok=True)
        total -= size
