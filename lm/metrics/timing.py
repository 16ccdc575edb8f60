"""Where a run's seconds went, by name; a run is the sum of its named parts."""

import contextlib
import time


class Clock:
    """Accumulates seconds under names: `with clock("eval"): ...`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float):
        """Adds seconds to a name."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def rounded(self) -> dict[str, float]:
        """{name: seconds}, to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}
