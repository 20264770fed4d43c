"""Every weight as a code of 8 or 4 bits, multiplied as it is; scales come at the end of each group of inputs.

Decoding costs instructions (convert, or look up) where floats are only read, but with one row, floats come no faster than
memory gives them, and codes are a quarter or an eighth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spa.codegen.kernels.matvec.format import ahead
from spa.codegen.kernels.matvec.stored import Stored
from spa.codegen.kernels.matvec.tiling import Tiling
from spa.codegen.kernels.vector import Expr, loop, put, splat
from spa.codegen.layer import Array


@dataclass(frozen=True)
class Codes:
    """Packed: the codes, [tiles][k][width] vectors."""

    stored: Stored

    @property
    def name(self) -> str:
        return f"int{self.stored.bits}"

    @property
    def dtypes(self) -> tuple[str, ...]:
        return (self.stored.dtype,)

    @property
    def factor(self) -> float:
        return self.stored.factor

    chains = 1
    balance = -1

    def pack(self, matrix: Array, tiling: Tiling) -> tuple[Array, ...]:
        return (self.stored.pack(tiling.split(matrix)),)

    def multiply(
        self, packed: Sequence[Any], x: Any, tile: Expr, k: int, begin: Expr, count: int, sums: list[list[Any]]
    ) -> None:
        (codes,), width = packed, len(sums[0])
        with loop(count, begin) as i:
            row = tile * k + i
            value = splat(x[i], self.stored.lanes)
            for v, total in enumerate(sums[0]):
                put(total, self.stored.load(codes, row, v, width) * value + total[0])
            ahead(codes, row * self.stored.stride(width), math.ceil(width * self.stored.nbytes))
