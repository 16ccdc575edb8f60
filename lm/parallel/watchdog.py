"""Ends a run in which nothing happens any more: a hung collective, disk or loader holds its devices for days otherwise."""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

# A thread of Python needs the interpreter's lock; a timer in C, set this much later, does not.
BACKSTOP = 15.0


class Watchdog:
    """Calls `bark(text)`, which ends the process, when `beat` was not called for `seconds`; 0 seconds is no watchdog."""

    def __init__(self, seconds: float, bark: Callable[[str], None]):
        self._seconds, self._bark, self._extra = seconds, bark, 0.0
        self._closed = threading.Event()
        self._last = time.monotonic()
        self._what = "the start"
        if seconds:
            self.beat(self._what)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, what: str | None = None):
        """Something has ended well; `what` names it in the message."""
        self._last, self._what = time.monotonic(), what or self._what
        if self._seconds and not self._closed.is_set():
            faulthandler.dump_traceback_later(self._seconds + self._extra + BACKSTOP, exit=True, file=sys.__stderr__)

    @contextlib.contextmanager
    def longer(self, extra: float):
        """Allows `extra` seconds more between beats, for work that may take longer than a step."""
        self._extra = extra
        self.beat()
        try:
            yield
        finally:
            self._extra = 0.0
            self.beat()

    def _watch(self):
        while not self._closed.wait(min(0.5, self._seconds / 5)):
            waited = time.monotonic() - self._last
            if waited > self._seconds + self._extra:
                self._bark(f"nothing has ended for {waited:.0f} s (processes.step_timeout={self._seconds:g}) since {self._what}; the "
                           "stacks of all threads follow")
                return

    def close(self):
        """Stops watching."""
        self._closed.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
