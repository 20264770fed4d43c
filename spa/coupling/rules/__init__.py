"""Op rules: one file per family, each a table `RULES` of rows (domain, op type) -> Rule.

A rule states how the indices of an op's axes correspond (`couple`), and repairs the constants and attributes that
encode sizes once channels are gone (`repair`). Rules from outside come through the entry points `spa.rules`, each
naming such a table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from spa.coupling.axes import Axes, Op

if TYPE_CHECKING:
    from spa.coupling.edit import Edit

FAMILIES = (
    "elementwise",
    "contraction",
    "einsum",
    "quantize",
    "recurrent",
    "normalization",
    "attention",
    "contrib",
    "ml",
    "pooling",
    "reduction",
    "reshape",
    "movement",
    "indexing",
    "scatter",
    "sampling",
    "opaque",
    "control",
)


@dataclass(frozen=True)
class Rule:
    """What an operator does to axes."""

    couple: Callable[[Op, Axes], None]
    repair: Callable[[Op, Edit], None] | None = None
    note: str = "exact"  # for the operator table: exact, or what is blocked


Table = dict[tuple[str, str], Rule]


@cache
def table() -> Table:
    """All rules: ours, then those of installed packages."""
    rules: Table = {}
    for family in FAMILIES:
        rules.update(importlib.import_module(f"spa.coupling.rules.{family}").RULES)
    for point in entry_points(group="spa.rules"):
        rules.update(point.load())
    return rules


def rows(
    couple: Callable[[Op, Axes], None],
    *ops: str,
    repair: Callable[[Op, Edit], None] | None = None,
    domain: str = "",
    note: str = "exact",
) -> Table:
    """One rule for several operators of a domain."""
    return {(domain, op): Rule(couple, repair, note) for op in ops}
