"""spa diff: what changed between two networks, per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa.cli.options import human, json_option, print_json


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@json_option
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Say what changed from A to B: layers that appeared, vanished, grew or shrank."""
    from spa.cost import inspect
    from spa.model import load

    costs = [inspect(load(path)) for path in (a, b)]
    layers = [{layer.name: layer for layer in cost.layers} for cost in costs]
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*layers[0], *layers[1]]):
        old, new = layers[0].get(name), layers[1].get(name)
        if (
            old is not None
            and new is not None
            and (old.params, old.macs, old.bytes, old.op, old.shape)
            == (new.params, new.macs, new.bytes, new.op, new.shape)
        ):
            continue
        change = "vanished" if new is None else "appeared" if old is None else "changed"
        rows.append({"name": name, "change": change, "before": old and vars(old), "after": new and vars(new)})
    totals = {k: [getattr(c, k) for c in costs] for k in ("params", "macs", "bytes", "peak_activation_bytes")}
    if as_json:
        print_json({"schema": 1, "totals": totals, "layers": rows})
        return
    from rich.markup import escape
    from rich.table import Table

    from spa.cli.terminal import console
    from spa.cli.terminal import show as show_table

    table = Table("layer", "op", "shape", "params", "macs")
    for row in rows:
        old, new = row["before"], row["after"]

        def pair(key: str, show: Any = human, old: Any = old, new: Any = new) -> str:
            sides = [show(side[key]) if side else "-" for side in (old, new)]
            return sides[0] if sides[0] == sides[1] else f"{sides[0]} > {sides[1]}"

        table.add_row(
            escape(row["name"]),
            pair("op", str),
            pair("shape", lambda s: "x".join(map(str, s))),
            pair("params"),
            pair("macs"),
        )
    table.add_section()
    table.add_row("total", "", "", *(f"{human(x)} > {human(y)}" for x, y in (totals["params"], totals["macs"])))
    show_table(console(), table)
