"""spa inspect: what a network costs, per layer and in total, and what of it is prunable."""

from __future__ import annotations

from dataclasses import asdict
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
    from spa.sparsity.storage import storage

    cost, stored = measure(network, sizes), storage(network)
    coupling = analyze(network, sizes=sizes, allow_approximate=allow_approximate)
    groups: list[dict[str, Any]] = [
        {"id": g.id, "size": g.size, "prunable": True, "exact": g.exact, "members": len(g.members)}
        for g in coupling.groups
    ]
    groups += [{"id": b.group, "size": 0, "prunable": False, "reason": str(b.reason)} for b in coupling.blocked]
    layers = [{**asdict(layer), **stored.of(layer.name)} for layer in cost.layers]
    if as_json:
        print_json({"schema": 1, **cost.to_json(), **stored.totals(), "layers": layers, "groups": groups})
        return
    from rich.markup import escape
    from rich.table import Table

    from spa.cli.terminal import console, say, show

    out = console()
    thin = ["density", "packed", "as"] if stored.sparse else []
    table = Table("layer", "op", "output", "params", "macs", "bytes", *thin)
    for layer in cost.layers:
        packed = stored.of(layer.name)
        told = [f"{packed['density']:.2f}", human(packed["packed_bytes"]), packed["format"]] if packed else []
        table.add_row(
            escape(layer.name),
            layer.op,
            "x".join(map(str, layer.shape)),
            human(layer.params),
            human(layer.macs),
            human(layer.bytes),
            *(told if thin else []),
        )
    table.add_section()
    table.add_row("total", "", "", human(cost.params), human(cost.macs), human(cost.bytes))
    show(out, table)
    sizes_told = (stored.file_bytes, stored.gzip_bytes, stored.packed_bytes)
    say(out, "file {}B, gzipped {}B, weights packed {}B".format(*map(human, sizes_told)))
    say(out, f"peak activation memory {human(cost.peak_activation_bytes)}B")
    table = Table("group", "channels", "coupled axes")
    for g in coupling.groups:
        table.add_row(escape(g.id), str(g.size), str(len(g.members)))
    for b in coupling.blocked:
        table.add_row(escape(b.group), "blocked", escape(str(b.reason)))
    show(out, table)
