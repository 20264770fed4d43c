"""Packed forms of matrices [outputs, inputs]; see docs/formats.md.

A convolution's weight is the matrix [O, kh * kw * I / group] of `spa.sparsity.layers`: the channels of one tap side by side.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np

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
SAMPLED, SAMPLED_ROWS = 1 << 18, 64  # entries that `best` looks at, in runs of so many rows


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


def families() -> list[Callable[[Coded], Format]]:
    """What `best` tries, in this order."""
    found: list[Callable[[Coded], Format]] = [Dense.pack, Csr.pack, Bitmap.pack, FanIn.pack]
    found += [partial(Bsr.pack, block=block) for block in BLOCKS]
    return found + [partial(NM.pack, m=m) for m in GROUPS]


def best(weight: Array | Coded) -> Format:
    """The form that takes the fewest bytes; the first of equals, dense before all. Of a large matrix some rows decide."""
    weight = coded(weight)
    kept = weight.kept
    if kept.all():
        return Dense.pack(weight)
    rows = np.arange(weight.shape[0])
    if weight.codes.size > SAMPLED:
        every = -(-weight.codes.size // SAMPLED)
        rows = rows[rows // SAMPLED_ROWS % every == 0]
    sample = Coded(weight.codes[rows], weight.grid.of(rows) if weight.grid else None)
    return min(families(), key=lambda family: family(sample).bytes)(weight)
