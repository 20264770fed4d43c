"""What several verbs share: reading sizes and shapes, and printing results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.model import Model

F = TypeVar("F", bound=Callable[..., Any])
UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


def shape_option(function: F) -> F:
    return click.option(
        "--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224", help="Fix the shape of an input."
    )(function)


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=1, allow_nan=False, default=str))


def parse_bytes(text: str) -> int:
    """A size such as 2MB, 500KB or 1.5MiB, in bytes."""
    digits = text.strip().rstrip("BKMGIbkmgi ")
    unit = text.strip()[len(digits) :].strip().upper() or "B"
    try:
        return int(float(digits) * UNITS[unit])
    except (ValueError, KeyError):
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


def sizes_of(model: Model, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes that fixed input shapes give to the network's symbolic dimensions."""
    from spa.shapes import symbol

    inputs = {v.name: v for v in model.ir.graph.inputs}
    sizes: dict[str, int] = {}
    for name, dims in shapes.items():
        value = inputs.get(name)
        if value is None:
            raise UsageError(
                f"the network has no input '{name}'", hint=f"its inputs are {sorted(filter(None, inputs))}"
            )
        if value.shape is None or len(value.shape) != len(dims):
            raise UsageError(f"input '{name}' has the shape {value.shape}, not {len(dims)} axes")
        for axis, (have, want) in enumerate(zip(value.shape, dims, strict=True)):
            if isinstance(have, int):
                if have != want:
                    raise UsageError(f"axis {axis} of input '{name}' is fixed to {have}, not {want}")
            else:
                sizes[symbol(value, axis, have)] = want
    return sizes


def refuse_existing(path: Path, force: bool, source: Path | None = None) -> None:
    if source is not None and path.resolve() == source.resolve():
        raise UsageError(f"the output is the input: {path}", hint="another -o; the input is never modified")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--force to replace it, or another -o")


def human(n: float) -> str:
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= limit:
            return f"{n / limit:.2f}{unit}"
    return f"{n:.0f}"
