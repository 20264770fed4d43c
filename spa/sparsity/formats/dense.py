"""All entries, row by row: the form of what is not worth thinning out.

values  [rows, columns]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.sparsity.formats.base import Format
from spa.sparsity.formats.encoding import Array, Coded, Index, coded, pack_bits


@dataclass(frozen=True, eq=False)
class Dense(Format):
    @classmethod
    def pack(cls, weight: Array | Coded) -> Dense:
        weight = coded(weight)
        codes = pack_bits(weight.codes, weight.bits) if weight.bits < 8 else weight.codes
        return cls(weight.shape, codes, weight.grid)

    @property
    def name(self) -> str:
        return "dense"

    def slots(self) -> tuple[Index, Index]:
        rows, columns = np.indices(self.shape)
        return rows, columns

    def indices(self) -> dict[str, Array]:
        return {}
