"""spa inspect: what a network costs, per layer and in total, and what of it is prunable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa.cli.options import human, json_option, parse_shapes, print_json, shape_option, sizes_of


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@shape_option
@click.option("--allow-approximate", is_flag=True, help="Count groups that could only be pruned approximately.")
@json_option
def inspect(model: Path, shapes: tuple[str, ...], allow_approximate: bool, as_json: bool) -> None:
    """Parameters, multiply-accumulates, bytes and peak activation memory of MODEL; its groups and what is prunable."""
    from spa.coupling import analyze
    from spa.model import load

    network = load(model)
    for note in network.notes:
        click.echo(f"note: {note}", err=True)
    sizes = sizes_of(network, parse_shapes(shapes))
    from spa.cost import inspect as measure

    cost = measure(network, sizes)
    coupling = analyze(network, sizes=sizes, allow_approximate=allow_approximate)
    groups: list[dict[str, Any]] = [
        {"id": g.id, "size": g.size, "prunable": True, "exact": g.exact, "members": len(g.members)}
        for g in coupling.groups
    ]
    groups += [{"id": b.group, "size": 0, "prunable": False, "reason": str(b.reason)} for b in coupling.blocked]
    if as_json:
        print_json({"schema": 1, **cost.to_json(), "groups": groups})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("layer", "op", "output", "params", "macs", "bytes")
    for layer in cost.layers:
        table.add_row(
            escape(layer.name),
            layer.op,
            "x".join(map(str, layer.shape)),
            human(layer.params),
            human(layer.macs),
            human(layer.bytes),
        )
    table.add_section()
    table.add_row("total", "", "", human(cost.params), human(cost.macs), human(cost.bytes))
    console.print(table)
    console.print(f"peak activation memory {human(cost.peak_activation_bytes)}B")
    table = Table("group", "channels", "coupled axes")
    for g in coupling.groups:
        table.add_row(escape(g.id), str(g.size), str(len(g.members)))
    for b in coupling.blocked:
        table.add_row(escape(b.group), "blocked", escape(str(b.reason)))
    console.print(table)
