"""spa config: the configuration as it takes effect, and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spa.cli.complete import recipes
from spa.cli.options import json_option, print_json

if TYPE_CHECKING:
    from spa.checking.config import Config, Setting


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def config() -> None:
    """The configuration: spa.toml or [tool.spa] of pyproject.toml, recipes, the environment."""


@config.command()
@click.argument("words", nargs=-1, metavar="[MODEL]... [-- PRUNE OPTIONS]")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Another file than the nearest, for [check].")
@click.option("--recipe", type=click.Path(path_type=Path), help="A recipe of spa prune.", shell_complete=recipes)
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@json_option
@click.pass_context
def show(
    context: click.Context,
    /,
    words: tuple[str, ...],
    file: Path | None,
    recipe: Path | None,
    origin: bool,
    as_json: bool,
) -> None:
    """What takes effect: for `spa check` of each MODEL (or each that is configured), and for `spa prune`.

    Options of spa prune may follow after --, to see what they come to: spa config show --origin -- --macs 0.5"""
    from spa.checking.config import load

    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    paths, options = [Path(word) for word in words[:at]], list(words[at:])
    how = load(file)
    rows: dict[str, dict[str, Setting]] = check_settings(how, paths or how.found())
    rows |= prune_settings(context, [*(["--recipe", str(recipe)] if recipe else []), *options])
    if as_json:
        tables = {
            table: {k: {"value": s.value, "origin": s.origin} if origin else s.value for k, s in settings.items()}
            for table, settings in rows.items()
        }
        print_json({"schema": 1, "file": how.file and str(how.file), "settings": tables})
        return
    click.echo(f"# {how.file or 'no configuration file: defaults'}")
    for table, settings in rows.items():
        lines = [
            (f"{key} = {json.dumps(s.value, ensure_ascii=False, default=str)}", s.origin)
            for key, s in settings.items()
            if s.value not in (None, [])
        ]
        width = max((len(line) for line, _ in lines), default=0)
        click.echo(f"\n[{table}]")
        for line, where in lines:
            click.echo(f"{line:<{width}}  # {where}" if origin else line)


def check_settings(how: Config, paths: list[Path]) -> dict[str, dict[str, Setting]]:
    rows: dict[str, dict[str, Any]] = {"check": {"models": how.models, "baseline": how.baseline}}
    for path in paths:
        how.wanted(path)  # raises where a value makes no sense
        rows[f'check.model."{how.key(path)}"'] = dict(sorted(how.settings(path).items()))
    return rows


def prune_settings(context: click.Context, arguments: list[str]) -> dict[str, dict[str, Setting]]:
    """Every setting of `spa prune` as a call with these arguments would have it; None where nothing is set."""
    from spa.checking.config import Setting
    from spa.cli.prune import prune
    from spa.cli.recipe import origin, settled
    from spa.recipe import KEYS
    from spa.recipe_text import value_of

    model = next(p for p in prune.params if p.name == "model")
    required, model.required = model.required, False
    try:
        with prune.make_context("prune", arguments, parent=context.find_root()) as call:
            options = settled(call, dict(call.params))
    finally:
        model.required = required
    rows: dict[str, dict[str, Setting]] = {}
    for key in KEYS:
        table = f"prune.{key.table}" if key.table else "prune"
        value = list(options[key.option] or ()) if key.kind == "shapes" else value_of(key, options, Path.cwd())
        dropped = options[key.option] is None and call.params[key.option] is not None
        where = "overridden: another budget" if dropped else origin(call, key.option)
        rows.setdefault(table, {})[key.name] = Setting(value, where)
    return rows
