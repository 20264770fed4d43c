"""Weights that are not zero, one behind the other, and a bit for each place that says whether it has one.

The survivors of a vector of features are spread over its lanes by the bits (see `spread`); the next vector's begin where a
count of the bits says. They come at no fixed rate, which hardware's prefetching follows badly: they are asked for far
ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.codegen.kernels.matvec.format import ahead
from spa.codegen.kernels.matvec.spread import added, table
from spa.codegen.kernels.matvec.tiling import Tiling
from spa.codegen.kernels.vector import FLOAT, Expr, build, loop, put, splat
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

TENTHS = 10  # to which densities are rounded, up: kernels of about the same share their code


@dataclass(frozen=True)
class Bits:
    """Packed: bits [tiles][k][width] words of `lanes`, survivors, how many lie before each tile, and the table of `spread`.
    `tenths`: density."""

    lanes: int
    tenths: int

    name = "bitmap"
    factor = 1.0
    chains = 1
    balance = 2

    @classmethod
    def of(cls, lanes: int, density: float) -> Bits:
        return cls(lanes, math.ceil(density * TENTHS))

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("uint16" if self.lanes == 16 else "uint8", FLOAT, "int32", "int32")

    def pack(self, matrix: Array, tiling: Tiling) -> tuple[Array, ...]:
        tiled = tiling.split(matrix)
        kept = tiled != 0
        words = (kept * (1 << np.arange(self.lanes))).sum(-1).astype(self.dtypes[0])
        counts = kept.reshape(len(kept), -1).sum(1)
        begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        values = np.concatenate([tiled[kept], np.zeros(self.lanes)])  # the last vector is read whole
        return words.reshape(-1), values.astype(np.float32), begins, table(self.lanes)

    def multiply(
        self, packed: Sequence[Any], x: Any, tile: Expr, k: int, begin: Expr, count: int, sums: list[list[Any]]
    ) -> None:
        bits, values, begins, rows = packed
        (totals,) = sums
        width = len(totals)
        at = build.alloc_buffer(
            (1,), "int64", scope="global"
        )  # as wide as addresses: one addition from vector to vector
        build.buffer_store(at, tirx.Cast("int64", begins[tile]), [0])
        with loop(count, begin) as i:
            first = (tile * k + i) * width
            value, place = splat(x[i], self.lanes), at[0]
            ahead(values, place, 4 * self.lanes * width * self.tenths // TENTHS)
            ahead(bits, first, width)
            for v, total in enumerate(totals):
                word = tirx.Cast("int32", bits[first + v])
                put(total, added(total[0], values, place, word, rows, value, self.lanes))
                place = place + tirx.Cast("int64", tirx.popcount(word))
            build.buffer_store(at, place, [0])
