"""What every script shares: `--config=FILE` with `--config.a.b=v` overrides, one line of error, exit codes 0, 1 and 2."""

import argparse
import json
import logging
import os
import sys
import traceback
import warnings

from lm.errors import ConfigError, LmError

# Freed memory is kept, and huge pages are asked for.
MEMORY_TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"


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


def print_result(result: dict):
    """One JSON object on the last line of standard output."""
    sys.stdout.flush()
    print(json.dumps(result), flush=True)


def run(main):
    """Calls main(argv), turns errors into one line on standard error and the process into an exit code."""
    if "--debug" not in sys.argv:
        # Orbax narrates its options as warnings, and prints the traceback of a failed save that is reported in a line below.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        sys.unraisablehook = _unraisable
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        code = main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever a library raises, a user gets a line and --debug the traceback
        code, text = describe(error)
        if "--debug" in sys.argv and not isinstance(error, KeyboardInterrupt):
            traceback.print_exception(error)
        else:
            print(text if isinstance(error, KeyboardInterrupt) else f"error: {text}", file=sys.stderr)
    sys.exit(code or 0)


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
