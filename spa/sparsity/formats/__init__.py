"""Packed forms of matrices [outputs, inputs]; see docs/formats.md.

A convolution's weight is the matrix [O, kh * kw * I / group] of `spa.sparsity.layers`: the channels of one tap side by side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from spa.errors import UsageError
from spa.sparsity.formats.base import Format
from spa.sparsity.formats.bitmap import Bitmap
from spa.sparsity.formats.bsr import Bsr
from spa.sparsity.formats.csr import Csr
from spa.sparsity.formats.dense import Dense
from spa.sparsity.formats.encoding import Array, Coded, Grid, coded
from spa.sparsity.formats.fan_in import FanIn
from spa.sparsity.formats.nm import NM

__all__ = ["NM", "Bitmap", "Bsr", "Coded", "Csr", "Dense", "FanIn", "Format", "Grid", "best", "coded", "pack"]

BLOCKS = ((4, 1), (1, 4), (2, 1), (8, 1), (16, 1), (1, 8), (1, 16), (4, 4))  # that `best` tries
GROUPS = (4, 8, 16)  # M of N:M that `best` tries


def pack(weight: Array | Coded, name: str) -> Format:
    """By name: dense, csr, csr8, csr16, csr32, bsr4x1, 2:4, fan_in, bitmap. Raises `UsageError` for another."""
    simple: dict[str, Callable[[Array | Coded], Format]]
    simple = {"dense": Dense.pack, "fan_in": FanIn.pack, "bitmap": Bitmap.pack}
    if name in simple:
        return simple[name](weight)
    if match := re.fullmatch(r"csr(8|16|32)?", name):
        return Csr.pack(weight, int(match[1]) if match[1] else None)
    if match := re.fullmatch(r"bsr(\d+)x(\d+)", name):
        return Bsr.pack(weight, (int(match[1]), int(match[2])))
    if match := re.fullmatch(r"(\d+):(\d+)", name):
        return NM.pack(weight, int(match[1]), int(match[2]))
    raise UsageError(f"no format is called '{name}'", hint="dense, csr, csr8, bsr4x1, 2:4, fan_in or bitmap")


def candidates(weight: Coded) -> Iterator[Format]:
    yield Dense.pack(weight)
    if weight.kept.all():
        return
    yield Csr.pack(weight)
    yield Bitmap.pack(weight)
    yield FanIn.pack(weight)
    for block in BLOCKS:
        yield Bsr.pack(weight, block)
    for m in GROUPS:
        yield NM.pack(weight, None, m)


def best(weight: Array | Coded) -> Format:
    """The form that takes the fewest bytes; the first of equals, dense before all."""
    return min(candidates(coded(weight)), key=lambda f: f.bytes)
