"""spa doctor"""

from __future__ import annotations

import json

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(as_json: bool) -> None:
    """Say which tools are here, which are missing, and how to install those. Exit 0 either way."""
    import platform

    from spa._version import __version__
    from spa.runtime.toolchain import INSTALL, PURPOSE, cache_dir, find, machine_level

    rows = [{"tool": tool, "found": find(tool), "for": PURPOSE[tool], "install": INSTALL[tool]} for tool in INSTALL]
    machine = {
        "spa": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "level": machine_level(),
    }
    if as_json:
        ok = all(row["found"] for row in rows)
        click.echo(json.dumps({"schema": 1, "ok": ok, **machine, "cache": str(cache_dir()), "tools": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("tool", "what for", "state")
    for row in rows:
        table.add_row(row["tool"], row["for"], "found" if row["found"] else f"missing: {row['install']}")
    Console().print(table)
    click.echo(
        f"spa {__version__}, Python {machine['python']}, {platform.machine()} ({machine_level()}), cache {cache_dir()}",
        err=True,
    )
