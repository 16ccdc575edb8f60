"""Fair comparisons: equal budgets, tuned rates, paired seeds, intervals on every difference; and what notebooks need to look at runs.

`load_run` and `load_runs` open runs, `gather` says all that a sweep has found; its modules are attributes.
Nothing is imported before it is asked for.
"""

import importlib

_PLACES = {"LoadedRun": "runs", "load_run": "runs", "load_runs": "runs", "gather": "results"}
_ROOMS = ("ask", "budgets", "frontier", "inside", "isoflop", "laws", "plots", "points", "report", "results", "scaling", "scaling_plots",
         "statistics", "sweep")
__all__ = ["LoadedRun", "gather", "load_run", "load_runs"]


def __getattr__(name: str):
    """A function or a module of this room, imported now (PEP 562)."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
