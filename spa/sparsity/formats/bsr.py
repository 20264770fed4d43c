"""Blocks of R outputs by C inputs; what block patterns are stored in.

    block_ptr int32 [ceil(rows / R) + 1]
    columns   uint8 | uint16 | int32 [blocks]   of blocks: the first input of a block is columns[b] * C
    values    [blocks, C * R]                   input by input, the R outputs of one input side by side

Rows and columns that R and C do not divide are padded: a kernel stores no output beyond the last row, and reads inputs
up to the next multiple of C. Where a quantisation group is as wide as a block, scales and zero points are stored for
the surviving blocks only, [blocks, R] (GQSA, arXiv 2412.17560, sec. 3.2); else for all, [rows, groups].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.errors import UsageError
from spa.sparsity.formats.base import Format, gather, pointers
from spa.sparsity.formats.encoding import Array, Coded, Grid, Index, coded, index_type


@dataclass(frozen=True, eq=False)
class Bsr(Format):
    block_ptr: Array
    columns: Array
    block: tuple[int, int]

    @classmethod
    def pack(cls, weight: Array | Coded, block: tuple[int, int] = (4, 1)) -> Bsr:
        weight = coded(weight)
        if min(block) < 1:
            raise UsageError(f"no such block: {block[0]}x{block[1]}", hint="outputs x inputs, both at least 1")
        (rows, columns), (r, c) = weight.shape, block
        padded = np.pad(weight.kept, ((0, -rows % r), (0, -columns % c)))
        alive = padded.reshape(padded.shape[0] // r, r, padded.shape[1] // c, c).any((1, 3))
        index = np.argwhere(alive)[:, 1].astype(index_type(max(1, np.size(alive, 1))))
        empty = cls(weight.shape, np.empty(0), weight.grid, pointers(alive.sum(1)), index, block)
        return cls(weight.shape, gather(weight, *empty.slots()), weight.grid, empty.block_ptr, index, block)

    @property
    def name(self) -> str:
        return f"bsr{self.block[0]}x{self.block[1]}"

    def slots(self) -> tuple[Index, Index]:
        r, c = self.block
        shape = len(self.columns), c, r
        rows = self._block_rows()[:, None, None] * r + np.arange(r)
        columns = self.columns.astype(np.int64)[:, None, None] * c + np.arange(c)[:, None]
        flat = shape[0], c * r
        return np.broadcast_to(rows, shape).reshape(flat), np.broadcast_to(columns, shape).reshape(flat)

    def indices(self) -> dict[str, Array]:
        return {"block_ptr": self.block_ptr, "columns": self.columns}

    def steps(self) -> dict[str, Array]:
        if self.grid is None or self.grid.group != self.block[1] or len(self.grid.scale) != self.shape[0]:
            return super().steps()
        rows = np.minimum(self._block_rows()[:, None] * self.block[0] + np.arange(self.block[0]), self.shape[0] - 1)
        at = rows, self.columns.astype(np.int64)[:, None]
        zero = self.grid.zero[at] if self.grid.zero is not None else None
        return Grid(self.grid.bits, self.grid.group, self.grid.scale[at], zero).arrays()

    def _block_rows(self) -> Index:
        return np.repeat(np.arange(len(self.block_ptr) - 1), np.diff(self.block_ptr))
