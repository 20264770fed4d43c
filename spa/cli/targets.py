"""spa targets"""

from __future__ import annotations

import json

import click


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def targets(as_json: bool) -> None:
    """List the targets: what each compiles for, and what runs it."""
    from spa.codegen.target import NAMES, resolve
    from spa.runtime.run import ENGINES

    rows = []
    for name in NAMES:
        t = resolve(name)
        rows.append(
            {
                "name": name,
                "triple": t.triple,
                "cpu": t.cpu,
                "features": list(t.features),
                "lanes": t.lanes,
                "engines": list(ENGINES[name]),
            }
        )
    if as_json:
        click.echo(json.dumps({"schema": 1, "targets": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "triple", "cpu and features", "floats per vector", "runs in")
    for name in NAMES:
        t = resolve(name)
        table.add_row(
            name, t.triple, " ".join(filter(None, [t.cpu, *t.features])), str(t.lanes), ", ".join(ENGINES[name])
        )
    Console().print(table)
