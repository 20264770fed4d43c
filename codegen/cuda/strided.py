"""Matrices that lie in memory anyhow, as tiles in shared memory: a transposed, sliced or broadcast activation needs no copy.

Threads walk along the axis whose elements lie side by side (if there is one), as many bytes at a time as offset, strides
and extents allow: 16, 8 or 4 by cp.async where the type is the one that is multiplied, else through registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spa.codegen.cuda.sources import Registers, inside
from spa.codegen.cuda.words import NARROW, both, copy_async, only, unrolled
from spa.codegen.kernels.vector import Expr, covering, fits

MOST_BYTES = 16


@dataclass(frozen=True)
class Strided:
    """Element (row, column) of batch (i, j, ...) lies at offset + i * batch[0] + ... + row * strides[0] + column *
    strides[1] of a buffer of `size` elements."""

    size: int
    offset: int
    shape: tuple[int, int]
    strides: tuple[int, int]
    batch: tuple[int, ...]
    dtype: str

    @property
    def inner(self) -> int:
        """The axis along which threads walk: that of neighbours in memory."""
        return 0 if self.strides[0] == 1 and self.strides[1] != 1 else 1

    def lanes(self, inner_is_contiguous_there: bool) -> int:
        """Elements that may be moved at once, if they are neighbours in shared memory too."""
        item = 2 if self.dtype in NARROW else 4
        if self.strides[self.inner] != 1 or not inner_is_contiguous_there:
            return 1
        outer = self.strides[1 - self.inner]
        common = math.gcd(
            self.offset, self.shape[self.inner], outer if self.shape[1 - self.inner] > 1 else 0, *self.batch
        )
        return fits(MOST_BYTES // item, common & -common) if common else 1


class StridedMover:
    """Moves tiles of `tile` = (rows, columns) of a matrix; `place`: (row, column) of a tile -> where in its stage;
    `begin`: where the matrix begins; `contiguous`: the axis whose elements are neighbours in shared memory."""

    def __init__(
        self,
        source: Strided,
        x: Any,
        begin: Expr,
        tile: tuple[int, int],
        threads: int,
        thread: Expr,
        shared: Any,
        place: Callable[[Expr, Expr], Expr],
        contiguous: int,
    ) -> None:
        self.source, self.x, self.begin, self.tile, self.place_of = source, x, begin, tile, place
        self.threads, self.thread, self.shared = threads, thread, shared
        self.lanes = min(source.lanes(contiguous == source.inner), tile[source.inner])
        self.per_line = tile[source.inner] // self.lanes
        self.units = self.per_line * tile[1 - source.inner]
        self.is_async = self.lanes > 1 and source.dtype in NARROW and str(shared.dtype) == source.dtype
        if not self.is_async:
            lanes = 1 if source.dtype in NARROW else self.lanes
            self.per_line, self.units, self.lanes = (
                self.per_line * self.lanes // lanes,
                self.units * self.lanes // lanes,
                lanes,
            )
            self.registers = Registers(x, threads, thread, shared, lanes, self.units, source.dtype)

    def _at(self, i: Expr) -> tuple[Expr, Expr]:
        """(row, column) in the tile of unit i of this thread."""
        unit = i * self.threads + self.thread
        along, across = unit % self.per_line * self.lanes, unit // self.per_line
        return (along, across) if self.source.inner == 0 else (across, along)

    def _mine(self, i: Expr) -> Any:
        return True if self.units % self.threads == 0 else i * self.threads + self.thread < self.units

    def fetch(self, row: Expr, column: Expr, to: Expr) -> None:
        """Set out for the tile that begins at (row, column)."""
        s = self.source
        with unrolled(covering(self.units, self.threads)) as i:
            r, c = self._at(i)
            there = both(inside(row + r, s.shape[0], self.tile[0]), inside(column + c, s.shape[1], self.tile[1]))
            at = self.begin + (row + r) * s.strides[0] + (column + c) * s.strides[1]
            if self.is_async:
                with only(self._mine(i)):
                    copy_async(self.shared, to + self.place_of(r, c), self.x, at, there, 2 * self.lanes)
            else:
                self.registers.load(i, both(self._mine(i), there), at)

    def place(self, to: Expr) -> None:
        """What came into registers, to shared memory."""
        if self.is_async:
            return
        with unrolled(covering(self.units, self.threads)) as i, only(self._mine(i)):
            self.registers.store(i, to + self.place_of(*self._at(i)))
