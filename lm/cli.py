"""What every script shares: `--config=FILE` with `--config.a.b=v` overrides, one line of error, exit codes 0, 1 and 2."""

import argparse
import json
import logging
import sys
import traceback

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
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates its options as warnings
    try:
        code = main(sys.argv[1:])
    except LmError as error:
        code = _report(error, 2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        code = _report(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


def _report(error, code):
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    else:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
    return code
