"""spa targets"""

from __future__ import annotations

import json
from typing import Any

import click

from spa.errors import UsageError


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def targets(as_json: bool) -> None:
    """List the targets: what each compiles for, and what runs it."""
    from spa.codegen.target import names, resolve
    from spa.runtime.run import engines

    rows: list[dict[str, Any]] = []
    for name in names():
        try:
            t = resolve(name)
        except UsageError as error:  # one broken target from outside must not hide the others
            rows.append({"name": name, "error": error.what})
            continue
        facts = {"triple": t.triple, "cpu": t.cpu, "features": list(t.features), "lanes": t.lanes}
        rows.append({"name": name, **facts, "engines": list(engines(name, t.triple))})
    if as_json:
        click.echo(json.dumps({"schema": 1, "targets": rows}))
        return
    from rich.table import Table

    from spa.cli.terminal import console, show

    table = Table("target", "triple", "cpu and features", "floats per vector", "runs in")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], row["error"])
            continue
        features = " ".join(filter(None, [row["cpu"], *row["features"]]))
        table.add_row(row["name"], row["triple"], features, str(row["lanes"]), ", ".join(row["engines"]))
    show(console(), table)
