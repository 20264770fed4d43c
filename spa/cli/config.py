"""spa config: the configuration as it takes effect, and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from spa.cli.options import json_option, print_json


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def config() -> None:
    """The configuration: spa.toml, or [tool.spa] of pyproject.toml."""


@config.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="[MODEL]...")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Another file than the nearest.")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@json_option
def show(models: tuple[Path, ...], file: Path | None, origin: bool, as_json: bool) -> None:
    """What takes effect for each MODEL (or each that is configured), after defaults and globs."""
    from spa.checking.config import load

    how = load(file)
    paths = list(models) or how.found()
    rows: dict[str, dict[str, Any]] = {"check": {"models": how.models, "baseline": how.baseline}}
    for path in paths:
        how.wanted(path)  # raises where a value makes no sense
        rows[f'check.model."{how.key(path)}"'] = dict(sorted(how.settings(path).items()))
    if as_json:
        tables = {
            table: {k: {"value": s.value, "origin": s.origin} if origin else s.value for k, s in settings.items()}
            for table, settings in rows.items()
        }
        print_json({"schema": 1, "file": how.file and str(how.file), "settings": tables})
        return
    click.echo(f"# {how.file or 'no configuration file: defaults'}")
    for table, settings in rows.items():
        lines = [(f"{key} = {json.dumps(s.value, ensure_ascii=False)}", s.origin) for key, s in settings.items()]
        width = max((len(line) for line, _ in lines), default=0)
        click.echo(f"\n[{table}]")
        for line, where in lines:
            click.echo(f"{line:<{width}}  # {where}" if origin else line)
