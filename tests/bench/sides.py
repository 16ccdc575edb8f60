"""Sides that need no model, for the tests of those who run them."""

import os
import signal
import sys
import time

from lm.bench.worker import peak_memory


class Echo:
    """Answers, fails, prints, hangs or dies as it is told."""

    def __init__(self, value, fail: bool = False):
        if fail:
            raise ValueError("cannot be\nmade")
        print("noise on standard output")
        self._value, self.info = value, {"pid": os.getpid(), "tunables": os.environ["GLIBC_TUNABLES"], "mine": os.environ.get("MINE")}

    def get(self, times: int = 1):
        """The value so many times over."""
        print("more noise")
        return [self._value] * times

    def fail(self):
        """Raises an error of two lines."""
        raise KeyError("no\nsuch thing")

    def unwritable(self):
        """What JSON cannot carry."""
        return object()

    def leave(self, code: int):
        """Ends the process in the middle of a call."""
        print("first words\nlast words\n", file=sys.stderr, flush=True)
        os._exit(code)

    def die(self):
        """Is killed."""
        os.kill(os.getpid(), signal.SIGKILL)

    def hold(self, size: int):
        """Peak memory before, while and after some bytes are held."""
        before = peak_memory()
        text = b"x" * size
        held = peak_memory()
        del text
        return before, held, peak_memory()

    def hang(self):
        """Never answers."""
        time.sleep(600)
