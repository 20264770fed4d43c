"""A target's cost table: what a layer costs there, by operator and by how much it computes.

    unit = "us"
    [Conv]                        # an operator
    macs = [0, 1e6, 1e8]          # of a layer: points of a line,
    cost = [4, 60, 4100]          # and what it costs there: the first is the overhead of any layer
    ["Conv depthwise"]            # one channel in, one out
    macs = [0, 1e6]
    cost = [4, 310]
    ["*"]                         # every operator not named, by the elements it writes
    elements = [0, 1e6]
    cost = [1, 130]
    [thin.block4x1]               # a pattern that is fast there (`spa.sparsity.patterns`), for --sparsity auto:
    density = [0.05, 0.3]         # of a thin layer, and
    share = [0.06, 0.35]          # what it costs of the dense one

Between points the cost is linear, beyond the last it goes on as between the last two. Operators without a row cost
nothing. TOML, or JSON of the same form.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spa.errors import UsageError
from spa.sparsity.patterns import parse
from spa.sparsity.speed import Line, form

Numbers = npt.NDArray[np.float64]
AXES = ("macs", "elements")


@dataclass(frozen=True)
class Row:
    """`cost[i]` at `at[i]` multiply-accumulates or written elements (`by`) of one layer."""

    by: str
    at: tuple[float, ...]
    cost: tuple[float, ...]

    def of(self, amount: Numbers) -> Numbers:
        """
        >>> Row("macs", (0, 10, 20), (1, 2, 4)).of(np.array([0.0, 5.0, 15.0, 40.0])).tolist()
        [1.0, 1.5, 3.0, 8.0]
        """
        found = np.interp(amount, self.at, self.cost)
        if len(self.at) > 1:
            slope = (self.cost[-1] - self.cost[-2]) / (self.at[-1] - self.at[-2])
            found = found + slope * np.maximum(0, amount - self.at[-1])
        return found


@dataclass(frozen=True, eq=False)
class CostTable:
    """Rows by operator (`Conv`, `Conv depthwise`, `*` for the rest)."""

    rows: Mapping[str, Row]
    unit: str = ""
    where: str = field(default="cost table", repr=False)
    thin: Mapping[str, Line] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.unit or "cost"

    def row(self, kind: str, depthwise: bool = False) -> Row | None:
        names = [f"{kind} depthwise"] if depthwise else []
        return next((self.rows[n] for n in [*names, kind, "*"] if n in self.rows), None)

    @staticmethod
    def load(source: str | Path | CostTable | Mapping[str, Any]) -> CostTable:
        """From a file (.toml, .json), or what such a file holds. Raises `UsageError`, saying which row is wrong."""
        if isinstance(source, CostTable):
            return source
        if isinstance(source, Mapping):
            return read(source, "cost table")
        path = Path(source)
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the cost table: {error}", str(path), "a .toml or .json file") from None
        return read(data if isinstance(data, dict) else {}, str(path))


def read(data: Mapping[str, Any], where: str) -> CostTable:
    rows = {}
    for name, given in data.items():
        if name in ("unit", "schema", "thin"):
            continue
        rows[name] = read_row(given, f"{where}: [{name}]")
    if not rows:
        raise UsageError("the cost table has no rows", where, "[Conv] with macs = [...] and cost = [...]")
    thin = data.get("thin", {})
    if not isinstance(thin, Mapping):
        raise UsageError("not lines of patterns", f"{where}: [thin]", "[thin.block4x1] with density and share")
    lines = {name: read_line(name, given, f"{where}: [thin.{name}]") for name, given in thin.items()}
    return CostTable(rows, str(data.get("unit", "")), where, lines)


def read_row(given: Any, where: str) -> Row:
    hint = "one of macs or elements, rising from 0, and cost, of the same length: macs = [0, 1e6], cost = [4, 60]"
    axes = [k for k in AXES if isinstance(given, Mapping) and k in given]
    if len(axes) != 1 or set(given) != {axes[0], "cost"}:
        raise UsageError("not a row of a cost table", where, hint)
    try:
        at, cost = (np.array(given[k], np.float64).reshape(-1) for k in (axes[0], "cost"))
    except (TypeError, ValueError):
        raise UsageError("points of a cost table are numbers", where, hint) from None
    if len(at) != len(cost) or not len(at) or (np.diff(at) <= 0).any() or (cost < 0).any() or at[0] < 0:
        raise UsageError("the points do not make a line", where, hint)
    return Row(axes[0], tuple(at.tolist()), tuple(cost.tolist()))


def read_line(name: str, given: Any, where: str) -> Line:
    if form(parse(name if ":" in name else f"{name}:0.5")) != name:
        raise UsageError(f"'{name}' is no pattern without its share", where, "unstructured, block4x1, '2:4', ...")
    hint = "density, rising, and share, both between 0 and 1 and of the same length"
    try:
        density, share = (tuple(float(v) for v in given[k]) for k in ("density", "share"))
    except (TypeError, ValueError, KeyError):
        raise UsageError("not a line of a pattern", where, hint) from None
    rising = all(a < b for a, b in pairwise(density))
    if not rising or len(density) != len(share) or not all(0 <= v <= 1 for v in (*density, *share)):
        raise UsageError("the points do not make a line", where, hint)
    return Line(density, share)
