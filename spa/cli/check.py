"""spa check: sizes and costs of models against budgets and a baseline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from spa.errors import UsageError

FORMATS = ("text", "json", "markdown", "junit", "github", "sarif")


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="[MODEL]...")
@click.option("--config", type=click.Path(path_type=Path), help="spa.toml or pyproject.toml [default: the nearest].")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="What was accepted [default: spa-baseline.json beside the configuration].",
)
@click.option("--update", is_flag=True, help="Accept what is measured now: write it as the baseline.")
@click.option(
    "-n", "--dry-run", "dry", is_flag=True, help="With --update: say what would change in the baseline instead."
)
@click.option("--budget", "budgets", multiple=True, metavar="METRIC=LIMIT", help="Such as file_bytes=2MB or macs=+1%.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="FORMAT[=FILE]",
    help=f"One of {', '.join(FORMATS)}; several, with files for them [default: text].",
)
def check(
    models: tuple[Path, ...],
    config: Path | None,
    baseline: Path | None,
    update: bool,
    dry: bool,
    budgets: tuple[str, ...],
    formats: tuple[str, ...],
) -> None:
    """Hold MODELs against their budgets and the committed baseline; exit 1 where a limit is passed.

    Without MODEL: those of the configuration, or of the baseline. Budgets stand in spa.toml or in [tool.spa] of
    pyproject.toml; docs/check.md lists them. In a GitHub workflow, --format github also writes the step summary."""
    wanted = [places(f) for f in formats] or [("text", None)]
    limits = dict(pair(b) for b in budgets)
    if dry and not update:
        raise UsageError("a check writes nothing", hint="--update --dry-run says what --update would change")
    from spa.checking import check as run

    report = run(models, config=config, baseline=baseline, budgets=limits, update=update, dry=dry, tell=progress())
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    from spa.checking.formats import FORMATS as WRITERS

    for name, file in wanted:
        text = WRITERS[name](report)
        if file is None:
            click.echo(text.rstrip("\n"))
        else:
            write(file, text)
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if name == "github" and summary:
            with Path(summary).open("a", encoding="utf-8") as out:
                out.write(WRITERS["markdown"](report))
    click.get_current_context().exit(report.exit_code)


def places(text: str) -> tuple[str, Path | None]:
    name, _, file = text.partition("=")
    if name not in FORMATS:
        raise UsageError(f"there is no format '{name}'", hint="one of " + ", ".join(FORMATS))
    return name, Path(file) if file else None


def pair(text: str) -> tuple[str, Any]:
    metric, sign, limit = text.partition("=")
    if not sign or not limit:
        raise UsageError(f"'{text}' is no budget", hint="--budget file_bytes=2MB")
    return metric.strip(), limit.strip()


def progress() -> Any:
    """Lines on stderr, on a terminal only."""
    return (lambda line: click.echo(f"\r\033[K{line}", nl=False, err=True)) if sys.stderr.isatty() else None


def write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
