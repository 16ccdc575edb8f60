"""Points of scaling laws: what a run was made of and what it reached; from and to files, and from run directories.

A file is CSV with a header, or JSON: a list of rows. A row has `parameters`, `tokens` and `loss`, and may have `flops` (training FLOPs;
without them 6 per parameter and token are taken, Kaplan et al. 2020), `family`, `seed` and `run`. Losses of one file are in one unit.
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Iterable

import numpy as np

from lm.data.files import atomic_file
from lm.errors import ConfigError, DataError

# FLOPs of a parameter and token where nothing was counted.
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
NEEDED, OPTIONAL = ("parameters", "tokens", "loss"), ("flops", "family", "seed", "run")
# Budgets whose FLOPs differ by less than this factor are one.
SAME_BUDGET = 1.1
_FORM = f"write a CSV or JSON table with the columns {', '.join(NEEDED)} and, where known, {', '.join(OPTIONAL)}"


@dataclasses.dataclass(frozen=True)
class Points:
    """Arrays [points]: parameters, tokens, training FLOPs, losses, names of families, seeds and runs ("" where not known).

    `counted` says that the FLOPs were given; otherwise they are 6 per parameter and token.
    """

    parameters: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    family: np.ndarray
    seed: np.ndarray
    run: np.ndarray
    counted: bool = True

    def __len__(self):
        return len(self.loss)

    def take(self, chosen: np.ndarray) -> "Points":
        """Those of a mask or of indices, which may repeat."""
        arrays = {field.name: getattr(self, field.name)[chosen] for field in dataclasses.fields(self) if field.name != "counted"}
        return dataclasses.replace(self, **arrays)

    def of(self, family: str) -> "Points":
        """Those of a family; ConfigError names the others where there is none."""
        chosen = self.family == family
        if not chosen.any():
            raise ConfigError(f"no point is of {family}: there are {', '.join(map(repr, self.families))}")
        return self.take(chosen)

    @property
    def families(self) -> list[str]:
        """Their names, in order of appearance."""
        return list(dict.fromkeys(self.family.tolist()))

    @property
    def variables(self) -> np.ndarray:
        """Parameters and tokens, [points, 2]."""
        return np.stack([self.parameters, self.tokens], axis=1)

    def flops_factor(self) -> tuple[float, float, float]:
        """(median, least, most) FLOPs of a parameter and token."""
        factors = self.flops / (self.parameters * self.tokens)
        return float(np.median(factors)), float(factors.min()), float(factors.max())

    def cells(self) -> np.ndarray:
        """Numbers [points] from 0 that are the same for points of one family, size and length, which differ in seed alone."""
        keys = zip(self.family.tolist(), self.parameters.tolist(), self.tokens.tolist(), strict=True)
        numbers: dict = {}
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=int)

    def budgets(self) -> list[tuple[float, np.ndarray]]:
        """(geometric mean of the FLOPs, indices of the points) of each budget, the smallest first: a budget's points are within 10 %."""
        order = np.argsort(self.flops, kind="stable")
        groups: list[list[int]] = []
        for i in order:
            if groups and self.flops[i] <= SAME_BUDGET * self.flops[groups[-1][0]]:
                groups[-1].append(int(i))
            else:
                groups.append([int(i)])
        return [(float(np.exp(np.log(self.flops[group]).mean())), np.array(group)) for group in groups]

    def rows(self) -> list[dict]:
        """As rows of a file."""
        names = [*NEEDED[:2], "flops", "loss", "family", "seed", "run"]
        columns = [getattr(self, name).tolist() for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def of_rows(rows: Iterable[dict], whence: str = "points") -> Points:
    """Points of rows; DataError names the row that lacks a number above 0, or that no row is there."""
    rows = list(rows)
    if not rows:
        raise DataError(f"{whence} holds no point: {_FORM}")
    known = [number for number, row in enumerate(rows, 1) if row.get("flops") not in (None, "")]
    if known and len(known) < len(rows):
        raise DataError(f"{whence} gives the flops of {len(known)} of {len(rows)} points: give them for all, or for none")
    arrays = {name: np.array([_number(row, name, f"{whence}, point {i}") for i, row in enumerate(rows, 1)]) for name in NEEDED}
    if known:
        arrays["flops"] = np.array([_number(row, "flops", f"{whence}, point {i}") for i, row in enumerate(rows, 1)])
    else:
        arrays["flops"] = FLOPS_PER_PARAMETER_AND_TOKEN * arrays["parameters"] * arrays["tokens"]
    texts = {name: np.array([_text(row.get(name)) for row in rows], dtype=object) for name in ("family", "seed", "run")}
    return Points(**arrays, **texts, counted=bool(known))


def read(path: str | pathlib.Path) -> Points:
    """The points of a CSV or JSON file. DataError when it cannot be read or a row lacks something."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")  # spreadsheets begin a file with a mark of its encoding
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): {_FORM}") from error
    if pathlib.Path(path).suffix != ".json":
        rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
        long = next((number for number, row in enumerate(rows, 1) if None in row), None)
        if long:
            raise DataError(f"{path}, point {long} has more cells than the header has names: use no comma within a number, and a name for "
                            "each column")
        return of_rows(rows, str(path))
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): {_FORM}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a list of rows: {_FORM}")
    return of_rows(rows, str(path))


def write(path: str | pathlib.Path, points: Points):
    """Writes points as CSV, or as JSON where the file is called so."""
    rows, path = points.rows(), pathlib.Path(path)
    if path.suffix == ".json":
        text = json.dumps(rows, indent=1) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    with atomic_file(path) as file:
        file.write(text.encode())


def _number(row: dict, name: str, whence: str) -> float:
    try:
        value = float(row[name])
    except KeyError as error:
        raise DataError(f"{whence} has no {name}: {_FORM}") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{whence} has {name}={row[name]!r}: a number is expected") from error
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{whence} has {name}={value:g}: laws are of numbers above 0; leave out runs that diverged")
    return value


def _text(value) -> str:
    return "" if value is None else str(value)
