"""Tables and sentences for people: on a terminal of any width, in a pipe, without colour where NO_COLOR is set (rich sees to it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE = 160  # columns where nobody looks: nothing is cut off
LONG = 24  # letters: longer cells are text, which may be broken; shorter ones are names and numbers, which may not


def console() -> Console:
    """For stdout. A terminal's own width, or COLUMNS; in a pipe, room for everything."""
    import os
    import sys

    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if known else PIPE)


def say(out: Console, text: str) -> None:
    """A line that the terminal breaks where it must; names in it are no markup."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def show(out: Console, table: Table) -> None:
    """A table; where the window is too narrow for its numbers, a row below the other instead."""
    from rich.text import Text

    needed = 1
    for column in table.columns:
        plain = [Text.from_markup(str(cell)).plain for cell in (column.header, *column.cells)]
        widest = max(map(len, plain))
        column.no_wrap = widest <= LONG
        column.overflow = "fold"
        needed += 3 + (widest if column.no_wrap else LONG // 2)
    if needed <= out.width:
        out.print(table)
        return
    if table.title:
        say(out, Text.from_markup(str(table.title)).plain)
    heads = [str(column.header) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = [(h, Text.from_markup(str(c)).plain) for h, c in zip(heads, row, strict=True) if str(c)]
        first, *rest = cells or [("", "")]
        say(out, first[1])
        for head, cell in rest:
            say(out, f"  {head}: {cell}" if head else f"  {cell}")
