"""spa explain: why a group can or cannot be pruned."""

from __future__ import annotations

from pathlib import Path

import click

from spa.cli.options import json_option, parse_shapes, print_json, shape_option, sizes_of


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("name", required=False)
@shape_option
@json_option
def explain(model: Path, name: str | None, shapes: tuple[str, ...], as_json: bool) -> None:
    """Say what couples the channels of MODEL, and what blocks them; NAME is a group, weight, value or node."""
    from spa.coupling import analyze
    from spa.coupling.explain import as_data
    from spa.model import load

    network = load(model)
    coupling = analyze(network, sizes=sizes_of(network, parse_shapes(shapes)))
    if as_json:
        print_json({"schema": 1, **as_data(coupling, name)})
    else:
        click.echo(coupling.explain(name))
