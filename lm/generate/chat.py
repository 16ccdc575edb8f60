"""Conversations as the text that a chat model was trained on: chat templates, in Jinja, as the transformers library renders them.

A template comes with a model and is a program: it runs in Jinja's sandbox, where it can neither change what it is given nor reach
Python's inner attributes, for a limited time, to a limited length and (on Linux) with a limited memory.
"""

import contextlib
import datetime
import functools
import json
import pathlib
import resource
import sys
import time

import numpy as np

from lm.data.tokenizers import Tokenizer
from lm.errors import ConfigError

LONGEST, SECONDS = 1_000_000, 5.0  # characters that a template may write, and the time that it may take
MEMORY = 1 << 28  # bytes that it may take beyond those of the process
_BITS = 4096  # of a whole number
ROLES = ("bos", "eos", "pad", "unk")


class _TooMuchError(Exception):
    """A template that goes on and on."""


def render(template: str, messages: list[dict], add_generation_prompt: bool = True, **specials) -> str:
    """The text of a conversation, [{"role": "system", "user" or "assistant", "content": text}, ...].

    With `add_generation_prompt` it ends where the assistant is to speak. `specials` are what else the template may read, such as
    bos_token; tools and documents are none. Raises ConfigError for a template that has an error, refuses the conversation, leaves the
    sandbox or does not end.
    """
    import jinja2

    try:
        with _limited_memory():
            # Templates tell "none" from "undefined".
            given = {"tools": None, "documents": None, **specials}
            return _bounded(_compile(template).generate(messages=messages, add_generation_prompt=add_generation_prompt, **given))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the chat template has an error in line {error.lineno}: {error.message}") from error
    except jinja2.exceptions.SecurityError as error:
        raise ConfigError(f"the chat template does what a template must not do: {error}") from error
    except jinja2.TemplateError as error:
        raise ConfigError(f"the chat template refuses these messages: {error}") from error
    except _TooMuchError as error:
        raise ConfigError(f"the chat template {error}") from error
    except MemoryError as error:
        raise ConfigError(f"the chat template takes more than {MEMORY >> 20} MiB") from error
    # A template's own arithmetic, indexing and so on.
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ConfigError(f"the chat template fails: {type(error).__name__}: {error}") from error


def prompt_ids(tokenizer: Tokenizer, messages: list[dict], add_generation_prompt: bool = True) -> np.ndarray:
    """int32 ids [n] of a conversation by the tokenizer's chat template, all that it begins with included. ConfigError without one."""
    return tokenizer.encode_with_specials(prompt_text(tokenizer, messages, add_generation_prompt))


def prompt_text(tokenizer: Tokenizer, messages: list[dict], add_generation_prompt: bool = True) -> str:
    """A conversation by the tokenizer's chat template, which sees the special tokens that have a name. ConfigError without one."""
    if not tokenizer.chat_template:
        raise ConfigError("this tokenizer has no chat template: the model was not trained on conversations, or set data.chat_template")
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ROLES if role not in tokenizer.unnamed}
    specials = {f"{role}_token": tokenizer.token_of(i) for role, i in ids.items() if i is not None}
    return render(tokenizer.chat_template, messages, add_generation_prompt, **specials)


@contextlib.contextmanager
def _limited_memory():
    """Ends allocations of this process beyond MEMORY more than it has now with a MemoryError."""
    status, before = pathlib.Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if not status.exists():
        yield
        return
    most = int(status.read_text().split()[0]) * resource.getpagesize() + MEMORY
    now = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *now]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _bounded(parts) -> str:
    """The parts of a text together. Raises _TooMuchError beyond LONGEST characters or SECONDS."""
    written, length, end = [], 0, time.monotonic() + SECONDS

    def watch(frame, event, value):
        if time.monotonic() > end:
            raise _TooMuchError(f"runs for more than {SECONDS:g} seconds")
        return watch

    before = sys.gettrace()
    # A loop that writes nothing comes back here only through the trace function, which sees every line that it runs.
    sys.settrace(watch)
    try:
        for part in parts:
            written.append(part)
            length += len(part)
            if length > LONGEST:
                raise _TooMuchError(f"writes more than {LONGEST} characters")
    finally:
        sys.settrace(before)
    return "".join(written)


@functools.lru_cache(maxsize=16)
def _compile(template: str):
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also refuses products and powers of numbers that would take for ever, in one step that nothing can end."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context, operator, left, right):
            bits = [abs(side).bit_length() for side in (left, right) if isinstance(side, int)]
            if len(bits) == 2 and (bits[0] * abs(right) if operator == "**" else sum(bits)) > _BITS:
                raise _TooMuchError(f"computes a number of more than {_BITS} bits")
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """{% generation %} marks what the assistant said, for training: it stays as it is."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja has it

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    # Jinja's optimizer would compute constants while it compiles, before anything watches.
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse(jinja2.TemplateError), "strftime_now": _now}
    return environment.from_string(template)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON in which < and > stay as they are, unlike in Jinja's own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(kind: type[Exception]):
    def raise_exception(message):
        raise kind(message)

    return raise_exception


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
