"""Compressed rows with column distances: what unstructured sparsity is stored in.

    row_ptr int32 [rows + 1]     row r has the entries row_ptr[r] .. row_ptr[r + 1] - 1
    deltas  uint8 | uint16 | int32 [stored]
    values  [stored]

A row starts at column 0; every entry first moves on by its delta, then multiplies. So the first delta of a row is a
column, the others are distances. A distance that does not fit is walked in steps of the largest delta, each with a
filler whose value is the zero that stands there (the idea is XNNPACK's spmm): kernels need no branch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.sparsity.formats.base import Format, gather, pointers
from spa.sparsity.formats.encoding import Array, Coded, Index, coded

TYPES = {8: np.uint8, 16: np.uint16, 32: np.int32}


@dataclass(frozen=True, eq=False)
class Csr(Format):
    row_ptr: Array
    deltas: Array

    @classmethod
    def pack(cls, weight: Array | Coded, width: int | None = None) -> Csr:
        """`width` of the deltas in bits; the one that takes the fewest bytes without it."""
        weight = coded(weight)
        if width is None:
            return min((cls.pack(weight, w) for w in TYPES), key=lambda f: f.bytes)
        limit = (1 << (31 if width == 32 else width)) - 1
        rows, columns = np.nonzero(weight.kept)
        before = np.concatenate([[0], columns[:-1]])
        before[np.flatnonzero(np.diff(rows, prepend=-1))] = 0
        gaps = columns - before
        steps = 1 + np.maximum(0, gaps - 1) // limit
        deltas = np.full(int(steps.sum()), limit, TYPES[width])
        deltas[np.cumsum(steps) - 1] = gaps - (steps - 1) * limit
        counts = np.bincount(np.repeat(rows, steps), minlength=weight.shape[0])
        empty = cls(weight.shape, np.empty(0), weight.grid, pointers(counts), deltas)
        return cls(weight.shape, gather(weight, *empty.slots()), weight.grid, empty.row_ptr, deltas)

    @property
    def name(self) -> str:
        return f"csr{self.deltas.itemsize * 8}"

    def slots(self) -> tuple[Index, Index]:
        total = np.concatenate([[0], np.cumsum(self.deltas, dtype=np.int64)])
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.row_ptr))
        return rows, total[1:] - total[self.row_ptr[:-1]][rows]

    def indices(self) -> dict[str, Array]:
        return {"row_ptr": self.row_ptr, "deltas": self.deltas}
