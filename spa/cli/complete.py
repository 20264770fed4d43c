"""What a shell offers for a parameter's value. Imported with the verbs, so it imports nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders and .onnx files; a shell's own completion of files offers every file."""
    return files(incomplete, ".onnx")


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return files(incomplete, ".toml")


def files(incomplete: str, suffix: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    folder, _, start = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    head = f"{folder}/" if "/" in incomplete else ""
    if not place.is_dir():
        return []
    found = sorted(p for p in place.iterdir() if p.name.startswith(start) and (start or not p.name.startswith(".")))
    folders = [CompletionItem(f"{head}{p.name}/") for p in found if p.is_dir()]
    return [CompletionItem(f"{head}{p.name}") for p in found if p.suffix == suffix and p.is_file()] + folders


def target_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from spa.codegen.target import names

    return [name for name in names() if name.startswith(incomplete)]


def criteria(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from spa.importance.table import available

    return [name for name in available() if name.startswith(incomplete)]
