"""`spa compile --explain-kernels`: which kernel computes each layer, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show_kernels(targets: Mapping[str, Any]) -> None:
    """One table per target, from what the manifest says of it."""
    from rich.console import Console
    from rich.table import Table

    for name, facts in targets.items():
        table = Table("layer", "family", "format", "tile", "why", title=name)
        for row in facts.get("kernels", []):
            table.add_row(*(str(row.get(key, "")) for key in ("layer", "family", "format", "tile", "why")))
        Console().print(table)
