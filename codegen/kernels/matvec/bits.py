"""Weights that are not zero, one behind the other, and a bit for each place that says whether it has one.

AVX-512 spreads the survivors of a vector over its lanes by the bits (expand); the next vector's begin where a count of the bits
says. Two things decide the speed. Expand takes the register it writes as an operand, so expanding into a fresh one waits for
whatever that held before (six cycles a vector in a row): here a vector is expanded onto itself, and lanes without a
weight, which keep rubbish, are left out by a masked multiply-add. And survivors come at no fixed rate, which hardware's
prefetching follows badly: they are asked for far ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.codegen.kernels.matvec.format import ahead
from spa.codegen.kernels.matvec.tiling import LANES, Tiling
from spa.codegen.kernels.vector import FLOAT, Expr, build, load, loop, put, splat
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

EXPAND = "llvm.x86.avx512.mask.expand.v16f32"
TENTHS = 10  # to which densities are rounded, up: kernels of about the same share their code


@dataclass(frozen=True)
class Bits:
    """Packed: bits [tiles][k][width] words of 16, survivors, and how many lie before each tile. `tenths`: density."""

    tenths: int

    name = "bitmap"
    dtypes = ("uint16", FLOAT, "int32")
    factor = 1.0
    chains = 1
    balance = 2

    @classmethod
    def of(cls, density: float) -> Bits:
        return cls(math.ceil(density * TENTHS))

    def pack(self, matrix: Array, tiling: Tiling) -> tuple[Array, ...]:
        tiled = tiling.split(matrix)
        kept = tiled != 0
        words = (kept * (1 << np.arange(LANES))).sum(-1).astype(np.uint16)
        counts = kept.reshape(len(kept), -1).sum(1)
        begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        values = np.concatenate([tiled[kept], np.zeros(LANES)]).astype(np.float32)  # the last vector is read whole
        return words.reshape(-1), values, begins

    def multiply(
        self, packed: Sequence[Any], x: Any, tile: Expr, k: int, begin: Expr, count: int, sums: list[list[Any]]
    ) -> None:
        bits, values, begins = packed
        (totals,) = sums
        width = len(totals)
        at = build.alloc_buffer((1,), "int32", scope="global")
        build.buffer_store(at, begins[tile], [0])
        with loop(count, begin) as i:
            row = (tile * k + i) * width
            value, place = splat(x[i], LANES), at[0]
            ahead(values, place, 4 * LANES * width * self.tenths // TENTHS)
            ahead(bits, row, 2 * width)
            for v, total in enumerate(totals):
                word = tirx.Cast("int32", bits[row + v])
                kept = tirx.NE(splat(word, LANES) & _lane_bits(), splat(tirx.IntImm("int32", 0), LANES))
                survivors = load(values, place, LANES)
                spread = tirx.call_llvm_pure_intrin(f"{FLOAT}x{LANES}", EXPAND, survivors, survivors, kept)
                put(total, tirx.Select(kept, spread * value + total[0], total[0]))
                place = place + tirx.popcount(word)
            build.buffer_store(at, place, [0])


def _lane_bits() -> Expr:
    one = tirx.IntImm("int32", 1)
    return splat(one, LANES) << tirx.Ramp(tirx.IntImm("int32", 0), one, LANES)
