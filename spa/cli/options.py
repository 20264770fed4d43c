"""What several verbs share: reading sizes and shapes, and printing results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from spa.errors import UsageError
from spa.quantities import human as human
from spa.quantities import quantity
from spa.quantities import sizes_of as sizes_of

F = TypeVar("F", bound=Callable[..., Any])
UNITS = ("B", "KB", "MB", "GB", "KIB", "MIB", "GIB")


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


def shape_option(function: F) -> F:
    return click.option(
        "--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224", help="Fix the shape of an input."
    )(function)


def cuda_options(function: F) -> F:
    """What --target cuda compiles for."""
    archs = click.option(
        "--cuda-arch", "cuda_archs", metavar="LIST", help="GPU architectures for cuda [default: sm_80,sm_90]."
    )
    precision = click.option(
        "--precision", type=click.Choice(["fp16", "bf16", "fp32"]), help="Operands of cuda's products [default: fp16]."
    )
    return archs(precision(function))


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=1, allow_nan=False, default=str))


def parse_bytes(text: str) -> int:
    """A size such as 2MB, 500KB or 1.5MiB, in bytes."""
    try:
        if not text.strip().upper().endswith(tuple("0123456789B")):
            raise ValueError
        return int(quantity(text))
    except (ValueError, OverflowError):
        raise UsageError(f"'{text}' is not a size", hint="a number and one of " + ", ".join(UNITS)) from None


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`NAME:1,3,224,224` (a name may contain colons). Raises `UsageError`.

    >>> parse_shapes(("x:1,3", "a:0:2"))
    {'x': (1, 3), 'a:0': (2,)}
    """
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.split(","))
        except ValueError:
            shape = (0,)
        if not name or any(d < 1 for d in shape):
            raise UsageError(f"not a shape: '{text}'", hint="--shape input:1,3,224,224")
        shapes[name] = shape
    return shapes


def refuse_existing(path: Path, force: bool, source: Path | None = None) -> None:
    if source is not None and path.resolve() == source.resolve():
        raise UsageError(f"the output is the input: {path}", hint="another -o; the input is never modified")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--force to replace it, or another -o")
