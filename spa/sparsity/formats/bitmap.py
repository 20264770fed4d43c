"""One bit per entry and the survivors: for float32 smaller than CSR once an eighth of the weights survives.

row_ptr int32 [rows + 1]                 where the values of a row start
bits    uint8 [rows, ceil(columns / 8)]  column c is bit c % 8 of byte c // 8
values  [survivors]                      row by row
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.sparsity.formats.base import Format, gather, pointers
from spa.sparsity.formats.encoding import Array, Coded, Index, coded


@dataclass(frozen=True, eq=False)
class Bitmap(Format):
    row_ptr: Array
    bits: Array

    @classmethod
    def pack(cls, weight: Array | Coded) -> Bitmap:
        weight = coded(weight)
        kept = weight.kept
        row_ptr, bits = pointers(kept.sum(1)), np.packbits(kept, axis=1, bitorder="little")
        return cls(weight.shape, gather(weight, *np.nonzero(kept)), weight.grid, row_ptr, bits)

    @property
    def name(self) -> str:
        return "bitmap"

    def slots(self) -> tuple[Index, Index]:
        kept = np.unpackbits(self.bits, axis=1, count=self.shape[1], bitorder="little")
        rows, columns = np.nonzero(kept)
        return rows, columns

    def indices(self) -> dict[str, Array]:
        return {"row_ptr": self.row_ptr, "bits": self.bits}
