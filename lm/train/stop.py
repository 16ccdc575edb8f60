"""Signals that end a run well: from its start to the moment when its last checkpoint is on disk."""

import contextlib
import signal

from lm.parallel import processes


class Stopped(BaseException):
    """SIGTERM came before the first step; like KeyboardInterrupt, no handler of errors should see it."""


class Signals(contextlib.AbstractContextManager):
    """SIGTERM and the first Ctrl-C end a run after the step at hand, with a checkpoint; the second Ctrl-C ends it at once.

    Before the loop there is nothing to save: there SIGTERM raises Stopped, and Ctrl-C KeyboardInterrupt as ever. Of several processes
    one alone must not end early: a SIGTERM waits for the first step, after which all stop. `name` is the signal that came, or "".
    """

    def __init__(self):
        self.name = ""
        self._in_loop = processes.count() > 1
        self._before = {}

    def __enter__(self):
        self._take(signal.SIGTERM)
        return self

    def start_loop(self):
        """From here on there is a step at hand. Stopped, where a signal came before and Python dropped what it raised, as it does in a
        callback of the garbage collector (JAX has one)."""
        if self.name and not self._in_loop:
            raise Stopped(self.name)
        self._in_loop = True
        self._take(signal.SIGINT)

    def _take(self, number):
        with contextlib.suppress(ValueError):  # not the main thread (a notebook's worker): signals stay as they are
            self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number, _):
        self.name = signal.Signals(number).name
        if not self._in_loop:
            raise Stopped(self.name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
