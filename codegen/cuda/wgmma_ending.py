"""How the sums of warpgroup products get to Y.

A thread holds, of every 8 columns n, two neighbours of two rows m: 4 sums. Where Y has its m side by side in halves, storing them
one by one would touch sixteen bytes at a time; there they pass through shared memory, turned over on the way (stmatrix), and
leave in lines of 128 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spa.codegen.cuda.sources import Source
from spa.codegen.cuda.wgmma_layout import CHUNK, k_major
from spa.codegen.cuda.wgmma_tile import WgmmaTile
from spa.codegen.cuda.wgmma_words import ROWS, WARPGROUP, copy_chunk, shared_number, store_transposed
from spa.codegen.cuda.words import barrier, both, named, only, unrolled
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import Expr, build
from spa.codegen.tvm_api import tirx


@dataclass(frozen=True, eq=False)
class Corner:
    """The first row and column of Y of a warpgroup, and which of its threads this is."""

    group: Expr
    m: Expr
    n: Expr
    warp: Expr
    lane: Expr

    def row(self, i: Expr, r: Expr) -> Expr:
        """m of register r of four, in the i-th 64 rows."""
        return self.m + i * ROWS + self.warp * 16 + self.lane // 4 + r // 2 * 8

    def column(self, j: Expr, r: Expr) -> Expr:
        return self.n + j * 8 + self.lane % 4 * 2 + r % 2


def is_staged(m: int, groups: int, source: Source, ending: Ending, operand: str) -> bool:
    """Whether 16 bytes of Y are 8 neighbouring m, aligned: stages then have Y's type and room for its tile."""
    *others, (_, of_m) = ending.strides or ((m, 1),)
    aligned = m % CHUNK == 0 and of_m == 1 and all(stride % CHUNK == 0 for _, stride in others)
    return source.k_last and groups == 1 and ending.dtype == operand and aligned


def leave_directly(m: int, t: WgmmaTile, out: Writer, sums: Any, corner: Corner) -> None:
    with unrolled(t.rows) as i, unrolled(t.n // 8) as j, unrolled(4) as r:
        row, column = corner.row(i, r), corner.column(j, r)
        with only(_inside(m, t, out, row, column)):
            out.finish(sums[i * (t.n // 2) + j * 4 + r], corner.group, row, column)


def _inside(m: int, t: WgmmaTile, out: Writer, row: Expr, column: Expr) -> Any:
    n = out.source.n
    return both(True if m % t.m == 0 else row < m, True if n % t.n == 0 else column < n)


def leave_through_shared(
    m: int, t: WgmmaTile, out: Writer, sums: Any, corner: Corner, shared: Any, place: Expr, thread: Expr
) -> None:
    """`place`: where the warpgroup's part of shared memory begins, [m / 64, n, 64] in chunks of 8 that are swizzled;
    `thread`: of the warpgroup."""
    for i in range(t.rows):
        for j in range(t.n // 16):
            values = [
                _finished(m, t, out, sums, corner, i, 2 * j + q // 2, q % 2 * 2 + r) for q in range(4) for r in (0, 1)
            ]
            lane = corner.lane
            n, first = j * 16 + lane // 16 * 8 + lane % 8, corner.warp * 16 + lane // 8 % 2 * 8
            store_transposed(
                shared_number(shared, place + i * t.n * ROWS + k_major(n, first, ROWS)), values, str(out.y.dtype)
            )
    barrier()
    with unrolled(t.rows) as i, unrolled(t.n * ROWS // CHUNK // WARPGROUP) as u:
        chunk = named(u * WARPGROUP + thread)
        n, first = chunk // (ROWS // CHUNK), chunk % (ROWS // CHUNK) * CHUNK
        row, column = corner.m + i * ROWS + first, corner.n + n
        with only(_inside(m, t, out, row, column)):
            there = out.result(tirx.const(0.0, "float32"), corner.group, row, column)[1]
            copy_chunk(out.y, there, shared, place + i * t.n * ROWS + k_major(n, first, ROWS))


def _finished(m: int, t: WgmmaTile, out: Writer, sums: Any, corner: Corner, i: int, j: int, r: int) -> Expr:
    """Register r of four of columns 8 j and up, with what follows the sum; anything outside of Y."""
    row, column = corner.row(i, r), corner.column(j, r)
    value = sums[i * (t.n // 2) + j * 4 + r]
    inside = _inside(m, t, out, row, column)
    if out.bias is None and not out.steps:
        return value
    result = out.result(value, corner.group, row, column)[0]
    return result if inside is True else build.if_then_else(inside, result, tirx.const(0.0, "float32"))
