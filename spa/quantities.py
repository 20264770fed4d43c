"""Numbers as people write and read them: sizes in bytes, large counts, shapes of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.model import Model

UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def quantity(text: str) -> float:
    """A number with a unit: 2MB, 1.5MiB, 300M, 1e9. Raises `ValueError`.

    >>> quantity("2MB"), quantity("1.5KiB"), quantity("300M"), quantity("1e9")
    (2000000.0, 1536.0, 300000000.0, 1000000000.0)
    """
    plain = text.strip()
    digits = plain.rstrip("BbIiKkMmGgTt ")
    unit = plain[len(digits) :].strip().upper().removesuffix("B")
    if unit not in UNITS:
        raise ValueError(f"'{text}' has no unit that is known")
    return float(digits) * UNITS[unit]


def human(n: float) -> str:
    """A count in three digits or so.

    >>> human(1234567), human(12)
    ('1.23 M', '12')
    """
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(n) >= limit:
            return f"{n / limit:.2f}{unit}"
    return f"{n:.0f}"


def sizes_of(model: Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes that fixed input shapes give to the network's symbolic dimensions. Raises `UsageError`."""
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
