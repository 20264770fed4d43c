"""How many rows and vectors a tile has: every tile that fits the registers, compared by what it would cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from spa.codegen.kernels.isa import Isa
from spa.codegen.kernels.parallel import parallel
from spa.codegen.kernels.vector import Expr, covering, fits

NEAR = 0.75  # of the first cache that a tile's pixels may fill
WAIT = 0.1  # of the loads, that multiply-adds do not hide


@dataclass(frozen=True)
class Columns:
    """A row of `length` pixels as vectors of `lanes`, in tiles of at most `widest`: as few as possible, as even as
    possible, the last shifted back where the row is no multiple. `full`: lanes of the machine."""

    length: int
    lanes: int
    widest: int
    full: int

    @property
    def vectors(self) -> int:
        return covering(self.length, self.lanes)

    @property
    def padded(self) -> int:
        return self.vectors * self.lanes

    @property
    def even(self) -> bool:
        """No vector is shifted back over another one."""
        return self.padded == self.length

    def widths(self) -> list[tuple[int, int]]:
        """(vectors per tile, how many such tiles)."""
        tiles = covering(self.vectors, self.widest)
        small, wide = divmod(self.vectors, tiles)
        return [(n, count) for n, count in ((small + 1, wide), (small, tiles - wide)) if count]

    def walk(self, shared: bool = False) -> Iterator[tuple[int, AbstractContextManager[tuple[list[Expr], Expr]]]]:
        """For each width: the vectors of a tile, and a loop over its tiles that gives where each vector begins, and
        where it would begin if none were shifted back. `shared`: among threads."""
        begin, tiles = 0, sum(count for _, count in self.widths())
        for width, count in self.widths():
            yield width, self._starts(begin, width, count, tiles == 1, shared)
            begin += width * self.lanes * count

    def tiles(self) -> list[list[int]]:
        """Where each vector of each tile begins, in the order of `walk`."""
        found: list[list[int]] = []
        begin = 0
        for width, count in self.widths():
            size = width * self.lanes
            for i in range(count):
                start = min(begin + i * size, max(self.length - size, 0))
                found.append([min(start + v * self.lanes, self.length - self.lanes) for v in range(width)])
            begin += size * count
        return found

    @contextmanager
    def _starts(
        self, begin: int, width: int, count: int, alone: bool, shared: bool
    ) -> Iterator[tuple[list[Expr], Expr]]:
        if alone:  # the row may be shorter than the tile: each vector is shifted for itself
            yield [min(v * self.lanes, self.length - self.lanes) for v in range(width)], begin
            return
        size = width * self.lanes
        with parallel(count, shared=shared) as i:
            last = begin + count * size > self.length
            start = _shifted_from(begin, i, size, self.length) if last else begin + i * size
            yield [start + v * self.lanes for v in range(width)], begin + i * size


def _shifted_from(begin: int, i: Expr, size: int, length: int) -> Expr:
    from spa.codegen.tvm_api import tirx

    at = begin + i * size
    return min(at, length - size) if isinstance(at, int) else tirx.Min(at, length - size)


def columns_of(isa: Isa, length: int, widest: int) -> Columns:
    return Columns(length, fits(isa.lanes, length), widest, isa.lanes)


def step_cycles(isa: Isa, rows: int, columns: int, depth: int) -> float:
    """Cycles for one k of a tile: multiply-adds, loads and spread weights side by side, or the latency of one. Vectors
    of X come from the second cache where a tile's pixels of all `depth` channels do not fit the first."""
    near = depth * columns * isa.lanes * 4 <= NEAR * isa.l1
    loads = columns * (isa.load if near else isa.far) + rows * isa.splat
    return max(rows * columns * isa.fma, loads, isa.latency) + WAIT * loads + 0.5


def tiles(isa: Isa) -> list[tuple[int, int]]:
    """(rows, columns) of every tile whose sums, one column of X and one weight fit the registers."""
    return [
        (rows, columns)
        for rows in range(1, isa.registers)
        for columns in range(1, isa.registers)
        if rows * columns + columns + 1 <= isa.registers and rows * columns <= isa.sums
    ]


def dense_cost(isa: Isa, m: int, length: int, k: int, depth: int, rows: int, columns: int) -> float:
    """Cycles of a dense product [m, k] x [k, length], k over `depth` channels, with tiles of rows x columns."""
    row = columns_of(isa, length, columns)
    return covering(m, rows) * sum(
        count * (k * step_cycles(isa, rows, width, depth) + rows * width * 1.5 + 8) for width, count in row.widths()
    )


def dense_tile(isa: Isa, m: int, length: int, k: int, depth: int) -> tuple[int, int]:
    """The cheapest tile for a dense product."""
    return min(
        ((r, c) for r, c in tiles(isa) if r <= m and r <= 16),
        key=lambda t: (dense_cost(isa, m, length, k, depth, *t), -t[0] * t[1], t),
    )


def bucket(entries: int) -> int:
    """Sparse layers share a kernel, and pad their weights to the largest, if their entries differ by less than half.

    >>> bucket(1000), bucket(1020), bucket(1500)
    (19, 19, 21)
    """
    return int(2 * math.log2(max(entries, 1)))


def sparse_cost(isa: Isa, blocks: int, entries: int, length: int, depth: int, rows: int, columns: int) -> float:
    """Cycles of a sparse product of so many blocks of rows and entries in them."""
    row = columns_of(isa, length, columns)
    each = entries / max(blocks, 1)
    return blocks * sum(
        count * (each * (step_cycles(isa, rows, width, depth) + 0.5) + rows * width * 1.5 + 24)
        for width, count in row.widths()
    )


def sparse_columns(isa: Isa, blocks: int, entries: int, length: int, depth: int, rows: int) -> int:
    """The best width for blocks of this height."""
    widths = [c for r, c in tiles(isa) if r == rows]
    return min(widths, key=lambda c: (sparse_cost(isa, blocks, entries, length, depth, rows, c), c))
