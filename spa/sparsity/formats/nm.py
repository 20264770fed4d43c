"""N of M: at most N of every M inputs in a row are kept.

    positions uint8 [rows, ceil(groups * N * b / 8)]   b = 2 bits for M <= 4, 4 for M <= 16, 8 for M <= 256
    values    [rows, groups * N]

groups = ceil(columns / M). The position of value i of a row stands at bit i * b of the row, lowest bits first, and is
its place among the M inputs of its group, i // N. Positions of a group increase and are distinct, which NVIDIA's
instructions ask for; where fewer than N survive, fillers stand at the first free positions. Kernels read inputs up
to the next multiple of M. `spa.sparsity.formats.mma_sp` gives the order that tensor cores want.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spa.errors import UsageError
from spa.sparsity.formats.base import Format, gather
from spa.sparsity.formats.encoding import Array, Coded, Index, coded, pack_bits, unpack_bits


@dataclass(frozen=True, eq=False)
class NM(Format):
    packed: Array
    n: int
    m: int

    @classmethod
    def pack(cls, weight: Array | Coded, n: int | None = None, m: int = 4) -> NM:
        """Without `n`, the smallest that holds all. Raises `UsageError` where a group has more than n survivors."""
        weight = coded(weight)
        if not 1 <= m <= 256:
            raise UsageError(f"no such pattern: {n}:{m}", hint="M from 1 to 256")
        rows, columns = weight.shape
        kept = np.pad(weight.kept, ((0, 0), (0, -columns % m))).reshape(rows, -1, m)
        most = int(kept.sum(2).max(initial=0))
        n = max(1, most) if n is None else n
        if most > n:
            r, g = np.argwhere(kept.sum(2) > n)[0]
            raise UsageError(f"not {n}:{m}: {most} of {m} weights survive", f"row {r}, columns from {g * m}", "bitmap")
        # survivors first, in order; the first n positions, in order again
        place = np.sort(np.argsort(~kept, axis=2, kind="stable")[..., :n], axis=2).astype(np.uint8)
        packed = pack_bits(place.reshape(rows, -1), position_bits(m))
        empty = cls(weight.shape, np.empty(0), weight.grid, packed, n, m)
        return cls(weight.shape, gather(weight, *empty.slots()), weight.grid, packed, n, m)

    @property
    def name(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def positions(self) -> npt.NDArray[np.uint8]:
        """[rows, groups, n]"""
        groups = -(-self.shape[1] // self.m)
        return unpack_bits(self.packed, position_bits(self.m), groups * self.n).reshape(-1, groups, self.n)

    def slots(self) -> tuple[Index, Index]:
        place = self.positions
        columns = place + np.arange(place.shape[1])[:, None] * self.m
        flat = columns.reshape(self.shape[0], place.shape[1] * self.n)
        return np.broadcast_to(np.arange(self.shape[0])[:, None], flat.shape), flat

    def indices(self) -> dict[str, Array]:
        return {"positions": self.packed}


def position_bits(m: int) -> int:
    return 2 if m <= 4 else 4 if m <= 16 else 8
