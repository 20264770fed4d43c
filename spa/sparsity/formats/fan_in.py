"""Condensed constant fan-in: every output keeps the same number k of inputs, anywhere (SRigL, arXiv 2305.02299).

    columns uint8 | uint16 | int32 [rows, k]   increasing and distinct
    values  [rows, k]

k is the most that any row keeps; shorter rows are filled up with the first columns they do not use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.sparsity.formats.base import Format, gather
from spa.sparsity.formats.encoding import Array, Coded, Index, coded, index_type


@dataclass(frozen=True, eq=False)
class FanIn(Format):
    columns: Array

    @classmethod
    def pack(cls, weight: Array | Coded) -> FanIn:
        weight = coded(weight)
        kept = weight.kept
        k = int(kept.sum(1).max(initial=0))
        first = np.sort(np.argsort(~kept, axis=1, kind="stable")[:, :k], axis=1)
        columns = first.astype(index_type(max(1, weight.shape[1])))
        empty = cls(weight.shape, np.empty(0), weight.grid, columns)
        return cls(weight.shape, gather(weight, *empty.slots()), weight.grid, columns)

    @property
    def name(self) -> str:
        return "fan_in"

    def slots(self) -> tuple[Index, Index]:
        rows = np.arange(self.shape[0])[:, None]
        return np.broadcast_to(rows, self.columns.shape), self.columns.astype(np.int64)

    def indices(self) -> dict[str, Array]:
        return {"columns": self.columns}
