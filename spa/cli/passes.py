"""`spa passes`: which passes there are, and their options."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def passes(as_json: bool) -> None:
    """List the passes and their options.

    A pipeline names them in order: --pipeline "slice{ratio=0.5},fold".
    """
    import json

    from spa.errors import UsageError
    from spa.pipeline import available

    rows: list[dict[str, Any]] = []
    for name, where in sorted(available().items()):
        try:
            rows.append(describe(name, where))
        except UsageError as error:  # one broken pass from outside must not hide the others
            rows.append({"name": name, "path": where, "summary": "", "options": [], "error": error.what})
    if as_json:
        click.echo(json.dumps({"schema": 1, "passes": rows}, indent=1))
        return
    for row in rows:
        click.echo(f"{row['name']:<12}{row.get('error') or row['summary']}")
        for option in row["options"]:
            given = "required" if option["required"] else option["default"]
            click.echo(f"    {option['name']}: {option['type']} = {given}")


def describe(name: str, where: str) -> dict[str, Any]:
    """What a pass is called, does and takes, as plain data."""
    import dataclasses

    from spa.pipeline import pass_class, value_text

    cls = pass_class(name)
    options = []
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        shown = None if required else value_text(default)
        options.append({"name": f.name, "type": str(f.type), "default": shown, "required": required})
    summary = (cls.__doc__ or "").strip().split("\n")[0]
    return {"name": name, "path": where, "summary": summary, "options": options}
