"""What every script shares: `--config=FILE` with `--config.a.b=v` overrides, one line of error, exit codes 0, 1 and 2."""

import argparse
import json
import logging
import os
import sys
import traceback
import warnings

from lm.errors import ConfigError, LmError


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
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        code = main(sys.argv[1:])
    except LmError as error:
        code = _report(error, 2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        code = _report(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:  # noqa: BLE001 - whatever a library raises, a user gets a line and --debug the traceback
        code = _report(error, 1, f"{type(error).__name__}: {str(error).strip() or 'no message'} (--debug shows where)")
    sys.exit(code or 0)


def keep_memory():
    """Restarts this process once with an allocator that keeps freed memory and asks for huge pages.

    XLA's CPU backend maps its temporaries anew in every step; keeping them made steps 1.13 to 1.16 times as fast. It only
    matters where the CPU is the device, only works before start-up, and leaves a GLIBC_TUNABLES of the user's alone.
    """
    accelerators = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0", "/dev/kfd")
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or any(map(os.path.exists, accelerators)):
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _report(error, code, text=None):
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    else:
        print("error:", " ".join((text or str(error)).splitlines()), file=sys.stderr)
    return code
